// Live sessions of all processes behind the port of one: those held here, and those that SQL shows at the others.
import { type Clock, type ConnectorError, type PoolId, type ReplicaId, type WorkspaceId } from "@sallyport/protocol";
import type { CloudSession, Sessions } from "../link/sessions.ts";
import { waitForSession } from "../link/wait-for-session.ts";
import type { RemoteSession } from "./remote-session.ts";

/** Who lost its process dials another one within this, as a rule. */
const MOVING_MS = 10_000;
/** While somebody waits for an agent, SQL is asked this often. */
const WAITING_LOOK_MS = 500;

const keyOf = (workspace: WorkspaceId, pool: PoolId): string => `${workspace} ${pool}`;

export class AllSessions implements Sessions {
  readonly #held: Sessions;
  readonly #clock: Clock;
  readonly #look: () => Promise<void>;
  readonly #byReplica = new Map<ReplicaId, RemoteSession>();
  readonly #byPool = new Map<string, Set<RemoteSession>>();
  /** Replicas on their way, with their pool, until they are not expected any more (monotonic). */
  readonly #moving = new Map<ReplicaId, { key: string; untilMs: number }>();
  readonly #online: ((session: CloudSession) => void)[] = [];
  readonly #offline: ((session: CloudSession) => void)[] = [];
  readonly #status: Parameters<Sessions["onStatus"]>[0][] = [];

  /** `look`: brings this up to date from SQL. */
  constructor(held: Sessions, clock: Clock, look: () => Promise<void>) {
    this.#held = held;
    this.#clock = clock;
    this.#look = look;
    held.onOnline((session) => this.#arrived(session));
    held.onOffline((session) => {
      for (const listener of [...this.#offline]) listener(session);
    });
    held.onStatus((session, status) => {
      for (const listener of this.#status) listener(session, status);
    });
  }

  ofPool(workspace: WorkspaceId, pool: PoolId): CloudSession[] {
    const held = this.#held.ofPool(workspace, pool);
    const others = this.#byPool.get(keyOf(workspace, pool));
    if (others === undefined) return held;
    return [
      ...held.filter((one) => (this.#byReplica.get(one.replica)?.epoch ?? -1) < one.epoch),
      ...[...others].filter((one) => (this.#held.ofReplica(workspace, one.replica)?.epoch ?? -1) < one.epoch),
    ];
  }
  ofReplica(workspace: WorkspaceId, replica: ReplicaId): CloudSession | null {
    const held = this.#held.ofReplica(workspace, replica);
    const other = this.#byReplica.get(replica);
    if (other === undefined || other.workspace !== workspace || (held?.epoch ?? -1) > other.epoch) return held;
    return other;
  }
  all(): CloudSession[] {
    const held = this.#held.all();
    const here = new Map(held.map((one) => [one.replica, one.epoch]));
    return [
      ...held.filter((one) => (this.#byReplica.get(one.replica)?.epoch ?? -1) < one.epoch),
      ...[...this.#byReplica.values()].filter((one) => (here.get(one.replica) ?? -1) < one.epoch),
    ];
  }

  onOnline(listener: (session: CloudSession) => void): void {
    this.#online.push(listener);
  }
  onOffline(listener: (session: CloudSession) => void): void {
    this.#offline.push(listener);
  }
  onStatus(listener: Parameters<Sessions["onStatus"]>[0]): void {
    this.#status.push(listener);
  }
  /** Streams of agents come to the process that holds them. */
  onStream(type: string, handler: Parameters<Sessions["onStream"]>[1]): void {
    this.#held.onStream(type, handler);
  }

  refresh(): Promise<void> {
    return this.#look();
  }

  moving(workspace: WorkspaceId, pool: PoolId, replica?: ReplicaId): boolean {
    const now = this.#clock.monotonic();
    const key = keyOf(workspace, pool);
    for (const [id, one] of this.#moving) {
      if (one.untilMs <= now) this.#moving.delete(id);
      else if (one.key === key && (replica === undefined || replica === id)) return true;
    }
    return false;
  }

  async waitForPool(
    workspace: WorkspaceId,
    pool: PoolId,
    withinMs: number,
    signal?: AbortSignal,
  ): Promise<CloudSession | null> {
    const live = this.ofPool(workspace, pool)[0];
    if (live !== undefined) return live;
    let looking = { cancel: () => {} };
    const look = (): void => {
      void this.#look();
      looking = this.#clock.after(WAITING_LOOK_MS, look);
    };
    look();
    try {
      return await waitForSession(this.#clock, this.#online, { workspace, id: pool }, withinMs, signal);
    } finally {
      looking.cancel();
    }
  }

  // For the mirror.

  remote(replica: ReplicaId): RemoteSession | undefined {
    return this.#byReplica.get(replica);
  }
  remotes(): RemoteSession[] {
    return [...this.#byReplica.values()];
  }

  add(session: RemoteSession): void {
    this.#byReplica.set(session.replica, session);
    const key = keyOf(session.workspace, session.pool);
    let pool = this.#byPool.get(key);
    if (pool === undefined) this.#byPool.set(key, (pool = new Set()));
    pool.add(session);
    this.#arrived(session);
  }

  /** `lost`: its process is gone or not reached, so the agent is on its way to another one. */
  remove(session: RemoteSession, reason: ConnectorError, lost: boolean): void {
    if (this.#byReplica.get(session.replica) !== session) return;
    this.#byReplica.delete(session.replica);
    const key = keyOf(session.workspace, session.pool);
    const pool = this.#byPool.get(key);
    pool?.delete(session);
    if (pool?.size === 0) this.#byPool.delete(key);
    session.elsewhere.lost = lost;
    if (lost) this.#moving.set(session.replica, { key, untilMs: this.#clock.monotonic() + MOVING_MS });
    session.end(reason);
    for (const listener of [...this.#offline]) listener(session);
  }

  said(session: RemoteSession): void {
    const status = session.status();
    if (status !== null) for (const listener of this.#status) listener(session, status);
  }

  #arrived(session: CloudSession): void {
    this.#moving.delete(session.replica);
    for (const listener of [...this.#online]) listener(session);
  }
}
