// Work of an agent replica that has gone silent goes to another one that can ask the same engine. This decides who is
// silent and who may take what; the store moves it, durable.ts offers it. What runs on an engine of the replica's own
// stays that replica's. The silence that counts is the agent's, never one of this process.
import {
  type Clock,
  type CommandId,
  type PoolId,
  type ReplicaId,
  type Timer,
  type WorkspaceId,
} from "@sallyport/protocol";
import type { Logger } from "pino";
import type { CloudSession, Sessions } from "../link/sessions.ts";
import type { CommandRow, HeldWork, Store } from "../store/store.ts";
import { fits, rank } from "./candidates.ts";
import { systemScope } from "./scope.ts";

/** Without a sign of life for this long, a replica's work may go to another. */
export const TAKEOVER_MS = 15_000;
/**
 * Agents dial again within this after they lost us, whatever the reason. One that this process has not heard since it
 * began to count may be on its way back: its silence counts from then on only.
 */
export const REDIAL_MS = 60_000;
const LOOK_MS = 1_000;
/** A pool is looked at so often though nothing happened in it. */
const LOOK_AGAIN_MS = 5_000;
/** A look that comes so late says that this process itself stood still. */
const STALL_MS = 5_000;
/** A replica that would not have it is asked again after this. */
const DECLINED_MS = 60_000;
const MOVES_AT_ONCE = 200;

export interface TakeoverDeps {
  store: Store;
  sessions: Sessions;
  /** Those of `sessions` that this process holds itself: what it takes over goes to one of them. */
  held: Sessions;
  clock: Clock;
  log: Logger;
  /** It belongs to `to` from now on, and is to be offered to it. */
  moved: (command: CommandRow, to: ReplicaId) => void;
}

export interface Takeover {
  start(): void;
  stop(): Promise<void>;
  /** Whether it went from a replica that may have it to another: a refusal by that other one is not its end. */
  isMoved(command: CommandRow): boolean;
  /** The replica that it was moved to does not take it: another is looked for. */
  declined(command: CommandRow, by: ReplicaId, code: string): Promise<void>;
}

interface Pool {
  workspace: WorkspaceId;
  pool: PoolId;
  /** Monotonic. */
  lookAtMs: number;
}

export function makeTakeover(deps: TakeoverDeps): Takeover {
  const { store, sessions, held, clock, log } = deps;
  const pools = new Map<string, Pool>();
  /** Monotonic ms of the last sign of life of replicas that this process knew. */
  const lastSeen = new Map<ReplicaId, number>();
  const moved = new Set<CommandId>();
  const refused = new Map<CommandId, Map<ReplicaId, number>>();
  /** No silence before this counts: until then this process was not there, stood still, or reached nobody at all. */
  let baselineMs = clock.monotonic();
  let lookedMs = clock.monotonic();
  let timer: Timer | null = null;
  let stopped = false;
  let looking: Promise<void> = Promise.resolve();

  function note(session: CloudSession, lookAtMs: number): void {
    lastSeen.set(session.replica, session.lastSeenMs());
    const key = `${session.workspace} ${session.pool}`;
    const known = pools.get(key);
    if (known === undefined) pools.set(key, { workspace: session.workspace, pool: session.pool, lookAtMs });
    else known.lookAtMs = Math.min(known.lookAtMs, lookAtMs);
  }

  function silentMs(replica: ReplicaId): number {
    const seen = lastSeen.get(replica);
    return clock.monotonic() - (seen !== undefined && seen >= baselineMs ? seen : baselineMs + REDIAL_MS);
  }

  function tick(): void {
    if (stopped) return;
    timer = clock.after(LOOK_MS, () => {
      looking = look().finally(tick);
    });
  }

  async function look(): Promise<void> {
    const now = clock.monotonic();
    const live = sessions.all();
    // Alone: it is this process that nobody reaches.
    if (now - lookedMs > STALL_MS || held.all().length === 0) baselineMs = now;
    lookedMs = now;
    for (const session of live) lastSeen.set(session.replica, session.lastSeenMs());
    for (const one of pools.values()) {
      if (stopped) return;
      if (one.lookAtMs > now) continue;
      one.lookAtMs = now + LOOK_AGAIN_MS;
      try {
        await lookAt(one);
      } catch (error) {
        // Without its database it takes in nobody who dials.
        baselineMs = clock.monotonic();
        log.error({ err: error, pool: one.pool }, "looking for work of silent agents failed; it is tried again");
      }
    }
    lookedMs = clock.monotonic();
  }

  async function lookAt(one: Pool): Promise<void> {
    const { workspace, pool } = one;
    const own = held.ofPool(workspace, pool)[0];
    if (own === undefined) return;
    const work = await store.heldWork(
      workspace,
      pool,
      sessions.ofPool(workspace, pool).map((session) => session.replica),
      MOVES_AT_ONCE,
    );
    const now = clock.monotonic();
    const due = work.filter(({ holder }) => {
      const leftMs = TAKEOVER_MS - silentMs(holder);
      if (leftMs > 0) one.lookAtMs = Math.min(one.lookAtMs, now + leftMs);
      return leftMs <= 0;
    });
    if (due.length === 0) return;
    const rows = await store.replicas(systemScope(workspace));
    const replicas = new Map(rows.map((row) => [row.id, row]));
    const ours = replicas.get(own.replica)?.process ?? null;
    for (const work of due) {
      const holder = replicas.get(work.holder);
      const engineId = holder?.status?.engineIds?.[work.engine];
      // Back meanwhile: it is asked itself.
      if (engineId === undefined || sessions.ofReplica(workspace, work.holder) !== null) continue;
      // It is another process that it talks to.
      if (holder!.disconnectedAt === null && holder!.process !== null && holder!.process !== ours) continue;
      const to = survivor(work.command, work.engine, engineId);
      if (to !== null) await move(work, to, true);
    }
  }

  /** Of those that can ask the very engine, the one with most room. */
  function survivor(command: CommandRow, engine: string, engineId: string): CloudSession | null {
    const now = clock.monotonic();
    const not = refused.get(command.id);
    return (
      held
        .ofPool(command.workspace, command.pool)
        .filter((session) => {
          const status = session.status();
          return (
            status !== null &&
            status.engineIds?.[engine] === engineId &&
            status.paused === null &&
            !status.draining &&
            status.commands.includes(command.kind) &&
            fits(command, session) &&
            (not?.get(session.replica) ?? 0) <= now
          );
        })
        .toSorted((a, b) => rank(a, command.kind, now) - rank(b, command.kind, now))[0] ?? null
    );
  }

  async function move({ command, holder, engine }: HeldWork, to: CloudSession, holds: boolean): Promise<void> {
    const reason = holds ? "AGENT_OFFLINE" : "HELD_ELSEWHERE";
    const done = await store.takeOver(
      command.workspace,
      command.id,
      { from: holder, to: to.replica, reason, holds },
      clock.now(),
    );
    if (!done) return;
    moved.add(command.id);
    log.warn(
      { command: command.id, run: command.run, from: holder, to: to.replica, engine },
      "a silent agent's run goes to another that asks the same engine",
    );
    deps.moved(command, to.replica);
  }

  return {
    isMoved: (command) => moved.has(command.id) || command.state === "accepted" || command.state === "running",

    async declined(command, by, code) {
      let not = refused.get(command.id);
      if (not === undefined) refused.set(command.id, (not = new Map()));
      not.set(by, clock.monotonic() + DECLINED_MS);
      log.warn({ command: command.id, agent: by, code }, "an agent does not take over a run");
      if (command.state === "queued") return;
      const row = (await store.replicas(systemScope(command.workspace))).find((one) => one.id === by);
      const run = command.run === null ? null : await store.run(systemScope(command.workspace), command.run);
      const engine = run?.run.spec.engine;
      const engineId = engine === undefined ? undefined : row?.status?.engineIds?.[engine];
      if (engine === undefined || engineId === undefined) return;
      const to = survivor(command, engine, engineId);
      if (to !== null) await move({ command, holder: by, engine }, to, false);
    },

    start() {
      baselineMs = lookedMs = clock.monotonic();
      for (const session of sessions.all()) note(session, clock.monotonic());
      sessions.onOnline((session) => note(session, clock.monotonic()));
      sessions.onOffline((session) => {
        note(session, session.lastSeenMs() + TAKEOVER_MS);
        // It lost its process through no silence of its own, and may be on its way to another one.
        if (session.elsewhere?.lost === true) lastSeen.set(session.replica, clock.monotonic() + REDIAL_MS);
      });
      tick();
    },

    async stop() {
      stopped = true;
      timer?.cancel();
      await looking;
    },
  };
}
