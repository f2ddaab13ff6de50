// A download and an upload whose link is cut three times each end with the right digest inside one HTTP exchange, for a
// folder and for a bucket. When the agent itself dies meanwhile, an upload goes on if all of it can be sent again, and
// else says precisely what was lost; nothing of it is seen in the store.
import { createHash, randomBytes } from "node:crypto";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t, { type Test } from "tap";
import { tempDir, waitFor } from "../support/launcher.ts";
import { startS3 } from "../support/servers.ts";
import { needs } from "../support/skip.ts";
import { CEILINGS, connectAgent, TestCloud, type TestAgent } from "../support/stack.ts";
import { startTcpProxy, type TcpProxy } from "../support/tcp-proxy.ts";

const MIB = 2 ** 20;
const BYTES = randomBytes(28 * MIB + 12_345);
const DIGEST = `sha256:${createHash("sha256").update(BYTES).digest("hex")}`;

interface System {
  cloud: TestCloud;
  agent: TestAgent;
  proxy: TcpProxy;
}

async function start(t: Test, store: string): Promise<System> {
  const cloud = await TestCloud.start(t);
  const proxy = await startTcpProxy(t, { port: cloud.port });
  const agent = await connectAgent(t, cloud, "lab", {
    url: `http://127.0.0.1:${proxy.port}`,
    config: `
link: { stableAfterMs: 0 }
stores:
  - ${store}
policy:
  ${CEILINGS}
  commands: ["artifact.*"]
  stores: [{ store: lake, read: ["**"], write: ["**"] }]
  release: { metadata: true, raw: [{ store: lake, paths: ["**"] }] }
`,
  });
  return { cloud, agent, proxy };
}

const url = (path: string) => `/v1/pools/lab/stores/lake/content?path=${encodeURIComponent(path)}`;

/** Acts at the given places of what passes by, once each. */
async function* acting(bytes: Buffer, places: number[], act: (n: number) => Promise<void>): AsyncGenerator<Buffer> {
  let n = 0;
  for (let at = 0; at < bytes.length; at += 64 * 1024) {
    while (places[n] !== undefined && at >= places[n]!) await act(n++);
    yield bytes.subarray(at, at + 64 * 1024);
  }
}

/** Cut off, then everything on the way is lost as well, then both at once while new dials are refused. */
async function cut(proxy: TcpProxy, n: number): Promise<void> {
  if (n === 1) {
    proxy.setMode("swallow");
    await new Promise((resolve) => setTimeout(resolve, 100));
    proxy.setMode("flow");
  }
  proxy.cut();
  if (n === 2) {
    proxy.refuse(true);
    setTimeout(() => proxy.refuse(false), 300);
  }
}

async function cutThreeTimes(t: Test, { cloud, proxy }: System): Promise<void> {
  const places = [BYTES.length / 4, BYTES.length / 2, (BYTES.length * 3) / 4];
  const dialled = proxy.accepted;
  const put = await cloud.api.call(url("up/one.bin"), {
    method: "PUT",
    headers: {
      "if-none-match": "*",
      "repr-digest": `sha-256=:${Buffer.from(DIGEST.slice(7), "hex").toString("base64")}:`,
    },
    body: acting(BYTES, places, (n) => cut(proxy, n)),
  });
  t.equal(put.status, 201, put.body.toString());
  t.match(put.json(), { digest: DIGEST, sizeBytes: BYTES.length });
  t.ok(proxy.accepted >= dialled + 3, "it was cut three times");
  const again = await cloud.api.call(url("up/one.bin"), {
    method: "PUT",
    headers: { "if-none-match": "*" },
    body: acting(BYTES, [20 * MIB], () => cut(proxy, 0)),
  });
  t.ok(
    again.status === 409 || again.status === 412,
    `a name that is taken stays taken: ${again.status} ${again.body.toString()}`,
  );

  // One that begins while the agent is away is refused at once.
  await waitFor("the agent to be back", async () => (await cloud.agent()).state === "connected");

  const hash = createHash("sha256");
  const response = await cloud.api.open(url("up/one.bin"), {});
  let got = 0;
  let cuts = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    hash.update(chunk);
    got += chunk.length;
    if (places[cuts] !== undefined && got >= places[cuts]!) await cut(proxy, cuts++);
  }
  t.equal(cuts, 3);
  t.equal(`sha256:${hash.digest("hex")}`, DIGEST, "one response, all bytes");
}

t.setTimeout(240_000);

t.test("a folder: three cuts each way, and an agent that dies meanwhile", async (t) => {
  const root = tempDir(t, "lake");
  mkdirSync(join(root, "up"));
  const system = await start(t, `{ id: lake, kind: fs, root: ${JSON.stringify(root)} }`);
  await cutThreeTimes(t, system);
  const { cloud, agent } = system;
  const restart = async () => {
    await agent.program.killHard();
    agent.start();
  };
  const small = BYTES.subarray(0, 2 * MIB);
  const kept = await cloud.api.call(url("up/small.bin"), { method: "PUT", body: acting(small, [MIB], restart) });
  t.equal(kept.status, 200, "little enough was sent to be sent again");
  t.match(kept.json(), { digest: `sha256:${createHash("sha256").update(small).digest("hex")}` });

  const lost = await cloud.api.call(url("up/lost.bin"), { method: "PUT", body: acting(BYTES, [24 * MIB], restart) });
  t.equal(lost.status, 502);
  t.match(lost.json(), { code: "LINK_LOST", detail: /restarted and no longer has the first \d+ bytes/, fix: /again/ });
  await waitFor("the agent to be back", async () => (await cloud.agent()).state === "connected");
  const listed = await cloud.api.json<{ entries: { name: string }[] }>("/v1/pools/lab/stores/lake/artifacts?path=up");
  t.same(
    listed.entries.map((entry) => entry.name).toSorted(),
    ["one.bin", "small.bin"],
    "nothing of what was lost is seen",
  );
});

t.test("a bucket: three cuts each way", { skip: needs("s3") }, async (t) => {
  const s3 = await startS3(t);
  const bucket = await s3.bucket();
  const secretFile = join(tempDir(t, "secret"), "key");
  writeFileSync(secretFile, s3.secretAccessKey, { mode: 0o600 });
  await cutThreeTimes(
    t,
    await start(
      t,
      `{ id: lake, kind: s3, endpoint: ${s3.endpoint}, region: ${s3.region}, bucket: ${bucket}, pathStyle: true, accessKeyId: ${s3.accessKeyId}, secretAccessKey: "\${file:${secretFile}}" }`,
    ),
  );
});
