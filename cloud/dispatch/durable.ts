// Durable commands: SQL is the queue and the record. This takes them in, offers them in order to live sessions until an
// agent has journaled or refused them, and lets those expire that nobody took. What runs is told by reports.
import { channel } from "node:diagnostics_channel";
import {
  ConnectorError,
  commandAnswerSchema,
  jsonBody,
  pipelineRun,
  runCancel,
  toConnectorError,
  type AgentStatus,
  type Clock,
  type CommandId,
  type CommandSpec,
  type DeploymentId,
  type ErrorCode,
  type PoolId,
  type ReplicaId,
  type RunId,
  type Signer,
  type Timer,
  type WorkspaceId,
} from "@sallyport/protocol";
import type { Logger } from "pino";
import type { z } from "zod";
import type { CloudSession, Sessions } from "../link/sessions.ts";
import type {
  CommandRow,
  IdempotencyEntry,
  IdempotentAnswer,
  NewCommand,
  RunRow,
  Scope,
  Store,
} from "../store/store.ts";
import { signOffer, writeIntent, type Sequences } from "./intents.ts";
import { parseInput, type PoolRef } from "./interactive.ts";
import type { DispatchMetrics } from "./metrics.ts";
import { unknownOf, waitingOf, type Refusal, type Waiting, type WaitingCode } from "./waiting.ts";

export interface Submission<I extends z.ZodType> {
  pool: PoolRef;
  spec: CommandSpec<I>;
  input: z.input<I>;
  /** Order of commit is kept within it, e.g. `run:run_…`. */
  resource: string;
  /** How long it may wait for an agent. */
  expiresInMs: number;
  /** Chosen by the client; absent = made here. */
  command?: CommandId | undefined;
  run?: Omit<RunRow, "workspace" | "command" | "createdAt">;
  /** Stores the command together with what it belongs to, in one transaction. Absent = the command (and its run) alone. */
  commit?: (
    command: NewCommand,
    idempotency?: IdempotencyEntry,
  ) => Promise<{ command: CommandRow; replayed: IdempotentAnswer | null }>;
}

export interface SubmitKey {
  key: string;
  method: string;
  route: string;
  requestDigest: string;
  /** Made from the row as it will be: what this and each repeated request is answered. */
  answer: (command: CommandRow) => IdempotentAnswer;
}

export interface CommandView {
  row: CommandRow;
  waiting: Waiting | null;
  unknown: boolean;
}

export interface Durable {
  submit<I extends z.ZodType>(
    scope: Scope,
    submission: Submission<I>,
    key?: SubmitKey,
  ): Promise<{ command: CommandRow; replayed: IdempotentAnswer | null }>;
  /** Ends a run that nobody took at once; else asks the agent that holds it to stop it. Null: no such run. */
  cancelRun(scope: Scope, run: RunId): Promise<{ done: boolean; command: CommandRow } | null>;
  /** Rows with what is derived at read. */
  view(scope: Scope, rows: CommandRow[]): Promise<CommandView[]>;
  /** Something changed that may let a waiting command go: work ended, a status came. */
  poke(workspace: WorkspaceId, pool: PoolId): void;
  start(): void;
  /** No further offers; resolves when those under way are settled. */
  stop(): Promise<void>;
}

export interface DurableDeps {
  store: Store;
  sessions: Sessions;
  sequences: Sequences;
  signer: Signer;
  incarnation: string;
  clock: Clock;
  log: Logger;
  metrics: DispatchMetrics;
}

/** Crash points for tests that kill a process at each boundary, and events for whoever observes. */
const boundary = {
  committed: channel("sallyport:cloud:command.committed"),
  offered: channel("sallyport:cloud:command.offered"),
  accepted: channel("sallyport:cloud:command.accepted"),
};

const SWEEP_MS = 5_000;
/** The agent journals with an fsync before it answers. */
const OFFER_DEADLINE_MS = 30_000;
/** Rows of a pool looked at in one sweep, and offers of them under way at a time. */
const SWEEP_ROWS = 500;
const PARALLEL = 16;
/** First and longest wait before a command is offered again after an agent said "later". */
const BACKOFF_MS = { first: 1_000, most: 60_000 };
/** A stop that reaches nobody for this long is moot. */
const CANCEL_LIFETIME_MS = 7 * 24 * 3600_000;
/** A dispatch that the agent finds wrong is made anew this often before the command is given up. */
const REMAKE_LIMIT = 3;

/** The agent said so before it journaled anything: another replica may be asked, and a cancel needs no agent. */
const NOT_TAKEN: Partial<Record<ErrorCode, WaitingCode>> = {
  AGENT_PAUSED: "AGENT_PAUSED",
  AGENT_DRAINING: "AGENT_DRAINING",
  AT_CAPACITY: "AT_CAPACITY",
  STREAM_REFUSED: "AT_CAPACITY",
  AUDIT_UNAVAILABLE: "AGENT_UNREADY",
};
/** Whether it was journaled is not known: only the same replica may be asked again. */
const MAYBE_TAKEN: Partial<Record<ErrorCode, WaitingCode>> = {
  JOURNAL_UNAVAILABLE: "AGENT_UNREADY",
  STORAGE_FULL: "AGENT_UNREADY",
};

/** What is known of a queued command beside its row. Lost with the process: it is found out again by offering. */
interface Waiter {
  workspace: WorkspaceId;
  pool: PoolId;
  refusal: Refusal | null;
  retryAtMs: number;
  retries: number;
  remakes: number;
  /** It may have journaled the command. */
  maybeWith: ReplicaId | null;
}

const poolKey = (workspace: WorkspaceId, pool: PoolId): string => `${workspace} ${pool}`;
/** What of a status can end a wait. */
const openings = (status: AgentStatus): string =>
  JSON.stringify([status.paused, status.draining, status.running.length, status.policyDigest, status.commands.length]);

export function makeDurable(deps: DurableDeps): Durable {
  const { store, sessions, sequences, clock, log } = deps;
  const waiters = new Map<CommandId, Waiter>();
  const inFlight = new Map<CommandId, Promise<void>>();
  const sweeps = new Map<string, { again: boolean; done: Promise<void> }>();
  const lastOpenings = new WeakMap<CloudSession, string>();
  let timer: Timer | null = null;
  let stopped = false;

  function sweep(workspace: WorkspaceId, pool: PoolId): void {
    if (stopped) return;
    const key = poolKey(workspace, pool);
    const running = sweeps.get(key);
    if (running !== undefined) {
      running.again = true;
      return;
    }
    const entry = { again: false, done: Promise.resolve() };
    sweeps.set(key, entry);
    entry.done = (async () => {
      do {
        entry.again = false;
        try {
          await sweepOnce(workspace, pool);
        } catch (error) {
          log.error({ err: error, workspace, pool }, "offering queued commands failed; the next sweep tries again");
        }
      } while (entry.again && !stopped);
      sweeps.delete(key);
    })();
  }

  async function sweepOnce(workspace: WorkspaceId, pool: PoolId): Promise<void> {
    if (sessions.ofPool(workspace, pool).length === 0) return;
    const rows = await store.offerable(workspace, pool, clock.now(), SWEEP_ROWS);
    let took = false;
    const queue = rows[Symbol.iterator]();
    const worker = async (): Promise<void> => {
      for (const row of queue) {
        if (stopped) return;
        if (inFlight.has(row.id) || (waiters.get(row.id)?.retryAtMs ?? 0) > clock.monotonic()) continue;
        const { promise, resolve } = Promise.withResolvers<void>();
        inFlight.set(row.id, promise);
        try {
          took = (await offer(row)) || took;
        } catch (error) {
          log.error({ err: error, command: row.id }, "an offer failed; the next sweep tries again");
        } finally {
          inFlight.delete(row.id);
          resolve();
        }
      }
    };
    await Promise.all(Array.from({ length: Math.min(PARALLEL, rows.length) }, worker));
    // What was taken may have been the older sibling of one that waits.
    const entry = sweeps.get(poolKey(workspace, pool));
    if (took && entry !== undefined) entry.again = true;
  }

  function waiter(row: CommandRow): Waiter {
    let known = waiters.get(row.id);
    if (known === undefined)
      waiters.set(
        row.id,
        (known = {
          workspace: row.workspace,
          pool: row.pool,
          refusal: null,
          retryAtMs: 0,
          retries: 0,
          remakes: 0,
          maybeWith: offeredBefore(row),
        }),
      );
    return known;
  }

  /** The one replica that must take it, or null when any of the pool may. */
  async function bound(row: CommandRow): Promise<ReplicaId | null> {
    const waiting = waiters.get(row.id);
    const maybe = waiting === undefined ? offeredBefore(row) : waiting.maybeWith;
    const deployment = /^deployment:(dep_[0-9a-f]{32})$/.exec(row.resource)?.[1];
    if (deployment !== undefined) {
      // A replica that is revoked or deleted holds nothing any more that could be asked for.
      const asked = maybe === null ? null : await store.replica(systemScope(row.workspace), maybe);
      if (asked !== null && asked.revokedAt === null) return maybe;
      return await store.deploymentHolder(row.workspace, deployment as DeploymentId, row.id);
    }
    if (maybe !== null) return maybe;
    if (row.kind !== runCancel.kind) return null;
    if (row.run === null) return null;
    const held = (await store.run(systemScope(row.workspace), row.run))?.command;
    return held?.replica ?? held?.offeredTo ?? null;
  }

  function candidates(row: CommandRow, only: ReplicaId | null): CloudSession[] {
    return only === null
      ? sessions.ofPool(row.workspace, row.pool)
      : [sessions.ofReplica(row.workspace, only)].filter((s): s is CloudSession => s !== null);
  }

  /** True when the agent took it or refused it for good: the next of its resource may go. */
  async function offer(row: CommandRow): Promise<boolean> {
    const live = candidates(row, await bound(row));
    const rank = (session: CloudSession): number => {
      const status = session.status();
      if (status === null) return 1;
      if (status.paused !== null || status.draining) return 3;
      return status.commands.includes(row.kind) ? status.running.length / (status.running.length + 1) : 2;
    };
    const session = live.toSorted((a, b) => rank(a) - rank(b))[0];
    if (session === undefined) return false;

    const state = waiter(row);
    const counted = await store.nextDispatch(row.workspace, row.id, session.replica, sequences.last(session));
    if (counted === null) {
      waiters.delete(row.id);
      return false;
    }
    const now = clock.now();
    if (row.expires <= now) return false;
    const head = signOffer(
      deps.signer,
      {
        intentText: row.intent,
        body: row.body,
        session,
        incarnation: deps.incarnation,
        sequence: sequences.next(session, counted.sequence),
        attempt: counted.attempt,
        expires: row.expires,
      },
      now,
    );
    let timer: Timer | null = null;
    try {
      const stream = session.open(head, { lane: "interactive", end: true });
      state.maybeWith = session.replica;
      boundary.offered.publish({ command: row.id });
      timer = clock.after(
        OFFER_DEADLINE_MS,
        () => stream.reset(new ConnectorError("TIMED_OUT", "The agent did not answer the offer in time.")),
        { keepAlive: true },
      );
      const answer = commandAnswerSchema.safeParse(await stream.answer);
      if (!answer.success || answer.data.type !== "accepted") {
        stream.reset(new ConnectorError("PROTOCOL_ERROR", "A durable command is answered with accepted."));
        throw new ConnectorError(
          "PROTOCOL_ERROR",
          `The agent answered the offer of ${row.kind} with something else than accepted.`,
        );
      }
      const holds = await store.markAccepted(row.workspace, row.id, session.replica, clock.now());
      boundary.accepted.publish({ command: row.id });
      waiters.delete(row.id);
      // It ended here while the offer was on its way; the agent that took it must be told.
      if (holds === "cancelled" && row.kind === pipelineRun.kind && row.run !== null)
        await submitCancel(systemScope(row.workspace), row);
      deps.metrics.offer(row.kind, "accepted");
      log.info(
        { command: row.id, kind: row.kind, agent: session.replica, known: answer.data.known },
        "command accepted",
      );
      return true;
    } catch (caught) {
      const error = toConnectorError(caught);
      deps.metrics.offer(row.kind, error.code);
      if (error.code === "INTERNAL") log.error({ err: caught, command: row.id }, "offer failed");
      const remake = error.code === "DISPATCH_INVALID" || error.code === "SIGNATURE_INVALID";
      if (error.retry === "never" && error.code !== "CANCELLED" && !(remake && ++state.remakes < REMAKE_LIMIT)) {
        await store.markRefused(row.workspace, row.id, session.replica, error.toBody(), clock.now());
        waiters.delete(row.id);
        log.info({ command: row.id, kind: row.kind, agent: session.replica, code: error.code }, "command refused");
        return true;
      }
      const notTaken = NOT_TAKEN[error.code];
      if (notTaken !== undefined || remake) state.maybeWith = null;
      const code = notTaken ?? MAYBE_TAKEN[error.code];
      state.refusal = code === undefined ? null : { code, message: error.message };
      // A lost link is not the command's fault: it goes again as soon as there is a session.
      const lost = error.code === "LINK_LOST" || error.code === "GOING_AWAY" || error.code === "SESSION_SUPERSEDED";
      state.retryAtMs = lost
        ? 0
        : clock.monotonic() + Math.min(BACKOFF_MS.first * 2 ** state.retries++, BACKOFF_MS.most);
      return false;
    } finally {
      timer?.cancel();
    }
  }

  /** Lets commands of a pool go again at once; those that nobody is likely to take now come back with the same word. */
  function poke(workspace: WorkspaceId, pool: PoolId): void {
    for (const waiting of waiters.values())
      if (waiting.workspace === workspace && waiting.pool === pool) waiting.retryAtMs = 0;
    sweep(workspace, pool);
  }

  function tick(): void {
    if (stopped) return;
    timer = clock.after(SWEEP_MS, tick);
    const pools = new Map<string, CloudSession>();
    for (const session of sessions.all()) pools.set(poolKey(session.workspace, session.pool), session);
    for (const session of pools.values()) sweep(session.workspace, session.pool);
    store.expireQueued(clock.now()).then(
      (count) => {
        if (count > 0) log.info({ count }, "queued commands expired");
        void forget();
      },
      (error: unknown) => log.error({ err: error }, "expiring queued commands failed; the next sweep tries again"),
    );
  }

  /** Waiters of commands that ended otherwise (expired, cancelled, reported). */
  async function forget(): Promise<void> {
    for (const [id, waiting] of waiters) {
      if (inFlight.has(id) || waiting.retryAtMs > clock.monotonic()) continue;
      const row = await store.command(systemScope(waiting.workspace), id).catch(() => undefined);
      if (row === null || (row !== undefined && row.state !== "queued")) waiters.delete(id);
    }
  }

  const submitCancel = (scope: Scope, run: CommandRow): Promise<unknown> =>
    durable.submit(scope, {
      pool: { id: run.pool, name: run.poolName },
      spec: runCancel,
      input: { run: run.run!, command: run.id },
      resource: run.resource,
      expiresInMs: CANCEL_LIFETIME_MS,
    });

  const durable: Durable = {
    async submit(scope, submission, key) {
      const parsed = parseInput(submission.spec, submission.input);
      const now = clock.now();
      const body = jsonBody(parsed);
      const { intent, text } = writeIntent(
        {
          workspace: scope.workspace,
          pool: submission.pool.id,
          kind: submission.spec.kind,
          resource: submission.resource,
          command: submission.command,
          body,
          expires: now + submission.expiresInMs,
        },
        now,
      );
      const future: CommandRow = {
        workspace: scope.workspace,
        id: intent.command,
        pool: submission.pool.id,
        poolName: submission.pool.name,
        kind: submission.spec.kind,
        resource: submission.resource,
        state: "queued",
        intent: text,
        body,
        actor: scope.actor,
        replica: null,
        replicaName: null,
        run: submission.run?.id ?? null,
        createdAt: now,
        notBefore: intent.notBefore,
        expires: intent.expires,
        acceptedAt: null,
        startedAt: null,
        endedAt: null,
        offers: 0,
        error: null,
        result: null,
      };
      const commit = submission.commit ?? ((command, idempotency) => store.createCommand(scope, command, idempotency));
      const answered = await commit(
        {
          id: intent.command,
          pool: submission.pool.id,
          kind: submission.spec.kind,
          resource: submission.resource,
          intent: text,
          body,
          notBefore: intent.notBefore,
          expires: intent.expires,
          createdAt: now,
          ...(submission.run === undefined ? {} : { run: { ...submission.run, createdAt: now } }),
        },
        key === undefined
          ? undefined
          : {
              key: key.key,
              method: key.method,
              route: key.route,
              requestDigest: key.requestDigest,
              answer: key.answer(future),
            },
      );
      if (answered.replayed === null) {
        boundary.committed.publish({ command: intent.command });
        sweep(scope.workspace, submission.pool.id);
      }
      return answered;
    },

    async cancelRun(scope, id) {
      const found = await store.run(scope, id);
      if (found === null) return null;
      await inFlight.get(found.command.id);
      const command = (await store.command(scope, found.command.id)) ?? found.command;
      if (isOver(command)) return { done: true, command };
      // Only what no agent can have journaled may be ended here. Otherwise the agent is told, after it took the run.
      const untouched =
        command.offers === 0 || (waiters.has(command.id) && waiters.get(command.id)!.maybeWith === null);
      if (command.state === "queued" && untouched && (await store.cancelQueued(scope, command.id, clock.now()))) {
        waiters.delete(command.id);
        return { done: true, command: (await store.command(scope, command.id)) ?? command };
      }
      const pending = await store.commands(scope, { limit: 1, kind: runCancel.kind, state: "queued", run: id });
      if (pending.items.length === 0) await submitCancel(scope, command);
      return { done: false, command };
    },

    async view(scope, rows) {
      const queued = rows.filter((row) => row.state === "queued");
      const replicas = queued.length > 0 ? await store.replicas(scope) : [];
      const heads = new Map<PoolId, { rows: CommandRow[]; whole: boolean }>();
      for (const pool of new Set(queued.map((row) => row.pool))) {
        const first = await store.offerable(scope.workspace, pool, clock.now(), SWEEP_ROWS);
        heads.set(pool, { rows: first, whole: first.length < SWEEP_ROWS });
      }
      return await Promise.all(
        rows.map(async (row): Promise<CommandView> => {
          if (row.state !== "queued") return { row, waiting: null, unknown: unknownOf(row, sessions) };
          const only = await bound(row);
          const head = heads.get(row.pool)!;
          const older = head.rows.find((other) => other.resource === row.resource && other.id !== row.id);
          const waiting = waitingOf(row, {
            sessions: candidates(row, only),
            replicas: replicas.filter((replica) => (only === null ? replica.pool === row.pool : replica.id === only)),
            only: only === null ? null : (replicas.find((replica) => replica.id === only)?.name ?? only),
            inFlight: inFlight.has(row.id),
            behind: older !== undefined && !head.rows.some((other) => other.id === row.id) ? older.id : null,
            refusal: waiters.get(row.id)?.refusal ?? null,
          });
          return { row, waiting, unknown: false };
        }),
      );
    },

    poke,

    start() {
      sessions.onOnline((session) => poke(session.workspace, session.pool));
      sessions.onStatus((session, status) => {
        const now = openings(status);
        if (lastOpenings.get(session) === now) return;
        lastOpenings.set(session, now);
        poke(session.workspace, session.pool);
      });
      tick();
    },

    async stop() {
      stopped = true;
      timer?.cancel();
      await Promise.all([...sweeps.values()].map((entry) => entry.done));
    },
  };
  return durable;
}

/** After a restart of this process: whoever was asked last may have journaled it. */
const offeredBefore = (row: CommandRow): ReplicaId | null => (row.offers > 0 ? (row.offeredTo ?? null) : null);
const isOver = (row: CommandRow): boolean =>
  row.state !== "queued" && row.state !== "accepted" && row.state !== "running";

/** Reads that the dispatcher makes for itself. */
export const systemScope = (workspace: WorkspaceId): Scope => ({
  workspace,
  actor: { id: "system", name: "system", via: "system" },
});
