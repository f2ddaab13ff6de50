// A large object from S3 through agent and control plane to curl: right digest, flat memory, and the link cut in the
// middle, for a reader that is faster than the way and for one that is slower. SALLYPORT_BULK_GIB sets the size; 1 by
// default, so that a laptop's temporary folder has room. CI passes 5.
//
// Memory is judged on what ships, the compiled tree, which is built here when it is not the sources' own. The source
// tree needs more, since three threads strip types in it: idle agent 145 and control plane 191 MiB, at the peak 179 and
// 218 (measured, 1 GiB).
import { spawn } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { closeSync, mkdirSync, openSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import t, { type Test } from "tap";
import { repository, runProgram, tempDir, waitFor } from "../support/launcher.ts";
import { sampleRss } from "../support/rss.ts";
import { startS3 } from "../support/servers.ts";
import { needs } from "../support/skip.ts";
import { CEILINGS, connectAgent, TestCloud } from "../support/stack.ts";
import { startTcpProxy } from "../support/tcp-proxy.ts";

const MIB = 2 ** 20;
const sizeBytes = Number(process.env["SALLYPORT_BULK_GIB"] ?? 1) * 1024 * MIB;
/** What the slow reader asks for: the end of the object, as a range. */
const slowBytes = 192 * MIB;
const SLOW_MIB_PER_SECOND = 32;
const LIMIT_MIB = 200;

t.setTimeout(900_000);
t.test(`${sizeBytes / MIB} MiB from S3 to curl, cut in the middle`, { skip: needs("s3") }, async (t) => {
  const built = await runProgram(t, {
    name: "build",
    args: [join(repository, "packaging/launch/build.mjs"), "--if-changed"],
  });
  if (built.code !== 0) throw new Error(`the compiled tree could not be made:\n${built.stdout}${built.stderr}`);

  const s3 = await startS3(t);
  const bucket = await s3.bucket();
  mkdirSync(join(s3.dataDir, bucket, "big"));
  const whole = createHash("sha256");
  const end = createHash("sha256");
  const block = randomBytes(16 * MIB);
  const handle = openSync(join(s3.dataDir, bucket, "big/object.bin"), "w");
  for (let at = 0; at < sizeBytes; at += block.length) {
    block.writeUInt32BE(at / block.length, 0); // no two blocks are alike: a block in the wrong place shows
    writeSync(handle, block);
    whole.update(block);
    if (at >= sizeBytes - slowBytes) end.update(block);
  }
  closeSync(handle);

  const cloud = await TestCloud.start(t, { tree: "dist" });
  const proxy = await startTcpProxy(t, { port: cloud.port });
  const secretFile = join(tempDir(t, "secret"), "key");
  writeFileSync(secretFile, s3.secretAccessKey, { mode: 0o600 });
  const agent = await connectAgent(t, cloud, "lab", {
    tree: "dist",
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

  /** curl's bytes as they come. The link is cut when it has half of them. */
  async function download(t: Test, wantedBytes: number, expected: string, curlArgs: string[]): Promise<void> {
    const rss = { agent: sampleRss(agent.program.pid), cloud: sampleRss(cloud.program.pid) };
    t.teardown(() => void [rss.agent.stop(), rss.cloud.stop()]);
    const dialled = proxy.accepted;
    const before = [...proxy.connections].at(-1)!;
    const upAtStart = before.bytes.up;
    let upAtCut = 0;

    const began = performance.now();
    const url = `${cloud.url}/v1/pools/lab/stores/lake/content?path=big%2Fobject.bin`;
    const curl = spawn("curl", ["-sS", "--fail", "-H", `Authorization: Bearer ${cloud.api.token}`, ...curlArgs, url], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    t.teardown(() => curl.kill("SIGKILL"));
    const closed = new Promise((resolve) => curl.on("close", resolve));
    const arrived = createHash("sha256");
    let bytes = 0;
    for await (const chunk of curl.stdout as AsyncIterable<Buffer>) {
      arrived.update(chunk);
      bytes += chunk.length;
      if (upAtCut === 0 && bytes >= wantedBytes / 2) {
        upAtCut = before.bytes.up - upAtStart;
        proxy.cut();
      }
    }
    const seconds = (performance.now() - began) / 1000;
    t.equal(await closed, 0, "curl is content");
    t.equal(bytes, wantedBytes, "every byte came");
    t.equal(arrived.digest("hex"), expected, "and is the right one");

    const after = [...proxy.connections].at(-1)!;
    t.equal(proxy.accepted, dialled + 1, "the agent dialled once more");
    const cutAt = upAtCut / wantedBytes;
    t.ok(cutAt > 0.45 && cutAt < 0.75, `the link was cut in the middle: after ${(cutAt * 100).toFixed(0)} %`);
    const second = after.bytes.up / wantedBytes;
    t.ok(after !== before && second > 0.25, `the rest came over the next one: ${(second * 100).toFixed(0)} %`);

    const peak = { agent: rss.agent.stop().peakBytes / MIB, cloud: rss.cloud.stop().peakBytes / MIB };
    const rate = (wantedBytes / MIB / seconds).toFixed(0);
    t.comment(
      `${wantedBytes / MIB} MiB in ${seconds.toFixed(1)} s, ${rate} MiB/s; peak resident: agent ${peak.agent.toFixed(0)} MiB, cloud ${peak.cloud.toFixed(0)} MiB`,
    );
    t.ok(peak.agent < LIMIT_MIB, `agent stays under ${LIMIT_MIB} MiB: ${peak.agent.toFixed(0)}`);
    t.ok(peak.cloud < LIMIT_MIB, `cloud stays under ${LIMIT_MIB} MiB: ${peak.cloud.toFixed(0)}`);
    await waitFor("the agent to be connected", () => cloud.connected());
  }

  await t.test("a reader that is faster than the way", (t) => download(t, sizeBytes, whole.digest("hex"), []));
  await t.test("a reader that is slower than the way", (t) =>
    download(t, slowBytes, end.digest("hex"), ["--range", `-${slowBytes}`, "--limit-rate", `${SLOW_MIB_PER_SECOND}M`]),
  );
});
