// An Engine that takes connections and does not answer, stops amid an answer, or hands out a log that is damaged: what a
// real one does when its disk or a lock stalls, and cannot be made to do at a chosen request.
import { existsSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from "node:fs";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { pino } from "pino";
import t, { type Test } from "tap";
import { pack } from "tar-stream";
import { ManualClock } from "../../../test/support/clock.ts";
import { waitFor } from "../../../test/support/launcher.ts";
import { unpackOutputs } from "./archive.ts";
import { DockerClient } from "./client.ts";
import { Images } from "./images.ts";
import { LogFollower } from "./log-follower.ts";

const ID = "a".repeat(64);
const log = pino({ level: "silent" });

async function engine(t: Test, answer: (request: IncomingMessage, response: ServerResponse) => void) {
  const folder = mkdtempSync(join(tmpdir(), "sallyport-sick-"));
  const server = createServer(answer);
  const socket = join(folder, "docker.sock");
  await new Promise<void>((resolve) => server.listen(socket, resolve));
  const client = new DockerClient(socket);
  t.teardown(() => {
    client.close();
    server.closeAllConnections();
    server.close();
    rmSync(folder, { recursive: true, force: true });
  });
  return { client, folder };
}

const frame = (stream: number, text: string): Buffer => {
  const head = Buffer.alloc(8);
  head[0] = stream;
  head.writeUInt32BE(Buffer.byteLength(text), 4);
  return Buffer.concat([head, Buffer.from(text)]);
};
const line = (second: number, text: string): Buffer => frame(1, `2026-01-01T00:00:0${second}.000000000Z ${text}\n`);

function follow(t: Test, client: DockerClient, folder: string, isOver: () => Promise<boolean | null>) {
  const clock = new ManualClock();
  const stdout = join(folder, "out");
  const follower = new LogFollower({
    client,
    clock,
    log,
    name: "sallyport.x",
    id: ID,
    stdout,
    stderr: join(folder, "err"),
    isOver,
  });
  let isDone = false;
  void follower.done.then(() => (isDone = true));
  t.teardown(() => follower.close());
  return { clock, follower, text: () => readFileSync(stdout, "utf8"), done: () => isDone };
}

t.test("an Engine that hangs is away, before the head of its answer and behind it", async (t) => {
  const { client } = await engine(t, (request, response) => {
    if (request.url!.startsWith("/behind")) response.writeHead(200).write("{");
  });
  for (const path of ["/before", "/behind"])
    await t.rejects(
      client.call("GET", path, { timeoutMs: 100 }),
      { code: "ENGINE_UNREACHABLE", fix: /does not answer/ },
      path,
    );
  const caller = new AbortController();
  const call = client.call("GET", "/before", { signal: caller.signal, timeoutMs: 60_000 });
  caller.abort(new Error("the caller's own"));
  await t.rejects(call, { message: "the caller's own" });
});

t.test("an image whose pull breaks off is not refused: the Engine is away", async (t) => {
  const { client } = await engine(t, (request, response) => {
    if (!request.url!.includes("/create")) return response.writeHead(404).end('{"message":"none"}');
    response.writeHead(200).write('{"status":"Pulling"}\n');
    setTimeout(() => response.destroy(), 20);
  });
  const images = new Images(client, new ManualClock());
  await t.rejects(images.prepare(`registry/x@sha256:${"a".repeat(64)}`), { code: "ENGINE_UNREACHABLE" });
});

t.test("outputs with names that this machine cannot hold are refused, not fetched again", async (t) => {
  const folder = mkdtempSync(join(tmpdir(), "sallyport-sick-"));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  const tar = pack();
  tar.entry({ name: "outputs", type: "directory" });
  tar.entry({ name: `outputs/${`${"d".repeat(200)}/`.repeat(30)}f`, size: 1 }, "x");
  tar.finalize();
  await t.rejects(unpackOutputs(Readable.from(tar), folder, 1000), { code: "STEP_OUTPUT_MISSING" });
});

t.test("the last reading of a log that falls silent is no end of the log", async (t) => {
  let readings = 0;
  const { client, folder } = await engine(t, (request, response) => {
    if (!request.url!.includes("/logs")) return response.writeHead(404).end("{}");
    response.writeHead(200).write(line(1, "one"));
    if (++readings > 1) response.end(line(2, "two"));
  });
  const { clock, text, done } = follow(t, client, folder, async () => true);
  await waitFor("the first line", () => readings === 1 && text() === "one\n");
  await waitFor("the end", async () => {
    await clock.advance(10_000);
    return done();
  });
  t.equal(text(), "one\ntwo\n", "what came late is in the file, each byte once");
});

t.test("a followed log that is never answered is asked for anew", async (t) => {
  let readings = 0;
  let over = false;
  const { client, folder } = await engine(t, (request, response) => {
    if (request.url!.includes("/logs") && ++readings > 1) {
      over = true;
      response.writeHead(200).end(line(1, "one"));
    }
  });
  const { clock, text, done } = follow(t, client, folder, async () => over);
  await waitFor("the first reading", () => readings === 1);
  await waitFor("the end", async () => {
    await clock.advance(10_000);
    return done();
  });
  t.equal(text(), "one\n");
});

t.test("a log that the Engine cannot read to its end does not hold up the end of the work", async (t) => {
  const { client, folder } = await engine(t, (_request, response) => {
    response.writeHead(200).end(Buffer.concat([line(1, "one"), frame(3, "Error grabbing logs: unexpected EOF\n")]));
  });
  const { clock, text, done } = follow(t, client, folder, async () => true);
  await waitFor("the end", async () => {
    await clock.advance(10_000);
    return done();
  });
  t.equal(text(), "one\n", "what could be read is there");
});

t.test(
  "a disk that is full when a log is begun delays it and loses nothing",
  { skip: !existsSync("/dev/full") },
  async (t) => {
    const { client, folder } = await engine(t, (_request, response) => {
      response.writeHead(200).end(line(1, "one"));
    });
    const full = join(folder, "out.cursor.part");
    symlinkSync("/dev/full", full);
    const { clock, text, done } = follow(t, client, folder, async () => true);
    await waitFor("the wait for space", () => done() || clock.pending > 0);
    rmSync(full);
    await waitFor("the end", async () => {
      await clock.advance(10_000);
      return done();
    });
    t.equal(text(), "one\n");
  },
);
