// npm run soak:queue: 10,000 commands for 200 resources while their agent is away for an hour, time injected. None lost,
// none twice, none out of order within its resource; exit code 1 when that did not hold.
//   npm run soak:queue -- --commands 10000
import { parseArgs } from "node:util";
import { queueRun } from "./queue-run.ts";
import { onStage } from "./stage.ts";

const { values: given } = parseArgs({
  options: {
    commands: { type: "string", default: "10000" },
    /** Seconds for the queue to be empty once the agent is back. */
    within: { type: "string", default: "600" },
  },
});
await onStage(async (t) => {
  const result = await queueRun(t, { commands: Number(given.commands), drainMs: Number(given.within) * 1000 });
  const rate = (n: number, ms: number): string => `${(ms / 1000).toFixed(1)} s (${Math.round(n / (ms / 1000))}/s)`;
  console.log(`${result.commands} commands submitted in ${rate(result.commands, result.submitMs)}`);
  console.log(`the agent is back: ${result.begun} begun, all ended in ${rate(result.begun, result.drainMs)}`);
  const states = Object.entries(result.states).map(([state, n]) => `${state} ${n}`);
  console.log(states.join(", "));
  for (const violation of result.violations.slice(0, 50)) console.log(`FAIL ${violation}`);
  console.log(`${result.violations.length} violations (lost, double or out of order)`);
  process.exitCode = result.violations.length > 0 ? 1 : 0;
});
