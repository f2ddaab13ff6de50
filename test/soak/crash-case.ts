// One case of the sweep: several commands in flight, a kill at one boundary, one more at a random moment, both programs
// started anew; then all commands must end, each effect must have happened once, and nothing may hang.
import { readdirSync, readFileSync } from "node:fs";
import { BOUNDARIES, type Boundary, type Victim } from "./boundaries.ts";
import type { CrashWorld, StepPlan } from "./crash-world.ts";
import { Chance } from "./random.ts";

export interface CaseName {
  readonly boundary: string;
  readonly victim: Victim;
  readonly seed: number;
}

export interface CaseResult {
  readonly name: string;
  /** The event at which the first kill came; null = the boundary was not passed often enough. */
  readonly fired: string | null;
  readonly at: number;
  readonly second: { victim: Victim; afterMs: number };
  readonly commands: number;
  readonly effects: number;
  /** What ended last. */
  readonly last: string;
  readonly ms: number;
  /** From the second kill until both programs were up again. */
  readonly downMs: number;
  /** What was not as promised; empty = all held. */
  readonly violations: string[];
}

/** When both programs are up again after the last kill, every command must end within this. */
export const STUCK_MS = 60_000;
/** A program that is started again is up within this, also where the processors have much else to do. */
const START_MS = 180_000;
/** When the first kill has not come by then, the second comes all the same. */
const FIRE_WITHIN_MS = 10_000;
const TERMINAL = new Set(["succeeded", "failed", "cancelled", "expired", "superseded", "refused", "lost"]);

/** A run that would outlast the case: it must end by its cancel. */
const LONG: StepPlan[] = [{ name: "long", holdMs: 600_000 }];

const pipelines = (chance: Chance): StepPlan[][] => {
  const holdMs = () => chance.of([0, 0, 50, 300, 900]);
  return [
    [
      { name: "one", holdMs: holdMs() },
      { name: "two", needs: ["one"], holdMs: holdMs() },
    ],
    [
      { name: "left", holdMs: holdMs() },
      { name: "right", holdMs: holdMs() },
    ],
    [{ name: "only", holdMs: holdMs() }],
  ];
};

export const nameOf = ({ boundary, victim, seed }: CaseName): string => `${boundary}:${victim}:${seed}`;

export async function crashCase(world: CrashWorld, wanted: CaseName, stuckMs = STUCK_MS): Promise<CaseResult> {
  const boundary = BOUNDARIES.find((one) => one.name === wanted.boundary) as Boundary;
  const name = nameOf(wanted);
  const chance = new Chance(name);
  const startedMs = performance.now();
  const violations: string[] = [];

  // What this case does, decided before anything happens: it depends on nothing but its name.
  const at = 1 + chance.int(boundary.passings);
  const afterMs = chance.of([null, null, 0, 1, 5]);
  const pauses = { agent: chance.of([0, 0, 500, 2000]), cloud: chance.of([0, 0, 500, 2000]) };
  const second = { victim: chance.of(["agent", "cloud"] as const), afterMs: chance.int(chance.true(0.5) ? 300 : 3000) };
  const plans = pipelines(chance);
  const cancelAfterMs = chance.int(chance.true(0.5) ? 100 : 1500);
  const long = `${name}/long`;
  for (const victim of ["agent", "cloud"] as const) world.kept[victim].pauseMs = () => pauses[victim];

  const first = world.kept[wanted.victim].program;
  world.arm({ id: name, channels: boundary.channels, at, pid: first.pid, afterMs });
  const untilMs = startedMs + FIRE_WITHIN_MS + START_MS + stuckMs;
  const asked = Promise.all([
    ...plans.map((steps, n) => world.submitRun(`${name}/${n}`, steps, untilMs)),
    world.submitApply(name, untilMs),
    (async () => {
      const id = await world.submitRun(long, LONG, untilMs);
      await pause(cancelAfterMs);
      await world.ask(`/v1/runs/${id}/cancel`, { method: "POST" }, untilMs);
    })(),
  ]);
  asked.catch(() => undefined);

  while (world.fired(name) === null && performance.now() < startedMs + FIRE_WITHIN_MS) await pause(20);
  await pause(second.afterMs);
  await world.kept[second.victim].program.killHard();
  if (world.fired(name) !== null) await first.exited;
  world.disarm();
  const killedMs = performance.now();
  // Starting is work for the processor; what the limit is for is what comes after.
  if (!(await world.up(killedMs + START_MS))) violations.push(`stuck: a program did not start in ${START_MS / 1000} s`);
  const upAgainMs = performance.now();

  // ---- nothing hangs
  try {
    await asked;
  } catch (error) {
    violations.push(`stuck: a request was never answered: ${text(error)}`);
  }
  const keys = plans.flatMap((steps, n) => steps.map((step) => `${name}/${n}/${step.name}`));
  const open = new Map(
    [...plans.keys()]
      .map(String)
      .concat("long")
      .map((n) => [`${name}/${n}`, world.runs.get(`${name}/${n}`)]),
  );
  let states = "";
  let last = "the answers";
  while (open.size > 0 && performance.now() < upAgainMs + stuckMs) {
    for (const [key, id] of open) {
      if (id === undefined) {
        open.delete(key);
        continue;
      }
      try {
        const run = await world.run(id);
        if (!TERMINAL.has(run.state)) {
          states = `${run.state}${run.waiting === null ? "" : ` (${run.waiting.code})`}`;
          continue;
        }
        open.delete(key);
        last = key === long ? "the cancelled run" : `run ${key.slice(name.length + 1)}`;
        if (run.state !== (key === long ? "cancelled" : "succeeded"))
          violations.push(`lost: run ${key} (${id}) ended ${run.state}: ${run.error?.code} ${run.error?.message}`);
        const twice = run.attempts.filter((attempt) => attempt.attempt > 1);
        if (twice.length > 0) violations.push(`double: run ${key} (${id}) made ${twice.length} second attempts`);
      } catch {
        // The control plane is on its way back.
      }
    }
    await pause(100);
  }
  for (const [key, id] of open) violations.push(`stuck: run ${key} (${id}) is ${states} after ${stuckMs / 1000} s`);
  try {
    const left = Math.max(1000, upAgainMs + stuckMs - performance.now());
    const endedMs = performance.now();
    await world.applied(world.generation, left);
    if (performance.now() - endedMs > 200) last = "the deployment";
  } catch (error) {
    violations.push(text(error));
  }

  // ---- each effect once, as its target counts
  const { file, server, starts } = world.engine.targets.counts();
  for (const key of keys) {
    const seen = { server: server.get(key) ?? 0, ...(world.engine.sharesFiles ? { file: file.get(key) ?? 0 } : {}) };
    for (const [target, count] of Object.entries(seen))
      if (count !== 1) violations.push(`${count === 0 ? "lost" : "double"}: ${key} ${count} times by the ${target}`);
  }
  const cancelled = `${long}/long`;
  for (const count of [server.get(cancelled) ?? 0, file.get(cancelled) ?? 0])
    if (count > 1) violations.push(`double: ${cancelled} ${count} times`);
  if (!open.has(long))
    for (const pid of processesOf(cancelled)) violations.push(`stuck: process ${pid} of the cancelled run goes on`);
  const replica = `${world.deployment}.r${world.generation}.0`;
  const began = [...starts].filter(([work]) => work.endsWith(replica)).reduce((sum, [, count]) => sum + count, 0);
  if (began !== 1) violations.push(`${began === 0 ? "lost" : "double"}: ${replica} began ${began} times`);

  return {
    name,
    fired: world.fired(name),
    at,
    second,
    commands: plans.length + 3,
    effects: keys.length + 1,
    last,
    ms: performance.now() - startedMs,
    downMs: upAgainMs - killedMs,
    violations,
  };
}

/** Of this machine, in whatever engine: those with the key among their arguments. */
function processesOf(key: string): string[] {
  return readdirSync("/proc").filter((pid) => {
    try {
      return /^\d+$/.test(pid) && readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0").includes(key);
    } catch {
      return false; // ended meanwhile
    }
  });
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
const text = (error: unknown): string =>
  error instanceof Error
    ? `${error.message}${error.cause instanceof Error ? `: ${error.cause.message}` : ""}`
    : String(error);

/** What must hold over all cases together, when both programs have ended. */
export async function judgeWorld(
  world: CrashWorld,
  known: readonly { id: string; state: string }[],
): Promise<string[]> {
  const asked = new Set(world.runs.values());
  const audit = world.agent.cli(["audit", "verify"]);
  const { code } = await audit.exited;
  return [
    ...known.filter((run) => !asked.has(run.id)).map((run) => `double: run ${run.id} was made and nobody knows of it`),
    ...[...asked].filter((id) => !known.some((run) => run.id === id)).map((id) => `lost: run ${id} is gone`),
    ...known
      .filter((run) => !TERMINAL.has(run.state))
      .map((run) => `stuck: run ${run.id} is ${run.state} when all cases are over`),
    ...world.integrity(),
    ...(code === 0 ? [] : [`the agent's audit does not verify: ${audit.tail()}`]),
  ];
}
