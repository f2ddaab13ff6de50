// Where agents' links end: takes the upgrade of /link on the API's own server, greets, and keeps the sessions.
import type { KeyObject } from "node:crypto";
import type { IncomingMessage, Server } from "node:http";
import { isIPv4 } from "node:net";
import type { Duplex } from "node:stream";
import { WebSocketServer, type ServerOptions } from "ws";
import {
  CloudHandshake,
  ConnectorError,
  DEFAULT_MAX_STREAMS,
  DEFAULT_WINDOWS,
  MAX_GREETING_BYTES,
  MAX_MESSAGE_BYTES,
  Mux,
  hashEnrolmentSecret,
  keyOfferSchema,
  newId,
  provesOffer,
  toConnectorError,
  wait,
  webSocketTransport,
  type AgentClaim,
  type AgentStatus,
  type Clock,
  type KeyRing,
  type LinkStream,
  type ReplicaId,
  type Signer,
  type SocketLike,
  type Timer,
  type Transport,
  type WorkspaceId,
} from "@sallyport/protocol";
import type { LinkDirectory, LinkReplica } from "./directory.ts";
import { Door } from "./door.ts";
import { HeldCloudSession } from "./held-session.ts";
import { RoundTripRing } from "./round-trips.ts";
import { SessionRegistry } from "./session-registry.ts";
import type { CloudSession, Sessions } from "./sessions.ts";

/** From the upgrade to a verified PROOF. */
export const GREETING_MS = 4_000;
/** How long an older session of another instance has to answer before it counts as dead. */
export const CLONE_PING_MS = 5_000;
/** Told to the newcomer of a cloned identity. */
const CLONE_RETRY_MS = 60_000;
/** Told to those who come while there is no room, or while the process stops. */
const BUSY_RETRY_MS = 5_000;
/** Signs of life are written down this often; a new status sooner. */
const SEEN_MS = 5_000;
const STATUS_MS = 250;

export interface GatewayLimits {
  /** Sockets that greet and have not proved who they are yet, in all and from one address; more wait at the door. */
  readonly greeting: number;
  readonly greetingPerAddress: number;
  readonly sessions: number;
}
export const DEFAULT_LIMITS: GatewayLimits = { greeting: 256, greetingPerAddress: 64, sessions: 20_000 };

export type GatewayEvent =
  | {
      readonly type: "refused";
      readonly remoteAddress: string;
      readonly error: ConnectorError;
      readonly replica: ReplicaId | null;
    }
  | { readonly type: "enrolled"; readonly remoteAddress: string; readonly replica: LinkReplica }
  | { readonly type: "online"; readonly session: CloudSession }
  | { readonly type: "roundTrip"; readonly ms: number }
  | { readonly type: "offline"; readonly session: CloudSession; readonly reason: ConnectorError }
  | { readonly type: "failed"; readonly error: ConnectorError };

export interface GatewayOptions {
  readonly directory: LinkDirectory;
  readonly identity: Signer;
  readonly identityPublicKey: KeyObject;
  /** Read at each greeting, so that a rotated ring needs no restart. */
  readonly commandKeys: () => KeyRing;
  readonly incarnation: string;
  readonly clock: Clock;
  /** The session of a replica at another process. Absent: there is no other. */
  readonly elsewhere?: (replica: ReplicaId) => Promise<SessionElsewhere | null>;
  /** False: sessions from loopback may go without a MAC when the agent wants none either. */
  readonly mac?: boolean;
  readonly limits?: Partial<GatewayLimits>;
  /** Silence after which a link counts as dead. Absent: 12 s. */
  readonly deadMs?: number;
  /** Log lines and metrics are listeners. */
  readonly observe?: (event: GatewayEvent) => void;
}

/** A session that another process holds, and that can be asked. */
export interface SessionElsewhere {
  readonly instance: string;
  readonly remoteAddress: string;
  /** Resolves when its agent answered; rejects when there is nobody. */
  ping(): Promise<void>;
  close(reason: ConnectorError): void;
}

interface Greeting {
  /** Known once PROOF was verified; both or none. */
  replica: ReplicaId | null;
  workspace: WorkspaceId | null;
  cut(error: ConnectorError): void;
}

const isLoopback = (address: string): boolean => {
  const plain = address.startsWith("::ffff:") ? address.slice(7) : address;
  return plain === "::1" || (isIPv4(plain) && plain.startsWith("127."));
};

export class LinkGateway {
  readonly sessions: Sessions;

  readonly #options: GatewayOptions;
  readonly #limits: GatewayLimits;
  readonly #registry: SessionRegistry;
  readonly #muxes = new Map<HeldCloudSession, Mux>();
  readonly #greetings = new Set<Greeting>();
  readonly #door: Door;
  /** One admission at a time per replica: what each waits for. */
  readonly #admissions = new Map<ReplicaId, Promise<unknown>>();
  readonly #unsaved = new Map<HeldCloudSession, AgentStatus | null>();
  readonly #closing = new Set<Promise<void>>();
  readonly #webSockets: WebSocketServer;
  #seenTimer: Timer | null = null;
  #statusTimer: Timer | null = null;
  #draining = false;

  constructor(options: GatewayOptions) {
    this.#options = options;
    this.#limits = { ...DEFAULT_LIMITS, ...options.limits };
    this.#door = new Door(options.clock, this.#limits);
    this.#registry = new SessionRegistry(options.clock);
    this.sessions = this.#registry;
    this.#registry.onStream("identity.offer", (stream, session) => void this.#takeOffer(stream, session));
    const serverOptions: ServerOptions & { maxFragments: number; maxBufferedChunks: number; closeTimeout: number } = {
      noServer: true,
      clientTracking: false,
      perMessageDeflate: false,
      maxPayload: MAX_MESSAGE_BYTES,
      maxFragments: 1024,
      maxBufferedChunks: 16 * 1024,
      skipUTF8Validation: true,
      closeTimeout: 2_000,
    };
    this.#webSockets = new WebSocketServer(serverOptions);
    this.#armSeen();
  }

  /** Takes the upgrades of a server. Every path but /link is answered 404: nothing else upgrades here. */
  attach(server: Server): void {
    server.on("upgrade", (request: IncomingMessage, socket: Duplex, head: Buffer) =>
      this.#upgrade(request, socket, head),
    );
  }

  /** The session of a replica that this process holds. */
  held(replica: ReplicaId): CloudSession | null {
    return this.#registry.held(replica);
  }

  get draining(): boolean {
    return this.#draining;
  }

  /** One round trip to the agent of a session that is held here; rejects when the session ends first. */
  async ping(session: CloudSession): Promise<number> {
    const mux = this.#muxOf(session);
    if (mux === undefined) throw new ConnectorError("LINK_LOST", "The session is over.");
    return await Promise.race([mux.ping(), mux.closed.then((reason) => Promise.reject(reason))]);
  }

  #muxOf(session: CloudSession): Mux | undefined {
    return session instanceof HeldCloudSession ? this.#muxes.get(session) : undefined;
  }

  /** Ends the live session of a replica, and any greeting of it, with the reason its agent is told. */
  disconnect(replica: ReplicaId, reason: ConnectorError): void {
    this.#registry.held(replica)?.close(reason);
    for (const greeting of [...this.#greetings]) if (greeting.replica === replica) greeting.cut(reason);
  }

  /** The replica was revoked: its key is worth nothing from now on. */
  revoke(replica: ReplicaId): void {
    this.disconnect(replica, revoked());
  }

  /**
   * Takes no more links and lets those there are finish what runs; whatever is left after `deadlineMs` is cut.
   * `handoverMs`: where agents have another process to go to, how long an idle session stays for its successor to be made.
   */
  async drain(deadlineMs: number, handoverMs = 0): Promise<void> {
    this.#draining = true;
    const reason = new ConnectorError("GOING_AWAY", "The control plane is stopping or moving.");
    this.#door.close(BUSY_RETRY_MS);
    for (const greeting of [...this.#greetings]) greeting.cut(reason);
    const muxes = [...this.#muxes.values()];
    if (muxes.length > 0) {
      let timer: Timer | null = null;
      const deadline = new Promise<void>((resolve) => {
        timer = this.#options.clock.after(deadlineMs, resolve, { keepAlive: true });
      });
      const left = async (mux: Mux): Promise<void> => {
        await mux.drain(reason);
        if (handoverMs === 0) return;
        await Promise.race([mux.closed, wait(this.#options.clock, handoverMs, over.signal)]);
        await mux.drain(reason);
      };
      const over = new AbortController();
      await Promise.race([Promise.allSettled(muxes.map(left)), deadline]);
      over.abort();
      (timer as Timer | null)?.cancel();
      for (const mux of muxes) mux.close(reason);
    }
    await Promise.all(muxes.map((mux) => mux.closed));
    this.#seenTimer?.cancel();
    this.#statusTimer?.cancel();
    await Promise.allSettled(this.#closing);
  }

  // Upgrade

  #upgrade(request: IncomingMessage, socket: Duplex & { remoteAddress?: string }, head: Buffer): void {
    socket.on("error", destroyed);
    const path = (request.url ?? "").split("?", 1)[0];
    if (path !== "/link") return answer(socket, 404, "Not Found");
    // Agents send no Origin; a browser does, and has no business here whatever page it shows.
    if (request.headers.origin !== undefined) return answer(socket, 403, "Forbidden");
    const remoteAddress = socket.remoteAddress ?? "";
    const refuse = (retryAfterMs: number) =>
      answer(socket, 503, "Service Unavailable", `retry-after: ${Math.ceil(retryAfterMs / 1000)}\r\n`);
    if (!this.#takesMore) return refuse(BUSY_RETRY_MS);
    if (this.#door.free(remoteAddress)) return this.#takeUpgrade(request, socket, head, remoteAddress);
    const settle = () => socket.removeListener("data", early).removeListener("close", leave);
    const place = this.#door.wait(remoteAddress, {
      begin: () => {
        settle();
        this.#takeUpgrade(request, socket, head, remoteAddress);
      },
      refuse: (retryAfterMs) => {
        settle();
        refuse(retryAfterMs);
      },
    });
    if (place === null) return refuse(this.#door.book());
    const leave = () => place.leave();
    // An agent says nothing before its upgrade was answered: whoever does while it waits is none.
    const early = () => socket.destroy();
    socket.on("close", leave).on("data", early);
  }

  #takeUpgrade(request: IncomingMessage, socket: Duplex, head: Buffer, remoteAddress: string): void {
    // Before anybody is known, not even the WebSocket layer may be made to hold much.
    let greetingBytes = head.length;
    const meter = (chunk: Buffer) => {
      greetingBytes += chunk.length;
      if (greetingBytes > MAX_GREETING_BYTES) socket.destroy();
    };
    this.#webSockets.handleUpgrade(request, socket, head, (webSocket) => {
      const transport = webSocketTransport(webSocket, socket as unknown as SocketLike);
      // The WebSocket has its own.
      socket.removeListener("error", destroyed);
      socket.prependListener("data", meter);
      (socket as unknown as { setNoDelay?: (on: boolean) => void }).setNoDelay?.(true);
      this.accept(transport, remoteAddress, {
        loopback: isLoopback(remoteAddress),
        onAuthenticated: () => socket.removeListener("data", meter),
      });
    });
  }

  get #takesMore(): boolean {
    return !this.#draining && this.#muxes.size < this.#limits.sessions;
  }

  /** Whether somebody from there may begin to greet now; if not, it should ask again later. */
  mayGreet(remoteAddress: string): boolean {
    return this.#takesMore && this.#door.free(remoteAddress);
  }

  /**
   * Greets whoever is at the other end, and keeps the session that comes of it. `loopback`: nobody is in between, so that
   * frames may go without a MAC. `onAuthenticated`: it has proved who it is. Until then the caller bounds what it may say.
   */
  accept(
    transport: Transport,
    remoteAddress: string,
    { loopback, onAuthenticated }: { loopback: boolean; onAuthenticated: () => void },
  ): void {
    this.#greet(transport, remoteAddress, loopback, onAuthenticated).catch((caught: unknown) => {
      transport.destroy();
      this.#failed(caught);
    });
  }

  // Greeting

  async #greet(
    transport: Transport,
    remoteAddress: string,
    peerOnLoopback: boolean,
    onAuthenticated: () => void,
  ): Promise<void> {
    const { clock, directory } = this.#options;
    const handshake = new CloudHandshake({
      identity: this.#options.identity,
      identityPublicKey: this.#options.identityPublicKey,
      session: newId("session", clock.now()),
      incarnation: this.#options.incarnation,
      nowMs: clock.now(),
      commandKeys: this.#options.commandKeys(),
      windows: DEFAULT_WINDOWS,
      maxStreams: DEFAULT_MAX_STREAMS,
      mac: this.#options.mac ?? true,
      peerOnLoopback,
    });
    let gone = false;
    let giveUp!: (error: ConnectorError) => void;
    const over = new Promise<never>((_resolve, reject) => {
      giveUp = reject;
    });
    over.catch(() => {});
    const greeting: Greeting = { replica: null, workspace: null, cut: giveUp };
    this.#greetings.add(greeting);
    const place = this.#door.begun(remoteAddress);
    transport.onClose((cause) => {
      gone = true;
      giveUp(new ConnectorError("HANDSHAKE_FAILED", "The agent broke off the handshake.", { cause }));
    });
    const deadline = clock.after(GREETING_MS, () =>
      giveUp(new ConnectorError("HANDSHAKE_FAILED", "The agent did not finish the handshake in time.")),
    );
    const next = (): Promise<Buffer> =>
      Promise.race([
        over,
        new Promise<Buffer>((resolve) =>
          transport.onMessage((message) => {
            transport.onMessage(null);
            resolve(message);
          }),
        ),
      ]);
    let openedAs: { id: CloudSession["id"]; workspace: WorkspaceId; replica: ReplicaId } | null = null;
    try {
      const hello = await next();
      transport.send(handshake.onHello(hello));
      const claim = handshake.onProof(await next());
      const replica = await Promise.race([over, this.#identify(handshake, claim, remoteAddress)]);
      deadline.cancel();
      greeting.replica = replica.id;
      greeting.workspace = replica.workspace;
      onAuthenticated();

      await this.#oneAtATime(replica.id, async () => {
        await Promise.race([over, this.#makeRoom(replica, claim)]);
        const { proof } = claim;
        const { epoch } = await directory.opened({
          id: handshake.session,
          workspace: replica.workspace,
          replica: replica.id,
          instance: proof.instance,
          journal: proof.journal,
          remoteAddress,
          version: proof.version,
          startCounter: proof.startCounter,
          lastSession: proof.lastSession,
          dispatchSequence: proof.dispatchSequence,
          generations: proof.generations,
        });
        openedAs = { id: handshake.session, workspace: replica.workspace, replica: replica.id };
        // Revoked while it was being let in? `disconnect` finds this greeting too, so nothing slips between.
        await Promise.race([over, Promise.resolve()]);
        this.#goOnline(transport, handshake, claim, replica, epoch, remoteAddress);
      });
    } catch (caught) {
      const error = toConnectorError(caught);
      this.#options.observe?.({ type: "refused", remoteAddress, error, replica: greeting.replica });
      if (openedAs !== null) this.#writeClosed(openedAs, error);
      else if (greeting.replica !== null && greeting.workspace !== null)
        directory
          .refused(greeting.workspace, greeting.replica, error, remoteAddress)
          .catch((failure: unknown) => this.#failed(failure));
      if (!gone) {
        transport.onMessage(() => {});
        transport.send(handshake.refuse(error, error.code === "IDENTITY_CLONED" ? CLONE_RETRY_MS : undefined));
        transport.close();
        clock.after(1_000, () => transport.destroy());
      }
    } finally {
      deadline.cancel();
      this.#greetings.delete(greeting);
      place.done();
    }
  }

  /** Who is it, by proof of its key? Enrols it when that is what it asks for. */
  async #identify(handshake: CloudHandshake, claim: AgentClaim, remoteAddress: string): Promise<LinkReplica> {
    const { directory } = this.#options;
    const { who } = claim.hello;
    const unproved = () => new ConnectorError("HANDSHAKE_FAILED", "The agent did not prove that it holds its key.");
    if (who.type === "enrol") {
      if (!handshake.provesKey(who.publicKey)) throw unproved();
      const replica = await directory.redeemEnrollment({
        id: who.enrollment,
        secretHash: hashEnrolmentSecret(claim.enrolmentSecret!),
        publicKey: who.publicKey,
        nameHint: claim.proof.enrolment?.nameHint ?? null,
        remoteAddress,
      });
      this.#options.observe?.({ type: "enrolled", remoteAddress, replica });
      if (replica.revoked) throw revoked();
      return replica;
    }
    const replica = await directory.findReplica(who.replica);
    if (replica === null) {
      throw new ConnectorError(
        "IDENTITY_UNKNOWN",
        "The control plane does not know this agent; it was deleted, or belongs to another one.",
        {
          fix: "Empty the agent's state directory and enrol it with a new secret.",
        },
      );
    }
    const proved = handshake.provesKey(replica.publicKey);
    const byNext = !proved && replica.nextKey !== null && handshake.provesKey(replica.nextKey);
    if (!proved && !byNext) throw unproved();
    if (replica.revoked) throw revoked();
    if (byNext) await directory.keyUsed(replica.id, replica.nextKey!);
    return replica;
  }

  /** A replica offers its next key. It is noted before that is said. */
  async #takeOffer(stream: LinkStream, session: CloudSession): Promise<void> {
    try {
      const { directory } = this.#options;
      const offer = keyOfferSchema.safeParse(stream.head);
      const replica = await directory.findReplica(session.replica);
      const about = { session: session.id, replica: session.replica };
      // The present key may be the one that was offered before and used meanwhile.
      if (!offer.success || replica === null || !provesOffer(about, offer.data, replica.publicKey))
        throw new ConnectorError(
          "HANDSHAKE_FAILED",
          "The offer of a new key is not signed by the old and the new one.",
        );
      if (replica.revoked) throw revoked();
      await directory.keyOffered(replica.id, offer.data.publicKey);
      stream.respond({}, { end: true });
    } catch (caught) {
      stream.reset(toConnectorError(caught));
    }
  }

  /** An older session of the replica: superseded by the same instance, or when it no longer answers. */
  async #makeRoom(replica: LinkReplica, claim: AgentClaim): Promise<void> {
    const superseded = new ConnectorError("SESSION_SUPERSEDED", "A newer session of this agent took over.");
    const old = this.#registry.held(replica.id);
    const mux = old === null ? undefined : this.#muxOf(old);
    if (old !== null && mux !== undefined) {
      if (old.instance !== claim.proof.instance && (await answers(this.#options.clock, mux.ping(), mux.closed)))
        await this.#cloned(replica, old.remoteAddress);
      old.close(superseded);
      await mux.closed;
      return;
    }
    const other = (await this.#options.elsewhere?.(replica.id)) ?? null;
    if (other === null) return;
    if (other.instance !== claim.proof.instance && (await answers(this.#options.clock, other.ping())))
      await this.#cloned(replica, other.remoteAddress);
    other.close(superseded);
  }

  async #cloned(replica: LinkReplica, live: string): Promise<never> {
    const error = new ConnectorError(
      "IDENTITY_CLONED",
      `Another running agent uses the identity of ${replica.names.replica}.`,
      {
        fix: "Stop one of the two. If the state directory was copied, revoke this agent and enrol each machine by itself.",
        details: { replica: replica.id, live },
      },
    );
    await this.#options.directory
      .alarm(replica.workspace, replica.id, error)
      .catch((caught: unknown) => this.#failed(caught));
    throw error;
  }

  async #oneAtATime(replica: ReplicaId, work: () => Promise<void>): Promise<void> {
    const before = this.#admissions.get(replica) ?? Promise.resolve();
    const mine = before.catch(() => {}).then(work);
    this.#admissions.set(replica, mine);
    try {
      await mine;
    } finally {
      if (this.#admissions.get(replica) === mine) this.#admissions.delete(replica);
    }
  }

  // Sessions

  #goOnline(
    transport: Transport,
    handshake: CloudHandshake,
    claim: AgentClaim,
    replica: LinkReplica,
    epoch: number,
    remoteAddress: string,
  ): void {
    const { proof } = claim;
    const { send, agreed } = handshake.ready({
      session: handshake.session,
      epoch,
      replica: replica.id,
      workspace: replica.workspace,
      pool: replica.pool,
      names: replica.names,
    });
    transport.send(send);
    const roundTrips = new RoundTripRing();
    const mux = new Mux({
      id: handshake.session,
      transport,
      clock: this.#options.clock,
      side: "cloud",
      writer: agreed.writer,
      reader: agreed.reader,
      windows: DEFAULT_WINDOWS,
      maxStreams: DEFAULT_MAX_STREAMS,
      peerWindows: agreed.peerWindows,
      peerMaxStreams: agreed.peerMaxStreams,
      checksums: agreed.checksums,
      bulkKeys: agreed.bulkKeys,
      peerBackground: true,
      ...(this.#options.deadMs === undefined ? {} : { deadMs: this.#options.deadMs }),
      onRoundTrip: (ms) => {
        roundTrips.add(ms);
        this.#options.observe?.({ type: "roundTrip", ms });
      },
      onStream: (stream) => this.#registry.accept(stream, session),
      // It has its next session: nothing is opened here any more, so with the last stream this one is over.
      onGoAway: (reason) => {
        if (this.#draining) void mux.drain(reason).then(() => mux.close(reason));
      },
    });
    const session = new HeldCloudSession(mux, roundTrips, {
      id: handshake.session,
      epoch,
      workspace: replica.workspace,
      pool: replica.pool,
      replica: replica.id,
      journal: proof.journal,
      dispatchSequence: proof.dispatchSequence[this.#options.incarnation] ?? 0,
      instance: proof.instance,
      takesTrace: agreed.traces === true,
      remoteAddress,
    });
    this.#muxes.set(session, mux);
    void mux.closed.then((reason) => {
      this.#muxes.delete(session);
      this.#unsaved.delete(session);
      this.#registry.remove(session);
      this.#options.observe?.({ type: "offline", session, reason });
      this.#writeClosed(session, reason);
    });
    this.#options.observe?.({ type: "online", session });
    this.#registry.add({
      session,
      setStatus: (next) => {
        session.setStatus(next);
        this.#unsaved.set(session, next);
        this.#statusTimer ??= this.#options.clock.after(STATUS_MS, () => this.#saveSeen());
      },
    });
  }

  // Presence

  #writeClosed(
    session: { id: CloudSession["id"]; workspace: WorkspaceId; replica: ReplicaId },
    reason: ConnectorError,
  ): void {
    const writing = this.#options.directory
      .closed({ id: session.id, workspace: session.workspace, replica: session.replica }, reason)
      .catch((caught: unknown) => this.#failed(caught));
    this.#closing.add(writing);
    void writing.then(() => this.#closing.delete(writing));
  }

  #armSeen(): void {
    this.#seenTimer = this.#options.clock.after(SEEN_MS, () => {
      const now = this.#options.clock.monotonic();
      for (const session of this.#muxes.keys()) {
        if (now - session.lastSeenMs() < SEEN_MS * 2 && !this.#unsaved.has(session)) this.#unsaved.set(session, null);
        session.rest();
      }
      this.#saveSeen();
      this.#armSeen();
    });
  }

  #saveSeen(): void {
    this.#statusTimer?.cancel();
    this.#statusTimer = null;
    if (this.#unsaved.size === 0) return;
    const saving = [...this.#unsaved];
    const updates = saving.map(([session, status]) => ({
      session: session.id,
      workspace: session.workspace,
      replica: session.replica,
      status,
    }));
    this.#unsaved.clear();
    this.#options.directory.seen(updates).catch((caught: unknown) => {
      this.#failed(caught);
      // A status comes only when it changed: what could not be written is written with the next, unless a newer one came.
      for (const [session, status] of saving)
        if (status !== null && this.#muxes.has(session) && (this.#unsaved.get(session) ?? null) === null)
          this.#unsaved.set(session, status);
    });
  }

  #failed(caught: unknown): void {
    this.#options.observe?.({ type: "failed", error: toConnectorError(caught) });
  }
}

/** Whether a ping is answered in time. */
async function answers(clock: Clock, ping: Promise<unknown>, closed?: Promise<unknown>): Promise<boolean> {
  let timer: Timer | null = null;
  const silence = new Promise<boolean>((resolve) => {
    timer = clock.after(CLONE_PING_MS, () => resolve(false), { keepAlive: true });
  });
  const answered = ping.then(
    () => true,
    () => false,
  );
  const over = closed === undefined ? [] : [closed.then(() => false)];
  const outcome = await Promise.race([answered, silence, ...over]);
  (timer as Timer | null)?.cancel();
  return outcome;
}

/** What an agent is told whose key is worth nothing any more. */
export const revoked = (): ConnectorError =>
  new ConnectorError("IDENTITY_REVOKED", "This agent was revoked at the control plane.", {
    fix: "If that was a mistake, empty the agent's state directory and enrol it with a new secret.",
  });

/** Of all sockets: a closure for each would hold what its upgrade was asked with, 2 KiB, as long as the link lives. */
function destroyed(this: Duplex): void {
  this.destroy();
}

function answer(socket: Duplex, status: number, text: string, headers = ""): void {
  // Whoever does not close its own half may not keep ours.
  socket.once("finish", () => socket.destroy());
  socket.end(`HTTP/1.1 ${status} ${text}\r\nconnection: close\r\ncontent-length: 0\r\n${headers}\r\n`);
}
