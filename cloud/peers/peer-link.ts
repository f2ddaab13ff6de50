// This process's link to one other: dialled as long as that one is listed, and again whenever it broke.
import {
  ConnectorError,
  DEFAULT_WINDOWS,
  Mux,
  toConnectorError,
  type Clock,
  type LinkStream,
  type OpenOptions,
  type Timer,
} from "@sallyport/protocol";
import { PeerDialer, type PeerIdentity } from "./handshake.ts";
import type { Ask } from "./messages.ts";
import { dialPeer, greeter, PEER_STREAMS } from "./peer-socket.ts";

/** First and longest wait before it is dialled again; half of it is chance. */
const REDIAL_MS = { first: 200, most: 5_000 };

export interface PeerLinkOptions {
  readonly process: string;
  readonly url: string;
  readonly identity: PeerIdentity;
  readonly clock: Clock;
  /** It is there, or (error) not any more. Failed dials are told once until it was there again. */
  changed(link: PeerLink, error: ConnectorError | null): void;
}

export class PeerLink {
  readonly process: string;
  readonly url: string;
  readonly #options: PeerLinkOptions;
  readonly #stop = new AbortController();
  #mux: Mux | null = null;
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
      (mux) => {
        if (this.#stop.signal.aborted) return mux.close(new ConnectorError("GOING_AWAY", "The process is stopping."));
        this.#mux = mux;
        this.#waitMs = REDIAL_MS.first;
        this.#told = false;
        this.problem = null;
        void mux.closed.then((reason) => {
          this.#mux = null;
          this.#lost(reason);
        });
        this.#options.changed(this, null);
      },
      (caught: unknown) => this.#lost(toConnectorError(caught)),
    );
  }

  #lost(error: ConnectorError): void {
    if (this.#stop.signal.aborted) return;
    this.problem = error;
    if (!this.#told) this.#options.changed(this, error);
    this.#told = true;
    this.#timer = this.#options.clock.after(this.#waitMs * (0.5 + Math.random() / 2), () => this.#dial());
    this.#waitMs = Math.min(this.#waitMs * 2, REDIAL_MS.most);
  }

  async #connect(): Promise<Mux> {
    const { clock, identity } = this.#options;
    const { transport, certificate } = await dialPeer(this.url, this.#stop.signal);
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
