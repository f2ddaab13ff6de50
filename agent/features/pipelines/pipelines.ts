// The feature's command kinds, and what the agent's own tools may ask of it.
import { readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { ConnectorError, pipelineRun, runCancel, runLogs, wait, type CommandId, type RunId } from "@sallyport/protocol";
import { defineKind, type AnyCommandKind } from "../../commands/command.ts";
import { folderSize } from "../../logs/index.ts";
import { commandOfWork } from "../../engines/engine.ts";
import { checkPipeline } from "./check.ts";
import { DEFAULT_GRACE_MS, knownBy, type PipelinesDeps } from "./deps.ts";
import { Fences } from "./fences.ts";
import { PipelineRun } from "./pipeline-run.ts";
import { collectRecords } from "./records.ts";
import {
  CANCELS,
  isOver,
  runKey,
  RUNS,
  stepKey,
  type CancelRecord,
  type RunRecord,
  type StepRecord,
} from "./run-record.ts";
import { Slots } from "./slots.ts";

export type { PipelinesDeps, Program } from "./deps.ts";

export interface Pipelines {
  readonly kinds: AnyCommandKind[];
  /** Runs under way, with their running steps. */
  active(): { run: RunId; command: string; steps: { step: string; attempt: number }[] }[];
  /** At the agent's host: `id` is a run, or `<run>/<step>`. Resolves with what was stopped; null = nothing of that id runs. */
  stop(id: string, who: string): Promise<{ stopped: string[] } | null>;
  /**
   * Brings logs and work folders under their caps, and has the engines forget what no command wants any more: what was left
   * by a crash or an engine that was away. Done at the end of each run; after a start, by whoever wires.
   */
  collect(): Promise<void>;
  /** Ended here while another agent may still go on with them: what keeps that one from beginning a step again stays. */
  fenced(commands: readonly CommandId[]): Promise<void>;
  /** Nobody else goes on with them any more. */
  settled(commands: readonly CommandId[]): Promise<void>;
  /** Reports were acknowledged: what engines keep of runs whose end is known may go. */
  acknowledged(): void;
  /** Policy or limits were exchanged: steps that wait for a slot look again. */
  policyChanged(): void;
}

/** A run that the journal holds as running is taken up within this after a start. */
const TAKEN_UP_MS = 10_000;
const LOOK_MS = 50;
/** Records of all runs are read for it. */
const RECORDS_EVERY_MS = 3600_000;

export const pipelineKinds = (deps: PipelinesDeps): AnyCommandKind[] => createPipelines(deps).kinds;

export function createPipelines(deps: PipelinesDeps): Pipelines {
  const slots = new Slots(() =>
    Math.min(deps.policy.limit("concurrentSteps"), deps.maxSteps?.() ?? Number.POSITIVE_INFINITY),
  );
  const active = new Map<RunId, PipelineRun>();
  const fences = new Fences(deps, (command) => [...active.values()].some((one) => one.command === command));
  let collecting: Promise<void> | null = null;
  /** When records were last looked through, monotonic. */
  let recordsAtMs: number | null = null;

  async function collect(): Promise<void> {
    await fences.collect();
    for (const name of deps.engines.names)
      await collectOf(name).catch((error: unknown) =>
        deps.log.warn({ err: error, engine: name }, "what an engine keeps of ended steps could not be collected"),
      );
    const { removed } = await deps.logs.collect(unfinished);
    for (const run of removed) {
      const head = (await deps.journal.get(RUNS, runKey(run as RunId))) as RunRecord | null | undefined;
      if (head == null || head.state === "running") continue;
      const keys = (await deps.journal.entries(RUNS, stepKey(run as RunId, ""))).map(({ key }) => key);
      await deps.journal.commit({
        remove: [
          ...[...keys, runKey(run as RunId)].map((key) => ({ namespace: RUNS, key })),
          { namespace: CANCELS, key: run },
        ],
      });
    }
    await collectWork(join(deps.stateDir, "work"), deps.workBytes, unfinished);
    if (recordsAtMs !== null && deps.clock.monotonic() - recordsAtMs < RECORDS_EVERY_MS) return;
    recordsAtMs = deps.clock.monotonic();
    await collectRecords(deps, unfinished);
  }
  /**
   * Which runs are not over, those too that a restart has not taken up yet. To be asked after what there is was listed: a
   * command is open before its first step begins, so nothing that came later is in the list.
   */
  async function unfinished(): Promise<(run: string) => boolean> {
    const open = new Set((await deps.journal.open()).map(({ resource }) => resource));
    return (run) => open.has(`run:${run}`) || active.has(run as RunId);
  }
  /** Replicas of deployments are not ours; nor is anything of a command that the journal still has open. */
  async function collectOf(engineName: string): Promise<void> {
    const engine = deps.engines.get(engineName);
    const listed = (await engine.list()).filter(({ name }) => commandOfWork(name) !== null);
    if (listed.length === 0) return;
    // Asked after the list: a command is open before its first step begins.
    const open = new Set<string>((await deps.journal.open()).map(({ id }) => id));
    for (const one of active.values()) open.add(one.command);
    for (const command of await fences.held()) open.add(command);
    for (const { name, status } of listed) {
      if (open.has(commandOfWork(name)!)) continue;
      if (status.state === "running") {
        deps.log.warn({ work: name, engine: engineName }, "a step runs whose command has ended: it is stopped");
        await engine.stop(name, deps.graceMs ?? DEFAULT_GRACE_MS);
      }
      await engine.forget(name);
    }
  }
  const collectOnce = (): Promise<void> => {
    collecting ??= collect().finally(() => {
      collecting = null;
    });
    return collecting;
  };

  const run = defineKind({
    spec: pipelineRun,
    check: (input, policy) => checkPipeline(input.run, input.pipeline, input.params, knownBy(deps), policy),
    hasBegun: (command) => fences.hasBegun(command),
    released: (command) => fences.released(command),
    async run(input, context) {
      const leave = new AbortController();
      const one = new PipelineRun(deps, slots, context.command, input, leave.signal);
      if (active.has(input.run))
        throw new ConnectorError("CONFLICT", `Run ${input.run} runs already, for another command.`, {
          fix: "Start it with a run id of its own.",
        });
      active.set(input.run, one);
      const onAbort = (): void => {
        const { reason } = context.signal as { reason: unknown };
        if (reason instanceof ConnectorError && reason.code === "CANCELLED") {
          // Kept, so that a restart in the middle of the stop goes on stopping.
          void deps.journal
            .put(CANCELS, input.run, { at: deps.clock.now(), reason: reason.message } satisfies CancelRecord)
            .catch(() => undefined);
          one.cancel(reason);
        } else leave.abort(reason);
      };
      if (context.signal.aborted) onAbort();
      context.signal.addEventListener("abort", onAbort, { once: true });
      try {
        return { result: await one.execute() };
      } finally {
        context.signal.removeEventListener("abort", onAbort);
        active.delete(input.run);
        if (!leave.signal.aborted)
          void collectOnce().catch((error: unknown) =>
            deps.log.warn({ err: error }, "old logs and work folders could not be collected"),
          );
      }
    },
  });

  const cancel = defineKind({
    spec: runCancel,
    overtakes: true,
    async run(input, context) {
      const leave = context.signal;
      const reason = `Run ${input.run} was cancelled.`;
      // First the record: a run that begins, or begins again, looks at it after it has made itself known here.
      await deps.journal.put(CANCELS, input.run, { at: deps.clock.now(), reason } satisfies CancelRecord);
      if ((await deps.withdraw?.(input.command, input.run)) === true)
        return { result: { run: input.run, stopped: [] } };
      const until = deps.clock.monotonic() + TAKEN_UP_MS;
      for (;;) {
        const one = active.get(input.run);
        if (one !== undefined) {
          if (one.command !== input.command)
            throw new ConnectorError("CONFLICT", `Run ${input.run} is not that of command ${input.command}.`);
          one.cancel(new ConnectorError("CANCELLED", reason));
          await Promise.race([one.settled, aborted(leave)]);
          return { result: { run: input.run, stopped: [...one.stopped] } };
        }
        // After a restart the cancel may come before the run is taken up.
        const head = (await deps.journal.get(RUNS, runKey(input.run))) as RunRecord | null | undefined;
        if (head?.state !== "running" || deps.clock.monotonic() > until)
          return { result: { run: input.run, stopped: [] } };
        await wait(deps.clock, LOOK_MS, leave);
      }
    },
  });

  const logs = defineKind({
    spec: runLogs,
    check: (input, policy) => {
      policy.require({ kind: "release", what: "logs" });
      if (input.tail !== undefined && input.after !== 0)
        throw new ConnectorError("INPUT_INVALID", "after and tail exclude each other.", { fix: "Give one of them." });
    },
    async run(input, context) {
      context.policy.require({ kind: "release", what: "logs" });
      const live = active.get(input.run);
      const head = (await deps.journal.get(RUNS, runKey(input.run))) as RunRecord | null | undefined;
      // One that has just begun is known before it is written down.
      if (head == null && live === undefined)
        throw new ConnectorError("RUN_UNKNOWN", `This agent knows no run ${input.run}.`, {
          fix: "It may be another replica's, or collected long ago.",
        });
      const step =
        live?.step(input.step) ??
        ((await deps.journal.get(RUNS, stepKey(input.run, input.step))) as StepRecord | null | undefined);
      if (step == null) throw new ConnectorError("RUN_UNKNOWN", `Run ${input.run} has no step ${input.step}.`);
      const attempt = input.attempt ?? Math.max(1, step.attempt);
      const address = { run: input.run, step: input.step, attempt };
      let seen = live !== undefined;
      /** Nothing more will be written. */
      const over = (): boolean => {
        const now = active.get(input.run)?.step(input.step);
        if (now === undefined) return head?.state !== "running" || seen;
        seen = true;
        return now.attempt > attempt || (isOver(now.state) && (now.attempt === attempt || now.retryAt === null));
      };
      const status = await deps.logs.status(address);
      if (
        status === null &&
        (attempt < step.attempt || (isOver(step.state) && step.attempt >= attempt && step.logSeq > 0))
      ) {
        throw new ConnectorError(
          "LOGS_GONE",
          `The log of step ${input.step}, attempt ${attempt}, of run ${input.run} was collected.`,
          { fix: "Whoever runs the agent can raise limits.logBytes for the next ones." },
        );
      }
      const records = deps.logs.read({
        ...address,
        after: input.after,
        limit: input.limit,
        follow: input.follow,
        signal: context.signal,
        over,
        ...(input.tail === undefined ? {} : { tail: input.tail }),
      });
      return {
        result: {
          run: input.run,
          step: input.step,
          attempt,
          lastSeq: status?.lastSeq ?? 0,
          ended: status?.ended ?? over(),
        },
        records,
      };
    },
  });

  return {
    kinds: [run, cancel, logs],
    active: () => [...active.values()].map((one) => ({ run: one.run, command: one.command, steps: one.running() })),
    async stop(id, who) {
      const [runId, step] = id.split("/");
      const one = active.get(runId as RunId);
      if (one === undefined) return null;
      const reason = new ConnectorError("CANCELLED", `Stopped at the agent's host by ${who}.`);
      if (step === undefined) {
        await deps.journal.put(CANCELS, one.run, {
          at: deps.clock.now(),
          reason: reason.message,
        } satisfies CancelRecord);
        one.cancel(reason);
      } else if (!one.cancelStep(step, reason)) return null;
      await one.settled;
      return { stopped: [...one.stopped] };
    },
    collect: collectOnce,
    fenced: (commands) => fences.keep(commands),
    settled: (commands) => fences.drop(commands),
    acknowledged: () => fences.wake(),
    policyChanged: () => slots.wake(),
  };
}

function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_resolve, reject) => {
    if (signal.aborted) reject(signal.reason as Error);
    else signal.addEventListener("abort", () => reject(signal.reason as Error), { once: true });
  });
}

/** Work folders of failed attempts: whole runs go, the oldest first. */
async function collectWork(
  root: string,
  capBytes: number,
  unfinished: () => Promise<(run: string) => boolean>,
): Promise<void> {
  const runs = await Promise.all(
    (await readdir(root).catch(() => [])).map(async (run) => ({ run, ...(await folderSize(join(root, run))) })),
  );
  const kept = await unfinished();
  let bytes = runs.reduce((sum, r) => sum + r.bytes, 0);
  for (const r of runs.toSorted((a, b) => a.at - b.at)) {
    // A run without any file left is an empty shell.
    if ((bytes <= capBytes && r.bytes > 0) || kept(r.run)) continue;
    await rm(join(root, r.run), { recursive: true, force: true });
    bytes -= r.bytes;
  }
}
