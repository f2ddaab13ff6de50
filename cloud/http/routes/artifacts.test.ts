// Artifacts over HTTP, against a store in memory behind a real link: what a header means, and that a cut link does not show.
import { createHash, randomBytes } from "node:crypto";
import type { ConnectorError } from "@sallyport/protocol";
import fc from "fast-check";
import t from "tap";
import type { FakeAgent } from "../../../test/support/fake-agent.ts";
import { apiWorld, serveLake, type ApiWorld, type Held } from "../../../test/support/api-world.ts";
import type { Problem } from "../api.ts";

const base = "/v1/pools/vpc/stores/lake";
const content = (path: string) => `${base}/content?path=${encodeURIComponent(path)}`;
const file = (bytes: string | Buffer, mediaType = "text/plain", version = 'a"b c%'): Held => ({
  bytes: Buffer.from(bytes),
  version,
  mediaType,
});
const ETAG = '"a%22b%20c%25"';

let world: ApiWorld;
let agent: FakeAgent;
const files = new Map<string, Held>();
let beforeChunk: (sentBytes: number) => Promise<void> | void = () => {};

t.before(async () => {
  world = await apiWorld(t);
  agent = await world.replica("prod-1");
  serveLake(agent, files, { read: (sent) => beforeChunk(sent) });
  files.set("a.txt", file("0123456789"));
  files.set("empty", file(""));
});

const get = (path: string, headers: Record<string, string> = {}, method = "GET") =>
  world.api.call(path, { headers, method });
const problem = (body: Buffer) => JSON.parse(body.toString()) as Problem;

t.test("offline: at once, with who was last seen", async (t) => {
  const answer = await get(content("a.txt"));
  t.equal(answer.status, 503);
  t.match(problem(answer.body), { code: "AGENT_OFFLINE", requestId: /^req_/, fix: /Start the agent/ });
  t.match(problem((await world.api.call(`/v1/pools/nope/stores/lake/content?path=a`)).body), { code: "NOT_FOUND" });
});

t.test("ranges and preconditions", async (t) => {
  await agent.connect();
  type Row = [headers: Record<string, string>, status: number, body: string | null, range?: string];
  const rows: Row[] = [
    [{}, 200, "0123456789"],
    [{ range: "bytes=2-4" }, 206, "234", "bytes 2-4/10"],
    [{ range: "bytes=7-" }, 206, "789", "bytes 7-9/10"],
    [{ range: "bytes=7-900" }, 206, "789", "bytes 7-9/10"],
    [{ range: "bytes=-3" }, 206, "789", "bytes 7-9/10"],
    [{ range: "bytes=-30" }, 206, "0123456789", "bytes 0-9/10"],
    [{ range: "bytes=10-" }, 416, null, "bytes */10"],
    [{ range: "bytes=99999999999999999999-" }, 416, null, "bytes */10"],
    [{ range: "bytes=-0" }, 416, null, "bytes */10"],
    [{ range: "bytes=4-2" }, 200, "0123456789"],
    [{ range: "bytes=0-1,3-4" }, 200, "0123456789"],
    [{ range: "rows=0-1" }, 200, "0123456789"],
    [{ "if-match": ETAG }, 200, "0123456789"],
    [{ "if-match": `"x", ${ETAG}`, range: "bytes=0-0" }, 206, "0", "bytes 0-0/10"],
    [{ "if-match": "*" }, 200, "0123456789"],
    [{ "if-match": '"x"' }, 412, null],
    [{ "if-match": `W/${ETAG}` }, 412, null],
    [{ "if-none-match": ETAG }, 304, ""],
    [{ "if-none-match": `W/${ETAG}` }, 304, ""],
    [{ "if-none-match": "*" }, 304, ""],
    [{ "if-none-match": '"x"' }, 200, "0123456789"],
    [{ "if-range": ETAG, range: "bytes=1-2" }, 206, "12", "bytes 1-2/10"],
    [{ "if-range": '"x"', range: "bytes=1-2" }, 200, "0123456789"],
  ];
  for (const [headers, status, body, range] of rows) {
    const answer = await get(content("a.txt"), headers);
    const name = JSON.stringify(headers);
    t.equal(answer.status, status, name);
    if (body !== null) t.equal(answer.body.toString(), body, name);
    if (range !== undefined) t.equal(answer.headers["content-range"], range, name);
    if (status < 400) t.equal(answer.headers.etag, ETAG, name);
  }
  t.equal((await get(content("empty"))).body.length, 0);
  t.equal((await get(content("empty"), { range: "bytes=0-" })).status, 416);
  const head = await get(content("a.txt"), {}, "HEAD");
  t.match(head.headers, { "content-length": "10", etag: ETAG, "accept-ranges": "bytes" });
  t.equal((await get(content("a.txt"), { "if-match": '"x"' }, "HEAD")).status, 412);
});

t.test("nothing that can script is served as such", async (t) => {
  for (const mediaType of [
    "text/html",
    "TEXT/HTML; charset=x",
    "image/svg+xml",
    "application/xml",
    "text/javascript",
    "application/xhtml+xml",
    "application/pdf",
    "text/css",
    "weird",
    "",
  ]) {
    files.set("page", file("<script>alert(1)</script>", mediaType));
    const { headers } = await get(content("page"));
    t.match(
      headers,
      {
        "content-type": "application/octet-stream",
        "x-content-type-options": "nosniff",
        "content-security-policy": "sandbox; default-src 'none'",
        "content-disposition": /^attachment; /,
      },
      mediaType,
    );
  }
  files.set('dir/n"a\r\nme\u202egpj.ü', file("x"));
  t.equal(
    (await get(content('dir/n"a\r\nme\u202egpj.ü'))).headers["content-disposition"],
    `attachment; filename="n_a__me_gpj._"; filename*=UTF-8''n_a__me_gpj.%C3%BC`,
  );
});

t.test("paths that climb are refused by name, however they are written", async (t) => {
  for (const path of ["a/../b", "..", "%2e%2e/x", "a%2F..%2Fb", "a%2f%2e%2e%2fb"]) {
    const answer = await get(`${base}/content?path=${path}`);
    t.equal(answer.status, 400, path);
    t.match(problem(answer.body), { code: "PATH_INVALID", fix: /./, requestId: /^req_/ }, path);
  }
  t.match(problem((await get(`${base}/content?path=a&path=b`)).body), { code: "INPUT_INVALID" });
  t.match(problem((await get(`${base}/content?path=none`)).body), { code: "ARTIFACT_NOT_FOUND" });
});

t.test("uploads: conditional, with digest, refused early without losing the answer", async (t) => {
  const bytes = randomBytes(3 * 1024 * 1024 + 7);
  const digest = createHash("sha256").update(bytes).digest();
  const put = (path: string, headers: Record<string, string>, body: Buffer | AsyncIterable<Uint8Array> = bytes) =>
    world.api.call(content(path), { method: "PUT", headers, body });
  const made = await put("up/x.bin", {
    "if-none-match": "*",
    "repr-digest": `sha-256=:${digest.toString("base64")}:`,
    "content-type": "application/json",
  });
  t.equal(made.status, 201);
  t.match(made.json(), { path: "up/x.bin", sizeBytes: bytes.length, digest: `sha256:${digest.toString("hex")}` });
  t.ok(files.get("up/x.bin")!.bytes.equals(bytes));
  t.equal((await put("up/x.bin", { "if-none-match": "*" })).status, 412);
  t.equal((await put("up/x.bin", { "if-match": '"other"' })).status, 412);
  t.equal((await put("up/x.bin", { "if-match": made.headers.etag! }, Buffer.from("new"))).status, 200);
  t.equal((await put("up/none", { "if-match": "*" }, Buffer.from("new"))).status, 412);
  t.equal(
    (await put("up/x.bin", { "repr-digest": `sha-256=:${digest.toString("base64")}:` }, Buffer.from("other"))).status,
    422,
  );
  t.equal((await put("up/empty", {}, Buffer.alloc(0))).status, 200);
  t.equal(
    (
      await put(
        "up/stream",
        {},
        (async function* () {
          yield Buffer.from("by ");
          yield Buffer.from("parts");
        })(),
      )
    ).status,
    200,
  );
  t.equal(files.get("up/stream")!.bytes.toString(), "by parts");
  const denied = await put("forbidden/x", {});
  t.equal(denied.status, 403);
  t.match(denied.json(), { code: "POLICY_DENIED", fix: "Ask the customer." });
  t.equal(
    (await world.api.call(content("up/stream"), { method: "DELETE", headers: { "if-match": '"old"' } })).status,
    412,
  );
  t.equal((await world.api.call(content("up/stream"), { method: "DELETE" })).status, 204);
  t.equal((await world.api.call(content("up/stream"), { method: "DELETE" })).status, 404);
});

t.test("an upload goes on over the next link; one that its agent has forgotten says so", async (t) => {
  const upload = async (path: string) => {
    const gate = Promise.withResolvers<void>();
    const body = async function* () {
      yield Buffer.alloc(100_000, "a");
      await gate.promise;
      yield Buffer.alloc(100_000, "b");
    };
    const before = agent.seen.length;
    const answered = world.api.call(content(path), { method: "PUT", body: body() });
    while (agent.seen.length === before) await new Promise((resolve) => setImmediate(resolve));
    await new Promise((resolve) => setTimeout(resolve, 100));
    await agent.cut();
    await agent.connect();
    gate.resolve();
    return answered;
  };
  const kept = await upload("up/kept");
  t.equal(kept.status, 200, kept.body.toString());
  t.ok(files.get("up/kept")?.bytes.equals(Buffer.concat([Buffer.alloc(100_000, "a"), Buffer.alloc(100_000, "b")])));
  const cut = await upload("up/forget");
  t.equal(cut.status, 502);
  t.match(cut.json(), { code: "LINK_LOST", detail: /restarted/, fix: /again/ });
  t.notOk(files.has("up/forget"));
});

t.test("an upload whose client dies leaves nothing", async (t) => {
  const before = agent.seen.length;
  const body = async function* () {
    yield Buffer.alloc(100_000, "a");
    while (agent.seen.length === before) await new Promise((resolve) => setImmediate(resolve));
    throw new Error("the client dies");
  };
  await t.rejects(world.api.call(content("up/gone"), { method: "PUT", body: body() }));
  const whole = await world.api.call(content("up/gone"), {
    method: "PUT",
    body: Buffer.from("whole"),
    headers: { "if-none-match": "*" },
  });
  t.equal(whole.status, 201, whole.body.toString());
  t.equal(files.get("up/gone")?.bytes.toString(), "whole");
});

t.test("a cut read goes on inside the same response and gives exactly the bytes", async (t) => {
  const bytes = randomBytes(700_001);
  files.set("big", file(bytes, "application/octet-stream"));
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.nat(bytes.length), { minLength: 1, maxLength: 4 }),
      fc.nat(1000),
      fc.boolean(),
      async (cuts, offset, slowly) => {
        const at = cuts.toSorted((a, b) => a - b);
        beforeChunk = async (sent) => {
          if (at[0] === undefined || sent < at[0]) return;
          at.shift();
          await agent.cut();
          if (slowly) setTimeout(() => void agent.connect(), 20);
          else await agent.connect();
        };
        const answer = await get(content("big"), offset === 0 ? {} : { range: `bytes=${offset}-` });
        t.ok(answer.body.equals(bytes.subarray(offset)));
      },
    ),
    { numRuns: 25 },
  );
  beforeChunk = () => {};
});

t.test("a cut read of a file that changed is not ended cleanly", async (t) => {
  const bytes = randomBytes(12_000_000);
  files.set("big", file(bytes, "application/octet-stream"));
  let cut = false;
  beforeChunk = async (sent) => {
    if (cut || sent < 8_000_000) return;
    cut = true;
    files.set("big", file(bytes, "application/octet-stream", "newer"));
    await agent.cut();
    await agent.connect();
  };
  await t.rejects(get(content("big")), { code: "ECONNRESET" });
  beforeChunk = () => {};
});

t.test("a client that leaves stops the agent's reading", async (t) => {
  files.set("big", file(randomBytes(30_000_000), "application/octet-stream"));
  const stopped = Promise.withResolvers<ConnectorError>();
  const handler = agent.handlers.get("artifact.read")!;
  agent.handlers.set("artifact.read", (command) => {
    command.stream.signal.addEventListener("abort", () =>
      stopped.resolve(command.stream.signal.reason as ConnectorError),
    );
    return handler(command);
  });
  const response = await world.api.open(content("big"));
  response.once("data", () => response.destroy());
  t.equal((await stopped.promise).code, "CANCELLED");
  agent.handlers.set("artifact.read", handler);
  t.same(agent.faults, []);
});
