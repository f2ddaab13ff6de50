// Resident memory of agent and control plane while 10 GiB pass, and beside ten readers that stalled. Compiled tree.
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { DEFAULT_WINDOWS } from "@sallyport/protocol";
import { atMost, row, type BenchResult } from "./report.ts";
import { memoryOf, toldMemory } from "./told-memory.ts";
import { GIB, MIB, curl, ourCurl, startWorld, withTeardown } from "./world.ts";

const SIZE_GIB = Number(process.env["BENCH_GIB"] ?? 10);
const READERS = 10;

const residentMiB = (pid: number): number =>
  Number(/^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]) / 1024;

/** Least squares. */
function slope(points: readonly (readonly [number, number])[]): number {
  const mean = (i: 0 | 1) => points.reduce((sum, point) => sum + point[i], 0) / points.length;
  const [mx, my] = [mean(0), mean(1)];
  return (
    points.reduce((sum, [x, y]) => sum + (x - mx) * (y - my), 0) / points.reduce((sum, [x]) => sum + (x - mx) ** 2, 0)
  );
}

export function benchMemory(): Promise<BenchResult> {
  return withTeardown(async (t) => {
    const world = await startWorld(t, {
      objectBytes: SIZE_GIB * GIB,
      sparse: true,
      cloudNodeArgs: [...toldMemory],
      agentNodeArgs: [...toldMemory],
    });
    const pids = { agent: world.agent.program.pid, cloud: world.cloud.program.pid };
    // Warm: a GiB, and a rest after it.
    await curl(["--range", `0-${GIB - 1}`, ...ourCurl(world)]);
    await sleep(5_000);
    const idle = { agent: residentMiB(pids.agent), cloud: residentMiB(pids.cloud) };
    const peak = { ...idle };
    const points = { agent: [] as [number, number][], cloud: [] as [number, number][] };
    const child = spawn("curl", ["-sS", "--fail", ...ourCurl(world)], { stdio: ["ignore", "pipe", "inherit"] });
    t.teardown(() => child.kill("SIGKILL"));
    let bytes = 0;
    const sampler = setInterval(() => {
      for (const which of ["agent", "cloud"] as const) {
        const now = residentMiB(pids[which]);
        peak[which] = Math.max(peak[which], now);
        if (bytes >= GIB) points[which].push([bytes / GIB, now]);
      }
    }, 50);
    const began = performance.now();
    for await (const chunk of child.stdout as AsyncIterable<Buffer>) bytes += chunk.length;
    const seconds = (performance.now() - began) / 1000;
    clearInterval(sampler);
    if (bytes !== SIZE_GIB * GIB) throw new Error(`${bytes} bytes came.`);
    await sleep(5_000);

    const forced = async () => ({
      agent: await memoryOf(world.agent.program),
      cloud: await memoryOf(world.cloud.program),
    });
    const clean = await forced();
    await sleep(2_000);
    const before = { agent: residentMiB(pids.agent), cloud: residentMiB(pids.cloud) };
    const readers = Array.from({ length: READERS }, () => {
      const reader = spawn("curl", ["-sS", ...ourCurl(world)], { stdio: ["ignore", "pipe", "ignore"] });
      t.teardown(() => reader.kill("SIGKILL"));
      let seen = 0;
      reader.stdout.on("data", (chunk: Buffer) => {
        seen += chunk.length;
        if (seen > MIB) reader.stdout.pause();
      });
      return reader;
    });
    const stalledPeak = { agent: 0, cloud: 0 };
    for (let n = 0; n < 100; n++) {
      await sleep(100);
      for (const which of ["agent", "cloud"] as const)
        stalledPeak[which] = Math.max(stalledPeak[which], residentMiB(pids[which]) - before[which]);
    }
    const held = await forced();
    const heldMiB = (which: "agent" | "cloud") => (held[which].arrayBuffers - clean[which].arrayBuffers) / MIB;
    const answered = await world.cloud.api.call(new URL(world.statUrl).pathname + new URL(world.statUrl).search);
    for (const reader of readers) reader.kill("SIGKILL");
    const above = Math.max(peak.agent - idle.agent, peak.cloud - idle.cloud);
    return {
      rows: [
        row("agent, warm idle", idle.agent, "MiB"),
        row("agent, peak", peak.agent, "MiB"),
        row("control plane, warm idle", idle.cloud, "MiB"),
        row("control plane, peak", peak.cloud, "MiB"),
        row(`${SIZE_GIB} GiB took`, seconds, "s"),
        row("agent, with ten stalled readers, more by", stalledPeak.agent, "MiB"),
        row("control plane, with ten stalled readers, more by", stalledPeak.cloud, "MiB"),
        row("agent, of that in buffers", heldMiB("agent"), "MiB"),
        row("control plane, of that in buffers", heldMiB("cloud"), "MiB"),
        row("a small request beside them", answered.status, "(status)"),
      ],
      bars: [
        atMost(`memory of ${SIZE_GIB} GiB above warm idle`, above, 80, "MiB"),
        atMost("memory, slope from the 2nd GiB on: agent", slope(points.agent), 1, "MiB per GiB"),
        atMost("memory, slope from the 2nd GiB on: control plane", slope(points.cloud), 1, "MiB per GiB"),
        atMost(
          "memory of ten stalled readers",
          Math.max(stalledPeak.agent, stalledPeak.cloud),
          (READERS * DEFAULT_WINDOWS.bulk) / MIB,
          "MiB",
        ),
      ],
    };
  });
}
