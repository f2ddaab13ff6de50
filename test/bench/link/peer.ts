// A peer of the link bench: two processes, the near one where the control plane would be, the far one where the agent
// would be. The near one asks; bulk flows from far to near, as downloads do.
export interface Near {
  /** 200 bytes there and back. */
  trip(): Promise<void>;
  /** Resolves with the bytes that came. */
  bulk(bytes: number): Promise<number>;
}

export interface Peer {
  /** Starts the near end. `startFar` starts the other process with these words. `tls`: PEM of key, certificate and its CA. */
  near(startFar: (...words: string[]) => void, options: NearOptions): Promise<Near>;
  far(words: string[]): Promise<void>;
}

export interface NearOptions {
  readonly tls?: { key: string; cert: string; ca: string };
  readonly nats?: { servers: string; user: string; pass: string };
}

export const TRIP_BYTES = 200;
/** What the peers send bulk in; ours cuts it as it likes. */
export const CHUNK_BYTES = 256 * 1024;
