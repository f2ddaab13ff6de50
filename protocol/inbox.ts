// The receiving side of one stream: bytes that came and were not yet read, and the credit that reading grants.
import type { ConnectorError } from "./errors.ts";
import type { BytesSink, LinkBytes } from "./stream.ts";

/** Frames below this size are gathered into blocks, so that a peer's tiny frames cannot cost more memory than their bytes. */
const SMALL_BYTES = 4 * 1024;
const BLOCK_BYTES = 16 * 1024;
/** A frame is a view of what the socket read: one that is less than this part of it is copied, or it would hold all of it. */
const LEAST_PART = 1 / 8;
/** No stream's window grows beyond. */
const MAX_WINDOW_BYTES = 8 * 1024 * 1024;

/** Whose bytes they are. */
export interface InboxOwner {
  /** Enough was consumed to grant more. */
  creditDue(): void;
  /** The reader stopped before the end. */
  left(): void;
  /** Asks for more window. */
  mayGrow(bytes: number): boolean;
}

export class Inbox implements LinkBytes {
  #windowBytes: number;
  readonly #owner: InboxOwner;
  #sink: BytesSink | null = null;
  #chunks: Buffer[] = [];
  /** The last chunk is a block of ours with so many bytes used; 0 = it is not. */
  #block: Buffer | null = null;
  #receivedBytes = 0;
  #consumedBytes = 0;
  #lentBytes = 0;
  #granted: number;
  /** Since when the rate of reading is taken, and how much was read before. Null before the first grant. */
  #markMs: number | null = null;
  #markBytes = 0;
  #ended = false;
  #error: ConnectorError | null = null;
  #waiting: { resolve: (result: IteratorResult<Buffer>) => void; reject: (error: unknown) => void } | null = null;

  constructor(windowBytes: number, owner: InboxOwner) {
    this.#windowBytes = windowBytes;
    this.#granted = windowBytes;
    this.#owner = owner;
  }

  get receivedBytes(): number {
    return this.#receivedBytes;
  }

  get windowBytes(): number {
    return this.#windowBytes;
  }

  /** Bytes held here now. */
  get heldBytes(): number {
    return this.#receivedBytes - this.#consumedBytes;
  }

  /** False: more than was granted. */
  push(bytes: Buffer): boolean {
    this.#receivedBytes += bytes.length;
    if (this.#receivedBytes > this.#granted) return false;
    if (bytes.length === 0) return true;
    if (this.#sink !== null) this.#giveTo(this.#sink, bytes);
    else if (this.#waiting !== null) {
      const { resolve } = this.#waiting;
      this.#waiting = null;
      this.#lentBytes = bytes.length;
      resolve({ done: false, value: bytes });
    } else if (bytes.length >= SMALL_BYTES) {
      this.#chunks.push(bytes.length < bytes.buffer.byteLength * LEAST_PART ? Buffer.from(bytes) : bytes);
      this.#block = null;
    } else this.#gather(bytes);
    return true;
  }

  pushTo(sink: BytesSink): void {
    if (this.#waiting !== null || this.#sink !== null) throw new Error("A stream has one reader at a time.");
    if (this.#error !== null) return sink.over(this.#error);
    this.#settleLoan();
    this.#sink = sink;
    this.#block = null;
    for (let chunk = this.#chunks.shift(); chunk !== undefined; chunk = this.#chunks.shift()) this.#giveTo(sink, chunk);
    if (this.#ended) sink.over(null);
  }

  #giveTo(sink: BytesSink, bytes: Buffer): void {
    sink.bytes(bytes);
    this.#consumedBytes += bytes.length;
    if (this.creditDue) this.#owner.creditDue();
  }

  #gather(bytes: Buffer): void {
    const last = this.#chunks.length - 1;
    if (this.#block !== null && last >= 0) {
      const used = this.#chunks[last]!.length;
      if (used + bytes.length <= BLOCK_BYTES) {
        bytes.copy(this.#block, used);
        this.#chunks[last] = this.#block.subarray(0, used + bytes.length);
        return;
      }
    }
    this.#block = Buffer.allocUnsafeSlow(BLOCK_BYTES);
    bytes.copy(this.#block, 0);
    this.#chunks.push(this.#block.subarray(0, bytes.length));
  }

  /** The peer's END was verified: nothing more comes. */
  end(): void {
    this.#ended = true;
    this.#sink?.over(null);
    if (this.#waiting !== null) {
      this.#waiting.resolve({ done: true, value: undefined });
      this.#waiting = null;
    }
  }

  /** What was not read yet is dropped: a broken stream's bytes are not to be trusted. */
  fail(error: ConnectorError): void {
    if (this.#error !== null) return;
    this.#error = error;
    this.#chunks = [];
    this.#block = null;
    this.#waiting?.reject(error);
    this.#waiting = null;
    this.#sink?.over(error);
  }

  /** Is a grant due? A quarter of the window, so that the sender never waits for one while the reader keeps up. */
  get creditDue(): boolean {
    return !this.#ended && this.#consumedBytes + this.#windowBytes - this.#granted >= this.#windowBytes / 4;
  }

  /**
   * The new limit to tell the peer. A reader that has read all there is may be waiting for credit to cross a long path:
   * each time it has read a window, that doubles, as long as the link has some to spare and a round trip takes more than
   * half of it at this rate. `rttMs`: the path's own; null: not known, as long as it may be.
   */
  grant(nowMs: number, rttMs: number | null): number {
    const readBytes = this.#consumedBytes - this.#markBytes;
    if (this.#markMs === null) this.#mark(nowMs);
    else if (readBytes >= this.#windowBytes) {
      const heldOnTheWay = rttMs === null ? Infinity : (rttMs * readBytes) / Math.max(0.01, nowMs - this.#markMs);
      this.#mark(nowMs);
      if (
        this.heldBytes - this.#lentBytes <= 0 &&
        this.#windowBytes < Math.min(2 * heldOnTheWay, MAX_WINDOW_BYTES) &&
        this.#owner.mayGrow(this.#windowBytes)
      )
        this.#windowBytes *= 2;
    }
    this.#granted = this.#consumedBytes + this.#windowBytes;
    return this.#granted;
  }

  #mark(nowMs: number): void {
    this.#markBytes = this.#consumedBytes;
    this.#markMs = nowMs;
  }

  #settleLoan(): void {
    if (this.#lentBytes === 0) return;
    this.#consumedBytes += this.#lentBytes;
    this.#lentBytes = 0;
    if (this.creditDue) this.#owner.creditDue();
  }

  [Symbol.asyncIterator](): AsyncIterator<Buffer> {
    return {
      next: () => {
        // Asking for the next chunk is what says that the last one was consumed.
        this.#settleLoan();
        const chunk = this.#chunks.shift();
        if (chunk !== undefined) {
          if (this.#chunks.length === 0) this.#block = null;
          this.#lentBytes = chunk.length;
          return Promise.resolve({ done: false, value: chunk });
        }
        if (this.#error !== null) return Promise.reject(this.#error);
        if (this.#ended) return Promise.resolve({ done: true, value: undefined });
        if (this.#waiting !== null) return Promise.reject(new Error("A stream has one reader at a time."));
        return new Promise((resolve, reject) => {
          this.#waiting = { resolve, reject };
        });
      },
      return: () => {
        if (!(this.#ended && this.#chunks.length === 0) && this.#error === null) this.#owner.left();
        return Promise.resolve({ done: true, value: undefined });
      },
    };
  }
}
