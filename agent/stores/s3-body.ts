// The body of a large answer, read from the socket below it. Node's HTTP parser copies each piece of a body into a buffer
// of its own, which for a gigabyte costs as much as reading it does; what it would do here is to count bytes. So once the
// head of the answer is there, this counts them, and reads a plain connection in larger pieces than Node does. The
// connection is not used again.
import type { IncomingMessage } from "node:http";
import { readInto, ReadTurns, type ReadTarget } from "@sallyport/protocol";

/** Below, a connection that can be used again is worth more. */
const LARGE_BYTES = 8 * 1024 * 1024;
/**
 * What waits here before the socket is told to wait: of one body, of all of this process, and of one among many. Buffers
 * that wait long outlive the young collections; at some MiB of those V8 marks the whole heap, over and over again.
 */
const AHEAD_BYTES = 512 * 1024;
const ALL_AHEAD_BYTES = 1024 * 1024;
const LEAST_AHEAD_BYTES = 64 * 1024;
/** Smaller pieces are joined with those that wait behind them, up to this. */
const JOINED_BYTES = 64 * 1024;
/** What a plain connection is read into and handed on at most: of one body, and of one among many. */
const BLOCK_BYTES = 256 * 1024;
const SMALL_BLOCK_BYTES = 64 * 1024;
/** With less room than this a new block is begun. */
const LEAST_READ_BYTES = 64 * 1024;

let openBodies = 0;
const aheadBytes = (): number =>
  Math.max(LEAST_AHEAD_BYTES, Math.min(AHEAD_BYTES, ALL_AHEAD_BYTES / Math.max(1, openBodies)));

/** Null: its framing is the parser's business, or it is too small. */
export function socketBody(message: unknown, lengthBytes: number): AsyncIterator<Buffer> | null {
  const { headers, socket } = message as Partial<IncomingMessage>;
  const plain =
    lengthBytes >= LARGE_BYTES &&
    headers !== undefined &&
    socket !== undefined &&
    !socket.destroyed &&
    headers["content-length"] === String(lengthBytes) &&
    headers["transfer-encoding"] === undefined;
  return plain ? new SocketBody(message as IncomingMessage, lengthBytes) : null;
}

class SocketBody implements AsyncIterator<Buffer>, ReadTarget {
  readonly #socket: IncomingMessage["socket"];
  readonly #turns: ReadTurns;
  #block: Buffer | null = null;
  #usedBytes = 0;
  #pieces: Buffer[] = [];
  #waitingBytes = 0;
  /** Not come yet. */
  #leftBytes: number;
  #paused = false;
  #over = false;
  #error: Error | null = null;
  #wake: (() => void) | null = null;

  constructor(message: IncomingMessage, lengthBytes: number) {
    this.#leftBytes = lengthBytes;
    const socket = (this.#socket = message.socket);
    this.#turns = new ReadTurns(socket, () => !this.#paused);
    openBodies++;
    socket.removeAllListeners("data");
    // What the parser has handed over before.
    for (let piece: Buffer | null; (piece = message.read() as Buffer | null) !== null;) this.#take(piece);
    socket.on("data", (piece: Buffer) => this.#take(piece));
    socket.once("error", (error: Error) => {
      this.#error ??= error;
      this.#end();
    });
    socket.once("end", () => this.#end());
    socket.once("close", () => this.#end());
    // What the socket holds comes first.
    while (socket.read() !== null);
    readInto(socket, this);
    if (!this.#paused && !this.#turns.resting) socket.resume();
  }

  room(): Uint8Array {
    if (this.#block === null || this.#block.length - this.#usedBytes < LEAST_READ_BYTES) {
      this.#block = Buffer.allocUnsafeSlow(aheadBytes() >= BLOCK_BYTES ? BLOCK_BYTES : SMALL_BLOCK_BYTES);
      this.#usedBytes = 0;
    }
    return this.#usedBytes === 0 ? this.#block : this.#block.subarray(this.#usedBytes);
  }

  filled(bytes: number): boolean {
    const from = this.#usedBytes;
    this.#usedBytes += bytes;
    this.#take(this.#block!.subarray(from, this.#usedBytes));
    return !this.#paused;
  }

  #take(piece: Buffer): void {
    if (this.#over) return;
    // More than was announced: the answer has its length all the same.
    const bytes = piece.length > this.#leftBytes ? piece.subarray(0, this.#leftBytes) : piece;
    this.#leftBytes -= bytes.length;
    const last = this.#pieces.at(-1);
    // Right behind what waits already: one piece with it.
    if (last?.buffer === bytes.buffer && last.byteOffset + last.length === bytes.byteOffset)
      this.#pieces.splice(-1, 1, Buffer.from(last.buffer, last.byteOffset, last.length + bytes.length));
    else this.#pieces.push(bytes);
    this.#waitingBytes += bytes.length;
    this.#turns.took(piece.length);
    if (this.#leftBytes === 0) this.#end();
    else if (this.#waitingBytes >= aheadBytes() && !this.#paused) {
      this.#paused = true;
      this.#socket.pause();
    }
    this.#wake?.();
  }

  #end(): void {
    if (this.#over) return;
    this.#over = true;
    openBodies--;
    this.#socket.destroy();
    this.#wake?.();
  }

  #next(): Buffer {
    const first = this.#pieces.shift()!;
    let joined = first.length;
    let count = 0;
    for (const piece of this.#pieces) {
      if (joined + piece.length > JOINED_BYTES) break;
      joined += piece.length;
      count++;
    }
    this.#waitingBytes -= joined;
    if (this.#paused && this.#waitingBytes < aheadBytes() / 2 && !this.#over) {
      this.#paused = false;
      if (!this.#turns.resting) this.#socket.resume();
    }
    return count === 0 ? first : Buffer.concat([first, ...this.#pieces.splice(0, count)], joined);
  }

  async next(): Promise<IteratorResult<Buffer>> {
    while (this.#pieces.length === 0) {
      if (this.#error !== null) throw this.#error;
      if (this.#over) return { done: true, value: undefined };
      await new Promise<void>((resolve) => (this.#wake = resolve));
      this.#wake = null;
    }
    return { done: false, value: this.#next() };
  }
}
