// A Transport over a WebSocket of the package `ws`. The package makes the connection: its upgrade, its checks, its end.
// Once it is open, messages are written and read here, on the socket under it, since that is where the time of bulk
// goes: no buffer is allocated or gathered per message, small messages of one turn leave as one write. Both ends use
// it; neither package nor socket is imported here, only the shape of what they give.
import { MAX_MESSAGE_BYTES } from "./frames.ts";
import { readInto, type ReadTarget } from "./large-reads.ts";
import { freshMask, maskInto, unmask } from "./masks.ts";
import { ReadTurns } from "./read-turns.ts";
import type { MessageReceiver, Transport } from "./transport.ts";
import { OPCODE, WsParser } from "./ws-parser.ts";

/** The part of `ws`'s WebSocket that is used. */
export interface WebSocketLike {
  /** Of the server that a client dialled; a server's own WebSockets have none. */
  readonly url?: string | undefined;
  readonly readyState: number;
  close(code?: number, reason?: string): void;
  terminate(): void;
  on(event: "open", listener: () => void): unknown;
  on(event: "close", listener: (code: number, reason: Buffer) => void): unknown;
  on(event: "error", listener: (error: Error) => void): unknown;
}

/** The part of the net or TLS socket under it that is used. */
export interface SocketLike {
  readonly remoteAddress?: string | undefined;
  readonly writableLength: number;
  readonly destroyed: boolean;
  cork(): void;
  uncork(): void;
  write(bytes: Uint8Array, written?: () => void): boolean;
  end(): unknown;
  pause(): unknown;
  resume(): unknown;
  listeners(event: "data"): unknown[];
  removeListener(event: "data", listener: (chunk: Buffer) => void): unknown;
  on(event: "drain", listener: () => void): unknown;
  on(event: "data", listener: (chunk: Buffer) => void): unknown;
}

const OPEN = 1;
/** Messages that came before anybody asked for them; more means the peer talks out of turn. */
const MAX_EARLY_MESSAGES = 64;
/** Answers to pings that the peer does not read. */
const MAX_UNREAD_BYTES = 16 * 1024 * 1024;
/** Messages up to this size are copied, and share one write with their neighbours. */
const COPY_BYTES = 4 * 1024;
const BLOCK_BYTES = 72 * 1024;
/** For the largest frames of bulk, which a client must copy to mask them. */
const LARGE_BLOCK_BYTES = 264 * 1024;
const MAX_HEADER_BYTES = 14;
/** A read of less has emptied the socket (TLS hands over so much at a time). */
const BULK_BYTES = 16 * 1024;
/** Blocks of either size kept to be used again. */
const MAX_FREE_BLOCKS = 8;
const MAX_FREE_LARGE_BLOCKS = 3;

/** Shared by all transports of this thread: idle links hold none. */
const freeBlocks: Buffer[] = [];
const freeLargeBlocks: Buffer[] = [];

/** As much as Node reads at a time by itself. Who fills it has more to say. */
const NODE_READ_BYTES = 64 * 1024;
/** What is read at a time while bulk passes. */
const READ_BYTES = 256 * 1024;
/** With less room than this a new block is begun. */
const LEAST_READ_BYTES = 64 * 1024;
/** A read of less than this: no bulk passes any more. */
const QUIET_BYTES = 4 * 1024;
/** Where links are read into that had bulk and have none now; copied from at once, so that all share it. */
let quietBlock: Buffer | null = null;

export const webSocketTransport = (webSocket: WebSocketLike, socket: SocketLike): Transport =>
  new WebSocketTransport(webSocket, socket);

/** A class for its memory: as closures it costs an idle link 2 KiB more. */
class WebSocketTransport implements Transport {
  readonly remoteAddress: string;

  readonly #webSocket: WebSocketLike;
  readonly #socket: SocketLike;
  readonly #isClient: boolean;
  #cause: Error | null = null;
  #closed = false;
  #closing = false;
  #saidGoodbye = false;
  #onClose: ((cause: Error | null) => void) | null = null;

  // sending
  #block: Buffer | null = null;
  #blockAt = 0;
  /** The last block was of bulk: the next message may be the header of more, which is to lie with its payload. */
  #largeBlock = false;
  #corked = false;

  // receiving
  readonly #parser: WsParser;
  /** Null: it had no bulk yet. */
  #turns: ReadTurns | null = null;
  #receiver: MessageReceiver | null = null;
  #inParts = false;
  /** Null: none came before it was asked for. */
  #early: Buffer[] | null = null;
  /** Of a message that nobody takes in parts. Null: none is under way. */
  #parts: Buffer[] | null = null;
  #readsLarge = false;

  constructor(webSocket: WebSocketLike, socket: SocketLike) {
    this.#webSocket = webSocket;
    this.#socket = socket;
    this.#isClient = typeof webSocket.url === "string";
    this.remoteAddress = socket.remoteAddress ?? "";
    this.#parser = new WsParser(!this.#isClient, MAX_MESSAGE_BYTES, unmask, {
      part: (bytes, more) => this.#part(bytes, more),
      control: (opcode, payload) => this.#control(opcode, payload),
    });
    if (webSocket.readyState === OPEN) this.#takeOver();
    else webSocket.on("open", () => this.#takeOver());
    webSocket.on("error", (error) => {
      this.#cause ??= error;
    });
    webSocket.on("close", (code) => {
      this.#closed = true;
      this.#block = null;
      if (!this.#saidGoodbye) this.#endedWith(code);
      this.#onClose?.(this.#cause);
    });
  }

  send(payload: Uint8Array): void {
    this.#send(OPCODE.binary, payload);
  }
  cork(): void {
    this.#corked = true;
    this.#socket.cork();
  }
  uncork(): void {
    this.#corked = false;
    this.#flush();
    this.#socket.uncork();
  }
  get bufferedBytes(): number {
    return this.#socket.writableLength + (this.#block === null ? 0 : this.#blockAt);
  }
  onMessage(next: MessageReceiver | null, options?: { inParts?: boolean }): void {
    this.#receiver = next;
    this.#inParts = options?.inParts === true;
    while (this.#receiver !== null && this.#early !== null && this.#early.length > 0)
      this.#receiver(this.#early.shift()!, false);
  }
  onDrain(listener: () => void): void {
    this.#socket.on("drain", listener);
  }
  onClose(listener: (cause: Error | null) => void): void {
    this.#onClose = listener;
    if (this.#closed) listener(this.#cause);
  }
  close(): void {
    if (this.#closing || this.#closed) return;
    this.#flush();
    this.#closing = true;
    this.#webSocket.close(1000);
  }
  destroy(): void {
    this.#webSocket.terminate();
  }

  // Sending

  #flush(): void {
    if (this.#block === null) return;
    const full = this.#block;
    const bytes = full.subarray(0, this.#blockAt);
    this.#block = null;
    this.#largeBlock = this.#blockAt > BLOCK_BYTES;
    if (this.#closed || this.#socket.destroyed) return;
    this.#socket.write(bytes, () => {
      if (full.length === BLOCK_BYTES) {
        if (freeBlocks.length < MAX_FREE_BLOCKS) freeBlocks.push(full);
      } else if (full.length === LARGE_BLOCK_BYTES && freeLargeBlocks.length < MAX_FREE_LARGE_BLOCKS)
        freeLargeBlocks.push(full);
    });
  }

  /** Room for so many bytes, with what is gathered already before them. */
  #reserve(bytes: number): Buffer {
    if (this.#block !== null && this.#blockAt + bytes > this.#block.length) this.#flush();
    if (this.#block === null) {
      this.#block =
        bytes <= BLOCK_BYTES && !this.#largeBlock
          ? (freeBlocks.pop() ?? Buffer.allocUnsafeSlow(BLOCK_BYTES))
          : bytes <= LARGE_BLOCK_BYTES
            ? (freeLargeBlocks.pop() ?? Buffer.allocUnsafeSlow(LARGE_BLOCK_BYTES))
            : Buffer.allocUnsafeSlow(bytes);
      this.#blockAt = 0;
    }
    return this.#block;
  }

  #writeHeader(into: Buffer, opcode: number, length: number): void {
    let at = this.#blockAt;
    into[at++] = 0x80 | opcode;
    const maskBit = this.#isClient ? 0x80 : 0;
    if (length < 126) into[at++] = maskBit | length;
    else if (length < 0x1_0000) {
      into[at++] = maskBit | 126;
      at = into.writeUInt16BE(length, at);
    } else {
      into[at++] = maskBit | 127;
      at = into.writeUInt32BE(0, at);
      at = into.writeUInt32BE(length, at);
    }
    this.#blockAt = at;
  }

  #frame(opcode: number, payload: Uint8Array): void {
    if (this.#isClient) {
      // Masking copies by its nature: header and payload lie together.
      const into = this.#reserve(MAX_HEADER_BYTES + payload.length);
      this.#writeHeader(into, opcode, payload.length);
      const mask = freshMask();
      into.set(mask, this.#blockAt);
      this.#blockAt += 4;
      maskInto(payload, mask, into, this.#blockAt);
      this.#blockAt += payload.length;
    } else if (payload.length <= COPY_BYTES) {
      const into = this.#reserve(MAX_HEADER_BYTES + payload.length);
      this.#writeHeader(into, opcode, payload.length);
      into.set(payload, this.#blockAt);
      this.#blockAt += payload.length;
    } else {
      this.#writeHeader(this.#reserve(MAX_HEADER_BYTES), opcode, payload.length);
      this.#flush();
      this.#socket.write(payload);
    }
  }

  #send(opcode: number, payload: Uint8Array): void {
    if (this.#closed || this.#closing || this.#socket.destroyed) return;
    this.#frame(opcode, payload);
    if (!this.#corked) this.#flush();
  }

  // Receiving

  #takeOver(): void {
    // The package's own reader goes; what it does when the socket ends stays. One by one: to remove them all at once
    // makes a dictionary of the socket's listeners, which takes 0.7 KiB more.
    for (const listener of this.#socket.listeners("data")) this.#socket.removeListener("data", listener as () => void);
    this.#socket.on("data", (chunk) => {
      // Only a session takes parts: whoever sends so much has proved who they are, and nobody counts their bytes any more.
      if (chunk.length >= NODE_READ_BYTES && this.#inParts && !this.#readsLarge)
        this.#readsLarge = readInto(this.#socket, new BulkReads((bytes) => this.#take(bytes)));
      this.#take(chunk);
    });
  }

  #take(chunk: Buffer): void {
    if (this.#closed || this.#cause !== null || this.#saidGoodbye) return;
    if (chunk.length >= BULK_BYTES) (this.#turns ??= new ReadTurns(this.#socket)).took(chunk.length);
    try {
      this.#parser.push(chunk);
    } catch (caught) {
      this.#fail(caught as Error);
    }
  }

  #part(bytes: Buffer, more: boolean): void {
    if (this.#saidGoodbye) return;
    if (this.#parts === null) {
      if (this.#receiver !== null && this.#inParts) return this.#receiver(bytes, more);
      if (!more) return this.#message(bytes);
    }
    this.#parts ??= [];
    this.#parts.push(bytes);
    if (more) return;
    const whole = Buffer.concat(this.#parts);
    this.#parts = null;
    this.#message(whole);
  }

  #message(whole: Buffer): void {
    if (this.#receiver !== null) return this.#receiver(whole, false);
    this.#early ??= [];
    if (this.#early.length < MAX_EARLY_MESSAGES) this.#early.push(whole);
    else this.#fail(new Error("The peer sent messages before it was asked."));
  }

  #control(opcode: number, payload: Buffer): void {
    if (opcode === OPCODE.close) this.#goodbye(payload);
    else if (opcode === OPCODE.ping) {
      this.#send(OPCODE.pong, payload);
      if (this.#socket.writableLength > MAX_UNREAD_BYTES)
        this.#fail(new Error("The peer makes us answer and does not read the answers."));
    }
  }

  #goodbye(payload: Buffer): void {
    this.#endedWith(payload.length >= 2 ? payload.readUInt16BE(0) : 1005);
    this.#saidGoodbye = true;
    if (!this.#closing && !this.#closed) {
      this.#flush();
      this.#closing = true;
      this.#webSocket.close(1000);
    }
    this.#socket.end();
  }

  #endedWith(code: number): void {
    // 1000 and 1001 are said on purpose; anything else is a loss.
    if (code !== 1000 && code !== 1001) this.#cause ??= new Error(`The WebSocket ended with code ${code}.`);
  }

  #fail(error: Error): void {
    this.#cause ??= error;
    this.#webSocket.terminate();
  }
}

/** Large blocks while bulk passes, filled one after another; they are their readers' then. Else the one that all share. */
class BulkReads implements ReadTarget {
  readonly #take: (bytes: Buffer) => void;
  /** Null: the shared one, at first too. */
  #block: Buffer | null = null;
  #usedBytes = 0;

  constructor(take: (bytes: Buffer) => void) {
    this.#take = take;
  }

  room(): Uint8Array {
    if (this.#block === null) return (quietBlock ??= Buffer.allocUnsafeSlow(NODE_READ_BYTES));
    return this.#usedBytes === 0 ? this.#block : this.#block.subarray(this.#usedBytes);
  }

  filled(bytes: number): boolean {
    const block = this.#block;
    const from = this.#usedBytes;
    if (block === null) {
      if (bytes === NODE_READ_BYTES) this.#block = Buffer.allocUnsafeSlow(READ_BYTES);
      this.#take(Buffer.from(quietBlock!.subarray(0, bytes)));
      return true;
    }
    this.#usedBytes += bytes;
    const quiet = bytes < QUIET_BYTES;
    if (quiet || block.length - this.#usedBytes < LEAST_READ_BYTES) {
      this.#block = quiet ? null : Buffer.allocUnsafeSlow(READ_BYTES);
      this.#usedBytes = 0;
    }
    this.#take(block.subarray(from, from + bytes));
    return true;
  }
}
