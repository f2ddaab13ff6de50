// npm run soak:chaos: ten minutes of work while links are cut every few seconds and 10 % of dispatches and reports are
// repeated, 10 % moved and 5 % lost. Lost 0, double 0, order kept within a resource; exit code 1 when that did not hold.
//   npm run soak:chaos -- --minutes 10 --seed 3 --engine docker --database postgres://...
import { parseArgs } from "node:util";
import { chaosRun } from "./chaos-run.ts";
import { sweptDatabase } from "./database.ts";
import { ENGINES, type EngineName } from "./engines.ts";
import { onStage } from "./stage.ts";

const { values: given } = parseArgs({
  options: {
    minutes: { type: "string", default: "10" },
    seed: { type: "string", default: "1" },
    engine: { type: "string", default: "process" },
    database: { type: "string", default: "sqlite" },
    /** Runs in flight. */
    width: { type: "string", default: "6" },
    /** Seconds for everything to end when it is calm again. */
    within: { type: "string", default: "60" },
    /** What the programs said, when something did not hold. */
    verbose: { type: "boolean", default: false },
  },
});
if (!ENGINES.includes(given.engine as EngineName)) {
  console.error(`--engine is one of ${ENGINES.join(", ")}.`);
  process.exit(2);
}
await onStage(async (t) => {
  const result = await chaosRun(t, {
    seed: Number(given.seed),
    forMs: Number(given.minutes) * 60_000,
    engine: given.engine as EngineName,
    database: await sweptDatabase(t, given.database),
    width: Number(given.width),
    drainMs: Number(given.within) * 1000,
  });
  const list = (counts: Readonly<Record<string, number>>): string =>
    Object.entries(counts)
      .map(([name, count]) => `${name} ${count}`)
      .join(", ");
  console.log(
    `${result.runs} runs, ${result.cancels} cancels, ${result.applies} applies; ${result.effects} effects of steps`,
  );
  console.log(`TCP: ${list(result.tcp)}; ${result.links} connections`);
  console.log(`above the link: ${list(result.messages)}`);
  console.log(`all ended ${(result.drainedMs / 1000).toFixed(1)} s after it was calm`);
  for (const violation of result.violations) console.log(`FAIL ${violation}`);
  console.log(`${result.violations.length} violations (lost, double, stuck or out of order), seed ${given.seed}`);
  if (given.verbose && result.violations.length > 0)
    for (const [name, text] of Object.entries(result.said)) console.log(`--- ${name}\n${text}`);
  process.exitCode = result.violations.length > 0 ? 1 : 0;
});
