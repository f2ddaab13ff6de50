// npm run soak:link: a link that flaps, 1 to 30 s down and up, and programs that stand still for 20 s (SIGSTOP), while
// downloads, uploads and looks go on. Ends with counts; exit code 1 when a byte was wrong, something hung, an answer was
// not explained by the fault, or the link did not come back by itself.
//   npm run soak:link -- --minutes 15 --seed 2 --flap 1-30 --frozen 20
import { parseArgs } from "node:util";
import { linkRun } from "./link-run.ts";
import { onStage } from "./stage.ts";

const { values: given } = parseArgs({
  options: {
    minutes: { type: "string", default: "15" },
    seed: { type: "string", default: "1" },
    /** Seconds, least and most. */
    flap: { type: "string", default: "1-30" },
    /** Seconds. */
    frozen: { type: "string", default: "20" },
  },
});
const flap = /^([\d.]+)-([\d.]+)$/.exec(given.flap);
if (flap === null) {
  console.error("--flap is the least and the most seconds, such as 1-30.");
  process.exit(2);
}
await onStage(async (t) => {
  const result = await linkRun(t, {
    seed: Number(given.seed),
    forMs: Number(given.minutes) * 60_000,
    flapMs: [Number(flap[1]) * 1000, Number(flap[2]) * 1000],
    frozenMs: Number(given.frozen) * 1000,
  });
  const list = (counts: Readonly<Record<string, number>>): string =>
    Object.entries(counts)
      .map(([name, count]) => `${name} ${count}`)
      .join(", ");
  const usable = result.usableMs.toSorted((a, b) => a - b);
  const seconds = (part: number): string =>
    `${((usable[Math.min(usable.length - 1, Math.floor(usable.length * part))] ?? 0) / 1000).toFixed(1)} s`;
  console.log(`faults: ${list(result.faults)}; ${result.connections} connections`);
  console.log(`usable again after: p50 ${seconds(0.5)}, p95 ${seconds(0.95)}, longest ${seconds(1)}`);
  console.log(`downloads: ${list(result.downloads)}`);
  console.log(`uploads: ${list(result.uploads)}`);
  console.log(`looks: answered ${result.looks.answered}, refused: ${list(result.looks.refused)}`);
  console.log(`the longest, s: ${list(result.longest)}`);
  for (const violation of result.violations.slice(0, 50)) console.log(`FAIL ${violation}`);
  console.log(`${result.violations.length} violations (wrong, unexplained, hung or not back), seed ${given.seed}`);
  process.exitCode = result.violations.length > 0 ? 1 : 0;
});
