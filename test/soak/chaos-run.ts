// Work under chaos: runs, cancels and applies go on while links are cut and dispatches and reports are lost, repeated
// and moved. When it is calm again, everything ends: lost 0, double 0, order kept within a resource.
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { tempDir, waitFor, type Teardown } from "../support/launcher.ts";
import { startTcpChaos, type TcpChaos } from "../support/tcp-chaos.ts";
import { startTcpProxy } from "../support/tcp-proxy.ts";
import type { ChaosSettings } from "./chaos-hook.ts";
import { CrashWorld } from "./crash-world.ts";
import type { EngineName } from "./engines.ts";
import { Chance } from "./random.ts";

export interface ChaosPlan {
  seed: number;
  forMs: number;
  engine: EngineName;
  database: string | null;
  /** Runs in flight. */
  width: number;
  /** What must have ended when it is calm, ended within this. */
  drainMs: number;
}

export interface ChaosResult {
  runs: number;
  cancels: number;
  applies: number;
  effects: number;
  links: number;
  tcp: TcpChaos["acts"];
  /** Acts above the link, by name. */
  messages: Record<string, number>;
  drainedMs: number;
  violations: string[];
  /** What the programs printed. */
  said: { agent: string; cloud: string };
}

const CUT_EVERY_MS = [1000, 4000] as const;
const TERMINAL = new Set(["succeeded", "failed", "cancelled", "expired", "superseded", "refused", "lost"]);
const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

export async function chaosRun(t: Teardown, plan: ChaosPlan): Promise<ChaosResult> {
  const chance = new Chance("chaos", plan.seed);
  const tally = join(tempDir(t, "chaos"), "tally");
  writeFileSync(tally, "");
  writeFileSync(`${tally}.calm`, "");
  const settings: ChaosSettings = { seed: plan.seed, duplicate: 0.1, reorder: 0.1, drop: 0.05, tally };
  let proxy!: Awaited<ReturnType<typeof startTcpProxy>>;
  const world = await CrashWorld.start(t, {
    engine: plan.engine,
    database: plan.database,
    preload: ["chaos-hook.ts"],
    env: { SALLYPORT_CHAOS: JSON.stringify(settings) },
    dial: async ({ port }) => {
      proxy = await startTcpProxy(t, { port });
      return `http://127.0.0.1:${proxy.port}`;
    },
  });

  // ---- chaos
  rmSync(`${tally}.calm`);
  const linksBefore = proxy.accepted;
  const chaos = startTcpChaos(t, proxy, { random: () => chance.next(), everyMs: CUT_EVERY_MS });
  const untilMs = performance.now() + plan.forMs;
  const answerBy = untilMs + plan.drainMs;
  const violations: string[] = [];
  const keys = new Map<string, string[]>();
  const cancelled = new Set<string>();
  let made = 0;
  let applies = 0;

  const worker = async (): Promise<void> => {
    while (performance.now() < untilMs) {
      const name = `chaos-${plan.seed}/${made++}`;
      const second = chance.true(0.3);
      const steps = [
        { name: "one", holdMs: chance.int(200) },
        ...(second ? [{ name: "two", needs: ["one"], holdMs: chance.int(100) }] : []),
      ];
      keys.set(
        name,
        steps.map((step) => `${name}/${step.name}`),
      );
      const id = await world.submitRun(name, steps, answerBy);
      if (chance.true(0.1)) {
        await pause(chance.int(1500));
        cancelled.add(name);
        await world.ask(`/v1/runs/${id}/cancel`, { method: "POST" }, answerBy);
      }
      while (performance.now() < untilMs && !TERMINAL.has((await world.run(id)).state)) await pause(250);
    }
  };
  const applier = async (): Promise<void> => {
    while (performance.now() < untilMs) {
      await pause(1500 + chance.int(3000));
      if (performance.now() >= untilMs) return;
      await world.submitApply(`chaos-${plan.seed}-apply-${applies++}`, answerBy);
    }
  };
  await Promise.all([...Array.from({ length: plan.width }, worker), applier()]);

  // ---- calm
  writeFileSync(`${tally}.calm`, "");
  chaos.calm();
  const calmMs = performance.now();
  const left = () => Math.max(1, calmMs + plan.drainMs - performance.now());
  let known = await world.allRuns();
  await waitFor(
    "all runs to have ended",
    async () => {
      known = await world.allRuns();
      return known.every((run) => TERMINAL.has(run.state));
    },
    { timeoutMs: left(), everyMs: 250 },
  ).catch(() => undefined);
  await world.applied(world.generation, left()).catch((error: unknown) => violations.push((error as Error).message));
  const drainedMs = performance.now() - calmMs;

  const states = new Map(known.map((run) => [run.id, run]));
  const { file, server, starts } = world.engine.targets.counts();
  let effects = 0;
  for (const [name, wanted] of keys) {
    const run = states.get(world.runs.get(name) ?? "");
    if (run === undefined) {
      violations.push(`lost: run ${name} is not known`);
      continue;
    }
    const { state } = run;
    if (!TERMINAL.has(state)) {
      const { attempts } = await world.run(run.id);
      const steps = attempts.map((one) => `${one.step} ${one.attempt} ${one.state}`).join(", ");
      violations.push(`stuck: run ${name} (${run.id}) is ${state} ${run.waiting?.code ?? ""}: ${steps}`);
    }
    if (TERMINAL.has(state) && state !== "succeeded" && !(state === "cancelled" && cancelled.has(name)))
      violations.push(`lost: run ${name} (${run.id}) ended ${state}: ${run.error?.code} ${run.error?.message}`);
    for (const key of wanted) {
      const counts = [server.get(key) ?? 0, ...(world.engine.sharesFiles ? [file.get(key) ?? 0] : [])];
      effects += counts[0]!;
      if (counts.some((count) => count > 1)) violations.push(`double: ${key} ${counts.join(" and ")} times`);
      if (state === "succeeded" && counts.some((count) => count === 0)) violations.push(`lost: ${key} was never done`);
    }
  }
  const asked = new Set(world.runs.values());
  for (const { id } of known) if (!asked.has(id)) violations.push(`double: run ${id} was made and nobody asked for it`);

  // Within one resource: revisions begin in the order in which they were applied, each once.
  for (const [work, count] of starts) if (count > 1) violations.push(`double: ${work} began ${count} times`);
  const order = world.engine.targets.births().map((work) => Number(/\.r(\d+)\.0$/.exec(work)?.[1] ?? 0));
  order.reduce((before, revision) => {
    if (revision !== 0 && revision < before) violations.push(`order: revision ${revision} began after ${before}`);
    return Math.max(before, revision);
  }, 0);
  if (!order.includes(world.generation)) violations.push(`lost: revision ${world.generation} never began`);

  world.release();
  await Promise.all([world.agent.program.stop(), world.cloud.program.stop()]);
  violations.push(...world.integrity());
  const messages: Record<string, number> = {};
  for (const act of readFileSync(tally, "utf8").split("\n")) if (act !== "") messages[act] = (messages[act] ?? 0) + 1;
  return {
    runs: keys.size,
    cancels: cancelled.size,
    applies,
    effects,
    links: proxy.accepted - linksBefore,
    tcp: chaos.acts,
    messages,
    drainedMs,
    violations,
    said: { agent: world.agent.program.output.toString(), cloud: world.cloud.program.output.toString() },
  };
}
