// 50 reconnects in one process: what it holds after them, beside what it held after the first ones.
import { fork } from "node:child_process";
import { fileURLToPath } from "node:url";
import type { Held } from "./reconnects-ends.ts";
import { atMost, row, type BenchResult } from "./report.ts";
import { withTeardown } from "./world.ts";

const RECONNECTS = 50;
/** The first ones compile and fill caches. */
const WARM = 100;

export function benchReconnects(): Promise<BenchResult> {
  return withTeardown(async (t) => {
    const child = fork(fileURLToPath(new URL("reconnects-ends.ts", import.meta.url)), {
      execArgv: ["--expose-gc"],
      stdio: ["ignore", "inherit", "inherit", "ipc"],
    });
    t.teardown(() => child.disconnect());
    const heard = (): Promise<unknown> => new Promise((resolve) => child.once("message", resolve));
    await heard();
    const after = async (times: number): Promise<Held> => {
      const answer = heard();
      child.send(times);
      return (await answer) as Held;
    };
    const before = await after(WARM);
    const held = await after(RECONNECTS);
    const growth = (key: keyof Held) => (100 * (held[key] - before[key])) / before[key];
    return {
      rows: [
        row("file descriptors", held.sockets, ""),
        row("timers", held.timers, ""),
        row("heap", held.heapBytes / 1024 ** 2, "MiB"),
      ],
      bars: [
        atMost("50 reconnects: sockets grew by", growth("sockets"), 2, "%"),
        atMost(
          "50 reconnects: timers grew by",
          Math.max(0, held.timers - before.timers) === 0 ? 0 : growth("timers"),
          2,
          "%",
        ),
        atMost("50 reconnects: memory grew by", growth("heapBytes"), 2, "%"),
      ],
    };
  });
}
