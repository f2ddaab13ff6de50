// From a broken link to a usable one, through a TCP proxy: a reset, and 20 s in which the proxy swallows all and lets the
// sockets stand. Several agents at once for the second, since each round takes half a minute. A download is under way
// each time and must end with the right digest.
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { startTcpProxy, type TcpProxy } from "../support/tcp-proxy.ts";
import { connectAgent } from "../support/stack.ts";
import { atMost, quantile, row, type BenchResult } from "./report.ts";
import { GIB, KEY, folderOf, startWorld, withTeardown } from "./world.ts";

const RESETS = Number(process.env["BENCH_RESETS"] ?? 20);
/** Agents times rounds: they wait, and wait together as well as alone. */
const HOLES = { agents: 10, rounds: Number(process.env["BENCH_ROUNDS"] ?? 2) };
const HOLE_MS = 20_000;
/** The setting that stands for the minute after which a link counts as stable. */
const STABLE_MS = 1_000;

async function digestOf(stream: AsyncIterable<Buffer>): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of stream) hash.update(chunk);
  return hash.digest("hex");
}

export function benchRecovery(): Promise<BenchResult> {
  return withTeardown(async (t) => {
    let proxy: TcpProxy | undefined;
    const config = `link: { stableAfterMs: ${STABLE_MS} }`;
    const world = await startWorld(t, {
      objectBytes: GIB,
      config,
      through: async (cloud) => {
        proxy = await startTcpProxy(t, { port: cloud.port });
        return `http://127.0.0.1:${proxy.port}`;
      },
    });
    const { cloud } = world;
    const digest = await digestOf(createReadStream(join(world.s3.dataDir, world.bucket, KEY)));
    const others = await Promise.all(
      Array.from({ length: HOLES.agents - 1 }, async (_, n) => {
        const between = await startTcpProxy(t, { port: cloud.port });
        const folder = folderOf(t, "other");
        await connectAgent(t, cloud, `lab${n}`, {
          tree: "dist",
          url: `http://127.0.0.1:${between.port}`,
          config: `stores: [{ id: box, kind: fs, root: ${folder} }]\n${config}\npolicy:\n  ceilings: { streams: 16 }\n  commands: ["artifact.*"]\n  stores: [{ store: box, read: ["**"] }]\n  release: { metadata: true }\n`,
        });
        return { pool: `lab${n}`, between };
      }),
    );
    const download = (rate: string) => {
      const curl = spawn(
        "curl",
        ["-sS", "--fail", "--limit-rate", rate, "-H", `Authorization: Bearer ${cloud.api.token}`, world.contentUrl],
        { stdio: ["ignore", "pipe", "inherit"] },
      );
      t.teardown(() => curl.kill("SIGKILL"));
      return digestOf(curl.stdout as AsyncIterable<Buffer>);
    };
    /** Ms from now until a command goes through again. */
    const usable = async (pool: string): Promise<number> => {
      const from = performance.now();
      for (;;) {
        const began = performance.now();
        const answer = await Promise.race([
          cloud.api.call(`/v1/pools/${pool}/stores/box/stat?path=`).then(({ status }) => status === 200),
          sleep(2_000).then(() => false),
        ]);
        if (answer) return performance.now() - from;
        if (performance.now() - from > 60_000) return Infinity;
        await sleep(Math.max(0, 5 - (performance.now() - began)));
      }
    };

    for (const { pool } of others)
      if (!Number.isFinite(await usable(pool))) throw new Error(`Pool ${pool} answers nothing.`);

    const resets: number[] = [];
    let right = 0;
    let downloads = 0;
    for (let n = 0; n < RESETS; n++) {
      // Every fifth round with a download under way.
      const carried = n % 5 === 0 ? download("600M") : null;
      await sleep(STABLE_MS + 300);
      const accepted = proxy!.accepted;
      proxy!.cut();
      const from = performance.now();
      while (proxy!.accepted === accepted && performance.now() - from < 30_000) await sleep(1);
      await usable("lab");
      resets.push(performance.now() - from);
      if (carried === null) continue;
      downloads++;
      if ((await carried) === digest) right++;
    }
    const holes: number[] = [];
    for (let round = 0; round < HOLES.rounds; round++) {
      const carried = download("60M");
      await sleep(STABLE_MS + 500);
      const all = [{ pool: "lab", between: proxy! }, ...others];
      for (const { between } of all) between.setMode("swallow");
      await sleep(HOLE_MS);
      for (const { between } of all) between.setMode("flow");
      holes.push(...(await Promise.all(all.map(({ pool }) => usable(pool)))));
      downloads++;
      if ((await carried) === digest) right++;
    }
    return {
      rows: [
        row("reset to usable, p50", quantile(resets, 0.5), "ms"),
        row("reset to usable, worst", Math.max(...resets), "ms"),
        row("20 s hole, its end to usable, p50", quantile(holes, 0.5), "ms"),
        row("20 s hole, its end to usable, worst", Math.max(...holes), "ms"),
        row("downloads cut on their way", downloads, ""),
      ],
      bars: [
        atMost("reset to usable, p95", quantile(resets, 0.95) / 1000, 0.5, "s"),
        atMost("20 s hole to usable after its end, p95", quantile(holes, 0.95) / 1000, 5, "s"),
        atMost("cut downloads with a wrong end", downloads - right, 0, ""),
      ],
    };
  });
}
