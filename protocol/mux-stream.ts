// One stream of the multiplexer, from one end. The multiplexer moves the frames; what belongs to the stream is here.
import { checksum, type BulkKeys, type Checksum, type SumFields } from "./checksum.ts";
import { ConnectorError } from "./errors.ts";
import { Inbox, type InboxOwner } from "./inbox.ts";
import type { Lane, LinkStream } from "./stream.ts";

/** What a stream asks of its multiplexer. */
export interface StreamHost {
  readonly checksums: boolean;
  /** Null: bulk has a CRC-32 like the rest. */
  readonly bulkKeys: BulkKeys | null;
  /** The stream has something to send (or may send again). */
  sendable(stream: MuxStream): void;
  /** More credit may be granted. */
  creditDue(stream: MuxStream): void;
  sendAnswer(stream: MuxStream, head: unknown, end: boolean): void;
  sendReset(stream: MuxStream, error: ConnectorError): void;
  /** May this stream's window grow by so much, out of what the link has to spare? */
  mayGrow(bytes: number): boolean;
  /** Both directions are over. */
  finished(stream: MuxStream): void;
}

interface PendingWrite {
  readonly bytes: Uint8Array;
  taken: number;
  resolve(): void;
  reject(error: unknown): void;
}

const PEER_LEFT = () => new ConnectorError("CANCELLED", "The reader stopped reading before the end.");

export class MuxStream implements LinkStream, InboxOwner {
  readonly id: number;
  readonly lane: Lane;
  readonly head: unknown;
  readonly answer: Promise<unknown>;
  readonly bytes: Inbox;

  readonly #host: StreamHost;
  readonly #opened: boolean;
  #answered = false;
  #settleAnswer: { resolve: (head: unknown) => void; reject: (error: unknown) => void } | null = null;
  #abort: AbortController | null = null;
  #error: ConnectorError | null = null;

  // sending
  #writes: PendingWrite[] = [];
  #sendLimit: number;
  #sentBytes = 0;
  #sentSum: Checksum | null = null;
  #ending: { resolve: () => void } | null = null;
  #sendOver = false;
  /** Owned by the multiplexer: this stream stands in its lane's ring. */
  queued = false;
  /** Owned by the multiplexer: a CREDIT for this stream is due. */
  owesCredit = false;
  /** Owned by the multiplexer: a drain waits for this stream. */
  awaited = false;
  /** Taken from the link's spare window; given back when the stream is over. */
  grownBytes = 0;
  /** Owned by the multiplexer: takes the opener's signal off again. */
  release: (() => void) | null = null;

  // receiving
  #receivedSum: Checksum | null = null;
  #receiveOver = false;

  constructor(
    host: StreamHost,
    id: number,
    lane: Lane,
    head: unknown,
    side: { opened: boolean; fin: boolean; sendLimit: number; windowBytes: number },
  ) {
    this.#host = host;
    this.id = id;
    this.lane = lane;
    this.head = head;
    this.#opened = side.opened;
    this.#sendLimit = side.sendLimit;
    this.bytes = new Inbox(side.windowBytes, this);
    if (side.opened) {
      this.answer = new Promise((resolve, reject) => {
        this.#settleAnswer = { resolve, reject };
      });
      this.answer.catch(() => {});
      this.#sendOver = side.fin;
    } else {
      this.answer = NO_ANSWER;
      if (side.fin) {
        this.#receiveOver = true;
        this.bytes.end();
      }
    }
  }

  get signal(): AbortSignal {
    if (this.#abort === null) {
      this.#abort = new AbortController();
      if (this.#error !== null) this.#abort.abort(this.#error);
    }
    return this.#abort.signal;
  }

  respond(head: unknown, options?: { end?: boolean }): void {
    if (this.#opened || this.#answered)
      throw new Error("An answer is given once, by the side that accepted the stream.");
    if (this.#error !== null) return;
    this.#answered = true;
    const end = options?.end === true;
    if (end) this.#sendOver = true;
    this.#host.sendAnswer(this, head, end);
    if (end) this.#finishIfOver();
  }

  write(chunk: Uint8Array): Promise<void> {
    if (this.#error !== null) return Promise.reject(this.#error);
    if (this.#sendOver || this.#ending !== null) return Promise.reject(new Error("The stream was ended on this side."));
    if (!this.#opened && !this.#answered) return Promise.reject(new Error("The answer goes before the bytes."));
    if (chunk.length === 0) return Promise.resolve();
    return new Promise((resolve, reject) => {
      this.#writes.push({ bytes: chunk, taken: 0, resolve, reject });
      this.#host.sendable(this);
    });
  }

  end(): Promise<void> {
    if (this.#error !== null) return Promise.reject(this.#error);
    if (this.#sendOver || this.#ending !== null) return Promise.resolve();
    if (!this.#opened && !this.#answered) return Promise.reject(new Error("The answer goes before the end."));
    return new Promise((resolve, reject) => {
      this.#ending = { resolve };
      // Shares the fate of a write: refused when the stream breaks first.
      this.#writes.push({ bytes: EMPTY, taken: 0, resolve: () => {}, reject });
      this.#host.sendable(this);
    });
  }

  reset(error: ConnectorError): void {
    if (this.#error !== null || (this.#sendOver && this.#receiveOver)) return;
    this.#host.sendReset(this, error);
    this.broken(error);
  }

  // What follows is for the inbox.

  creditDue(): void {
    this.#host.creditDue(this);
  }
  left(): void {
    this.reset(PEER_LEFT());
  }
  mayGrow(bytes: number): boolean {
    if (!this.#host.mayGrow(bytes)) return false;
    this.grownBytes += bytes;
    return true;
  }

  // What follows is for the multiplexer.

  /** All bytes that wait here, for figures. */
  get queuedBytes(): number {
    return this.#writes.reduce((sum, write) => sum + write.bytes.length - write.taken, 0);
  }
  /** Bytes that wait here and may leave within credit; 0 when none, or when only the END is left (see `endDue`). */
  get readyBytes(): number {
    const first = this.#writes[0];
    if (first === undefined) return 0;
    return Math.min(first.bytes.length - first.taken, this.#sendLimit - this.#sentBytes);
  }

  get endDue(): boolean {
    const first = this.#writes[0];
    return this.#ending !== null && !this.#sendOver && first !== undefined && first.bytes === EMPTY;
  }

  /** Takes up to `maxBytes` for a DATA frame. Only when `readyBytes` > 0. */
  take(maxBytes: number): Uint8Array {
    const first = this.#writes[0]!;
    const length = Math.min(maxBytes, this.readyBytes);
    const bytes = length === first.bytes.length ? first.bytes : first.bytes.subarray(first.taken, first.taken + length);
    first.taken += length;
    this.#sentBytes += length;
    if (this.#host.checksums) (this.#sentSum ??= this.#newSum("send")).update(bytes);
    if (first.taken === first.bytes.length) {
      this.#writes.shift();
      first.resolve();
    }
    return bytes;
  }

  /** Payload of the END, whose turn it is. */
  takeEnd(): { bytes: number } & SumFields {
    this.#sendOver = true;
    this.#writes = [];
    this.#ending?.resolve();
    const sum = this.#host.checksums ? (this.#sentSum ?? this.#newSum("send")).fields() : null;
    const end = { bytes: this.#sentBytes, ...sum };
    this.#finishIfOver();
    return end;
  }

  credited(limit: number): void {
    if (limit <= this.#sendLimit) return;
    this.#sendLimit = limit;
    if (this.#writes.length > 0) this.#host.sendable(this);
  }

  answeredBy(head: unknown, fin: boolean): boolean {
    if (!this.#opened || this.#answered) return false;
    this.#answered = true;
    this.#settleAnswer?.resolve(head);
    if (fin) {
      this.#receiveOver = true;
      this.bytes.end();
      this.#finishIfOver();
    }
    return true;
  }

  /** False: DATA beyond the credit, after the end, or before the answer. */
  received(bytes: Buffer): boolean {
    if (this.#receiveOver || (this.#opened && !this.#answered)) return false;
    if (this.#host.checksums) (this.#receivedSum ??= this.#newSum("receive")).update(bytes);
    return this.bytes.push(bytes);
  }

  /** False: the length or checksum is not that of what came. */
  ended(end: { bytes: number } & SumFields): boolean {
    if (this.#receiveOver || (this.#opened && !this.#answered)) return false;
    if (end.bytes !== this.bytes.receivedBytes) return false;
    if (this.#host.checksums && !(this.#receivedSum ?? this.#newSum("receive")).matches(end)) return false;
    this.#receiveOver = true;
    this.bytes.end();
    this.#finishIfOver();
    return true;
  }

  /** A RESET of either side, or the loss of the link. */
  broken(error: ConnectorError): void {
    if (this.#error !== null) return;
    this.#error = error;
    const writes = this.#writes;
    this.#writes = [];
    for (const write of writes) write.reject(error);
    this.#settleAnswer?.reject(error);
    // Bytes that came whole, END included, stay readable: only what is still open breaks.
    if (!this.#receiveOver) this.bytes.fail(error);
    this.#abort?.abort(error);
    this.#host.finished(this);
  }

  #newSum(direction: keyof BulkKeys): Checksum {
    const keys = this.lane === "bulk" ? this.#host.bulkKeys : null;
    return checksum(keys === null ? null : keys[direction], this.id);
  }

  #finishIfOver(): void {
    if (this.#sendOver && this.#receiveOver && this.#error === null) this.#host.finished(this);
  }
}

const EMPTY = new Uint8Array(0);
/** One for all: an error and its stack for each stream that is accepted cost a tenth of a command's way. */
const NO_ANSWER: Promise<never> = Promise.reject(
  new Error("Only the side that opened the stream has an answer to wait for."),
);
NO_ANSWER.catch(() => {});
