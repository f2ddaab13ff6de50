// One attempt of a step, from an empty folder to outputs in the store, in such an order that a kill at any point leaves
// something that says how far it got: the journal's record, the engine's own (by name), the manifest in the store.
import { channel } from "node:diagnostics_channel";
import {
  ConnectorError,
  toConnectorError,
  wait,
  type CommandId,
  type ParamValue,
  type Pipeline,
  type ProducedArtifact,
  type RunId,
  type Step,
} from "@sallyport/protocol";
import { type Engine, type WorkName, type WorkSpec, type WorkStatus } from "../../engines/engine.ts";
import type { AttemptLog } from "../../logs/index.ts";
import { workOf, type StepWork } from "./check.ts";
import { DEFAULT_GRACE_MS, type PipelinesDeps } from "./deps.ts";
import { sinceThen, type MachineTime } from "./machine-time.ts";
import {
  haveWorkFolder,
  makeWorkFolder,
  placeInputs,
  placesOf,
  storeOutputs,
  type FilesContext,
} from "./step-files.ts";
import { fillArgs, stepEnvironment, type StepPlaces } from "./template.ts";

/** Where tests kill the agent. */
const boundary = {
  prepared: channel("sallyport:step.prepared"),
  started: channel("sallyport:step.started"),
  ended: channel("sallyport:step.ended"),
  stored: channel("sallyport:step.stored"),
};

/** A store or secret provider that fails for now is tried again so often before the attempt fails. */
const STORE_TRIES = 5;
const SECRET_TRIES_AFTER_END = 8;
const RETRY_MS = 1000;
/** Between two looks at whether the engine of a running step still answers. */
const LOOK_MS = 5000;
/** An image that is not there after this is being pulled: the log says so. */
const PULLING_MS = 1000;
const MAX_RETRY_MS = 60_000;
/** 1 s, doubling, at most 60 s. */
export const backoffMs = (tries: number): number => Math.min(MAX_RETRY_MS, RETRY_MS * 2 ** Math.min(tries, 16));

export interface AttemptInput {
  deps: PipelinesDeps;
  command: CommandId;
  run: RunId;
  pipeline: Pipeline;
  params: Record<string, ParamValue>;
  step: Step;
  attempt: number;
  /** The engine's name of it. */
  work: WorkName;
  folder: string;
  /** The journal knew of it before this process did. */
  known: boolean;
  /** The journal knew that the engine had begun it. */
  begun: boolean;
  /** When that was; null = not known. */
  begunAt: MachineTime | null;
  /** A stop that was asked for before a restart. */
  stopping: "cancel" | "timeout" | null;
  /** Asked before anything begins: throws when policy, configuration or the run's own state forbid it by now. */
  permit: () => void;
  produced: (step: string) => readonly ProducedArtifact[];
  /** Written before the effect. */
  noteStopping: (why: "cancel" | "timeout") => Promise<void>;
  noteAdopted: () => Promise<void>;
  noteBegun: () => Promise<void>;
  /** Aborts: stop this attempt. */
  cancel: AbortSignal;
  /** Aborts: the agent stops; leave everything as it is. */
  leave: AbortSignal;
}

export type AttemptOutcome =
  | { state: "succeeded"; outputs: ProducedArtifact[]; exitCode: number; logSeq: number }
  | {
      state: "failed";
      error: ConnectorError;
      exitCode: number | null;
      logSeq: number;
      /** A new attempt can help. */ again: boolean;
    }
  | { state: "cancelled"; error: ConnectorError; exitCode: number | null; logSeq: number; stopped: string[] };

type Exited = Extract<WorkStatus, { state: "exited" }>;

/** Rejects only when `leave` aborts (with its reason). */
export async function runAttempt(input: AttemptInput): Promise<AttemptOutcome> {
  const log = await untilWritable(input, () =>
    input.deps.logs.open({ run: input.run, step: input.step.name, attempt: input.attempt }),
  );
  try {
    return await new Attempt(input, log).go();
  } catch (caught) {
    await log.close();
    throw caught;
  }
}

class Attempt {
  readonly #in: AttemptInput;
  readonly #log: AttemptLog;
  readonly #name: WorkName;
  readonly #places: StepPlaces;
  readonly #files: FilesContext;
  readonly #halt: AbortSignal;
  /** The engine did not answer when it was last asked. */
  #away = false;

  constructor(input: AttemptInput, log: AttemptLog) {
    this.#in = input;
    this.#log = log;
    this.#name = input.work;
    this.#places = placesOf(input.folder);
    this.#halt = AbortSignal.any([input.leave, input.cancel]);
    this.#files = {
      stores: input.deps.stores,
      policy: input.deps.policy,
      signal: this.#halt,
      maxBytes: input.deps.workBytes,
    };
  }

  async go(): Promise<AttemptOutcome> {
    const { deps, pipeline, step, attempt, leave, cancel, known } = this.#in;
    let begun: WorkStatus = { state: "absent" };
    let adopted = true;
    let permitted = false;
    let engine: Engine;
    try {
      if (!known) this.#in.permit();
      engine = deps.engines.get(pipeline.engine);
      // Where another agent may have begun it, its name says so.
      if (known || engine.shared !== undefined) begun = await this.#insist(() => engine.status(this.#name));
      if (begun.state === "absent" && this.#in.begun) begun = this.#vanished(deps.clock.now());
      else if (begun.state === "absent") {
        // Asked to stop before it began: it never will.
        if (this.#in.stopping !== null || cancel.aborted) throw cancelled(cancel);
        this.#in.permit();
        permitted = true;
        adopted = false;
        const work = workOf(step, engine, deps.programs());
        begun = await this.#begin(engine, work);
        await this.#in.noteBegun();
        await this.#say(
          `Attempt ${attempt} of step ${step.name} begins: ${step.program === undefined ? `image ${work.image}` : `program ${step.program}`}.`,
        );
      }
      if (adopted) {
        await haveWorkFolder(this.#places);
        await this.#in.noteAdopted();
      }
      this.#read(adopted);
    } catch (caught) {
      leave.throwIfAborted();
      const error = cancel.aborted ? cancelled(cancel) : toConnectorError(caught);
      if (error.code === "CANCELLED")
        return this.#end({ state: "cancelled", error, exitCode: null, logSeq: 0, stopped: [] });
      if (error.code === "INTERNAL") deps.log.error({ err: caught, step: step.name }, "a step could not be started");
      await this.#say(`The step was not started: ${error.message}`);
      const again = permitted && error.retry === "later";
      return this.#end({ state: "failed", error, exitCode: null, logSeq: 0, again });
    }
    const { exited, stopping, stopped } = await this.#whole(engine, begun, adopted);
    boundary.ended.publish({ work: this.#name });
    // By somebody at the agent's host, past the agent (`stop` while it does not run).
    if (stopping === null && exited.reason === "killed") {
      const error = new ConnectorError("CANCELLED", `Step ${step.name} was stopped at the agent's host.`);
      return await this.#end({ state: "cancelled", error, exitCode: exited.code, logSeq: 0, stopped: [this.#name] });
    }
    if (stopping === "cancel")
      return this.#end({
        state: "cancelled",
        error: cancelled(cancel),
        exitCode: exited.code,
        logSeq: 0,
        stopped,
      });
    if (stopping === "timeout") {
      return this.#end({
        state: "failed",
        error: this.#error(
          "STEP_TIMED_OUT",
          `ran longer than its limit of ${step.timeoutMs} ms and was stopped`,
          "Raise its timeoutMs, or give it less to do.",
        ),
        exitCode: exited.code,
        logSeq: 0,
        again: true,
      });
    }
    if (exited.code !== 0)
      return this.#end({
        state: "failed",
        error: this.#exitError(engine, exited),
        exitCode: exited.code,
        logSeq: 0,
        again: true,
      });
    try {
      const outputs = await this.#stored(engine);
      boundary.stored.publish({ work: this.#name });
      return await this.#end({ state: "succeeded", outputs, exitCode: 0, logSeq: 0 });
    } catch (caught) {
      leave.throwIfAborted();
      if (cancel.aborted)
        return this.#end({ state: "cancelled", error: cancelled(cancel), exitCode: 0, logSeq: 0, stopped: [] });
      const error = toConnectorError(caught);
      if (error.code === "INTERNAL") deps.log.error({ err: caught, step: step.name }, "outputs could not be stored");
      return this.#end({
        state: "failed",
        error,
        exitCode: 0,
        logSeq: 0,
        again: error.code === "STEP_OUTPUT_MISSING" || error.retry === "later",
      });
    }
  }

  async #begin(engine: Engine, work: StepWork): Promise<WorkStatus> {
    const { pipeline, run, step, attempt, params } = this.#in;
    await makeWorkFolder(this.#places);
    if (work.image !== null) await this.#prepare(engine, work.image);
    await again(
      this.#in,
      this.#halt,
      () => placeInputs(pipeline, run, step, this.#places, this.#in.produced, this.#files),
      { reset: () => makeWorkFolder(this.#places) },
    );
    const secrets = await again(this.#in, this.#halt, () => this.#secrets());
    boundary.prepared.publish({ work: this.#name });
    // As the work sees them.
    const places = placesOf(engine.inside(this.#places.folder));
    const about = { run, attempt, inImage: work.image !== null };
    const spec: WorkSpec = {
      name: this.#name,
      executable: work.executable,
      args: [...work.args, ...fillArgs(step, params, places)],
      env: { ...stepEnvironment(step, params, places, about, { ...work.env }), ...secrets },
      cwd: this.#places.folder,
      stdout: this.#log.stdout,
      stderr: this.#log.stderr,
      container:
        work.image === null
          ? null
          : {
              image: work.image,
              resources: step.resources,
              network: step.network === undefined ? { kind: "none" } : { kind: "named", name: step.network },
            },
    };
    const begun = await this.#start(engine, spec);
    boundary.started.publish({ work: this.#name });
    return begun;
  }

  async #prepare(engine: Engine, image: string): Promise<void> {
    const { deps } = this.#in;
    let said: Promise<void> = Promise.resolve();
    const timer = deps.clock.after(PULLING_MS, () => (said = this.#say(`Pulling image ${image} …`)));
    try {
      await again(
        this.#in,
        this.#halt,
        () => this.#insist(() => engine.prepare(image, this.#halt), this.#halt, ifUnreachable),
        { heard: (error) => this.#say(`Waiting for the image, trying again: ${error.message}`) },
      );
    } finally {
      timer.cancel();
      await said;
    }
  }

  async #start(engine: Engine, spec: WorkSpec): Promise<WorkStatus> {
    return this.#insist(
      async () => {
        // What went before may have taken long.
        this.#in.permit();
        try {
          return await engine.start(spec);
        } catch (caught) {
          // The answer may have been lost, not the work: the engine says which.
          const there = await this.#insist(() => engine.status(this.#name));
          if (there.state === "absent") throw caught;
          this.#feed = true;
          return there;
        }
      },
      this.#halt,
      ifUnreachable,
    );
  }
  /** Nobody may be feeding the work's files yet. */
  #feed = false;

  /** Values that the step gets; the redactor knows each from now on. */
  async #secrets(): Promise<Record<string, string>> {
    const { deps, step } = this.#in;
    const env: Record<string, string> = {};
    for (const [variable, name] of Object.entries(step.secrets)) {
      const value = (await deps.secrets.named(name, this.#halt)).reveal();
      deps.redactor.add(value);
      env[variable] = value;
    }
    return env;
  }

  /** Begins to read the log without waiting: of an adopted attempt once all that it must not show is known again. */
  #read(adopted: boolean): void {
    const { deps, step, leave } = this.#in;
    const names = adopted ? Object.values(step.secrets) : [];
    this.#following = (async () => {
      for (let tries = 0; ; tries++) {
        try {
          for (const name of names) deps.redactor.add((await deps.secrets.named(name, leave)).reveal());
          break;
        } catch (caught) {
          leave.throwIfAborted();
          const error = toConnectorError(caught);
          if (error.retry === "never" || (this.#over && tries >= SECRET_TRIES_AFTER_END)) {
            return this.#log.withhold(
              `The rest of this log is withheld: a secret of the step cannot be resolved again (${error.code}), so it could not be removed.`,
            );
          }
          await wait(deps.clock, backoffMs(Math.min(tries, 3)), leave);
        }
      }
      await this.#insist(() => this.#log.follow());
    })();
    this.#following.catch((error: unknown) => {
      if (!leave.aborted) deps.log.error({ err: error, work: this.#name }, "a step's log cannot be read");
    });
  }
  #following: Promise<void> = Promise.resolve();
  #over = false;

  /** Waits for the end, or brings it about. */
  async #whole(
    engine: Engine,
    begun: WorkStatus,
    adopted: boolean,
  ): Promise<{ exited: Exited; stopping: "cancel" | "timeout" | null; stopped: string[] }> {
    const { deps, step, cancel, leave, known } = this.#in;
    const { clock } = deps;
    if (adopted) this.#feed = true;
    let { stopping } = this.#in;
    let stopped: string[] = [];
    if (begun.state === "running") {
      const over = new AbortController();
      const ended = this.#ended(engine, AbortSignal.any([leave, over.signal]), begun.startedAt);
      ended.catch(() => undefined);
      if (stopping === null) {
        // By a clock that nobody sets, where there is one: a wall clock that was set meanwhile would end work in time, or never.
        const spentMs =
          known || adopted ? (sinceThen(this.#in.begunAt) ?? Math.max(0, clock.now() - begun.startedAt)) : 0;
        let expire!: () => void;
        const expired = new Promise<"timeout">((resolve) => (expire = () => resolve("timeout")));
        const timer = clock.after(Math.max(0, step.timeoutMs - spentMs), expire, { keepAlive: true });
        let onCancel!: () => void;
        const asked = new Promise<"cancel">((resolve) => (onCancel = () => resolve("cancel")));
        if (cancel.aborted) onCancel();
        cancel.addEventListener("abort", onCancel, { once: true });
        try {
          const first = await Promise.race([ended.then(() => null), expired, asked]);
          if (first !== null) {
            await this.#in.noteStopping(first);
            stopping = first;
          }
        } finally {
          timer.cancel();
          cancel.removeEventListener("abort", onCancel);
        }
      }
      if (stopping !== null) {
        const result = await orLeave(
          leave,
          this.#insist(() => engine.stop(this.#name, deps.graceMs ?? DEFAULT_GRACE_MS)),
        );
        stopped = result.stopped;
        await this.#say(
          stopping === "timeout" ? `Stopped: longer than ${step.timeoutMs} ms.` : "Stopped: the run was cancelled.",
        );
      }
      const exited = await ended;
      over.abort();
      this.#over = true;
      return { exited, stopping, stopped };
    }
    // `absent` cannot be: it was begun. Not all that it wrote need be in its files yet.
    const exited = await this.#ended(engine, leave, (begun as Exited).startedAt);
    this.#over = true;
    return { exited, stopping, stopped };
  }

  async #ended(engine: Engine, signal: AbortSignal, startedAt: number): Promise<Exited> {
    const files = { stdout: this.#log.stdout, stderr: this.#log.stderr };
    return this.#insist(async () => {
      const status = await this.#insist(() => engine.status(this.#name), signal);
      if (status.state === "absent") return this.#vanished(startedAt);
      if (this.#feed) await engine.attach(this.#name, files);
      // Should the engine be lost on the way, its feeding may have ended with it.
      this.#feed = true;
      const over = new AbortController();
      const watched = engine.isolated ? this.#watch(engine, AbortSignal.any([signal, over.signal])) : Promise.resolve();
      try {
        return await engine.ended(this.#name, signal);
      } finally {
        over.abort();
        await watched;
      }
    }, signal);
  }

  /** Whoever waits for an end is not told that the engine is away meanwhile: it is asked, for the log to say so. */
  async #watch(engine: Engine, until: AbortSignal): Promise<void> {
    try {
      for (;;) {
        await wait(this.#in.deps.clock, LOOK_MS, until);
        await this.#insist(() => engine.status(this.#name), until, ifUnreachable);
      }
    } catch {
      // it ended, or the wait itself meets what is wrong
    }
  }

  /** Somebody removed the engine's record of work that had begun. */
  #vanished(startedAt: number): Exited {
    const endedAt = this.#in.deps.clock.now();
    return { state: "exited", startedAt, endedAt, code: null, signal: null, reason: "unknown" };
  }

  /** An engine or disk that fails for now does not decide about the work. `which` failures those are: all, if absent. */
  async #insist<T>(
    work: () => Promise<T>,
    signal: AbortSignal = this.#in.leave,
    which: (error: ConnectorError) => boolean = () => true,
  ): Promise<T> {
    const { deps, pipeline } = this.#in;
    for (let tries = 0; ; tries++) {
      try {
        const result = await work();
        if (this.#away) {
          this.#away = false;
          await this.#say(`Engine ${pipeline.engine} answers again.`);
        }
        return result;
      } catch (caught) {
        signal.throwIfAborted();
        const error = toConnectorError(caught);
        if (!which(error)) throw caught;
        deps.log.warn({ err: caught, work: this.#name }, "the engine or the disk fails for now, trying again");
        if (ifUnreachable(error) && !this.#away) {
          this.#away = true;
          await this.#say(`Waiting for engine ${pipeline.engine}; what runs in it goes on. ${error.message}`);
        }
        await wait(deps.clock, backoffMs(tries), signal);
      }
    }
  }

  async #stored(engine: Engine): Promise<ProducedArtifact[]> {
    const { deps, pipeline, run, step, attempt } = this.#in;
    const { folder } = this.#places;
    if (Object.keys(step.outputs).length > 0)
      await again(this.#in, this.#halt, () =>
        this.#insist(
          () => engine.fetchOutputs(this.#name, folder, deps.workBytes, this.#halt),
          this.#halt,
          ifUnreachable,
        ),
      );
    return again(this.#in, this.#halt, () => storeOutputs(pipeline, run, step, attempt, this.#places, this.#files));
  }

  /** A log that cannot be written is no reason to change what happened. */
  async #say(text: string): Promise<void> {
    await this.#log
      .system(text)
      .catch((error: unknown) => this.#in.deps.log.warn({ err: error }, "a step's log cannot be written"));
  }

  async #end<T extends AttemptOutcome>(outcome: T): Promise<T> {
    const { deps, leave } = this.#in;
    await orLeave(
      leave,
      this.#following.catch(() => undefined),
    );
    const logSeq = await this.#log.finish().catch((error: unknown) => {
      leave.throwIfAborted();
      deps.log.error({ err: error, work: this.#name }, "the end of a step's log could not be written");
      return this.#log.lastSeq;
    });
    return { ...outcome, logSeq };
  }

  #exitError(engine: Engine, exited: Exited): ConnectorError {
    const { memoryBytes } = this.#in.step.resources;
    if (exited.reason === "out-of-memory" && engine.isolated)
      return this.#error(
        "OUT_OF_MEMORY",
        `reached its memory limit of ${memoryBytes} bytes and was ended`,
        "Raise its resources.memoryBytes, or give it less to do.",
        exited,
        { memoryBytes },
      );
    if (exited.reason === "out-of-memory")
      return this.#error(
        "STEP_FAILED",
        "was ended by the machine for lack of memory",
        "Give the machine more memory, or the step less to do.",
        exited,
      );
    if (exited.reason === "unknown")
      return this.#error(
        "STEP_FAILED",
        "ended while nobody could see how",
        "Look at its log and its outputs before you start it again.",
        exited,
      );
    if (exited.signal !== null)
      return this.#error("STEP_FAILED", `was ended by ${exited.signal}`, "Its log says more.", exited);
    return this.#error("STEP_FAILED", `ended with exit code ${exited.code}`, "Its log says why.", exited);
  }

  /** No word of the log goes in here: the control plane is blind to content. */
  #error(
    code: "STEP_FAILED" | "STEP_TIMED_OUT" | "OUT_OF_MEMORY",
    what: string,
    fix: string,
    exited?: Exited,
    more: Record<string, unknown> = {},
  ): ConnectorError {
    const { step, attempt, run } = this.#in;
    return new ConnectorError(code, `Step ${step.name} ${what}.`, {
      fix,
      details: {
        run,
        step: step.name,
        attempt,
        ...(exited === undefined ? {} : { exitCode: exited.code, signal: exited.signal, reason: exited.reason }),
        ...more,
      },
    });
  }
}

export function cancelled(cancel: AbortSignal): ConnectorError {
  const { reason } = cancel as { reason: unknown };
  return reason instanceof ConnectorError && reason.code === "CANCELLED"
    ? reason
    : new ConnectorError("CANCELLED", "The run was cancelled.");
}

const ifUnreachable = (error: ConnectorError): boolean => error.code === "ENGINE_UNREACHABLE";

/** Repeats what fails for now, a few times. `heard` is told why, `reset` runs before each repetition. */
async function again<T>(
  input: AttemptInput,
  halt: AbortSignal,
  work: () => Promise<T>,
  between: { heard?: (error: ConnectorError) => Promise<void>; reset?: () => Promise<void> } = {},
): Promise<T> {
  for (let tries = 0; ; tries++) {
    halt.throwIfAborted();
    try {
      return await work();
    } catch (caught) {
      halt.throwIfAborted();
      const error = toConnectorError(caught);
      if (error.retry !== "later" || error.code === "INTERNAL" || tries + 1 >= STORE_TRIES) throw caught;
      input.deps.log.warn({ code: error.code, step: input.step.name }, `trying again: ${error.message}`);
      await between.heard?.(error);
      await wait(input.deps.clock, backoffMs(tries), halt);
      await between.reset?.();
    }
  }
}

/** A full disk ends: the log is opened then. */
async function untilWritable<T>(input: AttemptInput, work: () => Promise<T>): Promise<T> {
  for (let tries = 0; ; tries++) {
    try {
      return await work();
    } catch (caught) {
      input.deps.log.warn({ err: caught, step: input.step.name }, "a step's log cannot be opened, trying again");
      await wait(input.deps.clock, backoffMs(tries), input.leave);
    }
  }
}

/** `work` goes on, but nobody waits for it once the agent stops. */
async function orLeave<T>(leave: AbortSignal, work: Promise<T>): Promise<T> {
  leave.throwIfAborted();
  let onLeave!: () => void;
  const left = new Promise<never>((_resolve, reject) => {
    onLeave = () => reject(leave.reason as Error);
    leave.addEventListener("abort", onLeave, { once: true });
  });
  try {
    return await Promise.race([work, left]);
  } finally {
    leave.removeEventListener("abort", onLeave);
    work.catch(() => undefined);
  }
}
