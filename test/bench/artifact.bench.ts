// 1 GiB from S3 through agent and control plane to curl, beside the SDK's own direct GET, curl at the S3 server, and
// tunnels to it. In turns; medians of the ratios within a round.
import { fork } from "node:child_process";
import { fileURLToPath } from "node:url";
import { startTunnels } from "./peers/tunnels.ts";
import { atLeast, atMost, median, ratios, row, type BenchResult, type Row } from "./report.ts";
import type { SdkAnswer, SdkOrder } from "./sdk-get.ts";
import { GIB, KEY, cpuSeconds, curl, folderOf, ourCurl, s3Curl, startWorld, withTeardown } from "./world.ts";

const ROUNDS = Number(process.env["BENCH_ROUNDS"] ?? 7);
const BYTES = Number(process.env["BENCH_BYTES"] ?? GIB);

interface Read {
  mbPerS: number;
  cpuS: number;
}

export function benchArtifact(): Promise<BenchResult> {
  return withTeardown(async (t) => {
    const world = await startWorld(t, { objectBytes: BYTES });
    const { s3 } = world;
    const { tunnels, missing } = await startTunnels(t, (name) => folderOf(t, name), Number(new URL(s3.endpoint).port));
    const sdk = fork(fileURLToPath(new URL("sdk-get.mjs", import.meta.url)), {
      stdio: ["ignore", "inherit", "inherit", "ipc"],
    });
    t.teardown(() => sdk.disconnect());
    const heard = (): Promise<unknown> => new Promise((resolve) => sdk.once("message", resolve));
    await heard();
    const order: SdkOrder = {
      endpoint: s3.endpoint,
      region: s3.region,
      accessKeyId: s3.accessKeyId,
      secretAccessKey: s3.secretAccessKey,
      bucket: world.bucket,
      key: KEY,
    };

    const checked = (bytes: number, seconds: number, cpuS: number): Read => {
      if (bytes !== BYTES) throw new Error(`${bytes} of ${BYTES} bytes came.`);
      return { mbPerS: bytes / 1e6 / seconds, cpuS: cpuS / (BYTES / GIB) };
    };
    const byCurl = async (args: string[], pids: readonly number[]): Promise<Read> => {
      const before = cpuSeconds(pids);
      const { bytes, seconds } = await curl(args);
      return checked(bytes, seconds, cpuSeconds(pids) - before);
    };
    const bySdk = async (): Promise<Read> => {
      const answer = heard();
      sdk.send(order);
      const { bytes, seconds, cpuS } = (await answer) as SdkAnswer;
      return checked(bytes, seconds, cpuS);
    };
    const ways: [string, () => Promise<Read>][] = [
      ["SDK, direct", bySdk],
      ["ours", () => byCurl(ourCurl(world), [world.cloud.program.pid, world.agent.program.pid])],
      ["curl, direct", () => byCurl(s3Curl(world, s3.endpoint), [])],
      ...tunnels.map(({ name, port, pids }): [string, () => Promise<Read>] => [
        name,
        () => byCurl(s3Curl(world, `http://127.0.0.1:${port}`), pids),
      ]),
    ];
    const reads = new Map<string, Read[]>(ways.map(([name]) => [name, []]));
    // The first round warms up.
    for (let round = 0; round <= ROUNDS; round++)
      for (const [name, way] of ways) {
        const read = await way();
        if (round > 0) reads.get(name)!.push(read);
        if (process.env["BENCH_VERBOSE"] !== undefined) console.error(name, JSON.stringify(read));
      }
    const of = (name: string, key: keyof Read) => (reads.get(name) ?? []).map((read) => read[key]);
    const rows: Row[] = ways.flatMap(([name]) => [
      row(`${name}: 1 GiB`, median(of(name, "mbPerS")), "MB/s"),
      ...(name === "curl, direct" ? [] : [row(`${name}: CPU`, median(of(name, "cpuS")), "s per GiB")]),
    ]);
    return {
      rows,
      bars: [
        atLeast(
          "artifact / SDK's direct GET",
          median(ratios(of("ours", "mbPerS"), of("SDK, direct", "mbPerS"))),
          0.7,
          "x",
        ),
        atLeast("artifact / ssh -R", median(ratios(of("ours", "mbPerS"), of("ssh -R", "mbPerS"))), 1.5, "x"),
        atMost("artifact: CPU of agent and control plane", median(of("ours", "cpuS")), 2.5, "s per GiB"),
      ],
      versions: Object.fromEntries(tunnels.map(({ name, version }) => [name, version])),
      missing,
    };
  });
}
