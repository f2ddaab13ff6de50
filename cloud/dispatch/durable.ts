// Durable commands: SQL is the queue and the record. This takes them in, offers them in order to live sessions until an
// agent has journaled or refused them, and lets those expire that nobody took. What runs is told by reports.
import { channel } from "node:diagnostics_channel";
import {
  ConnectorError,
  childOf,
  commandAnswerSchema,
  jsonBody,
  parseTraceparent,
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
  type Spans,
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
  PoolQueue,
  RunRow,
  Scope,
  Store,
} from "../store/store.ts";
import { fits, rank } from "./candidates.ts";
import type { Others } from "./index.ts";
import { signOffer, writeIntent, type Sequences } from "./intents.ts";
import { systemScope } from "./scope.ts";
import { makeTakeover } from "./takeover.ts";
import { parseInput, type PoolRef } from "./interactive.ts";
import type { DispatchMetrics } from "./metrics.ts";
import { explain, type Explanation } from "./explain.ts";
import {
  couldTake,
  silentHolder,
  unknownOf,
  waitingOf,
  type Refusal,
  type RefusalCode,
  type Waiting,
} from "./waiting.ts";

export interface Submission<I extends z.ZodType> {
  pool: PoolRef;
  spec: CommandSpec<I>;
  input: z.input<I>;
  /** Order of commit is kept within it, e.g. `run:run_…`. */
  resource: string;
  /** How long it may wait for an agent; counted from `notBefore` if that is given. */
  expiresInMs: number;
  /** Higher goes first, between resources. Absent = 0. */
  priority?: number | undefined;
  /** Labels that an agent must have to take it. Absent = none. */
  requires?: Readonly<Record<string, string>> | undefined;
  /** Offered to nobody before, ms since the epoch; absent = at once. */
  notBefore?: number | undefined;
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

export interface ExplainedCommand extends CommandView, Omit<Explanation, "unknown"> {
  silence: Explanation["unknown"];
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
  /** One of them, told in plain words. Null: no such command. */
  explain(scope: Scope, command: CommandId): Promise<ExplainedCommand | null>;
  /**
   * An operator's word that the silent replica which has it will never answer. CONFLICT when it has ended otherwise or its
   * replica can be asked; said again it changes nothing. Null: no such command.
   */
  declareLost(scope: Scope, command: CommandId, reason: string): Promise<CommandRow | null>;
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
  /** Null: this process is alone. */
  others: Others | null;
  spans: Spans;
  /** There may be something that replicas are to be told about commands that were taken over; null = all. */
  told: (workspace: WorkspaceId, replica: ReplicaId | null) => void;
  /** The same for replicas that are connected here, which another process may have had something for. */
  tellHeld: (workspace: WorkspaceId) => void;
}

/** Crash points for tests that kill a process at each boundary, and events for whoever observes. */
const boundary = {
  committed: channel("sallyport:cloud:command.committed"),
  offered: channel("sallyport:cloud:command.offered"),
  accepted: channel("sallyport:cloud:command.accepted"),
};

const SWEEP_MS = 5_000;
/** Sweeps between two looks at what agents are to be told because another process took something over. */
const TELL_TICKS = 12;
/** The agent journals with an fsync before it answers. */
const OFFER_DEADLINE_MS = 30_000;
/** Rows of a pool looked at in one sweep, and offers of them under way at a time. */
const SWEEP_ROWS = 500;
const PARALLEL = 64;
/** An offer that is not answered after this waits on by itself; at most so many do, of all pools. */
const SLOW_OFFER_MS = 1_000;
const MOST_IN_FLIGHT = 1_000;
/** First and longest wait before a command is offered again after an agent said "later". */
const BACKOFF_MS = { first: 1_000, most: 60_000 };
/** An offer of what is past its own expiry: time to ask the one replica that may have it. */
const LATE_OFFER_MS = 5 * 60_000;
/** A stop that reaches nobody for this long is moot. */
const CANCEL_LIFETIME_MS = 7 * 24 * 3600_000;
/** A dispatch that the agent finds wrong is made anew this often before the command is given up. */
const REMAKE_LIMIT = 3;
/** A command is left to a process with a free agent this often; after that it is offered to a busy one here. */
const MOST_YIELDED = 2;
const YIELD_MS = 1_000;

/** The agent said so before it journaled anything: another replica may be asked, and a cancel needs no agent. */
const NOT_TAKEN: Partial<Record<ErrorCode, RefusalCode>> = {
  AGENT_PAUSED: "AGENT_PAUSED",
  AGENT_DRAINING: "AGENT_DRAINING",
  AT_CAPACITY: "AT_CAPACITY",
  STREAM_REFUSED: "AT_CAPACITY",
  AUDIT_UNAVAILABLE: "AGENT_UNREADY",
};
/** Whether it was journaled is not known: only the same replica may be asked again. */
const MAYBE_TAKEN: Partial<Record<ErrorCode, RefusalCode>> = {
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
  /** How often it was left to another process. */
  yielded: number;
  /** It may have journaled the command. */
  maybeWith: ReplicaId | null;
  /** Who did not take it in this round, and when (monotonic). */
  saidLater: Map<ReplicaId, number>;
}

interface Sweep {
  again: boolean;
  fresh: CommandRow[] | null;
  done: Promise<void>;
}

const NOBODY: PoolQueue = { maxRuns: null, held: 0, heldOf: {}, holders: [], items: [] };
const poolKey = (workspace: WorkspaceId, pool: PoolId): string => `${workspace} ${pool}`;
/** What of a status can end a wait. */
const openings = (status: AgentStatus): string =>
  JSON.stringify([status.paused, status.draining, status.running.length, status.policyDigest, status.commands.length]);

export function makeDurable(deps: DurableDeps): Durable {
  const { store, sessions, sequences, clock, log, others } = deps;
  /** Those that this process offers to. */
  const held = others?.held ?? sessions;
  const waiters = new Map<CommandId, Waiter>();
  const inFlight = new Map<CommandId, { done: Promise<void>; sinceMs: number; to: ReplicaId | null }>();
  /** `fresh`: committed while the sweep reads the queue, which may have been too early to see them; null = it does not read. */
  const sweeps = new Map<string, Sweep>();
  const stops = new Map<string, Promise<{ done: boolean; command: CommandRow } | null>>();
  const lastOpenings = new WeakMap<CloudSession, string>();
  /** Pools without a takeover that waits for acceptance, since the last tick. */
  const noneMoved = new Set<string>();
  /** Pools in which whatever is queued and due is in flight, or waits after a "later": a new command need not look who comes before it. */
  const calm = new Set<string>();
  let timer: Timer | null = null;
  let ticks = 0;
  let stopped = false;

  function sweep(workspace: WorkspaceId, pool: PoolId): void {
    if (stopped) return;
    const key = poolKey(workspace, pool);
    const running = sweeps.get(key);
    if (running !== undefined) {
      running.again = true;
      return;
    }
    const entry: Sweep = { again: false, fresh: null, done: Promise.resolve() };
    sweeps.set(key, entry);
    entry.done = (async () => {
      do {
        entry.again = false;
        try {
          await sweepOnce(workspace, pool, entry);
        } catch (error) {
          log.error({ err: error, workspace, pool }, "offering queued commands failed; the next sweep tries again");
        }
      } while (entry.again && !stopped);
      sweeps.delete(key);
    })();
  }

  async function sweepOnce(workspace: WorkspaceId, pool: PoolId, entry: Sweep): Promise<void> {
    const key = poolKey(workspace, pool);
    calm.delete(key);
    if (held.ofPool(workspace, pool).length === 0) return;
    const committed: CommandRow[] = (entry.fresh = []);
    let due: { rows: CommandRow[]; others: number };
    try {
      due = await store.offersDue(workspace, pool, clock.now(), SWEEP_ROWS);
      if (!noneMoved.has(key)) {
        const moved = await store.unacceptedTakeovers(workspace, pool, SWEEP_ROWS);
        if (moved.length === 0) noneMoved.add(key);
        due.rows.push(...moved);
      }
    } finally {
      entry.fresh = null;
    }
    const { rows } = due;
    if (others !== null) for (const row of rows) learn(row);
    const seen = new Set(rows.map((row) => row.id));
    const fresh = new Set(committed.filter((row) => !seen.has(row.id)));
    if (due.others === 0 && rows.length + fresh.size <= PARALLEL) {
      // All of them go now, so none has to be weighed against another; whether one may is asked again at its offer.
      rows.push(...fresh);
      calm.add(key);
    } else if (fresh.size > 0) entry.again = true;
    let took = false;
    const queue = rows[Symbol.iterator]();
    const worker = async (): Promise<void> => {
      for (const row of queue) {
        if (stopped) return;
        if (inFlight.has(row.id) || (waiters.get(row.id)?.retryAtMs ?? 0) > clock.monotonic()) continue;
        if (inFlight.size >= MOST_IN_FLIGHT) return void calm.delete(key);
        const answered = offerOnce(row);
        // One that does not answer, because it is not there any more, must not keep the others of the pool from theirs.
        const inTime = await withinMs(answered, SLOW_OFFER_MS);
        if (inTime === null) void answered.then(() => sweep(workspace, pool));
        else if (inTime) took = true;
        else {
          calm.delete(key);
          if (fresh.has(row)) entry.again = true;
        }
      }
    };
    await Promise.all(Array.from({ length: Math.min(PARALLEL, rows.length) }, worker));
    // What was taken may have been the older sibling of one that waits.
    if (took && !calm.has(key)) entry.again = true;
  }

  /** Never rejects. True when the agent took it or refused it for good. */
  function offerOnce(row: CommandRow): Promise<boolean> {
    const { promise, resolve } = Promise.withResolvers<void>();
    inFlight.set(row.id, { done: promise, sinceMs: clock.monotonic(), to: null });
    return offer(row)
      .catch((error: unknown) => {
        log.error({ err: error, command: row.id }, "an offer failed; the next sweep tries again");
        return false;
      })
      .finally(() => {
        inFlight.delete(row.id);
        resolve();
      });
  }

  /** What another process has found out by offering is in SQL. */
  function learn(row: CommandRow): void {
    const known = waiters.get(row.id);
    if (known !== undefined && !inFlight.has(row.id) && !takeover.isMoved(row)) known.maybeWith = offeredBefore(row);
  }

  /** The other processes may have an agent for it. */
  function wakeOthers(workspace: WorkspaceId, pool: PoolId): void {
    if (others !== null && sessions.ofPool(workspace, pool).length > held.ofPool(workspace, pool).length)
      others.wake(workspace, pool);
  }

  /** A command that was committed just now. Where nothing else waits it goes at once, without a look at the queue. */
  function begin(row: CommandRow): void {
    const key = poolKey(row.workspace, row.pool);
    if (held.ofPool(row.workspace, row.pool).length === 0) {
      // Whether one is there is not for sure: notes cost nothing.
      others?.wake(row.workspace, row.pool);
      if (others !== null) return;
    }
    if (stopped || row.notBefore > clock.now() || inFlight.size >= MOST_IN_FLIGHT) {
      calm.delete(key);
      return sweep(row.workspace, row.pool);
    }
    if (!calm.has(key)) {
      const fresh = sweeps.get(key)?.fresh ?? null;
      if (fresh === null || fresh.length >= MOST_IN_FLIGHT) return sweep(row.workspace, row.pool);
      return void fresh.push(row);
    }
    void offerOnce(row).then((taken) => {
      if (taken && calm.has(key)) return;
      if (!taken) wakeOthers(row.workspace, row.pool);
      calm.delete(key);
      sweep(row.workspace, row.pool);
    });
  }

  const withinMs = <T>(work: Promise<T>, ms: number): Promise<T | null> =>
    new Promise((resolve) => {
      const late = clock.after(ms, () => resolve(null));
      void work.then((value) => {
        late.cancel();
        resolve(value);
      });
    });

  const again = (row: CommandRow): void => sweep(row.workspace, row.pool);

  const takeover = makeTakeover({
    store,
    sessions,
    held,
    clock,
    log,
    moved(row, to) {
      const state = waiter(row);
      if (row.state === "queued") state.maybeWith = to;
      state.retryAtMs = 0;
      noneMoved.delete(poolKey(row.workspace, row.pool));
      sweep(row.workspace, row.pool);
      cancelAgain(row).catch((error: unknown) =>
        log.error({ err: error, command: row.id }, "a stop that was asked for could not be handed on"),
      );
    },
  });

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
          yielded: 0,
          maybeWith: offeredBefore(row),
          saidLater: new Map(),
        }),
      );
    return known;
  }

  /** The one replica that must take it, or null when any of the pool may. */
  async function bound(row: CommandRow): Promise<ReplicaId | null> {
    if (row.state !== "queued") return row.replica;
    const waiting = waiters.get(row.id);
    const maybe = waiting === undefined ? offeredBefore(row) : waiting.maybeWith;
    const deployment = /^deployment:(dep_[0-9a-f]{32})$/.exec(row.resource)?.[1];
    if (deployment !== undefined) {
      // A replica that is revoked or deleted holds nothing any more that could be asked for.
      const asked = maybe === null ? null : await store.replica(systemScope(row.workspace), maybe);
      if (asked !== null && asked.revokedAt === null) return maybe;
      return await store.deploymentHolder(row.workspace, deployment as DeploymentId, row.id);
    }
    if (row.kind !== runCancel.kind || row.run === null) return maybe;
    // A stop is for whoever has the run by now. Asked twice, it stops once.
    const held = (await store.run(systemScope(row.workspace), row.run))?.command;
    return held?.replica ?? held?.offeredTo ?? maybe;
  }

  const candidates = (row: CommandRow, only: ReplicaId | null, of: Sessions): CloudSession[] =>
    only === null
      ? of.ofPool(row.workspace, row.pool)
      : [of.ofReplica(row.workspace, only)].filter((s): s is CloudSession => s !== null);

  /** All agents here are busy, and one at another process is not: that process is to have it, a few times over. */
  function betterElsewhere(row: CommandRow, best: CloudSession, state: Waiter): boolean {
    if (others === null || state.yielded >= MOST_YIELDED) return false;
    const now = clock.monotonic();
    if (rank(best, row.kind, now) < 1) return false;
    const free = sessions
      .ofPool(row.workspace, row.pool)
      .some((one) => one.elsewhere !== undefined && fits(row, one) && rank(one, row.kind, now) < 1);
    if (free) {
      state.yielded++;
      state.retryAtMs = clock.monotonic() + YIELD_MS;
      others.wake(row.workspace, row.pool);
    }
    return free;
  }

  /** Those that have what it needs: who leaves an offer unanswered goes last, who did not say "later" to it goes before who did, then by room. */
  function inOrder(row: CommandRow, live: CloudSession[], only: ReplicaId | null): CloudSession[] {
    const now = clock.monotonic();
    const slow = new Set<ReplicaId | null>();
    for (const { to, sinceMs } of inFlight.values()) if (now - sinceMs >= SLOW_OFFER_MS) slow.add(to);
    const hangs = (one: CloudSession): number => (slow.has(one.replica) ? 1 : 0);
    const later = (one: CloudSession): number => waiters.get(row.id)?.saidLater.get(one.replica) ?? 0;
    return live
      .filter((one) => only !== null || fits(row, one))
      .toSorted(
        (a, b) => hangs(a) - hangs(b) || later(a) - later(b) || rank(a, row.kind, now) - rank(b, row.kind, now),
      );
  }

  /**
   * Those whose policy allows the kind. When none does, and one that did is away, nobody is asked: it waits for that one.
   * Else all are: the agent's own refusal names the rule.
   */
  async function able(row: CommandRow, live: CloudSession[], only: ReplicaId | null): Promise<CloudSession[]> {
    if (only !== null) return live;
    const capable = live.filter((one) => one.status()?.commands.includes(row.kind) ?? true);
    if (capable.length > 0 || live.length === 0) return capable;
    const away = (await store.replicas(systemScope(row.workspace))).some(
      (replica) =>
        replica.pool === row.pool && couldTake(row, replica) && !live.some((one) => one.replica === replica.id),
    );
    return away ? [] : live;
  }

  /** True when the agent took it or refused it for good: the next of its resource may go. */
  async function offer(row: CommandRow): Promise<boolean> {
    const state = waiter(row);
    const only = await bound(row);
    const live = await able(row, inOrder(row, candidates(row, only, held), only), only);
    const session = live[0];
    if (session === undefined) return false;
    const moved = takeover.isMoved(row);
    if (only === null && !moved && betterElsewhere(row, session, state)) return false;
    const flight = inFlight.get(row.id);
    if (flight !== undefined) flight.to = session.replica;
    // Past its expiry it is offered only to the one that may have it, whose answer settles whether it came in time.
    const late = row.expires <= clock.now();
    if (late && (row.offeredTo ?? null) === null) return false;
    const counted = await store.nextDispatch(
      row.workspace,
      row.id,
      session.replica,
      sequences.last(session),
      clock.now(),
      // What is bound otherwise, deployments and stops, says by itself who alone may have it.
      others !== null && !moved && row.kind === pipelineRun.kind,
    );
    if (counted === null) {
      waiters.delete(row.id);
      return false;
    }
    const now = clock.now();
    const parent = parseTraceparent(row.trace);
    const trace = parent === null ? null : childOf(parent);
    const traced = parent === null ? {} : { trace_id: parent.traceId };
    const told = (outcome: string): void => {
      deps.metrics.offer(row.kind, outcome);
      if (trace === null) return;
      deps.spans.record({
        name: `dispatch ${row.kind}`,
        kind: "client",
        context: trace,
        parentSpanId: parent!.spanId,
        startMs: now,
        endMs: clock.now(),
        attributes: {
          "sallyport.kind": row.kind,
          "sallyport.command": row.id,
          "sallyport.pool": row.poolName,
          "sallyport.agent": session.replica,
          "sallyport.attempt": counted.attempt,
        },
        error: outcome === "accepted" ? null : outcome,
      });
    };
    const head = signOffer(
      deps.signer,
      {
        intentText: row.intent,
        body: row.body,
        session,
        incarnation: deps.incarnation,
        sequence: sequences.next(session, counted.sequence),
        attempt: counted.attempt,
        // The intent says by itself when it expires; this is the offer's own end.
        expires: late ? now + LATE_OFFER_MS : row.expires,
        takenOver: moved,
        trace,
      },
      now,
    );
    let sent = false;
    let timer: Timer | null = null;
    try {
      const stream = session.open(head, { lane: "interactive", end: true });
      sent = true;
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
      if (moved) deps.told(row.workspace, null);
      // It ended here while the offer was on its way; the agent that took it must be told.
      if (holds === "cancelled" && row.kind === pipelineRun.kind && row.run !== null)
        await submitCancel(systemScope(row.workspace), row);
      told("accepted");
      log.info(
        { command: row.id, kind: row.kind, agent: session.replica, known: answer.data.known, ...traced },
        "command accepted",
      );
      return true;
    } catch (caught) {
      const error = toConnectorError(caught);
      told(error.code);
      if (error.code === "INTERNAL") log.error({ err: caught, command: row.id }, "offer failed");
      const remake = error.code === "DISPATCH_INVALID" || error.code === "SIGNATURE_INVALID";
      const final =
        error.retry === "never" && error.code !== "CANCELLED" && !(remake && ++state.remakes < REMAKE_LIMIT);
      if (final && !moved) {
        await store.markRefused(row.workspace, row.id, session.replica, error.toBody(), clock.now());
        waiters.delete(row.id);
        log.info(
          { command: row.id, kind: row.kind, agent: session.replica, code: error.code, ...traced },
          "command refused",
        );
        return true;
      }
      const notTaken = NOT_TAKEN[error.code];
      if (notTaken !== undefined || remake || final || !sent) {
        const offer = { attempt: counted.attempt, replica: session.replica, code: error.code };
        state.maybeWith = await store.markNotTaken(row.workspace, row.id, offer, clock.now());
        state.saidLater.set(session.replica, clock.monotonic());
        if (moved) await takeover.declined(row, session.replica, error.code);
      }
      const code = notTaken ?? MAYBE_TAKEN[error.code];
      // A lost link is not the command's fault: it goes again as soon as there is a session.
      const lost = error.code === "LINK_LOST" || error.code === "GOING_AWAY" || error.code === "SESSION_SUPERSEDED";
      state.refusal = lost ? null : { code: code ?? null, message: error.message, replica: session.replica };
      // Others of the pool are asked before anybody is asked again.
      const others = state.maybeWith === null && live.some((one) => !state.saidLater.has(one.replica));
      if (!others && state.maybeWith === null) state.saidLater.clear();
      if (others) again(row);
      state.retryAtMs =
        lost || others ? 0 : clock.monotonic() + Math.min(BACKOFF_MS.first * 2 ** state.retries++, BACKOFF_MS.most);
      return false;
    } finally {
      timer?.cancel();
    }
  }

  /** Lets commands of a pool go again at once; those that nobody is likely to take now come back with the same word. */
  function poke(workspace: WorkspaceId, pool: PoolId): void {
    let waits = !calm.has(poolKey(workspace, pool));
    for (const waiting of waiters.values()) {
      if (waiting.workspace !== workspace || waiting.pool !== pool) continue;
      waits ||= waiting.retryAtMs > 0;
      waiting.retryAtMs = 0;
    }
    if (waits) sweep(workspace, pool);
  }

  function tick(): void {
    if (stopped) return;
    timer = clock.after(SWEEP_MS, tick);
    noneMoved.clear();
    const pools = new Map<string, CloudSession>();
    for (const session of held.all()) pools.set(poolKey(session.workspace, session.pool), session);
    for (const session of pools.values()) sweep(session.workspace, session.pool);
    // A note may have been lost. Rarely: it is a question for each agent.
    if (others !== null && ++ticks % TELL_TICKS === 0)
      for (const workspace of new Set([...pools.values()].map((one) => one.workspace))) deps.tellHeld(workspace);
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

  /** Nothing else says why it waits. */
  const justOffered = (id: CommandId): boolean =>
    (inFlight.get(id)?.to ?? null) !== null && (waiters.get(id)?.refusal ?? null) === null;

  async function viewed(scope: Scope, rows: CommandRow[]): Promise<CommandView[]> {
    // As of now: what is answered while this reads on is told by the next look.
    const offered = new Map(rows.filter((row) => justOffered(row.id)).map((row) => [row.id, inFlight.get(row.id)!]));
    const queued = rows.filter((row) => row.state === "queued" && !offered.has(row.id));
    const replicas = queued.length > 0 ? await store.replicas(scope) : [];
    const queues = new Map<PoolId, PoolQueue>();
    for (const pool of new Set(queued.map((row) => row.pool))) {
      // Who waits for an agent to come waits for nothing else: a queue that grows meanwhile is not read for each of them.
      if (sessions.ofPool(scope.workspace, pool).length === 0) continue;
      const ids = queued.filter((row) => row.pool === pool).map((row) => row.id);
      queues.set(pool, await store.queue(scope.workspace, pool, ids, clock.now()));
    }
    return await Promise.all(
      rows.map(async (row): Promise<CommandView> => {
        if (row.state !== "queued") return { row, waiting: null, unknown: unknownOf(row, sessions) };
        const only = await bound(row);
        const flight = offered.get(row.id) ?? inFlight.get(row.id);
        const asked = (flight?.to ?? null) === null ? undefined : flight;
        const known = waiters.get(row.id);
        const waiting = waitingOf(row, {
          now: clock.now(),
          sessions: candidates(row, only, sessions),
          replicas: replicas.filter((replica) => (only === null ? replica.pool === row.pool : replica.id === only)),
          only: only === null ? null : (replicas.find((replica) => replica.id === only)?.name ?? only),
          inFlightMs: asked === undefined ? null : clock.monotonic() - asked.sinceMs,
          retryInMs: Math.max(0, (known?.retryAtMs ?? 0) - clock.monotonic()),
          queue: queues.get(row.pool) ?? NOBODY,
          refusal: known?.refusal ?? null,
        });
        return { row, waiting, unknown: unknownOf(row, sessions) };
      }),
    );
  }

  /** A stop that the former holder took is asked of the new one too; one that still waits goes there by itself. */
  async function cancelAgain(run: CommandRow): Promise<void> {
    if (run.run === null) return;
    const scope = systemScope(run.workspace);
    const cancels = await store.commands(scope, { limit: 20, kind: runCancel.kind, run: run.run });
    const asked = cancels.items.some(
      ({ state }) => state === "accepted" || state === "running" || state === "succeeded",
    );
    if (asked) await submitCancel(scope, run);
  }

  const submitCancel = (scope: Scope, run: CommandRow): Promise<unknown> =>
    durable.submit(scope, {
      pool: { id: run.pool, name: run.poolName },
      spec: runCancel,
      input: { run: run.run!, command: run.id },
      resource: run.resource,
      expiresInMs: CANCEL_LIFETIME_MS,
    });

  async function cancelOnce(scope: Scope, id: RunId): Promise<{ done: boolean; command: CommandRow } | null> {
    const found = await store.run(scope, id);
    if (found === null) return null;
    await inFlight.get(found.command.id)?.done;
    const command = (await store.command(scope, found.command.id)) ?? found.command;
    if (isOver(command)) return { done: true, command };
    // Only what no agent can have journaled may be ended here. Otherwise the agent is told, after it took the run.
    const known = waiters.get(command.id);
    const untouched = (known === undefined ? offeredBefore(command) : known.maybeWith) === null;
    if (command.state === "queued" && untouched && (await store.cancelQueued(scope, command.id, clock.now(), true))) {
      waiters.delete(command.id);
      return { done: true, command: (await store.command(scope, command.id)) ?? command };
    }
    const pending = await store.commands(scope, { limit: 1, kind: runCancel.kind, state: "queued", run: id });
    if (pending.items.length === 0) await submitCancel(scope, command);
    return { done: false, command };
  }

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
          notBefore: submission.notBefore,
          expires: Math.max(now, submission.notBefore ?? 0) + submission.expiresInMs,
        },
        now,
      );
      const notBefore = submission.notBefore ?? intent.notBefore;
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
        pipeline: submission.run?.pipeline ?? null,
        concurrency: submission.run?.spec.concurrency ?? null,
        priority: submission.priority ?? 0,
        requires: submission.requires ?? {},
        createdAt: now,
        notBefore,
        expires: intent.expires,
        acceptedAt: null,
        startedAt: null,
        endedAt: null,
        offers: 0,
        error: null,
        result: null,
        trace: scope.trace ?? null,
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
          notBefore,
          expires: intent.expires,
          createdAt: now,
          priority: submission.priority ?? 0,
          requires: submission.requires ?? {},
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
        begin(answered.command);
      }
      return answered;
    },

    cancelRun(scope, id) {
      // Who asks while another's word is being passed on asks for the same: one command to the agent.
      const key = `${scope.workspace} ${id}`;
      const asked = stops.get(key) ?? cancelOnce(scope, id).finally(() => stops.delete(key));
      stops.set(key, asked);
      return asked;
    },

    view: viewed,

    async explain(scope, id) {
      const row = await store.command(scope, id);
      if (row === null) return null;
      const [view, history] = await Promise.all([viewed(scope, [row]), store.history(scope, id)]);
      const { waiting, unknown } = view[0]!;
      const holder = silentHolder(row, sessions);
      const replica = holder === null ? null : await store.replica(scope, holder);
      const silence =
        holder === null
          ? null
          : { id: holder, replica, gone: replica === null || replica.revokedAt !== null || replica.deletedAt !== null };
      const status = row.replica === null ? null : (sessions.ofReplica(row.workspace, row.replica)?.status() ?? null);
      const agent =
        status === null
          ? null
          : {
              running: status.running.some((one) => one.command === row.id),
              busy: status.running.filter((one) => one.kind === pipelineRun.kind).length,
              slots: status.limits.runs,
            };
      const { unknown: told, ...words } = explain(row, waiting, silence, agent, history, clock.now());
      return { row, waiting, unknown, silence: told, ...words };
    },

    async declareLost(scope, id, reason) {
      const row = await store.command(scope, id);
      if (row === null || row.state === "lost") return row;
      const held = (why: string, fix: string) =>
        new ConnectorError("CONFLICT", `Command ${id} cannot be declared lost: ${why}.`, { fix });
      if (isOver(row)) throw held(`it has ended, ${row.state}`, "An end never changes.");
      await inFlight.get(id)?.done;
      const holder = silentHolder(row, sessions);
      const name = row.replicaName ?? row.offeredTo ?? "its agent";
      if (holder === null)
        throw row.state === "queued" && (row.offeredTo ?? null) === null
          ? held("no agent can have it, so nothing of it can be lost", "Cancel it.")
          : held(`${name}, which has it, is connected and will report its end`, "Cancel it, or wait for its end.");
      if (!(await store.declareLost(scope, id, clock.now(), { reason, replica: holder }))) {
        const now = await store.command(scope, id);
        if (now?.state === "lost") return now;
        throw held(
          now !== null && isOver(now) ? `it has ended, ${now.state}` : "another agent has it by now",
          "Look at it again: sallyport command explain " + id,
        );
      }
      waiters.delete(id);
      sweep(row.workspace, row.pool);
      log.warn({ command: id, kind: row.kind, agent: holder, by: scope.actor.name }, "command declared lost");
      return await store.command(scope, id);
    },

    poke,

    start() {
      held.onOnline((session) => {
        calm.delete(poolKey(session.workspace, session.pool));
        poke(session.workspace, session.pool);
      });
      others?.onWake((workspace, pool) => {
        calm.delete(poolKey(workspace, pool));
        sweep(workspace, pool);
      });
      held.onStatus((session, status) => {
        const now = openings(status);
        if (lastOpenings.get(session) === now) return;
        lastOpenings.set(session, now);
        poke(session.workspace, session.pool);
      });
      takeover.start();
      tick();
    },

    async stop() {
      stopped = true;
      timer?.cancel();
      await takeover.stop();
      await Promise.all([...sweeps.values()].map((entry) => entry.done));
      await Promise.all([...inFlight.values()].map((one) => one.done));
    },
  };
  return durable;
}

/** After a restart of this process: whoever was asked last may have journaled it. */
const offeredBefore = (row: CommandRow): ReplicaId | null => row.offeredTo ?? null;
const isOver = (row: CommandRow): boolean =>
  row.state !== "queued" && row.state !== "accepted" && row.state !== "running";
