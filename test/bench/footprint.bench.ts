// The compiled agent, no connector loaded, against a gateway in this process: from the start of its process to its
// session, and its resident memory when it has been idle for a while.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { startCloudEnd } from "../contract/link/cloud-end.ts";
import { binFile, startProgram, type Program } from "../support/launcher.ts";
import { atMost, median, row, type BenchResult } from "./report.ts";
import { MIB, build, folderOf, withTeardown } from "./world.ts";

const STARTS = Number(process.env["BENCH_ROUNDS"] ?? 9);
const IDLE_MS = Number(process.env["BENCH_SECONDS"] ?? 20) * 1000;

const resident = (pid: number, what: "VmRSS" | "VmHWM"): number =>
  (Number(new RegExp(`^${what}:\\s+(\\d+) kB$`, "m").exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]) * 1024) /
  MIB;

export function benchFootprint(): Promise<BenchResult> {
  return withTeardown(async (t) => {
    build();
    const cloud = await startCloudEnd();
    t.teardown(() => cloud.stop());
    let online: () => void = () => {};
    cloud.gateway.sessions.onOnline(() => online());
    const folder = folderOf(t, "footprint");
    const config = join(folder, "agent.yaml");
    writeFileSync(
      config,
      `cloud: { url: "${cloud.url}" }\nstate: ${join(folder, "state")}\nstores: [{ id: box, kind: fs, root: ${folder} }]\npolicy:\n  commands: ["artifact.*"]\n  stores: [{ store: box, read: ["**"] }]\n  release: { metadata: true }\n`,
    );
    const start = async (env: Record<string, string>): Promise<{ program: Program; ms: number }> => {
      const connected = new Promise<void>((resolve) => (online = resolve));
      const from = performance.now();
      const program = startProgram(t, {
        name: "agent",
        args: [binFile("agent/bin/sallyport-agent", "dist"), "run", "--config", config],
        env,
      });
      await Promise.race([connected, program.exited.then(() => Promise.reject(new Error(program.tail())))]);
      return { program, ms: performance.now() - from };
    };
    // Enrols, and fills the compile cache.
    const first = await start({ SALLYPORT_ENROLL_SECRET: cloud.enrolment().text });
    await sleep(2_000);
    first.program.kill("SIGTERM");
    await first.program.exited;
    const took: number[] = [];
    let last: Program | null = null;
    for (let n = 0; n < STARTS; n++) {
      const { program, ms } = await start({});
      took.push(ms);
      if (n === STARTS - 1) last = program;
      else {
        program.kill("SIGTERM");
        await program.exited;
      }
    }
    await sleep(IDLE_MS);
    const idleMiB = resident(last!.pid, "VmRSS");
    return {
      rows: [
        row("process start to connected, worst", Math.max(...took) / 1000, "s"),
        row("first start, with enrolment", first.ms / 1000, "s"),
        row("peak resident memory", resident(last!.pid, "VmHWM"), "MiB"),
      ],
      bars: [
        atMost("agent, idle resident memory", (idleMiB * MIB) / 1e6, 110, "MB"),
        atMost("agent, process start to connected", median(took) / 1000, 0.4, "s"),
      ],
    };
  });
}
