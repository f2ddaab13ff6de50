// One process among several: it says that it lives, sees who else does, keeps a link to each, and mirrors from SQL which
// agent is connected where. Looked at every few seconds, and at once when a note comes; of agents only those that changed
// since, since every change of one has a number, and now and then all of them. Who counts as gone is judged by this
// process's own clock alone: its beat in SQL stood still for so long.
import { setImmediate as turn } from "node:timers/promises";
import {
  ConnectorError,
  toConnectorError,
  type Clock,
  type ReplicaId,
  type SessionId,
  type Timer,
} from "@sallyport/protocol";
import type { Logger } from "pino";
import type { Backplane } from "../backplane/index.ts";
import type { CloudSession, Sessions } from "../link/sessions.ts";
import type { PresenceRow, ProcessRow, Store } from "../store/store.ts";
import { AllSessions } from "./all-sessions.ts";
import type { PeerIdentity } from "./handshake.ts";
import { pongSchema, type Ask } from "./messages.ts";
import { PeerLink, type PeerLinkOptions, type PeerWay } from "./peer-link.ts";
import { RemoteSession } from "./remote-session.ts";

/** Between two looks: revocations, clones and moves of agents are noticed within 5 s by them alone. */
const LOOK_MS = 2_500;
/** All agents are looked at this often, whatever changed: what a look at changes alone should never need. */
const LOOK_AT_ALL_MS = 60_000;
/** A process whose beat stands still for so long is gone, and its sessions are over. */
export const GONE_MS = 15_000;
/** The same for one that is not listed any more: it left in order. */
const LEFT_MS = 5_000;
/** A look that is so late says that this process itself stood still. */
const STALL_MS = 5_000;
/** How long a session of another instance has to answer before it counts as dead. */
const CLONE_PING_MS = 5_000;
const ROWS_AT_ONCE = 500;
/** Changes and notes of single replicas beyond this: one look at all of them is cheaper. */
const MOST_SINGLE = 1_000;

export interface MembershipOptions {
  readonly identity: PeerIdentity;
  /** Of the identity key, and the kids of its ring. */
  readonly fingerprint: string;
  readonly kids: readonly string[];
  /** Where the others reach this one: ws:// or wss://. */
  readonly url: string;
  /** The way to one that is not reached at its address. Absent: there is none. */
  readonly overNats?: PeerLinkOptions["overNats"];
  readonly store: Store;
  readonly held: Sessions;
  readonly clock: Clock;
  readonly log: Logger;
  readonly backplane: Backplane;
  /** Tells `changed` of every agent that changed before it resolves. */
  catchUp(): Promise<void>;
  /** One round trip to the agent of a session that is held here. */
  ping(session: CloudSession): Promise<number>;
  /** The replica was revoked or deleted: ends what there is of it here. */
  revoke(replica: ReplicaId): void;
  /** This process is stopping: what it holds moves by itself. */
  draining(): boolean;
}

/** A process as it is shown. */
export interface PeerView {
  readonly id: string;
  readonly self: boolean;
  readonly startedAt: number;
  /** Of its beat in SQL. */
  readonly state: "here" | "reached" | "unreachable";
  readonly problem: string | null;
  /** By which streams cross; null: here, or not reached. */
  readonly way: PeerWay | null;
  readonly sessions: number;
}

/** The newest session of a replica, where another process holds it. */
export interface Elsewhere {
  readonly instance: string;
  readonly remoteAddress: string;
  /** Resolves when its agent answered; rejects when it or its process does not. */
  ping(): Promise<void>;
  close(reason: ConnectorError): void;
}

const moved = (): ConnectorError =>
  new ConnectorError("LINK_LOST", "The agent's link to another process of the control plane ended.", {
    fix: "Try again: it dials again by itself within seconds.",
  });
const superseded = (): ConnectorError =>
  new ConnectorError("SESSION_SUPERSEDED", "A newer session of this agent took over.");

export class Membership {
  readonly sessions: AllSessions;
  readonly #options: MembershipOptions;
  readonly #links = new Map<string, PeerLink>();
  readonly #beats = new Map<string, { beat: number; sinceMs: number }>();
  /** To be looked at: they changed, or a note said so. */
  readonly #singles = new Set<ReplicaId>();
  #noting = false;
  #mirroring: Promise<void> | null = null;
  /** The next look is one at all agents: there may be more to see than changes tell. */
  #all = true;
  #lookedAtAllMs = -Infinity;
  readonly #alarmed = new Set<SessionId>();
  #rows: ProcessRow[] = [];
  #timer: Timer | null = null;
  #looking: Promise<void> | null = null;
  #again = false;
  #lookedMs: number;
  #stopped = false;
  #failing = false;

  constructor(options: MembershipOptions) {
    this.#options = options;
    this.#lookedMs = options.clock.monotonic();
    this.sessions = new AllSessions(options.held, options.clock, () => this.look());
    options.backplane.onNote((note) => {
      if (note.type === "processes") void this.look();
      else if (note.type === "presence") this.#noted(note.replica);
    });
  }

  async start(): Promise<void> {
    await this.#join();
    await this.#lookOnce(true);
    this.#options.backplane.announce({ type: "processes" });
    this.#arm();
  }

  /** Before the gateway drains: the others are told, so that they expect its agents. */
  async leaving(): Promise<void> {
    await this.#options.store.announceLeaving(this.#options.identity.process).catch(() => {});
    this.#options.backplane.announce({ type: "processes" });
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    this.#timer?.cancel();
    await this.#looking?.catch(() => {});
    for (const link of this.#links.values()) link.close();
    await this.#options.store.leaveProcess(this.#options.identity.process, null).catch(() => false);
    this.#options.backplane.announce({ type: "processes" });
  }

  /** All of it, once now, or once more when a look is under way. Never rejects. */
  look(): Promise<void> {
    if (this.#stopped) return Promise.resolve();
    if (this.#looking !== null) {
      this.#again = true;
      return this.#looking;
    }
    this.#looking = (async () => {
      do {
        this.#again = false;
        try {
          await this.#lookOnce(false);
          if (this.#failing) this.#options.log.info("the other processes can be seen again");
          this.#failing = false;
        } catch (error) {
          // One line an outage: the store says by itself what is wrong.
          if (!this.#failing)
            this.#options.log.warn({ err: error }, "looking for the other processes failed; it is tried again");
          this.#failing = true;
        }
      } while (this.#again && !this.#stopped);
      this.#looking = null;
    })();
    return this.#looking;
  }

  /** These agents changed: the next look has them. */
  changed(replicas: Iterable<ReplicaId>): void {
    for (const replica of replicas) this.#singles.add(replica);
  }

  /** Changes were missed: the next look is one at all. */
  missed(): void {
    this.#all = true;
    void this.look();
  }

  /** Null: no other process holds it, or none that can be asked. */
  async elsewhere(replica: ReplicaId): Promise<Elsewhere | null> {
    const [row] = await this.#options.store.presenceOf([replica]);
    if (row === undefined || !row.live || row.session === null || row.process === null) return null;
    const link = this.#links.get(row.process);
    if (link === undefined || !link.up) return null;
    const session = row.session;
    const ask = (ask: Ask) => link.open(ask, { lane: "interactive", end: true });
    return {
      instance: row.instance ?? "",
      remoteAddress: row.remoteAddress ?? "",
      ping: async () => void pongSchema.parse(await ask({ type: "ping", replica, session }).answer),
      close({ code, message, fix }) {
        const reason = { code, message, ...(fix === undefined ? {} : { fix }) };
        try {
          ask({ type: "close", replica, session, reason }).answer.catch(() => {});
        } catch {
          // It finds out by itself that there is a newer one.
        }
      },
    };
  }

  /** Tells every process at once; those that do not hear it see it in SQL within 5 s. */
  revoked(replica: ReplicaId, reason: ConnectorError): void {
    const { code, message, fix } = reason;
    for (const link of this.#links.values()) {
      if (!link.up) continue;
      const told = { code, message, ...(fix === undefined ? {} : { fix }) };
      try {
        link.open({ type: "close", replica, reason: told }, { lane: "interactive", end: true }).answer.catch(() => {});
      } catch {
        // As said.
      }
    }
    this.#options.backplane.announce({ type: "presence", replica });
  }

  view(): PeerView[] {
    const { identity, held } = this.#options;
    const counts = Map.groupBy(this.sessions.remotes(), (session) => session.elsewhere.process);
    return this.#rows.map((row): PeerView => {
      const self = row.id === identity.process;
      const link = this.#links.get(row.id);
      return {
        id: row.id,
        self,
        startedAt: row.startedAt,
        state: self ? "here" : link?.up === true ? "reached" : "unreachable",
        problem: self || link?.up === true ? null : (link?.problem?.message ?? "It was not dialled yet."),
        way: self ? null : (link?.way ?? null),
        sessions: self ? held.all().length : (counts.get(row.id)?.length ?? 0),
      };
    });
  }

  // Looking

  #arm(): void {
    this.#timer = this.#options.clock.after(LOOK_MS, () => {
      void this.look().then(() => {
        if (!this.#stopped) this.#arm();
      });
    });
  }

  #join(): Promise<void> {
    const { identity, fingerprint, kids, url, store, clock } = this.#options;
    return store.joinProcess({
      id: identity.process,
      peerUrl: url,
      identity: fingerprint,
      kids: [...kids],
      now: clock.now(),
    });
  }

  async #lookOnce(first: boolean): Promise<void> {
    const { store, clock, identity, held, log } = this.#options;
    const now = clock.monotonic();
    if (now - this.#lookedMs > STALL_MS + LOOK_MS) for (const known of this.#beats.values()) known.sinceMs = now;
    this.#lookedMs = now;
    if (!first && !(await store.beatProcess(identity.process))) {
      log.warn("the other processes took this one for gone; it joins again");
      await this.#join();
      for (const session of held.all()) await store.holdSession(session.replica, session.id);
      this.#all = true;
    }
    const [rows] = await Promise.all([store.processes(), this.#options.catchUp()]);
    if (this.#stopped) return;
    // Who went has sessions that may be left over.
    if (this.#rows.some((before) => rows.every((row) => row.id !== before.id))) this.#all = true;
    this.#rows = rows;
    this.#meet(rows);
    if (this.#all || now - this.#lookedAtAllMs >= LOOK_AT_ALL_MS || this.#singles.size > MOST_SINGLE) {
      this.#all = false;
      this.#singles.clear();
      try {
        const present = await store.presence();
        if (this.#stopped) return;
        await this.#mirror(present);
        await this.#checkHeld(present);
        await this.#reap(rows, present);
        this.#lookedAtAllMs = now;
      } catch (error) {
        this.#all = true;
        throw error;
      }
      return;
    }
    await this.#lookAtSingles();
    // The others still are where they were.
    for (const session of this.sessions.remotes()) session.confirm(now);
    await this.#reap(rows, null);
  }

  #noted(replica: ReplicaId): void {
    if (this.#stopped) return;
    this.#singles.add(replica);
    if (this.#noting) return;
    this.#noting = true;
    void turn().then(async () => {
      this.#noting = false;
      if (this.#singles.size > MOST_SINGLE) return this.look();
      try {
        const processes = await this.#options.store.processes();
        if (this.#stopped) return;
        this.#rows = processes;
        await this.#lookAtSingles();
      } catch {
        // The next look finds it.
      }
    });
  }

  /** Those that changed or were noted; all that were before this call have been looked at when it resolves. */
  async #lookAtSingles(): Promise<void> {
    const before = this.#mirroring;
    const ids = [...this.#singles];
    this.#singles.clear();
    const mine = (async () => {
      try {
        for (let at = 0; at < ids.length; at += ROWS_AT_ONCE) {
          const some = ids.slice(at, at + ROWS_AT_ONCE);
          const rows = await this.#options.store.presenceOf(some);
          if (this.#stopped) return;
          for (const row of rows) this.#mirrorOne(row);
          await this.#checkHeld(rows, new Set(some));
        }
      } catch (error) {
        this.changed(ids);
        throw error;
      }
    })();
    const all = (this.#mirroring = Promise.all([before, mine]).then(() => {}));
    try {
      await all;
    } finally {
      if (this.#mirroring === all) this.#mirroring = null;
    }
  }

  // Links

  #meet(rows: readonly ProcessRow[]): void {
    const { identity, clock, log, overNats } = this.#options;
    const listed = new Set(rows.map((row) => row.id));
    for (const row of rows) {
      if (row.id === identity.process || this.#links.has(row.id)) continue;
      const link = new PeerLink({
        process: row.id,
        url: row.peerUrl,
        identity,
        clock,
        ...(overNats === undefined ? {} : { overNats }),
        changed: (changed, error) => {
          if (error === null) {
            log.info({ process: row.id, url: row.peerUrl, way: changed.way }, "linked with another process");
            // Its sessions can be reached from now on.
            this.missed();
          } else {
            log.warn(
              { process: row.id, url: row.peerUrl, code: error.code, why: error.message },
              "no link with another process",
            );
            this.#dropSessionsOf(changed);
          }
        },
      });
      this.#links.set(row.id, link);
    }
    for (const [id, link] of this.#links)
      if (!listed.has(id)) {
        this.#links.delete(id);
        link.close();
        this.#dropSessionsOf(link);
      }
  }

  #dropSessionsOf(link: PeerLink): void {
    for (const session of this.sessions.remotes())
      if (session.link === link) this.sessions.remove(session, moved(), true);
  }

  // Presence

  /** Whether this row is of a session that can be reached at another process. */
  #reachable(row: PresenceRow): row is PresenceRow & { session: SessionId; process: string } {
    return (
      row.live &&
      !row.revoked &&
      !row.deleted &&
      row.session !== null &&
      row.process !== null &&
      row.process !== this.#options.identity.process &&
      this.#links.get(row.process)?.up === true
    );
  }

  async #mirror(present: readonly PresenceRow[]): Promise<void> {
    const there = new Map(present.filter((row) => this.#reachable(row)).map((row) => [row.replica, row]));
    const now = this.#options.clock.monotonic();
    const wanted: ReplicaId[] = [];
    for (const session of this.sessions.remotes()) {
      const row = there.get(session.replica);
      if (row?.session !== session.id) this.sessions.remove(session, moved(), this.#leaves(session.elsewhere.process));
      else session.confirm(now);
    }
    for (const row of there.values()) {
      const known = this.sessions.remote(row.replica);
      if (known === undefined || (known.id === row.session && known.statusAt !== row.statusAt))
        wanted.push(row.replica);
    }
    for (let at = 0; at < wanted.length; at += ROWS_AT_ONCE) {
      const rows = await this.#options.store.presenceOf(wanted.slice(at, at + ROWS_AT_ONCE));
      if (this.#stopped) return;
      for (const row of rows) this.#mirrorOne(row);
    }
  }

  /** Whether its sessions end because of itself: then its agents look for another process. */
  #leaves(process: string): boolean {
    return this.#rows.find((row) => row.id === process)?.leaving ?? true;
  }

  #mirrorOne(row: PresenceRow): void {
    const known = this.sessions.remote(row.replica);
    if (!this.#reachable(row)) {
      if (known !== undefined && known.epoch <= row.epoch)
        this.sessions.remove(known, moved(), this.#leaves(known.elsewhere.process));
      return;
    }
    const now = this.#options.clock.monotonic();
    if (known !== undefined && known.id === row.session) {
      known.confirm(now);
      if (known.statusAt !== row.statusAt) {
        known.say(row.status, row.statusAt);
        this.sessions.said(known);
      }
      return;
    }
    if (known !== undefined) {
      if (known.epoch > row.epoch) return;
      this.sessions.remove(known, superseded(), false);
    }
    const session = new RemoteSession(row, this.#links.get(row.process)!, now);
    session.say(row.status, row.statusAt);
    this.sessions.add(session);
  }

  /** Whether what is held here is still what SQL says. `only`: of these replicas; absent = of all. */
  async #checkHeld(present: readonly PresenceRow[], only?: ReadonlySet<ReplicaId>): Promise<void> {
    const { held, store } = this.#options;
    const byReplica = new Map(present.map((row) => [row.replica, row]));
    const doubtful = held.all().filter((session) => {
      if (only !== undefined && !only.has(session.replica)) return false;
      const row = byReplica.get(session.replica);
      return row === undefined || row.session !== session.id || !row.live || row.revoked || row.deleted;
    });
    for (let at = 0; at < doubtful.length; at += ROWS_AT_ONCE) {
      const some = doubtful.slice(at, at + ROWS_AT_ONCE);
      // Read again: a session that came since is newer than what was seen.
      const rows = new Map((await store.presenceOf(some.map((one) => one.replica))).map((row) => [row.replica, row]));
      if (this.#stopped) return;
      for (const session of some) await this.#judge(session, rows.get(session.replica));
    }
  }

  async #judge(session: CloudSession, row: PresenceRow | undefined): Promise<void> {
    const { held, store, log } = this.#options;
    if (held.ofReplica(session.workspace, session.replica) !== session) return;
    if (row === undefined || row.revoked || row.deleted) return this.#options.revoke(session.replica);
    if (row.session === session.id) {
      if (!row.live && !this.#options.draining()) await store.holdSession(session.replica, session.id);
      return;
    }
    // It is moving away from here in order: its streams may end.
    if (row.epoch < session.epoch || this.#options.draining()) return;
    if (row.instance !== session.instance && row.live) {
      if (this.#alarmed.has(session.id)) return;
      this.#alarmed.add(session.id);
      void this.#clone(session, row).finally(() => this.#alarmed.delete(session.id));
      return;
    }
    log.info({ replica: session.replica, session: session.id }, "the agent has a newer session at another process");
    session.close(superseded());
  }

  /** Two that were let in at two processes at the same moment. The newer one stays. */
  async #clone(session: CloudSession, row: PresenceRow): Promise<void> {
    const { clock, store, log } = this.#options;
    let timer: Timer | null = null;
    const silence = new Promise<null>((resolve) => {
      timer = clock.after(CLONE_PING_MS, () => resolve(null), { keepAlive: true });
    });
    const answer = await Promise.race([
      this.#options.ping(session).catch(() => null),
      session.closed.then(() => null),
      silence,
    ]);
    (timer as Timer | null)?.cancel();
    if (answer !== null) {
      const error = new ConnectorError("IDENTITY_CLONED", "Two running agents use this identity, at two processes.", {
        fix: "Stop one of the two. If the state directory was copied, revoke this agent and enrol each machine by itself.",
        details: { replica: session.replica, live: row.remoteAddress ?? "" },
      });
      log.warn({ replica: session.replica, from: session.remoteAddress, other: row.remoteAddress }, error.message);
      await store
        .addAlarm(session.workspace, session.replica, { at: clock.now(), code: error.code, message: error.message })
        .catch((caught: unknown) => log.error({ err: toConnectorError(caught) }, "an alarm could not be written"));
    }
    session.close(superseded());
  }

  // Those that are gone

  /** `present`: all; null = only those that changed were looked at, and whoever was listed or held some still is as it was. */
  async #reap(rows: readonly ProcessRow[], present: readonly PresenceRow[] | null): Promise<void> {
    const { identity, clock, store, log, backplane } = this.#options;
    const now = clock.monotonic();
    const beats = new Map<string, number>();
    if (present === null) for (const [id, { beat }] of this.#beats) if (beat === -1) beats.set(id, beat);
    for (const row of present ?? []) if (row.process !== null) beats.set(row.process, -1);
    for (const row of rows) beats.set(row.id, row.beat);
    beats.delete(identity.process);
    for (const id of this.#beats.keys()) if (!beats.has(id)) this.#beats.delete(id);
    for (const [id, beat] of beats) {
      const known = this.#beats.get(id);
      if (known === undefined || known.beat !== beat) {
        this.#beats.set(id, { beat, sinceMs: now });
        continue;
      }
      if (now - known.sinceMs < (beat === -1 ? LEFT_MS : GONE_MS)) continue;
      // Somebody else may have seen it first, or it may have moved on this moment.
      if (beat !== -1 && !(await store.leaveProcess(id, beat))) continue;
      const sessions = await store.releaseProcess(id, clock.now());
      this.#beats.delete(id);
      log.warn({ process: id, sessions }, "a process is gone; its sessions are over");
      backplane.announce({ type: "processes" });
      this.#again = this.#all = true;
    }
  }
}
