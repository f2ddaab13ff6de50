// This process's link to one other: dialled as long as that one is listed, and again whenever it broke. The direct way
// first; where there is none and there is NATS, over that, until the direct one is found again.
import {
  ConnectorError,
  DEFAULT_WINDOWS,
  Mux,
  toConnectorError,
  type Clock,
  type LinkStream,
  type OpenOptions,
  type Timer,
  type Transport,
} from "@sallyport/protocol";
import { PeerDialer, type PeerIdentity } from "./handshake.ts";
import type { Ask } from "./messages.ts";
import { dialPeer, greeter, PEER_STREAMS } from "./peer-socket.ts";

/** First and longest wait before it is dialled again; half of it is chance. */
const REDIAL_MS = { first: 200, most: 5_000 };
/** Over NATS: how often the direct way is tried. */
const DIRECT_AGAIN_MS = 30_000;

export type PeerWay = "direct" | "nats";

export interface PeerLinkOptions {
  readonly process: string;
  readonly url: string;
  readonly identity: PeerIdentity;
  readonly clock: Clock;
  /** Absent: there is no NATS. */
  readonly overNats?: (process: string) => Promise<Transport>;
  /** Absent: 30 s. */
  readonly directAgainMs?: number;
  /** It is there, or goes another way from now on, or (error) not any more. Failed dials are told once until it was there again. */
  changed(link: PeerLink, error: ConnectorError | null): void;
}

export class PeerLink {
  readonly process: string;
  readonly url: string;
  readonly #options: PeerLinkOptions;
  readonly #stop = new AbortController();
  #mux: Mux | null = null;
  #way: PeerWay | null = null;
  #timer: Timer | null = null;
  #waitMs = REDIAL_MS.first;
  #told = false;
  /** Why it is not there; null while it is, and before the first dial ended. */
  problem: ConnectorError | null = null;

  constructor(options: PeerLinkOptions) {
    this.process = options.process;
    this.url = options.url;
    this.#options = options;
    this.#dial();
  }

  get up(): boolean {
    return this.#mux !== null && !this.#mux.isClosed;
  }
  /** Null: it is not there. */
  get way(): PeerWay | null {
    return this.up ? this.#way : null;
  }
  get rttMs(): number | null {
    return this.#mux?.rttMs ?? null;
  }

  open(ask: Ask, options: OpenOptions): LinkStream {
    if (this.#mux === null)
      throw new ConnectorError("LINK_LOST", "The process that holds the agent's link is not reached.", {
        fix: "Try again: another process takes the agent, or the two reach each other again, within seconds.",
      });
    return this.#mux.open(ask, options);
  }

  close(): void {
    this.#stop.abort();
    this.#timer?.cancel();
    this.#mux?.close(new ConnectorError("GOING_AWAY", "The process is stopping."));
  }

  #dial(): void {
    this.#timer = null;
    this.#connect().then(
      ({ mux, way }) => this.#use(mux, way),
      (caught: unknown) => this.#lost(toConnectorError(caught)),
    );
  }

  #use(mux: Mux, way: PeerWay): void {
    const over = new ConnectorError("GOING_AWAY", "The process is stopping.");
    if (this.#stop.signal.aborted) return mux.close(over);
    const before = this.#mux;
    this.#mux = mux;
    this.#way = way;
    this.#waitMs = REDIAL_MS.first;
    this.#told = false;
    this.problem = null;
    void mux.closed.then((reason) => {
      if (this.#mux !== mux) return;
      this.#mux = null;
      this.#timer?.cancel();
      this.#lost(reason);
    });
    // What runs on the other way ends there.
    if (before !== null) {
      const moved = new ConnectorError("GOING_AWAY", "The two processes reach each other directly again.");
      const stopped = () => before.close(over);
      this.#stop.signal.addEventListener("abort", stopped);
      void Promise.race([before.drain(moved), before.closed]).then(() => {
        this.#stop.signal.removeEventListener("abort", stopped);
        before.close(moved);
      });
    }
    if (way === "nats") this.#lookForDirect();
    this.#options.changed(this, null);
  }

  #lookForDirect(): void {
    const { clock, directAgainMs = DIRECT_AGAIN_MS } = this.#options;
    this.#timer = clock.after(directAgainMs, () => {
      this.#direct().then(
        (mux) => {
          // Broken meanwhile: the next dial is under way, and finds this one, too.
          if (this.#mux === null) mux.close(new ConnectorError("GOING_AWAY", "It came too late."));
          else this.#use(mux, "direct");
        },
        () => {
          if (this.#way === "nats" && this.up && !this.#stop.signal.aborted) this.#lookForDirect();
        },
      );
    });
  }

  #lost(error: ConnectorError): void {
    if (this.#stop.signal.aborted) return;
    this.problem = error;
    if (!this.#told) this.#options.changed(this, error);
    this.#told = true;
    this.#timer = this.#options.clock.after(this.#waitMs * (0.5 + Math.random() / 2), () => this.#dial());
    this.#waitMs = Math.min(this.#waitMs * 2, REDIAL_MS.most);
  }

  async #connect(): Promise<{ mux: Mux; way: PeerWay }> {
    try {
      return { mux: await this.#direct(), way: "direct" };
    } catch (caught) {
      const { overNats } = this.#options;
      if (overNats === undefined || this.#stop.signal.aborted) throw caught;
      try {
        return { mux: await this.#greet(await overNats(this.process), null), way: "nats" };
      } catch (second) {
        const [direct, nats] = [toConnectorError(caught), toConnectorError(second)];
        throw new ConnectorError(direct.code, `${direct.message} Nor over NATS: ${nats.message}`, {
          ...(direct.fix === undefined ? {} : { fix: direct.fix }),
          cause: direct,
        });
      }
    }
  }

  async #direct(): Promise<Mux> {
    const { transport, certificate } = await dialPeer(this.url, this.#stop.signal);
    return await this.#greet(transport, certificate);
  }

  /** `certificate`: of what the other end showed; null without TLS of its own. */
  async #greet(transport: Transport, certificate: string | null): Promise<Mux> {
    const { clock, identity } = this.#options;
    const greeting = greeter(transport, clock);
    try {
      const handshake = new PeerDialer(identity, this.process, certificate);
      transport.send(handshake.hello());
      const { send, agreed } = handshake.onChallenge(await greeting.next());
      transport.send(send);
      return new Mux({
        id: agreed.peer,
        transport,
        clock,
        side: "agent",
        writer: agreed.writer,
        reader: agreed.reader,
        windows: DEFAULT_WINDOWS,
        peerWindows: DEFAULT_WINDOWS,
        maxStreams: PEER_STREAMS,
        peerMaxStreams: PEER_STREAMS,
        checksums: true,
        onStream: (stream) =>
          stream.reset(new ConnectorError("KIND_UNKNOWN", "Streams are opened by whoever dialled.")),
      });
    } catch (error) {
      transport.destroy();
      throw error;
    } finally {
      greeting.done();
    }
  }
}
