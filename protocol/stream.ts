// The ports that everything above the multiplexer is written against. The multiplexer and both ends' link code
// implement them; features never see either.
import type { ConnectorError } from "./errors.ts";

/** Strict order of sending: all control first, then interactive, then bulk. */
export type Lane = "interactive" | "bulk";

/** Is handed each chunk as it comes, and has consumed it when the call returns. Its calls throw nothing. */
export interface BytesSink {
  bytes(chunk: Buffer): void;
  /** Null: the end, whole. */
  over(error: ConnectorError | null): void;
}

export interface LinkBytes extends AsyncIterable<Buffer> {
  /**
   * Instead of reading, for bytes that come seldom and are done with at once: a reader that waits for its next chunk is
   * 2 KiB of memory, a sink what it holds itself.
   */
  pushTo(sink: BytesSink): void;
}

/**
 * A bidirectional stream on a link. It dies with its link. Heads are plain JSON objects: the opener's travels in OPEN,
 * the acceptor's in its answer. Bytes flow both ways, each within the credit that the reader grants by consuming.
 */
export interface LinkStream {
  readonly id: number;
  readonly lane: Lane;
  /** The opener's head. */
  readonly head: unknown;
  /** Aborts when the peer resets the stream or the link is lost; the reason is a ConnectorError. */
  readonly signal: AbortSignal;
  /** The acceptor's head. Rejects with a ConnectorError (RESET, or LINK_LOST). Only for the side that opened. */
  readonly answer: Promise<unknown>;
  /** Sends the acceptor's head, once. `end`: nothing follows. Only for the side that accepted. */
  respond(head: unknown, options?: { end?: boolean }): void;
  /** Resolves when the bytes were taken within credit and the link's limit. The buffer is given away: never change it after. */
  write(chunk: Uint8Array): Promise<void>;
  /** No more bytes from this side. Resolves when END was handed to the link. */
  end(): Promise<void>;
  /** Ends both directions now. Idempotent. */
  reset(error: ConnectorError): void;
  /** The peer's bytes. Ends at its END after length and checksum were verified; throws the RESET's error. */
  readonly bytes: LinkBytes;
}

export interface OpenOptions {
  lane: Lane;
  end?: boolean;
  signal?: AbortSignal;
  background?: boolean;
}

/** A live, authenticated session on a link, seen from either end. */
export interface LinkSession {
  readonly id: string;
  /**
   * Opens a stream. Throws LINK_LOST when the session is closed, GOING_AWAY while the peer drains, STREAM_REFUSED when too
   * many are open. `end`: no bytes follow from this side. `background`: it lives as long as the session does (status,
   * reports), so a drain of this side does not wait for it.
   */
  open(head: unknown, options: OpenOptions): LinkStream;
  /** Round trip time of the last beat in ms; null before the first. */
  readonly rttMs: number | null;
  /** Resolves when the session is over, with the reason. Never rejects. */
  readonly closed: Promise<ConnectorError>;
}
