// The short form of `npm run soak:crash`: kill -9 at a few boundaries of a command's life, with several commands in
// flight and a second kill behind each. Lost 0, double 0, stuck 0, as the effects' targets count.
import t from "tap";
import { crashCase, judgeWorld, nameOf, type CaseName } from "../soak/crash-case.ts";
import { CrashWorld } from "../soak/crash-world.ts";

t.setTimeout(900_000);

/** Before the queue, in the journal, at an effect, and on the way back. */
const CASES: readonly CaseName[] = [
  { boundary: "request-committed", victim: "cloud", seed: 1 },
  { boundary: "journaled", victim: "agent", seed: 1 },
  { boundary: "accepted-committed", victim: "cloud", seed: 1 },
  { boundary: "effect-begun", victim: "agent", seed: 1 },
  { boundary: "report-committed", victim: "cloud", seed: 1 },
];
/** The suite may have the machine to share; the soak holds 60 s. */
const STUCK_MS = 120_000;

t.test("kill -9 at boundaries", { timeout: 900_000 }, async (t) => {
  const world = await CrashWorld.start(t, { engine: "process", database: null, preload: ["kill-at.ts"] });
  for (const wanted of CASES) {
    const result = await crashCase(world, wanted, STUCK_MS);
    const then = `then ${result.second.victim} after ${result.second.afterMs} ms`;
    t.same(result.violations, [], `${nameOf(wanted)}: ${result.fired ?? "never"} ${result.at}, ${then}`);
    t.not(result.fired, null, "the boundary was reached");
  }
  const known = await world.allRuns();
  world.release();
  await Promise.all([world.agent.program.stop(), world.cloud.program.stop()]);
  t.same(await judgeWorld(world, known), []);
});
