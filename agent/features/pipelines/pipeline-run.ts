// One run: which step comes when, what is written of it, how it ends. After a restart the same function is called with the
// same input: it reads what the journal holds and goes on from there.
import { channel } from "node:diagnostics_channel";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import {
  ConnectorError,
  effectiveParams,
  planPipeline,
  predecessors,
  toConnectorError,
  wait,
  type CommandId,
  type ParamValue,
  type Pipeline,
  type ReportBody,
  type RunId,
  type Step,
} from "@sallyport/protocol";
import { workName, type WorkName } from "../../engines/engine.ts";
import { checkStep } from "./check.ts";
import { knownBy, type PipelinesDeps } from "./deps.ts";
import { machineTime } from "./machine-time.ts";
import {
  CANCELS,
  FENCES,
  isOver,
  NEW_STEP,
  runKey,
  RUNS,
  stepKey,
  type CancelRecord,
  type FenceRecord,
  type RunRecord,
  type StepRecord,
} from "./run-record.ts";
import type { Slots } from "./slots.ts";
import { backoffMs, cancelled, runAttempt, type AttemptOutcome } from "./step-attempt.ts";

const committed = channel("sallyport:step.committed");
const JOURNAL_RETRY_MS = 1000;

/** Never longer than was meant, whatever was done to the clock meanwhile. */
const retryInMs = ({ retryAt, attempt }: StepRecord, nowMs: number): number =>
  retryAt === null ? 0 : Math.max(0, Math.min(retryAt - nowMs, backoffMs(attempt - 1)));

export interface RunInput {
  run: RunId;
  pipeline: Pipeline;
  params: Record<string, ParamValue>;
}

export class PipelineRun {
  readonly command: CommandId;
  readonly run: RunId;
  /** Resolves when it has ended or the agent leaves it; never rejects. */
  readonly settled: Promise<void>;
  #settle!: () => void;
  readonly #deps: PipelinesDeps;
  readonly #slots: Slots;
  readonly #pipeline: Pipeline;
  readonly #params: Record<string, ParamValue>;
  readonly #order: readonly Step[];
  readonly #leave: AbortSignal;
  readonly #cancel = new AbortController();
  /** Aborts when nothing more is to begin. */
  readonly #halt = new AbortController();
  readonly #stepCancels = new Map<string, AbortController>();
  readonly #steps = new Map<string, StepRecord>();
  readonly #active = new Map<string, Promise<void>>();
  #head: RunRecord | null = null;
  #failure: ConnectorError | null = null;
  #stopped: string[] = [];
  /** Attempts that the journal knew before this process. */
  readonly #known = new Set<string>();

  constructor(deps: PipelinesDeps, slots: Slots, command: CommandId, input: RunInput, leave: AbortSignal) {
    this.#deps = deps;
    this.#slots = slots;
    this.command = command;
    this.run = input.run;
    this.#pipeline = input.pipeline;
    this.#order = planPipeline(input.pipeline, input.params);
    this.#params = effectiveParams(input.pipeline, input.params);
    this.#leave = leave;
    this.settled = new Promise((resolve) => (this.#settle = resolve));
  }

  get stopped(): readonly string[] {
    return this.#stopped;
  }

  step(name: string): StepRecord | undefined {
    return this.#steps.get(name);
  }

  /** Steps under way. */
  running(): { step: string; attempt: number }[] {
    return [...this.#steps].filter(([, s]) => s.state === "running").map(([step, { attempt }]) => ({ step, attempt }));
  }

  /** Stops what runs and begins nothing more. */
  cancel(reason: ConnectorError): void {
    this.#cancel.abort(reason);
    this.#halt.abort(reason);
  }

  /** Stops one step; the run ends as cancelled, other running steps may end. False when it is over or unknown. */
  cancelStep(step: string, reason: ConnectorError): boolean {
    const record = this.#steps.get(step);
    if (record === undefined || isOver(record.state)) return false;
    this.#failure ??= reason;
    this.#halt.abort(reason);
    this.#stepCancel(step).abort(reason);
    return true;
  }

  async execute(): Promise<{ run: RunId; steps: number }> {
    try {
      return await this.#execute();
    } finally {
      this.#settle();
      this.#deps.logs.wake(this.run);
    }
  }

  async #execute(): Promise<{ run: RunId; steps: number }> {
    await this.#load();
    const head = this.#head!;
    if (head.state !== "running") return this.#outcome(head);
    const wanted = (await this.#insist(() => this.#deps.journal.get(CANCELS, this.run))) as
      | CancelRecord
      | null
      | undefined;
    if (wanted != null) this.cancel(new ConnectorError("CANCELLED", wanted.reason));

    this.#begin();
    while (this.#active.size > 0) {
      await Promise.race(this.#active.values());
      this.#begin();
    }
    this.#leave.throwIfAborted();

    const failure = this.#cancel.signal.aborted ? cancelled(this.#cancel.signal) : this.#failure;
    const state = failure === null ? "succeeded" : failure.code === "CANCELLED" ? "cancelled" : "failed";
    const error =
      failure === null
        ? null
        : failure.code === "CANCELLED"
          ? { ...failure.toBody(), details: { ...failure.details, stopped: this.#stopped } }
          : failure.toBody();
    const ended: RunRecord = { ...head, state, endedAt: this.#deps.clock.now(), error };
    const rest = this.#order.filter((step) => !isOver(this.#steps.get(step.name)!.state));
    for (const step of rest)
      this.#steps.set(step.name, {
        ...this.#steps.get(step.name)!,
        state: state === "cancelled" ? "cancelled" : "skipped",
        error: state === "cancelled" ? failure!.toBody() : null,
      });
    await this.#commit(rest, ended);
    this.#head = ended;
    return this.#outcome(ended);
  }

  #outcome(head: RunRecord): { run: RunId; steps: number } {
    if (head.state === "succeeded") return { run: this.run, steps: this.#order.length };
    throw ConnectorError.fromBody(head.error!);
  }

  async #load(): Promise<void> {
    const { journal, clock } = this.#deps;
    const head = (await this.#insist(() => journal.get(RUNS, runKey(this.run)))) as RunRecord | null | undefined;
    if (head != null) {
      if (head.command !== this.command)
        throw new ConnectorError("CONFLICT", `Run ${this.run} is another command's on this agent.`, {
          fix: "Start it with a run id of its own.",
        });
      const prefix = stepKey(this.run, "");
      for (const { key, value } of await this.#insist(() => journal.entries(RUNS, prefix)))
        this.#steps.set(key.slice(prefix.length), value as StepRecord);
      for (const [name, step] of this.#steps) {
        if (step.state === "running") this.#known.add(name);
        // A run that was going to fail still is.
        if (step.state === "failed" && step.retryAt === null) this.#fail(ConnectorError.fromBody(step.error!));
        if (step.state === "cancelled") this.#fail(ConnectorError.fromBody(step.error!));
      }
      this.#head = head;
      return;
    }
    this.#head = {
      format: 1,
      command: this.command,
      pipeline: this.#pipeline.name,
      state: "running",
      createdAt: clock.now(),
      endedAt: null,
      error: null,
    };
    for (const step of this.#order) this.#steps.set(step.name, NEW_STEP);
    await this.#commit(this.#order, this.#head);
  }

  #fail(error: ConnectorError): void {
    this.#failure ??= error;
    this.#halt.abort(error);
  }

  #stepCancel(step: string): AbortController {
    let controller = this.#stepCancels.get(step);
    if (controller === undefined) this.#stepCancels.set(step, (controller = new AbortController()));
    return controller;
  }

  /** Starts every step that may start, and takes up those that run. */
  #begin(): void {
    if (this.#leave.aborted) return;
    for (const step of this.#order) {
      const record = this.#steps.get(step.name)!;
      if (isOver(record.state) && record.retryAt === null) continue;
      if (this.#active.has(step.name)) continue;
      if (record.state !== "running") {
        if (this.#halt.signal.aborted) continue;
        if (!predecessors(step).every((name) => this.#steps.get(name)!.state === "succeeded")) continue;
      }
      const task = this.#perform(step)
        .catch((caught: unknown) => {
          if (this.#leave.aborted || this.#halt.signal.aborted) return;
          this.#deps.log.error({ err: caught, run: this.run, step: step.name }, "a step could not be carried on");
          this.#fail(toConnectorError(caught));
        })
        .finally(() => this.#active.delete(step.name));
      this.#active.set(step.name, task);
    }
  }

  /** From wherever the record stands to the step's end. Rejects when nothing more is to begin, or the agent stops. */
  async #perform(step: Step): Promise<void> {
    const stop = AbortSignal.any([this.#leave, this.#halt.signal]);
    for (;;) {
      const before = this.#steps.get(step.name)!;
      const known = this.#known.delete(step.name);
      let release: () => void;
      if (before.state === "running") release = this.#slots.take();
      else {
        if (before.retryAt !== null) await wait(this.#deps.clock, retryInMs(before, this.#deps.clock.now()), stop);
        release = await this.#slots.acquire(stop);
      }
      try {
        if (before.state !== "running") {
          const attempt = before.attempt + 1;
          const { misses } = before;
          await this.#put(step, {
            ...NEW_STEP,
            state: "running",
            attempt,
            ...(misses === undefined ? {} : { misses }),
          });
        }
        const outcome = await this.#attempt(step, known);
        if (await this.#concluded(step, outcome)) return;
      } finally {
        release();
      }
    }
  }

  async #attempt(step: Step, known: boolean): Promise<AttemptOutcome> {
    const record = this.#steps.get(step.name)!;
    return runAttempt({
      deps: this.#deps,
      command: this.command,
      run: this.run,
      pipeline: this.#pipeline,
      params: this.#params,
      step,
      attempt: record.attempt,
      work: this.#work(step, record),
      folder: this.#folder(step, record.attempt),
      known,
      begun: known && record.begun === true,
      begunAt: record.begunAt ?? null,
      stopping: record.stopping,
      permit: () => this.#permit(step, known),
      produced: (from) => this.#steps.get(from)?.outputs ?? [],
      noteStopping: async (why) => this.#put(step, { ...this.#steps.get(step.name)!, stopping: why }, false),
      noteAdopted: async () => this.#put(step, { ...this.#steps.get(step.name)!, begun: true, adopted: true }),
      noteBegun: async () =>
        this.#put(step, { ...this.#steps.get(step.name)!, begun: true, begunAt: machineTime() }, false),
      cancel: AbortSignal.any([this.#cancel.signal, this.#stepCancel(step.name).signal]),
      leave: this.#leave,
    });
  }

  /** The policy of now: it may have been tightened while the run waited. What has begun goes on. */
  #permit(step: Step, known: boolean): void {
    // Nothing begins any more in this run; of this attempt only the record said so already.
    if (known && this.#halt.signal.aborted) throw cancelled(this.#cancel.signal);
    checkStep(this.run, this.#pipeline, step, knownBy(this.#deps), this.#deps.policy);
  }

  /** Writes how the attempt ended. True when the step is over. */
  async #concluded(step: Step, outcome: AttemptOutcome): Promise<boolean> {
    const before = this.#steps.get(step.name)!;
    const base: StepRecord = {
      ...before,
      stopping: null,
      exitCode: outcome.exitCode,
      logSeq: outcome.logSeq,
      error: null,
      retryAt: null,
    };
    let retry = false;
    if (outcome.state === "succeeded") {
      await this.#put(step, { ...base, state: "succeeded", outputs: outcome.outputs });
    } else if (outcome.state === "cancelled") {
      if (outcome.stopped.length > 0)
        this.#stopped.push(
          `step ${step.name}, attempt ${before.attempt}: ${outcome.stopped.length} ${outcome.stopped.length === 1 ? "process" : "processes"}`,
        );
      this.#fail(outcome.error);
      await this.#put(step, { ...base, state: "cancelled", error: outcome.error.toBody() });
    } else {
      retry = outcome.again && before.attempt <= step.retries && !this.#halt.signal.aborted;
      if (!retry) this.#fail(outcome.error);
      await this.#put(step, {
        ...base,
        ...(this.#shared && before.begun !== true ? { misses: (before.misses ?? 0) + 1 } : {}),
        state: "failed",
        error: outcome.error.toBody(),
        retryAt: retry ? this.#deps.clock.now() + backoffMs(before.attempt - 1) : null,
      });
    }
    committed.publish({ step: step.name, state: outcome.state });
    this.#deps.logs.wake(this.run);
    // What is not forgotten now is collected later; what keeps others from beginning it again, when the run is over.
    if (!this.#shared)
      await (async () => this.#deps.engines.get(this.#pipeline.engine).forget(this.#work(step, before)))().catch(
        () => undefined,
      );
    // After a failure the folder stays for whoever looks into it, until space is needed.
    if (outcome.state === "succeeded")
      await rm(this.#folder(step, before.attempt), { recursive: true, force: true }).catch(() => undefined);
    return !retry;
  }

  /** Other agents may be asking its engine. */
  get #shared(): boolean {
    const { engine } = this.#pipeline;
    return this.#deps.engines.names.includes(engine) && this.#deps.engines.get(engine).shared !== undefined;
  }

  #work(step: Step, record: StepRecord): WorkName {
    return workName(this.command, step.name, record.attempt - (record.misses ?? 0));
  }

  #folder(step: Step, attempt: number): string {
    return join(this.#deps.stateDir, "work", this.run, `${step.name}.${attempt}`);
  }

  async #put(step: Step, record: StepRecord, report = true): Promise<void> {
    this.#steps.set(step.name, record);
    await this.#commit([step], null, report);
  }

  /** Record and report in one commit: what was done and what is said of it never part. */
  async #commit(steps: readonly Step[], head: RunRecord | null, report = true): Promise<void> {
    const put = steps.map((step) => ({
      namespace: RUNS,
      key: stepKey(this.run, step.name),
      value: this.#steps.get(step.name)! as unknown,
    }));
    if (head !== null) put.push({ namespace: RUNS, key: runKey(this.run), value: head });
    if (head !== null && head.state !== "running" && this.#shared)
      put.push({ namespace: FENCES, key: this.command, value: this.#fence(head) });
    const reports = report ? steps.map((step) => this.#report(step)) : [];
    await this.#insist(() => this.#deps.journal.commit({ put, command: this.command, reports }));
  }

  #fence(head: RunRecord): FenceRecord {
    return { format: 1, engine: this.#pipeline.engine, endedAt: head.endedAt ?? head.createdAt, taken: false };
  }

  #report(step: Step): ReportBody {
    const record = this.#steps.get(step.name)!;
    const { state, error, exitCode, outputs, logSeq, adopted, retryAt } = record;
    return this.#deps.redactor.json({
      type: "step",
      run: this.run,
      step: step.name,
      attempt: Math.max(1, record.attempt),
      state,
      error,
      exitCode,
      outputs,
      logSeq,
      adopted,
      ...(retryAt === null ? {} : { retryAt }),
    });
  }

  /** What has happened has to be written down: waits for the disk as long as the agent lives. */
  async #insist<T>(work: () => Promise<T>): Promise<T> {
    for (;;) {
      try {
        return await work();
      } catch (caught) {
        if (!(caught instanceof ConnectorError) || caught.code !== "JOURNAL_UNAVAILABLE") throw caught;
        this.#deps.log.warn({ code: caught.code }, `the journal takes nothing now, trying again: ${caught.message}`);
        await wait(this.#deps.clock, JOURNAL_RETRY_MS, this.#leave);
      }
    }
  }
}
