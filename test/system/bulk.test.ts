// A large object from S3 through agent and control plane to curl: right digest, flat memory, and one cut in the middle.
// SALLYPORT_BULK_GIB sets its size; 1 by default, so that a laptop's temporary folder has room.
import { spawn } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { closeSync, mkdirSync, openSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { tempDir, waitFor } from "../support/launcher.ts";
import { sampleRss } from "../support/rss.ts";
import { startS3 } from "../support/servers.ts";
import { needs } from "../support/skip.ts";
import { CEILINGS, connectAgent, TestCloud } from "../support/stack.ts";
import { startTcpProxy } from "../support/tcp-proxy.ts";

const gib = Number(process.env["SALLYPORT_BULK_GIB"] ?? 1);
const LIMIT_MIB = 200;

t.test(`${gib} GiB from S3 to curl, cut once`, { skip: needs("s3"), timeout: 600_000 }, async (t) => {
  const s3 = await startS3(t);
  const bucket = await s3.bucket();
  const file = join(s3.dataDir, bucket, "big/object.bin");
  mkdirSync(join(s3.dataDir, bucket, "big"));
  const hash = createHash("sha256");
  const block = randomBytes(16 << 20);
  const handle = openSync(file, "w");
  for (let n = 0; n < gib * 64; n++) {
    block.writeUInt32BE(n, 0); // no two blocks are alike: a block in the wrong place shows
    writeSync(handle, block);
    hash.update(block);
  }
  closeSync(handle);
  const expected = hash.digest("hex");

  const cloud = await TestCloud.start(t);
  const proxy = await startTcpProxy(t, { port: cloud.port });
  const secretFile = join(tempDir(t, "secret"), "key");
  writeFileSync(secretFile, s3.secretAccessKey, { mode: 0o600 });
  const agent = await connectAgent(t, cloud, "lab", {
    url: `http://127.0.0.1:${proxy.port}`,
    config: `
stores:
  - { id: lake, kind: s3, endpoint: ${s3.endpoint}, region: ${s3.region}, bucket: ${bucket}, pathStyle: true,
      accessKeyId: ${s3.accessKeyId}, secretAccessKey: "\${file:${secretFile}}" }
policy:
  ${CEILINGS}
  commands: ["artifact.*"]
  stores: [{ store: lake, read: ["big/**"] }]
  release: { metadata: true, raw: [{ store: lake, paths: ["big/**"] }] }
`,
  });
  const rss = { agent: sampleRss(agent.program.pid), cloud: sampleRss(cloud.program.pid) };
  t.teardown(() => void [rss.agent.stop(), rss.cloud.stop()]);

  const began = performance.now();
  const curl = spawn("curl", ["-sS", "--fail", "-H", `Authorization: Bearer ${cloud.api.token}`, `${cloud.url}/v1/pools/lab/stores/lake/content?path=big%2Fobject.bin`], { stdio: ["ignore", "pipe", "inherit"] });
  const arrived = createHash("sha256");
  let bytes = 0;
  let cutAt = 0;
  for await (const chunk of curl.stdout) {
    arrived.update(chunk as Buffer);
    bytes += (chunk as Buffer).length;
    if (cutAt === 0 && bytes > gib * 2 ** 29) {
      cutAt = bytes;
      proxy.cut();
    }
  }
  const code = await new Promise((resolve) => (curl.exitCode === null ? curl.on("close", resolve) : resolve(curl.exitCode)));
  const seconds = (performance.now() - began) / 1000;
  t.equal(code, 0, "curl is content");
  t.equal(bytes, gib * 2 ** 30, "every byte came");
  t.equal(arrived.digest("hex"), expected, "and is the right one");
  t.ok(cutAt > 0 && proxy.accepted >= 2, `the link was cut after ${cutAt} bytes and dialled again`);
  const peak = { agent: rss.agent.stop().peakBytes / 2 ** 20, cloud: rss.cloud.stop().peakBytes / 2 ** 20 };
  t.comment(`${gib} GiB in ${seconds.toFixed(1)} s, ${((gib * 1024) / seconds).toFixed(0)} MiB/s; peak resident: agent ${peak.agent.toFixed(0)} MiB, cloud ${peak.cloud.toFixed(0)} MiB`);
  t.ok(peak.agent < LIMIT_MIB, `agent stays under ${LIMIT_MIB} MiB: ${peak.agent.toFixed(0)}`);
  t.ok(peak.cloud < LIMIT_MIB, `cloud stays under ${LIMIT_MIB} MiB: ${peak.cloud.toFixed(0)}`);
  await waitFor("the agent to be connected", () => cloud.connected());
});
