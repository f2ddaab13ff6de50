// Interactive commands: wanted now or not at all. Nothing is stored: metrics and one audit line say that they happened.
import {
  ConnectorError,
  childOf,
  commandAnswerSchema,
  jsonBody,
  laneOf,
  noSpans,
  parseTraceparent,
  readJsonBody,
  readNdjson,
  toConnectorError,
  uploadProgressSchema,
  wait,
  type Clock,
  type CommandSpec,
  type LinkStream,
  type PoolId,
  type ReplicaId,
  type SessionId,
  type Signer,
  type Spans,
} from "@sallyport/protocol";
import type { Logger } from "pino";
import type { z } from "zod";
import type { CloudSession, Sessions } from "../link/sessions.ts";
import type { Scope, Store } from "../store/store.ts";
import { signOffer, unsignedOffer, writeIntent, type Sequences } from "./intents.ts";
import type { DispatchMetrics } from "./metrics.ts";
import { agentOffline } from "./waiting.ts";

export interface PoolRef {
  id: PoolId;
  name: string;
}

export interface RelayOptions {
  /** What it is about, for the intent and the audit line: `artifact:lake/a/b`. */
  resource: string;
  /** Cancels: the stream is reset. Also the way to give up `content` that is not read to its end. */
  signal?: AbortSignal;
  /** Bytes of an upload, sent with back-pressure. */
  upload?: AsyncIterable<Uint8Array>;
  /** An upload that may go on over another stream; takes the place of `upload`. */
  resumable?: ResumableUpload;
  /** Only this replica will do (it holds the run). Absent = any of the pool. */
  replica?: ReplicaId;
  /** Of kinds whose bytes come after their answer: how long that may take. Absent = as the kind says, at most 60 s. */
  answerWithinMs?: number;
}

/** Bytes that can be sent again as far as the agent has not taken them. */
export interface ResumableUpload {
  /** Nothing was sent before: they go at once. Otherwise from where the agent says. */
  readonly first: boolean;
  from(offset: number): AsyncIterable<Uint8Array>;
  /** So many need not be sent again. */
  taken(bytes: number): void;
  /** This replica has the stream. */
  carried(replica: ReplicaId): void;
}

export interface Relayed<O> {
  result: O;
  /** Null for kinds without content. Throws the error that cut it. */
  content: AsyncIterable<Buffer> | null;
  replica: ReplicaId;
  session: SessionId;
}

export interface Interactive {
  relay<I extends z.ZodType, O extends z.ZodType>(
    scope: Scope,
    pool: PoolRef,
    spec: CommandSpec<I, O>,
    input: z.input<I>,
    options: RelayOptions,
  ): Promise<Relayed<z.output<O>>>;
}

export interface InteractiveDeps {
  store: Store;
  sessions: Sessions;
  sequences: Sequences;
  signer: Signer;
  incarnation: string;
  clock: Clock;
  /** The audit child of the log. */
  audit: Logger;
  metrics: DispatchMetrics;
  spans: Spans;
}

/** An intent of this kind is stale after this: an agent that sees it later refuses. */
const INTENT_LIFETIME_MS = 60_000;
/** The agent keeps the deadline; this much later we stop believing that it will say so. */
const GRACE_MS = 5_000;
/** How long a command waits for the next session of an agent that was told to go to another process. */
const HANDOVER_MS = 3_000;
const HANDOVER_LOOK_MS = 50;
/** Kinds whose bytes come after their answer must answer within this. */
const HEAD_DEADLINE_MS = 60_000;

/** How long a command waits for an agent that has lost its process and dials another one. */
const ARRIVAL_MS = 10_000;
/** Between two tries while it is on its way. */
const AGAIN_MS = 100;
/** Of those, every so many looks into SQL. */
const LOOK_EVERY = 5;

export function makeInteractive(deps: InteractiveDeps): Interactive {
  const { clock, sessions, sequences } = deps;
  let turn = 0;

  /** A live session that takes new commands if there is one; any live one otherwise, to be told why not. */
  function choose(
    scope: Scope,
    pool: PoolRef,
    replica: ReplicaId | undefined,
    except: ReadonlySet<CloudSession>,
  ): CloudSession | null {
    const live = (
      replica === undefined ? sessions.ofPool(scope.workspace, pool.id) : [sessions.ofReplica(scope.workspace, replica)]
    ).filter((s): s is CloudSession => s !== null && !except.has(s));
    const open = live.filter((session) => {
      const status = session.status();
      return status === null || (status.paused === null && !status.draining);
    });
    const able = open.length > 0 ? open : live;
    // One hop less, where there is a choice.
    const near = able.filter((session) => session.elsewhere === undefined);
    const from = near.length > 0 ? near : able;
    turn = (turn + 1) % 0x3fff_ffff;
    return from[turn % from.length] ?? null;
  }

  /**
   * Of agents that were told to go to another process: the next session, made within a moment. Null when there is none,
   * or when an agent stops by itself.
   */
  async function successor(
    scope: Scope,
    pool: PoolRef,
    options: RelayOptions,
    tried: ReadonlySet<CloudSession>,
  ): Promise<CloudSession | null> {
    if ([...tried].every((session) => session.status()?.draining === true)) return null;
    for (let waitedMs = 0; waitedMs < HANDOVER_MS; waitedMs += HANDOVER_LOOK_MS) {
      await wait(clock, HANDOVER_LOOK_MS, options.signal);
      const session = choose(scope, pool, options.replica, tried);
      if (session !== null) return session;
    }
    return null;
  }

  /** Nobody is known to be there: looks once more, and waits for one that is on its way between two processes. */
  async function arrival(scope: Scope, pool: PoolRef, { replica, signal }: RelayOptions): Promise<void> {
    const { workspace } = scope;
    const there = (): boolean =>
      replica === undefined
        ? sessions.ofPool(workspace, pool.id).length > 0
        : sessions.ofReplica(workspace, replica) !== null;
    const untilMs = clock.monotonic() + ARRIVAL_MS;
    await sessions.refresh?.();
    let waited = 0;
    while (
      !there() &&
      sessions.moving?.(workspace, pool.id, replica) === true &&
      clock.monotonic() < untilMs &&
      signal?.aborted !== true
    ) {
      await wait(clock, AGAIN_MS, signal);
      // Notes tell sooner, if they come.
      if (++waited % LOOK_EVERY === 0) await sessions.refresh?.();
    }
  }

  const interactive: Interactive = {
    async relay(scope, pool, spec, input, options) {
      const deadlineMs = clock.monotonic() + ARRIVAL_MS;
      for (;;) {
        try {
          return await once(scope, pool, spec, input, options);
        } catch (error) {
          // It is on its way from one process to another, and has heard nothing of the command.
          const again =
            error instanceof ConnectorError &&
            (error.details?.["notSent"] === true || (error.code === "GOING_AWAY" && sessions.refresh !== undefined));
          if (!again || spec.content === "upload" || options.signal?.aborted === true || clock.monotonic() > deadlineMs)
            throw error;
          await wait(clock, AGAIN_MS, options.signal);
          await sessions.refresh?.();
        }
      }
    },
  };
  return interactive;

  async function once<I extends z.ZodType, O extends z.ZodType>(
    scope: Scope,
    pool: PoolRef,
    spec: CommandSpec<I, O>,
    input: z.input<I>,
    options: RelayOptions,
  ): Promise<Relayed<z.output<O>>> {
    const startedMs = clock.monotonic();
    const parent = parseTraceparent(scope.trace);
    const trace = childOf(parent);
    let sent = 0;
    let received = 0;
    let settled = false;
    let on: CloudSession | null = null;
    deps.metrics.inFlight(1);
    const settle = (outcome: string): void => {
      if (settled) return;
      settled = true;
      const ms = Math.round(clock.monotonic() - startedMs);
      deps.metrics.inFlight(-1);
      deps.metrics.interactive(spec.kind, outcome, ms, sent + received);
      const endMs = clock.now();
      if (deps.spans !== noSpans)
        deps.spans.record({
          name: `dispatch ${spec.kind}`,
          kind: "client",
          context: trace,
          parentSpanId: parent?.spanId ?? null,
          startMs: endMs - ms,
          endMs,
          attributes: {
            "sallyport.kind": spec.kind,
            "sallyport.pool": pool.name,
            "sallyport.agent": on?.replica ?? "",
          },
          error: outcome === "ok" ? null : outcome,
        });
      deps.audit.info(
        {
          workspace: scope.workspace,
          actor: scope.actor.id,
          actorName: scope.actor.name,
          via: scope.actor.via,
          kind: spec.kind,
          pool: pool.name,
          agent: on?.replica ?? null,
          resource: options.resource,
          outcome,
          bytes: sent + received,
          ms,
          ...(parent === null ? {} : { trace_id: parent.traceId }),
        },
        "interactive command",
      );
    };

    let stream: LinkStream | null = null;
    const onAbort = (): void => stream?.reset(cancelled(options.signal));
    const release = (): void => options.signal?.removeEventListener("abort", onAbort);
    try {
      options.signal?.throwIfAborted();
      const parsed = parseInput(spec, input);
      const now = clock.now();
      const body = jsonBody(parsed);
      const { intent, text } = writeIntent(
        {
          workspace: scope.workspace,
          pool: pool.id,
          kind: spec.kind,
          resource: options.resource,
          body,
          expires: now + INTENT_LIFETIME_MS,
        },
        now,
      );

      const tried = new Set<CloudSession>();
      let closing: ConnectorError | null = null;
      let looked = false;
      while (stream === null) {
        const session =
          choose(scope, pool, options.replica, tried) ??
          (closing === null ? null : await successor(scope, pool, options, tried));
        if (session === null) {
          if (!looked && sessions.refresh !== undefined) {
            looked = true;
            await arrival(scope, pool, options);
            options.signal?.throwIfAborted();
            continue;
          }
          throw closing ?? (await agentOffline(deps.store, scope, pool, options.replica ?? null));
        }
        tried.add(session);
        const offer = { intentText: text, body, expires: intent.expires, trace };
        const head =
          session.elsewhere !== undefined
            ? unsignedOffer(offer)
            : signOffer(
                deps.signer,
                {
                  ...offer,
                  session,
                  incarnation: deps.incarnation,
                  sequence: sequences.next(session),
                  attempt: 1,
                },
                now,
              );
        try {
          stream = session.open(head, { lane: laneOf(spec), end: spec.content !== "upload" });
          on = session;
        } catch (error) {
          // Nothing was sent: another replica may take it. A session that ended between its choice and this line is none.
          const refused = toConnectorError(error);
          if (refused.code === "GOING_AWAY")
            closing = new ConnectorError(
              "AGENT_DRAINING",
              `The agent of pool ${pool.name} is stopping and takes no new commands.`,
              { fix: "Try again when it is back.", cause: error },
            );
          else if (refused.code === "STREAM_REFUSED") closing = refused;
          else if (refused.code !== "LINK_LOST") throw refused;
        }
      }
      options.signal?.addEventListener("abort", onAbort, { once: true });
      if (options.signal?.aborted === true) onAbort();

      const opened = stream;
      if (spec.content === "upload" && options.resumable !== undefined) {
        options.resumable.carried(on!.replica);
        const sending = sendResumable(opened, options.resumable, (bytes) => (sent += bytes));
        const head = await inTime(clock, sending, spec.timeoutMs + GRACE_MS, `${spec.kind} on pool ${pool.name}`);
        const result = readResult(spec, head);
        release();
        settle("ok");
        return { result, content: null, replica: on!.replica, session: on!.id };
      }
      const pump =
        spec.content === "upload" ? sendUpload(opened, options.upload ?? [], (bytes) => (sent += bytes)) : null;
      const withinMs =
        spec.content === "download" || spec.content === "records"
          ? (options.answerWithinMs ?? Math.min(HEAD_DEADLINE_MS, spec.timeoutMs))
          : spec.timeoutMs;
      const head = await answerWithin(clock, opened, withinMs + GRACE_MS, pump, `${spec.kind} on pool ${pool.name}`);
      const result = readResult(spec, head);
      const carrier = on!;
      if (spec.content === "none" || spec.content === "upload") {
        release();
        settle("ok");
        return { result, content: null, replica: carrier.replica, session: carrier.id };
      }
      const content = async function* (): AsyncGenerator<Buffer> {
        let outcome = "CANCELLED";
        try {
          for await (const chunk of opened.bytes) {
            received += chunk.length;
            yield chunk;
          }
          outcome = "ok";
        } catch (error) {
          const failure = options.signal?.aborted === true ? cancelled(options.signal) : toConnectorError(error);
          outcome = failure.code;
          throw failure;
        } finally {
          release();
          if (outcome !== "ok") opened.reset(cancelled(options.signal));
          settle(outcome);
        }
      };
      // An abort before the first read would otherwise never be accounted for.
      opened.signal.addEventListener("abort", () => settle(toConnectorError(opened.signal.reason).code), {
        once: true,
      });
      return { result, content: content(), replica: carrier.replica, session: carrier.id };
    } catch (error) {
      release();
      const failure = options.signal?.aborted === true ? cancelled(options.signal) : toConnectorError(error);
      stream?.reset(failure);
      settle(failure.code);
      throw withFix(failure, pool);
    }
  }
}

const cancelled = (signal: AbortSignal | undefined): ConnectorError =>
  signal?.reason instanceof ConnectorError
    ? signal.reason
    : new ConnectorError("CANCELLED", "The caller went away before the answer was complete.");

export function parseInput<I extends z.ZodType>(spec: CommandSpec<I>, input: unknown): z.output<I> {
  const parsed = spec.input.safeParse(input);
  if (parsed.success) return parsed.data;
  const errors = parsed.error.issues.map((issue) => ({ path: issue.path.join("."), message: issue.message }));
  const first = errors[0]!;
  throw new ConnectorError(
    "INPUT_INVALID",
    `The input of ${spec.kind} is not valid${first.path === "" ? "" : ` at ${first.path}`}: ${first.message}.`,
    {
      fix: "Mend the named fields and send it again.",
      details: { errors },
    },
  );
}

function readResult<O extends z.ZodType>(spec: CommandSpec<z.ZodType, O>, head: unknown): z.output<O> {
  const answer = commandAnswerSchema.safeParse(head);
  if (!answer.success || answer.data.type !== "result")
    throw new ConnectorError("PROTOCOL_ERROR", `The agent answered ${spec.kind} with something that is not a result.`);
  const result = spec.output.safeParse(readJsonBody(answer.data.body));
  if (!result.success) {
    throw new ConnectorError(
      "PROTOCOL_ERROR",
      `The agent's result of ${spec.kind} has not the agreed shape at ${result.error.issues[0]!.path.join(".") || "its root"}.`,
      {
        fix: "Update the agent or the control plane, whichever is older.",
      },
    );
  }
  return result.data;
}

/** Waits for the answer, the deadline, or an upload whose source failed. The agent's own word comes first. */
async function answerWithin(
  clock: Clock,
  stream: LinkStream,
  withinMs: number,
  pump: Promise<void> | null,
  what: string,
): Promise<unknown> {
  // Never "unhandled": whoever loses the race is still looked at.
  stream.answer.catch(() => {});
  if (pump === null) return await inTime(clock, stream.answer, withinMs, what);
  const pumpFailed = pump.then(
    () => new Promise<never>(() => {}),
    (error: unknown) => {
      // A write that fails because the agent reset the stream: its reason is in the answer.
      if (stream.signal.aborted) return stream.answer.then(() => Promise.reject(toConnectorError(error)));
      throw error;
    },
  );
  return await inTime(clock, Promise.race([stream.answer, pumpFailed]), withinMs, what);
}

async function inTime<T>(clock: Clock, work: Promise<T>, withinMs: number, what: string): Promise<T> {
  const timedOut = Promise.withResolvers<never>();
  const timer = clock.after(
    withinMs,
    () =>
      timedOut.reject(
        new ConnectorError("TIMED_OUT", `The agent did not answer ${what} within ${Math.round(withinMs / 1000)} s.`, {
          fix: "Try again; if it repeats, look at the agent's log.",
        }),
      ),
    { keepAlive: true },
  );
  timedOut.promise.catch(() => {});
  try {
    return await Promise.race([work, timedOut.promise]);
  } finally {
    timer.cancel();
  }
}

/** Sends an upload from where the agent wants it, hears how far it is, and gives the head of its result. */
async function sendResumable(
  stream: LinkStream,
  upload: ResumableUpload,
  count: (bytes: number) => void,
): Promise<unknown> {
  const failed = Promise.withResolvers<never>();
  failed.promise.catch(() => {});
  const send = (offset: number): void => {
    sendUpload(stream, upload.from(offset), count).catch((error: unknown) => {
      // A stream that broke says why itself.
      if (!stream.signal.aborted) failed.reject(error);
    });
  };
  const hear = async (): Promise<unknown> => {
    const head = await stream.answer;
    const answer = commandAnswerSchema.safeParse(head);
    if (!answer.success || answer.data.type !== "taking") return head;
    if (!upload.first) send(answer.data.offset);
    for await (const line of readNdjson(stream.bytes)) {
      const progress = uploadProgressSchema.safeParse(line);
      if (!progress.success)
        throw new ConnectorError("PROTOCOL_ERROR", "The agent's word on an upload has not the agreed shape.");
      if (progress.data.type === "result") return progress.data;
      upload.taken(progress.data.bytes);
    }
    throw new ConnectorError("PROTOCOL_ERROR", "The agent ended an upload without a result.");
  };
  if (upload.first) send(0);
  return await Promise.race([hear(), failed.promise]);
}

async function sendUpload(
  stream: LinkStream,
  upload: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  count: (bytes: number) => void,
): Promise<void> {
  for await (const chunk of upload) {
    // The peer's answer or refusal came before the end of the bytes: no use in reading on.
    if (stream.signal.aborted) throw toConnectorError(stream.signal.reason);
    await stream.write(chunk);
    count(chunk.length);
  }
  await stream.end();
}

/** Errors of the link say what happened; what to do depends on who asked. */
function withFix(error: ConnectorError, pool: PoolRef): ConnectorError {
  if (
    error.fix !== undefined ||
    (error.code !== "LINK_LOST" && error.code !== "GOING_AWAY" && error.code !== "SESSION_SUPERSEDED")
  )
    return error;
  return new ConnectorError("LINK_LOST", `The link to pool ${pool.name} broke while the answer was on its way.`, {
    fix: "Try again: the agent redials by itself within seconds.",
    cause: error,
    ...(error.details === undefined ? {} : { details: error.details }),
  });
}
