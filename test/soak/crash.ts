// npm run soak:crash: SIGKILL of the agent and of the control plane at each boundary of a command's life, and what must
// hold after it: lost 0, double effects 0, stuck 0. A line for each case; exit code 1 when anything did not hold.
//   npm run soak:crash -- --seeds 20 --engine docker --database postgres://...
//   npm run soak:crash -- --only offered:cloud:7
import { parseArgs } from "node:util";
import { BOUNDARIES, VICTIMS, type Victim } from "./boundaries.ts";
import { crashCase, judgeWorld, nameOf, STUCK_MS, type CaseName } from "./crash-case.ts";
import { CrashWorld } from "./crash-world.ts";
import { sweptDatabase } from "./database.ts";
import { ENGINES, type EngineName } from "./engines.ts";
import { onStage } from "./stage.ts";

const { values: given } = parseArgs({
  options: {
    seeds: { type: "string", default: "1" },
    /** The first of them. */
    seed: { type: "string", default: "1" },
    engine: { type: "string", default: "process" },
    database: { type: "string", default: "sqlite" },
    only: { type: "string", multiple: true },
    /** Seconds for all to end once both programs are up again. */
    within: { type: "string", default: String(STUCK_MS / 1000) },
    /** Programs' output at the end of a case that did not hold, or was asked for by --only. */
    verbose: { type: "boolean", default: false },
  },
});

function usage(message: string): never {
  console.error(message);
  process.exit(2);
}

function parseCase(text: string): CaseName {
  const [boundary, victim, seed] = text.split(":");
  if (!BOUNDARIES.some((one) => one.name === boundary) || !VICTIMS.includes(victim as Victim) || !(Number(seed) >= 0))
    usage(
      `--only takes BOUNDARY:VICTIM:SEED, e.g. offered:cloud:7. Boundaries: ${BOUNDARIES.map((b) => b.name).join(", ")}.`,
    );
  return { boundary: boundary!, victim: victim as Victim, seed: Number(seed) };
}

/** Agent and control plane in turn: one that is killed again and again never has a link that was stable. */
const casesOf = (seed: number): CaseName[] =>
  BOUNDARIES.flatMap(({ name }) => VICTIMS.map((victim) => ({ boundary: name, victim, seed })));

const seconds = (ms: number): string => `${(ms / 1000).toFixed(1)} s`;

if (!ENGINES.includes(given.engine as EngineName)) usage(`--engine is one of ${ENGINES.join(", ")}.`);
const first = Number(given.seed);
const only = given.only?.map(parseCase);
const seeds =
  only === undefined
    ? Array.from({ length: Number(given.seeds) }, (_, n) => first + n)
    : [...new Set(only.map((one) => one.seed))];

let violations = 0;
let missed = 0;
let count = 0;
const total = only?.length ?? seeds.length * BOUNDARIES.length * VICTIMS.length;
const startedMs = performance.now();
console.log(`${total} cases on ${given.engine} with ${given.database.split(":")[0]}`);
for (const seed of seeds) {
  await onStage(async (t) => {
    const database = await sweptDatabase(t, given.database);
    const world = await CrashWorld.start(t, {
      engine: given.engine as EngineName,
      database,
      preload: ["kill-at.ts"],
    });
    for (const wanted of only?.filter((one) => one.seed === seed) ?? casesOf(seed)) {
      const seen = { agent: world.agent.programs.length, cloud: world.cloud.programs.length };
      const result = await crashCase(world, wanted, Number(given.within) * 1000);
      count += 1;
      const how =
        result.fired === null
          ? `NOT REACHED (${result.at})`
          : `killed at ${result.fired.replace("sallyport:", "")} ${result.at}`;
      const then = `then ${result.second.victim} +${result.second.afterMs} ms`;
      const bad = result.violations.length > 0;
      console.log(
        `${bad ? "FAIL" : "ok  "} ${nameOf(wanted).padEnd(38)} ${how}, ${then}; ${result.commands} commands, ${result.effects} effects, ${seconds(result.ms)} of which ${seconds(result.downMs)} to be up again, at last ${result.last}`,
      );
      if (result.fired === null) missed += 1;
      for (const violation of result.violations) console.log(`       ${violation}`);
      violations += result.violations.length;
      const where = `--engine ${given.engine} --database ${given.database.split(":")[0]}`;
      if (bad) console.log(`       again: npm run soak:crash -- ${where} --only ${nameOf(wanted)}`);
      if (given.verbose && (bad || only !== undefined))
        for (const side of VICTIMS)
          for (const program of world[side].programs.slice(seen[side] - 1))
            console.log(`--- ${side} ${program.pid}\n${program.output.toString()}`);
    }
    const known = await world.allRuns();
    world.release();
    await Promise.all([world.agent.program.stop(), world.cloud.program.stop()]);
    for (const violation of await judgeWorld(world, known)) {
      violations += 1;
      console.log(`FAIL seed ${seed}: ${violation}`);
    }
  });
}
console.log(
  `${count} cases in ${seconds(performance.now() - startedMs)}: ${violations} violations (lost, double or stuck)${missed > 0 ? `, ${missed} kills whose boundary was not reached` : ""}`,
);
process.exitCode = violations > 0 ? 1 : 0;
