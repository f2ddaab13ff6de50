// A byte a minute holds no socket: neither of a body that is awaited, nor of one whose answer is out.
import { connect, type Socket } from "node:net";
import { ConnectorError } from "@sallyport/protocol";
import { pino } from "pino";
import { Registry } from "prom-client";
import t from "tap";
import { z } from "zod";
import { ManualClock } from "../../test/support/clock.ts";
import { tempDir, waitFor } from "../../test/support/launcher.ts";
import { Authenticator } from "../auth/index.ts";
import { openSqliteStore } from "../store/index.ts";
import { rawBodies } from "./routes.ts";
import { makeApiServer } from "./server.ts";

t.test("slow bodies are cut in time, slow uploads are not", async (t) => {
  const store = await openSqliteStore({ dir: tempDir(t, "store") });
  t.teardown(() => store.close());
  const clock = new ManualClock();
  const begun: string[] = [];
  const api = await makeApiServer({
    store,
    authenticator: new Authenticator(store, clock),
    clock,
    log: pino({ level: "silent" }),
    registry: new Registry(),
    version: "test",
    tls: null,
    secureCookies: false,
    hosts: [],
    pageFolder: "/nonexistent",
    ready: () => true,
    routes: [
      async (app) => {
        app.addHook("preParsing", async (request) => void begun.push(request.url));
        app.post(
          "/json",
          { config: { public: true }, schema: { body: z.object({ n: z.number() }) } },
          async () => "read",
        );
      },
      async (app) => {
        rawBodies(app);
        app.put("/refused", { config: { public: true }, bodyLimit: Number.MAX_SAFE_INTEGER }, async () => {
          throw new ConnectorError("AGENT_OFFLINE", "No agent is connected.");
        });
        app.put("/upload", { config: { public: true }, bodyLimit: Number.MAX_SAFE_INTEGER }, async (request) => {
          begun.push(request.url);
          let bytes = 0;
          for await (const chunk of request.raw) bytes += (chunk as Buffer).length;
          return { bytes };
        });
      },
    ],
  });
  t.teardown(() => api.close(0));
  const port = await api.listen("127.0.0.1", 0);
  const send = (head: string): Socket & { got: string } => {
    const socket = Object.assign(connect({ port, host: "127.0.0.1" }), { got: "" });
    t.teardown(() => socket.destroy());
    socket.on("data", (bytes: Buffer) => (socket.got += bytes.toString())).on("error", () => {});
    socket.write(
      `${head}\r\nhost: 127.0.0.1\r\n${head.includes("nowhere") ? "" : "content-type: application/json\r\n"}`,
    );
    return socket;
  };

  // Asks for the connection to be closed, and reads nothing before it has sent all. More than any socket buffers.
  const body = Buffer.alloc(16 * 1024 * 1024);
  for (const [path, status] of [
    ["/refused", 503],
    ["/json", 413],
    ["/nowhere", 404],
  ] as const) {
    const blind = send(`${path === "/json" ? "POST" : "PUT"} ${path} HTTP/1.1\r\nconnection: close`);
    blind.pause();
    const errors: string[] = [];
    blind.on("error", (error) => errors.push(error.message));
    blind.write(`content-length: ${body.length}\r\n\r\n`);
    await new Promise((resolve) => blind.write(body, resolve));
    blind.resume();
    await waitFor(`the end of ${path}`, () => blind.destroyed);
    t.match(blind.got, `HTTP/1.1 ${status} `, `${path}: the refusal is read whole`);
    t.match(blind.got, /\{.*"code":.*\}$/);
    t.same(errors, [], `${path}: and the connection ends well`);
  }

  begun.length = 0;
  const quick = send("POST /json HTTP/1.1");
  quick.write('content-length: 7\r\n\r\n{"n":1}');
  await waitFor("an answer", () => quick.got.includes("200 OK"));
  const slow = send("POST /json HTTP/1.1");
  slow.write('content-length: 7\r\n\r\n{"n"');
  const refused = send("POST /nowhere HTTP/1.1");
  refused.write('content-length: 7\r\n\r\n{"n"');
  const upload = send("PUT /upload HTTP/1.1");
  upload.write("content-length: 7\r\n\r\nabc");
  await waitFor("all begun", () => begun.length === 3 && refused.got.includes("404"));

  await clock.advance(10_000);
  await waitFor("the refused one is cut", () => refused.destroyed);
  t.notOk(slow.destroyed, "the awaited one has time yet");
  await clock.advance(20_000);
  await waitFor("the slow one is cut", () => slow.destroyed);
  await clock.advance(3600_000);
  upload.write("defg");
  await waitFor("the upload is whole", () => upload.got.includes('{"bytes":7}'));
  t.notOk(quick.destroyed, "an idle connection is left to its own limit");
});
