// The one runner: the same steps for every command, whatever its kind. Decode, verify, decide by policy, deduplicate,
// start the deadline, journal, run, redact, report. Handlers return; everything that is sent is sent here.
import { channel } from "node:diagnostics_channel";
import {
  ConnectorError,
  jsonTextBody,
  MAX_BODY_BYTES,
  ndjsonLine,
  readJsonBody,
  toConnectorError,
  childOf,
  formatTraceparent,
  parseTraceparent,
  wait,
  type Clock,
  type CommandId,
  type ErrorBody,
  type KeyRing,
  type LinkStream,
  type ReportBody,
  type RunId,
  type TraceContext,
} from "@sallyport/protocol";
import type { Logger } from "pino";
import type { Audit, AuditEntry } from "../audit/audit.ts";
import type { Journal, JournaledCommand } from "../journal/journal.ts";
import type { AgentSession } from "../link/link.ts";
import type { PolicyGuard } from "../policy/action.ts";
import type { Redactor } from "../redaction/redactor.ts";
import type { AnyCommandKind, CommandContext, UploadIntake } from "./command.ts";
import { DurableQueue, type QueuedCommand } from "./durable-queue.ts";
import type { Intake } from "./intake.ts";
import { DispatchWindow, invalidInput, readOffer, requireInTime, type Offer } from "./offer.ts";
import type { CommandRegistry } from "./registry.ts";

export interface RunnerOptions {
  registry: CommandRegistry;
  journal: Journal;
  audit: Audit;
  intake: Intake;
  /** Asked at each step, so a reloaded policy counts from then on. */
  policy: PolicyGuard;
  redactor: Redactor;
  clock: Clock;
  log: Logger;
  /** Highest dispatch numbers of earlier starts, per incarnation of the cloud. */
  dispatchSequences?: Readonly<Record<string, number>>;
  /** Whose signature under an intent counts. None = an intent that carries a signature is refused. */
  authorKeys?: KeyRing;
  /** Durable commands at once on this machine; the policy's ceiling may be lower. Absent = the policy's alone. */
  maxRuns?: () => number;
  /** Told whenever what `running` answers has changed. */
  changed?: () => void;
  /** Told of each command that ended, with its span. Absent = nobody. */
  ended?: (command: EndedCommand) => void;
}

/** For metrics and traces. */
export interface EndedCommand {
  command: CommandId;
  /** Of the registry, so that there are few; null = none of that name. */
  kind: string | null;
  resource: string;
  durable: boolean;
  /** `succeeded` or an error code. */
  outcome: string;
  /** ms since the epoch. */
  startedAt: number;
  tookMs: number;
  sentBytes: number;
  trace: TraceContext;
  /** Of the dispatch or the request that asked; null = not said. */
  parentSpanId: string | null;
}

export interface RunningCommand {
  command: CommandId;
  kind: string;
  resource: string;
  /** Of the resource, when it names one. */
  run: RunId | null;
  state: "waiting" | "running";
  /** ms since the epoch; of the waiting ones: null. */
  startedAt: number | null;
}

interface Active {
  kind: AnyCommandKind;
  command: CommandId;
  resource: string;
  startedAt: number;
  durable: boolean;
  controller: AbortController;
}

/** Crash points for tests that kill the agent at each boundary, and events for whoever observes. */
const boundary = {
  received: channel("sallyport:agent:command.received"),
  audited: channel("sallyport:agent:command.audited"),
  journaled: channel("sallyport:agent:command.journaled"),
  accepted: channel("sallyport:agent:command.accepted"),
  running: channel("sallyport:agent:command.running"),
  done: channel("sallyport:agent:command.done"),
  ended: channel("sallyport:agent:command.ended"),
};

const RETRY_MS = 1000;
const LEFT_LOOK_MS = 20;
/** Of an upload: how often the sender hears what it need not keep. */
const TAKEN_STEP_BYTES = 512 * 1024;
/** A report's body is JSON within JSON, which may double it, and a line of reports has a limit of its own. */
const MAX_REPORT_RESULT_BYTES = MAX_BODY_BYTES / 2;
const heldElsewhere = () => new ConnectorError("HELD_ELSEWHERE", "Another agent has taken this command over.");
const draining = () =>
  new ConnectorError("AGENT_DRAINING", "The agent is stopping.", { fix: "Try again when it is back." });

interface StreamIntake extends UploadIntake {
  readonly begun: boolean;
}

/** Says how far an upload is: the newest figure when the last one has left, never a queue of old ones. */
function uploadIntake(stream: LinkStream): StreamIntake {
  let begun = false;
  let newest = 0;
  let said = 0;
  let saying = false;
  const say = async (): Promise<void> => {
    saying = true;
    while (newest > said) {
      said = newest;
      await stream.write(ndjsonLine({ type: "taken", bytes: said }));
    }
    saying = false;
  };
  return {
    get begun() {
      return begun;
    },
    from(offset) {
      begun = true;
      stream.respond({ type: "taking", offset });
    },
    taken(bytes) {
      if (bytes - newest < TAKEN_STEP_BYTES) return;
      newest = bytes;
      // It fails with the stream, and then nobody waits for it.
      if (!saying) say().catch(() => undefined);
    },
  };
}

async function* nothing(): AsyncGenerator<Buffer> {}

/** For log lines; a trace that nobody asked for is not named. */
const traceIdOf = (trace: TraceContext | null): { trace_id?: string } =>
  trace === null ? {} : { trace_id: trace.traceId };

const runOf = (resource: string): RunId | null =>
  /^run:run_[0-9a-f]{32}$/.test(resource) ? (resource.slice(4) as RunId) : null;

export class CommandRunner {
  readonly #options: RunnerOptions;
  readonly #window: DispatchWindow;
  readonly #authorKeys: KeyRing;
  readonly #queue: DurableQueue;
  readonly #active = new Map<CommandId | string, Active>();
  readonly #settled = new Set<() => void>();
  readonly #stop = new AbortController();
  /** Let go of, and not taken up again since. */
  readonly #released = new Set<CommandId>();
  /** While it is put into the queue: one that begins in that very moment need not be read from the journal again. */
  #justJournaled: JournaledCommand | null = null;
  #interactive = 0;

  constructor(options: RunnerOptions) {
    this.#options = options;
    this.#window = new DispatchWindow(options.dispatchSequences ?? {});
    this.#authorKeys = options.authorKeys ?? new Map();
    this.#queue = new DurableQueue(
      (queued) => this.#runDurable(queued),
      () => Math.min(options.policy.limit("concurrentRuns"), options.maxRuns?.() ?? Infinity),
    );
  }

  /** For hello: highest dispatch number seen per incarnation, also of commands that are not journaled. */
  get dispatchSequences(): Record<string, number> {
    return this.#window.highest;
  }

  /** Goes on with what an earlier start of the agent had accepted. Before the link starts. */
  async resume(): Promise<number> {
    const open = await this.#options.journal.open();
    for (const held of open) this.#enqueue(held.id, held.kind, held.resource, held.state === "running");
    return open.length;
  }

  /** Durable commands that have not ended and interactive ones under way. */
  running(): RunningCommand[] {
    const active = [...this.#active.values()].map((one) => ({
      command: one.command,
      kind: one.kind.spec.kind,
      resource: one.resource,
      run: runOf(one.resource),
      state: "running" as const,
      startedAt: one.startedAt,
    }));
    const waiting = this.#queue.waiting.map((one) => ({
      command: one.id,
      kind: one.kind,
      resource: one.resource,
      run: runOf(one.resource),
      state: "waiting" as const,
      startedAt: null,
    }));
    return [...active, ...waiting];
  }

  /** How many accepted commands have not begun. */
  get waiting(): number {
    return this.#queue.waitingCount;
  }

  /** A stream whose head says `type: "command"`. Never throws: a refusal is the stream's RESET. */
  async handle(stream: LinkStream, session: AgentSession): Promise<void> {
    let offer: Offer | null = null;
    try {
      offer = readOffer(stream.head, session, this.#window, this.#authorKeys);
      boundary.received.publish({ command: offer.intent.command });
      await this.#accept(offer, stream, session);
    } catch (caught) {
      const error = toConnectorError(caught);
      const log = this.#options.log.child(
        offer === null ? {} : { command: offer.intent.command, kind: offer.intent.kind, ...traceIdOf(offer.trace) },
      );
      if (error.code === "INTERNAL") log.error({ err: caught }, "command failed unexpectedly");
      else log.info({ code: error.code }, `command refused or failed: ${error.message}`);
      stream.reset(this.#redacted(error));
    }
  }

  /**
   * Another replica has it by now. What runs of it goes on without this agent: nothing is stopped, and nothing more is
   * said of it. Resolves when that is written down.
   */
  async release(id: CommandId): Promise<void> {
    const { journal, log, registry } = this.#options;
    const held = await journal.command(id);
    if (held?.state === "released") return;
    if (held !== null && registry.names.includes(held.kind)) await registry.get(held.kind).released?.(id);
    this.#released.add(id);
    await journal.release(id);
    this.#queue.remove(id);
    this.#active.get(id)?.controller.abort(heldElsewhere());
    log.warn({ command: id, kind: held?.kind }, "another agent has taken this command over: it is left to it");
  }

  /** By a person at the agent's host. False = it is not known here, or has ended. */
  async cancelLocal(id: CommandId, who: string): Promise<boolean> {
    const reason = new ConnectorError("CANCELLED", `Stopped at the agent's host by ${who}.`);
    const active = this.#active.get(id);
    if (active !== undefined) {
      active.controller.abort(reason);
      return true;
    }
    if (!this.#queue.remove(id)) return false;
    return this.#options.journal.advance(id, "cancelled", [{ type: "command.cancelled", stopped: [] }]);
  }

  /**
   * Ends a command of that resource that was accepted and waits for its turn: it would else hold on to its end for as long as
   * those before it run. False = it has begun, or is not known here.
   */
  async withdraw(id: CommandId, resource: string): Promise<boolean> {
    const waits = this.#queue.waiting.some((one) => one.id === id && one.resource === resource && !one.adopted);
    if (!waits || !this.#queue.remove(id)) return false;
    this.#options.changed?.();
    const end = () =>
      this.#options.journal.advance(id, "cancelled", [{ type: "command.cancelled" as const, stopped: [] }]);
    await this.#insist(end, this.#options.log.child({ command: id }));
    return true;
  }

  /** The limits may have changed. */
  policyChanged(): void {
    this.#queue.pump();
  }

  /**
   * Begins nothing more, lets interactive commands end until the deadline, then stops them; tells durable handlers to
   * leave their work as it is. Resolves when no handler runs any more, or `deadlineMs` after that was asked for.
   */
  async drain(deadlineMs: number): Promise<void> {
    this.#queue.stop();
    for (const active of this.#active.values()) if (active.durable) active.controller.abort(draining());
    this.#stop.abort(draining());
    const half = deadlineMs / 2;
    if (await this.#allSettled(half)) return;
    for (const active of this.#active.values()) active.controller.abort(draining());
    await this.#allSettled(half);
  }

  async #allSettled(withinMs: number): Promise<boolean> {
    if (this.#active.size === 0) return true;
    return new Promise((resolve) => {
      const timer = this.#options.clock.after(withinMs, () => finish(false), { keepAlive: true });
      const check = () => {
        if (this.#active.size === 0) finish(true);
      };
      const finish = (all: boolean) => {
        timer.cancel();
        this.#settled.delete(check);
        resolve(all);
      };
      this.#settled.add(check);
    });
  }

  #begin(key: CommandId | string, active: Active): void {
    this.#active.set(key, active);
    this.#options.changed?.();
  }

  #end(key: CommandId | string): void {
    this.#active.delete(key);
    this.#options.changed?.();
    for (const check of [...this.#settled]) check();
  }

  #began(): { at: number; ms: number } {
    return { at: this.#options.clock.now(), ms: this.#options.clock.monotonic() };
  }

  #tell(
    command: CommandId,
    kind: string,
    resource: string,
    parent: TraceContext | null,
    trace: TraceContext,
    began: { at: number; ms: number },
    end: { durable: boolean; outcome: string; sentBytes?: number },
  ): void {
    this.#options.ended?.({
      command,
      kind: this.#options.registry.has(kind) ? kind : null,
      resource,
      trace,
      parentSpanId: parent?.spanId ?? null,
      startedAt: began.at,
      tookMs: this.#options.clock.monotonic() - began.ms,
      sentBytes: 0,
      ...end,
    });
  }

  async #left(id: CommandId): Promise<void> {
    while (this.#active.has(id) || this.#queue.has(id))
      await wait(this.#options.clock, LEFT_LOOK_MS, this.#stop.signal);
    this.#released.delete(id);
  }

  #redactedBody(error: ConnectorError): ErrorBody {
    return this.#options.redactor.json(error.toBody());
  }

  #redacted(error: ConnectorError): ConnectorError {
    return ConnectorError.fromBody(this.#redactedBody(error));
  }

  // ---- acceptance

  async #accept(offer: Offer, stream: LinkStream, session: AgentSession): Promise<void> {
    const { intent } = offer;
    const { audit, intake, journal, policy, registry } = this.#options;
    const about = { who: offer.who, command: intent.command, kind: intent.kind, resource: intent.resource };
    const began = this.#began();
    let rule: string | undefined;
    let kind: AnyCommandKind;
    let input: unknown;
    try {
      kind = registry.get(intent.kind);
      if (kind.spec.class === "durable") {
        const held = await journal.command(intent.command);
        if (held !== null && held.state !== "released") return this.#answerKnown(offer, held, stream);
      }
      const late = offer.dispatch.takenOver === true && intent.expires <= session.cloudNow();
      if (!late || (await kind.hasBegun?.(intent.command)) !== true) requireInTime(intent, session.cloudNow());
      intake.require();
      const verdict = policy.decide({ kind: "command", command: intent.kind });
      rule = verdict.rule;
      if (!verdict.allowed)
        throw new ConnectorError("POLICY_DENIED", verdict.reason, { fix: verdict.fix, details: { rule } });
      const parsed = kind.spec.input.safeParse(readJsonBody(offer.body));
      if (!parsed.success) throw invalidInput(`The input of ${intent.kind}`, parsed.error);
      input = parsed.data;
      if (kind.spec.class !== "durable") policy.require({ kind: "ceiling", ceiling: "streams", value: 1 });
      else if (kind.overtakes !== true && kind.slot !== false)
        policy.require({ kind: "ceiling", ceiling: "concurrentRuns", value: 1 });
      kind.check?.(input as never, policy);
      audit.require();
    } catch (caught) {
      const error = toConnectorError(caught);
      const ruled = error.details?.["rule"] ?? rule;
      audit.append({
        event: "command.refused",
        ...about,
        ...(error.code === "POLICY_DENIED" ? { verdict: "denied" as const } : {}),
        ...(typeof ruled === "string" ? { rule: ruled } : {}),
        outcome: error.code,
      });
      this.#tell(intent.command, intent.kind, intent.resource, offer.trace, childOf(offer.trace), began, {
        durable: false,
        outcome: error.code,
      });
      throw error;
    }
    const entry = { ...about, verdict: "allowed", ...(rule === undefined ? {} : { rule }) } as const;
    if (kind.spec.class === "durable") await this.#acceptDurable(offer, entry, stream, session);
    else await this.#runInteractive(kind, input, offer, entry, stream);
  }

  #answerKnown(offer: Offer, held: JournaledCommand, stream: LinkStream): void {
    if (held.intent !== offer.intentText) {
      throw new ConnectorError("CONFLICT", `The command id ${held.id} is held already, for another intent.`, {
        fix: "Ask again with a new command id.",
      });
    }
    stream.respond({ type: "accepted", known: true }, { end: true });
  }

  async #acceptDurable(
    offer: Offer,
    entry: Omit<AuditEntry, "event">,
    stream: LinkStream,
    session: AgentSession,
  ): Promise<void> {
    const { intent, dispatch } = offer;
    await this.#options.audit.commit({ event: "command.accepted", ...entry });
    boundary.audited.publish({ command: intent.command });
    const command = {
      id: intent.command,
      kind: intent.kind,
      resource: intent.resource,
      intent: offer.intentText,
      body: offer.body,
      acceptedAt: this.#options.clock.now(),
      expires: intent.expires,
      trace: offer.trace === null ? null : formatTraceparent(offer.trace),
    };
    const { known } = await this.#options.journal.accept(command, {
      incarnation: dispatch.incarnation,
      sequence: dispatch.sequence,
    });
    boundary.journaled.publish({ command: intent.command });
    // One that was let go of may not have been left yet.
    if (!known && this.#released.has(intent.command)) await this.#left(intent.command);
    // Whatever becomes of the stream, from here on the command is ours.
    if (!known) {
      this.#justJournaled = { ...command, state: "accepted" };
      this.#enqueue(intent.command, intent.kind, intent.resource, false);
      this.#justJournaled = null;
    }
    if (!stream.signal.aborted && session.incarnation === dispatch.incarnation)
      stream.respond({ type: "accepted", known }, { end: true });
    boundary.accepted.publish({ command: intent.command });
  }

  // ---- interactive

  async #runInteractive(
    kind: AnyCommandKind,
    input: unknown,
    offer: Offer,
    entry: Omit<AuditEntry, "event">,
    stream: LinkStream,
  ): Promise<void> {
    const { audit, clock, policy } = this.#options;
    const { command, resource } = offer.intent;
    const most = policy.limit("streams");
    if (this.#interactive >= most) {
      throw new ConnectorError(
        "AT_CAPACITY",
        `The agent serves ${most} interactive commands at once, as its policy allows, and all are taken.`,
        { fix: "Try again in a moment." },
      );
    }
    const key = `${command}#${offer.dispatch.sequence}`;
    const controller = new AbortController();
    const onLost = () => controller.abort(stream.signal.reason);
    if (stream.signal.aborted) onLost();
    stream.signal.addEventListener("abort", onLost, { once: true });
    const deadline = clock.after(kind.spec.timeoutMs, () =>
      controller.abort(
        new ConnectorError(
          "TIMED_OUT",
          `${kind.spec.kind} was not done after ${Math.round(kind.spec.timeoutMs / 1000)} s.`,
          { fix: "Ask for less at once, or try again." },
        ),
      ),
    );
    this.#interactive++;
    this.#begin(key, { kind, command, resource, startedAt: clock.now(), durable: false, controller });
    const sent = { bytes: 0 };
    const began = this.#began();
    const trace = childOf(offer.trace);
    let outcome = "succeeded";
    try {
      if (kind.spec.class === "interactive-effect") await audit.commit({ event: "command.started", ...entry });
      else audit.append({ event: "command.started", ...entry });
      boundary.audited.publish({ command });
      const context = this.#context(kind, command, resource, controller.signal, stream, trace);
      await this.#serve(kind, input, context, stream, sent);
    } catch (caught) {
      const error = toConnectorError(controller.signal.aborted ? controller.signal.reason : caught);
      outcome = error.code;
      throw error.code === "INTERNAL" ? caught : error;
    } finally {
      deadline.cancel();
      stream.signal.removeEventListener("abort", onLost);
      this.#interactive--;
      this.#end(key);
      audit.append({ event: "command.ended", ...entry, outcome, bytesOut: sent.bytes });
      this.#tell(command, kind.spec.kind, resource, offer.trace, trace, began, {
        durable: false,
        outcome,
        sentBytes: sent.bytes,
      });
    }
  }

  #context(
    kind: AnyCommandKind,
    command: CommandId,
    resource: string,
    signal: AbortSignal,
    stream: LinkStream | null,
    trace: TraceContext,
  ): CommandContext {
    const { clock, log, policy } = this.#options;
    let own: Logger | null = null;
    return {
      command,
      kind: kind.spec.kind,
      resource,
      signal,
      // Made when it is first asked for: most questions have nothing to say.
      get log() {
        return (own ??= log.child({ command, kind: kind.spec.kind, ...traceIdOf(trace) }));
      },
      trace,
      clock,
      policy,
      upload: stream !== null && kind.spec.content === "upload" ? stream.bytes : nothing(),
      intake: stream !== null && kind.spec.content === "upload" ? uploadIntake(stream) : null,
    };
  }

  async #serve(
    kind: AnyCommandKind,
    input: unknown,
    context: CommandContext,
    stream: LinkStream,
    sent: { bytes: number },
  ): Promise<void> {
    const { signal } = context;
    // A handler that does not heed its signal must not hold up the answer.
    const aborted = new Promise<never>((_resolve, reject) => {
      if (signal.aborted) reject(signal.reason as Error);
      signal.addEventListener("abort", () => reject(signal.reason as Error), { once: true });
    });
    aborted.catch(() => undefined);
    const work = kind.run(input as never, context);
    work.then(
      (late) => {
        if (signal.aborted)
          for (const source of [late.content, late.records]) void source?.[Symbol.asyncIterator]().return?.();
      },
      () => undefined,
    );
    const result = await Promise.race([work, aborted]);
    const { text, bytes } = this.#checkedResult(kind, result.result);
    const body = jsonTextBody(text);
    const source = result.content ?? result.records;
    sent.bytes += bytes;
    if (source === undefined) {
      if (context.intake === null || !(context.intake as StreamIntake).begun) {
        stream.respond({ type: "result", body }, { end: true });
        return;
      }
      await stream.write(ndjsonLine({ type: "result", body }));
      await stream.end();
      return;
    }
    const iterator = source[Symbol.asyncIterator]();
    // Wakes a source that waits for something while the reader has gone.
    const onAbort = () => void iterator.return?.()?.catch(() => undefined);
    signal.addEventListener("abort", onAbort, { once: true });
    try {
      stream.respond({ type: "result", body });
      for (;;) {
        const next = await iterator.next();
        if (signal.aborted) throw signal.reason;
        if (next.done === true) break;
        const chunk = result.content === undefined ? ndjsonLine(next.value) : (next.value as Uint8Array);
        await stream.write(chunk);
        sent.bytes += chunk.length;
      }
      await stream.end();
    } finally {
      signal.removeEventListener("abort", onAbort);
      onAbort();
    }
  }

  /** Redacted, of the shape that the kind promises, and small enough for one frame or one report. */
  #checkedResult(kind: AnyCommandKind, result: unknown): { value: unknown; text: string; bytes: number } {
    const most = kind.spec.class === "durable" ? MAX_REPORT_RESULT_BYTES : MAX_BODY_BYTES;
    const parsed = kind.spec.output.safeParse(this.#options.redactor.json(result));
    if (!parsed.success)
      throw new Error(`${kind.spec.kind} returned a result that is not of its output schema: ${parsed.error.message}`);
    const text = JSON.stringify(parsed.data) ?? "null";
    const bytes = Buffer.byteLength(text);
    if (bytes > most) {
      throw new ConnectorError("TOO_LARGE", `The result of ${kind.spec.kind} is longer than ${most} bytes.`, {
        fix: "Ask for less: fewer rows, a smaller page.",
      });
    }
    return { value: parsed.data, text, bytes };
  }

  // ---- durable

  #enqueue(id: CommandId, kind: string, resource: string, adopted: boolean): void {
    const known = this.#options.registry.names.includes(kind) ? this.#options.registry.get(kind) : null;
    const overtakes = known?.overtakes === true;
    this.#queue.add({ id, kind, resource, overtakes, slot: known?.slot !== false, adopted });
    this.#options.changed?.();
  }

  async #runDurable(queued: QueuedCommand): Promise<void> {
    const { id } = queued;
    let log = this.#options.log.child({ command: id, kind: queued.kind });
    const began = this.#began();
    try {
      const held =
        this.#justJournaled?.id === id
          ? this.#justJournaled
          : await this.#insist(() => this.#options.journal.command(id), log);
      if (held === null || (held.state !== "accepted" && held.state !== "running")) return;
      const parent = parseTraceparent(held.trace);
      const trace = childOf(parent);
      log = log.child(traceIdOf(parent));
      const end = await this.#durableEnd(held, log, trace);
      if (end === null)
        return log.info(
          this.#released.has(id) ? "left to the agent that has it" : "left open: it goes on after the restart",
        );
      boundary.done.publish({ command: id });
      await this.#insist(() => this.#options.journal.advance(id, end.state, [end.report]), log);
      boundary.ended.publish({ command: id });
      this.#options.audit.append({
        event: "command.ended",
        who: "agent",
        command: id,
        kind: held.kind,
        resource: held.resource,
        outcome: end.outcome,
      });
      this.#tell(id, held.kind, held.resource, parent, trace, began, { durable: true, outcome: end.outcome });
      log.info({ outcome: end.outcome }, "command ended");
    } catch (error) {
      // Only a stop gets here: the journal holds the command, and the next start goes on with it.
      log.warn({ err: error }, "left open: it goes on after the restart");
    } finally {
      this.#end(id);
    }
  }

  /** What became of it; null when the agent stops and the work goes on without it. */
  async #durableEnd(
    held: JournaledCommand,
    log: Logger,
    trace: TraceContext,
  ): Promise<{ state: JournaledCommand["state"]; report: ReportBody; outcome: string } | null> {
    const { policy, registry, journal, clock } = this.#options;
    const controller = new AbortController();
    try {
      const kind = registry.get(held.kind);
      this.#begin(held.id, {
        kind,
        command: held.id,
        resource: held.resource,
        startedAt: clock.now(),
        durable: true,
        controller,
      });
      // The policy may have been tightened while it waited. What has begun goes on.
      if (held.state === "accepted") policy.require({ kind: "command", command: held.kind });
      const parsed = kind.spec.input.safeParse(readJsonBody(held.body));
      if (!parsed.success) throw invalidInput(`The input of ${held.kind}`, parsed.error);
      if (held.state === "accepted")
        await this.#insist(() => journal.advance(held.id, "running", [{ type: "command.running" }]), log);
      boundary.running.publish({ command: held.id });
      const result = await kind.run(
        parsed.data as never,
        this.#context(kind, held.id, held.resource, controller.signal, null, trace),
      );
      return {
        state: "succeeded",
        report: { type: "command.succeeded", result: this.#checkedResult(kind, result.result).value },
        outcome: "succeeded",
      };
    } catch (caught) {
      if (this.#released.has(held.id)) return null;
      if (this.#stop.signal.aborted && (controller.signal.reason as ConnectorError | undefined)?.code !== "CANCELLED")
        return null;
      const error = toConnectorError(caught);
      if (error.code === "INTERNAL") log.error({ err: caught }, "command failed unexpectedly");
      if (error.code === "CANCELLED") {
        const stopped = error.details?.["stopped"];
        const report = {
          type: "command.cancelled",
          stopped: Array.isArray(stopped) ? this.#options.redactor.json(stopped.map(String)) : [],
        } as const;
        return { state: "cancelled", report, outcome: error.code };
      }
      return {
        state: "failed",
        report: { type: "command.failed", error: this.#redactedBody(error) },
        outcome: error.code,
      };
    }
  }

  /** What has happened has to be written down: waits for the disk as long as the agent lives. */
  async #insist<T>(write: () => Promise<T>, log: Logger): Promise<T> {
    for (;;) {
      try {
        return await write();
      } catch (error) {
        if (!(error instanceof ConnectorError) || error.code !== "JOURNAL_UNAVAILABLE") throw error;
        log.warn({ code: error.code }, `the journal takes nothing now, trying again: ${error.message}`);
        await wait(this.#options.clock, RETRY_MS, this.#stop.signal);
      }
    }
  }
}
