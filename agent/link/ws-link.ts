// The link over WebSocket: one state object at a time, each owning its timers and its part of the connection, and one
// setter. It never gives up and never ends the process; what it says of itself it says by events.
import { randomUUID } from "node:crypto";
import {
  AgentHandshake,
  ConnectorError,
  DEFAULT_MAX_STREAMS,
  DEFAULT_WINDOWS,
  Mux,
  toConnectorError,
  type AgentGreeted,
  type AgentHello,
  type Clock,
  type EnrolmentSecret,
  type LinkStream,
  type SessionId,
  type Timer,
  type Transport,
} from "@sallyport/protocol";
import { Backoff } from "./backoff.ts";
import type { IdentityStore } from "./identity.ts";
import { LinkFailure, toLinkFailure } from "./link-failure.ts";
import type { AgentLink, AgentSession, HelloSource, LinkEvent, LinkStateKind } from "./link.ts";
import { retryClass } from "./retry-table.ts";
import { sendStatus, type StatusStream } from "./status-stream.ts";
import { linkUrl } from "./address.ts";
import { Addresses } from "./addresses.ts";
import { dialNatsLink, type NatsRoute } from "./nats-dial.ts";
import { STRAIGHT, type LinkNetwork } from "./network.ts";
import { dial, findPinnedCa } from "./ws-dial.ts";

/** Until the cloud has proved itself. */
export const GREETING_MS = 4_000;
/** After our proof: the cloud may first have to find out whether an older session of ours still lives (5 s). */
export const READY_MS = 8_000;
/** How long a session may go on beside its successor after the cloud said goodbye. */
export const GOODBYE_MS = 30_000;

export interface WsLinkOptions {
  /** Base URL of the control plane; null: the one of the identity. */
  readonly cloudUrl: string | null;
  /** Over a NATS network, whatever `cloudUrl` says. Absent: by WebSocket. */
  readonly nats?: NatsRoute | null;
  readonly identity: IdentityStore;
  /** Only looked at while there is no identity. */
  readonly enrolment: EnrolmentSecret | null;
  /** What to be called; the cloud makes it unique. Null: the cloud chooses. */
  readonly nameHint: string | null;
  /** PEM of a CA from the configuration; wins over the pinned one. */
  readonly ca: string | null;
  /** More addresses, proxies, client certificate. Absent: none of them. */
  readonly network?: LinkNetwork;
  /** False switches the MAC of frames off, which both ends allow on loopback only. */
  readonly mac: boolean;
  /** Version of the agent program. */
  readonly version: string;
  readonly hello: HelloSource;
  /** Silence after which the link counts as dead; absent: 12 s. */
  readonly deadMs?: number;
  /** A link that was up for so long is dialled anew at once; absent: 60 s. */
  readonly stableMs?: number;
  readonly clock: Clock;
  /** Uniform in [0, 1). */
  readonly random: () => number;
}

/** Waiting for `retryAtMs` (monotonic) to dial again. */
interface Offline {
  readonly kind: "offline";
  leave(): void;
}
/** A connection is being made. */
interface Dialling {
  readonly kind: "dialling";
  leave(): void;
}
/** Connected; both ends prove who they are. */
interface Greeting {
  readonly kind: "greeting";
  leave(): void;
}
/** A session lives. */
interface Online {
  readonly kind: "online";
  readonly session: AgentSession;
  readonly mux: Mux;
  readonly sinceMs: number;
  readonly status: StatusStream;
  leave(): void;
}
/** The agent stops: no new streams, what is open ends. */
interface Draining {
  readonly kind: "draining";
  readonly session: AgentSession;
  readonly mux: Mux;
  leave(): void;
}
/** Over for good. */
interface Closed {
  readonly kind: "closed";
  leave(): void;
}
type State = Offline | Dialling | Greeting | Online | Draining | Closed;

/**
 * A session to which the cloud said goodbye. It stands beside the states: the next one is made while what is open here
 * goes on, and reports and status leave by it until there is a next.
 */
interface Leaving {
  readonly session: AgentSession;
  readonly mux: Mux;
  readonly reason: ConnectorError;
  readonly status: StatusStream;
  readonly timer: Timer;
}

const nothing = (): void => {};

export class WsLink implements AgentLink {
  readonly #options: WsLinkOptions;
  readonly #clock: Clock;
  readonly #backoff: Backoff;
  readonly #network: LinkNetwork;
  readonly #addresses: Addresses;
  /** Per start of this process: how the cloud tells a redial from a second agent with the same identity. */
  readonly #instance = randomUUID();
  #state: State = { kind: "offline", leave: nothing };
  #started = false;
  #lastSession: SessionId | null = null;
  /** Found for this enrolment; kept in the identity once it is won. */
  #pinnedCa: string | null = null;
  #onStream: ((stream: LinkStream, session: AgentSession) => void) | null = null;
  readonly #listeners: ((event: LinkEvent) => void)[] = [];
  #drained: Promise<void> | null = null;
  #leaving: Leaving | null = null;

  constructor(options: WsLinkOptions) {
    this.#options = options;
    this.#clock = options.clock;
    this.#backoff = new Backoff(options.random, options.stableMs);
    this.#network = options.network ?? STRAIGHT;
    this.#addresses = new Addresses(this.#network.addresses);
    options.hello.onStatusChange?.(() => {
      if (this.#state.kind === "online") this.#state.status.changed();
      this.#leaving?.status.changed();
    });
  }

  get state(): LinkStateKind {
    return this.#state.kind;
  }
  get session(): AgentSession | null {
    const state = this.#state;
    if (state.kind === "online" || state.kind === "draining") return state.session;
    return this.#leaving?.session ?? null;
  }

  onStream(handler: (stream: LinkStream, session: AgentSession) => void): void {
    this.#onStream = handler;
  }
  observe(listener: (event: LinkEvent) => void): void {
    this.#listeners.push(listener);
  }

  start(): void {
    if (this.#started) return;
    this.#started = true;
    this.#dial();
  }

  drain(deadlineMs: number): Promise<void> {
    this.#drained ??= this.#drainOnce(deadlineMs);
    return this.#drained;
  }

  abort(reason: ConnectorError): void {
    const state = this.#state;
    if (state.kind === "closed") return;
    if (state.kind === "online" || state.kind === "draining") state.mux.close(reason);
    this.#leaving?.mux.close(reason);
    this.#moveTo({ kind: "closed", leave: nothing }, reason, null);
  }

  async #drainOnce(deadlineMs: number): Promise<void> {
    const reason = new ConnectorError("GOING_AWAY", "The agent is stopping.");
    const state = this.#state;
    const over: Promise<void>[] = [];
    const live = state.kind === "online" ? state : this.#leaving;
    if (live !== null) {
      const { mux, session, status } = live;
      status.stop();
      this.#moveTo({ kind: "draining", session, mux, leave: nothing }, null, null);
      over.push(this.#ended(mux, reason, deadlineMs));
    }
    if (this.#leaving !== null && this.#leaving !== live) over.push(this.#ended(this.#leaving.mux, reason, deadlineMs));
    await Promise.all(over);
    this.abort(reason);
  }

  #moveTo(next: State, error: ConnectorError | null, retryInMs: number | null): void {
    const from = this.#state.kind;
    this.#state.leave();
    this.#state = next;
    this.#emit({ type: "state", from, to: next.kind, error, retryInMs });
  }

  #emit(event: LinkEvent): void {
    for (const listener of this.#listeners) listener(event);
  }

  // offline

  /** An attempt or a link ended: wait, then dial. `triedMs`: how long the attempt took, which counts as waited. */
  #rest(failure: LinkFailure, onlineMs: number, triedMs = 0): void {
    if (this.#state.kind === "closed") return;
    const retry = retryClass(failure.reason.code);
    const { retryAfterMs } = failure;
    const delayMs = Math.round(this.#backoff.next({ onlineMs, retry, retryAfterMs, triedMs }));
    const timer = this.#clock.after(delayMs, () => this.#dial(), { keepAlive: true });
    this.#moveTo({ kind: "offline", leave: () => timer.cancel() }, failure.reason, delayMs);
  }

  // dialling

  /** `reason`: why the address before did not do. */
  #dial(reason: ConnectorError | null = null): void {
    const controller = new AbortController();
    const beganMs = this.#clock.monotonic();
    const state: Dialling = { kind: "dialling", leave: () => controller.abort() };
    this.#moveTo(state, reason, null);
    this.#connect(controller.signal).then(
      ({ transport, hello, cloudUrl }) => {
        if (this.#state === state) this.#greet(transport, hello, cloudUrl);
        else transport.destroy();
      },
      (caught: unknown) => {
        if (this.#state === state) this.#rest(toLinkFailure(caught), 0, this.#clock.monotonic() - beganMs);
      },
    );
  }

  async #connect(signal: AbortSignal): Promise<{ transport: Transport; hello: AgentHello; cloudUrl: string }> {
    const options = this.#options;
    const held = options.identity.load();
    const nats = options.nats ?? null;
    const cloudUrl = nats?.url ?? options.cloudUrl ?? held?.identity.cloudUrl ?? null;
    if (cloudUrl === null) {
      throw new ConnectorError("CONFIG_INVALID", "The agent does not know the address of its control plane.", {
        fix: "Set cloud.url in the configuration.",
      });
    }
    if (nats !== null) return await this.#connectTo(cloudUrl, held, signal);
    return await this.#addresses.tryEach(cloudUrl, (address) => this.#connectTo(address, held, signal), signal);
  }

  async #connectTo(
    cloudUrl: string,
    held: ReturnType<IdentityStore["load"]>,
    signal: AbortSignal,
  ): Promise<{ transport: Transport; hello: AgentHello; cloudUrl: string }> {
    const options = this.#options;
    const nats = options.nats ?? null;
    // A broker is no loopback, wherever it runs: whoever else it lets in must not be able to slip in a frame.
    const { secure, loopback } = nats === null ? linkUrl(cloudUrl) : { secure: false, loopback: false };
    const between = nats === null ? await this.#network.wayTo(cloudUrl, signal) : {};
    const base = {
      windows: DEFAULT_WINDOWS,
      maxStreams: DEFAULT_MAX_STREAMS,
      mac: options.mac || !loopback,
      peerOnLoopback: loopback,
      proof: () => this.#proof(),
    };
    let hello: AgentHello;
    let ca = options.ca;
    if (held !== null) {
      ca ??= held.identity.ca;
      hello = {
        ...base,
        key: held.key,
        who: { type: "replica", replica: held.identity.replica },
        pins: held.identity.identityFingerprints,
      };
    } else if (options.enrolment !== null) {
      const { enrolment } = options;
      if (ca === null && secure && enrolment.caFingerprint !== null) {
        this.#pinnedCa ??= await findPinnedCa(
          { ...between, cloudUrl, ca: null, clock: this.#clock, signal },
          enrolment.caFingerprint,
        );
        ca = this.#pinnedCa;
      }
      hello = {
        ...base,
        key: options.identity.enrolmentKey(),
        who: { type: "enrol", enrollment: enrolment.id, secret: enrolment.secret, nameHint: options.nameHint },
        pins: [enrolment.identityFingerprint],
      };
    } else {
      throw new ConnectorError(
        "CONFIG_INVALID",
        "This agent has not joined a control plane yet, and has no enrolment secret.",
        {
          fix: "Make one on the page Add agent and start the agent with it.",
        },
      );
    }
    const transport =
      nats === null
        ? await dial({ ...between, cloudUrl, ca, clock: this.#clock, signal })
        : await dialNatsLink(nats, this.#clock, signal);
    return { transport, hello, cloudUrl };
  }

  #proof(): ReturnType<AgentHello["proof"]> {
    const { hello, version } = this.#options;
    const journal = hello.journal();
    return {
      version,
      instance: this.#instance,
      startCounter: journal.startCounter,
      journal: journal.id as ReturnType<AgentHello["proof"]>["journal"],
      lastSession: this.#lastSession,
      dispatchSequence: journal.dispatchSequence,
      generations: hello.generations(),
    };
  }

  // greeting

  #greet(transport: Transport, hello: AgentHello, cloudUrl: string): void {
    const beganMs = this.#clock.monotonic();
    const fail = (failure: LinkFailure) => {
      if (this.#state !== state) return;
      // Another address may lead to one that answers better.
      if (this.#addresses.passOver(cloudUrl, failure.reason.code)) this.#dial(failure.reason);
      else this.#rest(failure, 0, this.#clock.monotonic() - beganMs);
    };
    const late = () =>
      fail(
        new LinkFailure(
          new ConnectorError("HANDSHAKE_FAILED", "The control plane did not finish the handshake in time."),
        ),
      );
    let deadline = this.#clock.after(GREETING_MS, late, { keepAlive: true });
    let challengedAtMs = 0;
    let done = false;
    const state: Greeting = {
      kind: "greeting",
      leave: () => {
        deadline.cancel();
        if (done) return;
        transport.onMessage(null);
        transport.destroy();
      },
    };
    this.#moveTo(state, null, null);
    transport.onClose((cause) =>
      fail(
        new LinkFailure(
          new ConnectorError("HANDSHAKE_FAILED", "The connection broke during the handshake.", { cause }),
        ),
      ),
    );
    try {
      const handshake = new AgentHandshake(hello);
      transport.onMessage((message) => {
        try {
          const step = handshake.receive(message);
          if ("send" in step) {
            challengedAtMs = this.#clock.monotonic();
            deadline.cancel();
            deadline = this.#clock.after(READY_MS, late, { keepAlive: true });
            transport.send(step.send);
          } else {
            if (hello.who.type === "enrol") this.#keep(step.greeted, hello, cloudUrl);
            done = true;
            this.#addresses.keep(cloudUrl);
            this.#goOnline(transport, step.greeted, challengedAtMs);
          }
        } catch (caught) {
          fail(toLinkFailure(caught));
        }
      });
      transport.send(handshake.hello());
    } catch (caught) {
      fail(toLinkFailure(caught));
    }
  }

  #keep(greeted: AgentGreeted, hello: AgentHello, cloudUrl: string): void {
    const { ready } = greeted;
    this.#options.identity.save({
      version: 1,
      replica: ready.replica,
      workspace: ready.workspace,
      pool: ready.pool,
      names: ready.names,
      cloudUrl,
      identityFingerprints: [...hello.pins],
      ca: this.#pinnedCa,
    });
  }

  // online

  /** `challengedAtMs`: monotonic time at which the cloud's own time came. */
  #goOnline(transport: Transport, greeted: AgentGreeted, challengedAtMs: number): void {
    const { challenge, ready } = greeted;
    const sinceMs = this.#clock.monotonic();
    const mux = new Mux({
      id: ready.session,
      transport,
      clock: this.#clock,
      side: "agent",
      writer: greeted.writer,
      reader: greeted.reader,
      windows: DEFAULT_WINDOWS,
      maxStreams: DEFAULT_MAX_STREAMS,
      peerWindows: greeted.peerWindows,
      peerMaxStreams: greeted.peerMaxStreams,
      checksums: greeted.checksums,
      bulkKeys: greeted.bulkKeys,
      ...(this.#options.deadMs === undefined ? {} : { deadMs: this.#options.deadMs }),
      onStream: (stream) => {
        if (this.#onStream === null) stream.reset(new ConnectorError("KIND_UNKNOWN", "This agent takes no streams."));
        else this.#onStream(stream, session);
      },
      onGoAway: (reason, retryAfterMs) => {
        const state = this.#state;
        if (state.kind === "online" && state.mux === mux) this.#leave(state, reason, retryAfterMs);
      },
      onRoundTrip: (ms) => this.#emit({ type: "roundTrip", ms }),
    });
    const session: AgentSession = {
      id: ready.session,
      epoch: ready.epoch,
      incarnation: challenge.incarnation,
      workspace: ready.workspace,
      pool: ready.pool,
      replica: ready.replica,
      commandKeys: greeted.commandKeys,
      cloudNow: () => challenge.timeMs + (this.#clock.monotonic() - challengedAtMs),
      figures: () => mux.figures(),
      open: (head, options) => mux.open(head, options),
      get rttMs() {
        return mux.rttMs;
      },
      closed: mux.closed,
    };
    this.#lastSession = ready.session;
    let status: StatusStream;
    try {
      status = sendStatus(session, this.#options.hello, this.#clock);
    } catch (caught) {
      mux.close(toConnectorError(caught));
      throw caught;
    }
    // A session that is left keeps its status stream until there is another.
    this.#moveTo({ kind: "online", session, mux, sinceMs, status, leave: nothing }, null, null);
    void mux.closed.then((reason) => {
      status.stop();
      const state = this.#state;
      if (state.kind !== "online" || state.mux !== mux) return;
      this.#rest(new LinkFailure(reason), this.#clock.monotonic() - sinceMs);
    });
    this.#emit({ type: "online", session });
    if (this.#leaving !== null) this.#succeeded(this.#leaving);
  }

  // leaving

  /** The cloud said goodbye: what is open may end, beside the next session. */
  #leave({ mux, session, sinceMs, status }: Online, reason: ConnectorError, retryAfterMs: number | null): void {
    // Never more than two connections.
    this.#leaving?.mux.close(reason);
    const timer = this.#clock.after(GOODBYE_MS, () => mux.close(reason), { keepAlive: true });
    const leaving: Leaving = { mux, session, reason, status, timer };
    const onlineMs = this.#clock.monotonic() - sinceMs;
    this.#leaving = leaving;
    void mux.closed.then(() => {
      timer.cancel();
      if (this.#leaving !== leaving) return;
      this.#leaving = null;
      // The next one was dialled in vain until now, perhaps because this very process held on to its door: it is gone.
      if (this.#state.kind === "offline" && this.#state !== firstWait) this.#rest(new LinkFailure(reason), onlineMs);
    });
    this.#rest(new LinkFailure(reason, retryAfterMs), onlineMs);
    const firstWait = this.#state;
  }

  /** There is another session: the cloud ends the one that is left with its last stream, once it knows that. */
  #succeeded({ mux, reason, status }: Leaving): void {
    status.stop();
    // Not closed here, and nothing refused: a command may be on its way that was sent before the cloud hears this.
    mux.farewell(reason);
  }

  // draining

  /** Resolves when its last stream has ended, or after `deadlineMs`; it is closed then. */
  async #ended(mux: Mux, reason: ConnectorError, deadlineMs: number): Promise<void> {
    await new Promise<void>((resolve) => {
      const timer = this.#clock.after(deadlineMs, resolve, { keepAlive: true });
      void mux.drain(reason).then(() => {
        timer.cancel();
        resolve();
      });
    });
    mux.close(reason);
  }
}
