// A Transport over a WebSocket of the package `ws`. The package makes the connection: its upgrade, its checks, its end.
// Once it is open, messages are written and read here, on the socket under it, since that is where the time of bulk
// goes: no buffer is allocated or gathered per message, small messages of one turn leave as one write. Both ends use
// it; neither package nor socket is imported here, only the shape of what they give.
import { MAX_MESSAGE_BYTES } from "./frames.ts";
import { freshMask, maskInto, unmask } from "./masks.ts";
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
  removeAllListeners(event: "data"): unknown;
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
const MAX_HEADER_BYTES = 14;
/** Blocks kept to be used again. */
const MAX_FREE_BLOCKS = 8;

/** Shared by all transports of this thread: idle links hold none. */
const freeBlocks: Buffer[] = [];

export function webSocketTransport(webSocket: WebSocketLike, socket: SocketLike): Transport {
  const isClient = typeof webSocket.url === "string";
  const remoteAddress = socket.remoteAddress ?? "";
  let cause: Error | null = null;
  let closed = false;
  let onClose: ((cause: Error | null) => void) | null = null;

  // ---- sending

  let block: Buffer | null = null;
  let blockAt = 0;
  let corked = false;
  let closing = false;

  const flush = (): void => {
    if (block === null) return;
    const full = block;
    const bytes = full.subarray(0, blockAt);
    block = null;
    if (closed || socket.destroyed) return;
    socket.write(bytes, () => {
      if (freeBlocks.length < MAX_FREE_BLOCKS && full.length === BLOCK_BYTES) freeBlocks.push(full);
    });
  };
  /** Room for so many bytes, with what is gathered already before them. */
  const reserve = (bytes: number): Buffer => {
    if (block !== null && blockAt + bytes > block.length) flush();
    if (block === null) {
      block =
        bytes > BLOCK_BYTES ? Buffer.allocUnsafeSlow(bytes) : (freeBlocks.pop() ?? Buffer.allocUnsafeSlow(BLOCK_BYTES));
      blockAt = 0;
    }
    return block;
  };
  const writeHeader = (into: Buffer, opcode: number, length: number): void => {
    into[blockAt++] = 0x80 | opcode;
    const maskBit = isClient ? 0x80 : 0;
    if (length < 126) into[blockAt++] = maskBit | length;
    else if (length < 0x1_0000) {
      into[blockAt++] = maskBit | 126;
      blockAt = into.writeUInt16BE(length, blockAt);
    } else {
      into[blockAt++] = maskBit | 127;
      blockAt = into.writeUInt32BE(0, blockAt);
      blockAt = into.writeUInt32BE(length, blockAt);
    }
  };
  const frame = (opcode: number, payload: Uint8Array): void => {
    if (isClient) {
      // Masking copies by its nature: header and payload lie together.
      const into = reserve(MAX_HEADER_BYTES + payload.length);
      writeHeader(into, opcode, payload.length);
      const mask = freshMask();
      into.set(mask, blockAt);
      blockAt += 4;
      maskInto(payload, mask, into, blockAt);
      blockAt += payload.length;
    } else if (payload.length <= COPY_BYTES) {
      const into = reserve(MAX_HEADER_BYTES + payload.length);
      writeHeader(into, opcode, payload.length);
      into.set(payload, blockAt);
      blockAt += payload.length;
    } else {
      writeHeader(reserve(MAX_HEADER_BYTES), opcode, payload.length);
      flush();
      socket.write(payload);
    }
  };
  const send = (opcode: number, payload: Uint8Array): void => {
    if (closed || closing || socket.destroyed) return;
    frame(opcode, payload);
    if (!corked) flush();
  };

  // ---- receiving

  let receiver: MessageReceiver | null = null;
  let inParts = false;
  const early: Buffer[] = [];
  /** Of a message that nobody takes in parts. */
  let parts: Buffer[] = [];

  const fail = (error: Error): void => {
    cause ??= error;
    webSocket.terminate();
  };
  const message = (whole: Buffer): void => {
    if (receiver !== null) receiver(whole, false);
    else if (early.length < MAX_EARLY_MESSAGES) early.push(whole);
    else fail(new Error("The peer sent messages before it was asked."));
  };
  const goodbye = (payload: Buffer): void => {
    const code = payload.length >= 2 ? payload.readUInt16BE(0) : 1005;
    // 1000 and 1001 are said on purpose; anything else is a loss.
    if (code !== 1000 && code !== 1001) cause ??= new Error(`The WebSocket ended with code ${code}.`);
    saidGoodbye = true;
    if (!closing && !closed) {
      flush();
      closing = true;
      webSocket.close(1000);
    }
    socket.end();
  };
  let saidGoodbye = false;
  const parser = new WsParser(!isClient, MAX_MESSAGE_BYTES, unmask, {
    part(bytes, more) {
      if (saidGoodbye) return;
      if (receiver !== null && inParts && parts.length === 0) return receiver(bytes, more);
      if (!more && parts.length === 0) return message(bytes);
      parts.push(bytes);
      if (more) return;
      const whole = Buffer.concat(parts);
      parts = [];
      message(whole);
    },
    control(opcode, payload) {
      if (opcode === OPCODE.close) goodbye(payload);
      else if (opcode === OPCODE.ping) {
        send(OPCODE.pong, payload);
        if (socket.writableLength > MAX_UNREAD_BYTES)
          fail(new Error("The peer makes us answer and does not read the answers."));
      }
    },
  });
  const takeOver = (): void => {
    // The package's own reader goes; what it does when the socket ends stays.
    socket.removeAllListeners("data");
    socket.on("data", (chunk) => {
      if (closed || cause !== null || saidGoodbye) return;
      try {
        parser.push(chunk);
      } catch (caught) {
        fail(caught as Error);
      }
    });
  };
  if (webSocket.readyState === OPEN) takeOver();
  else webSocket.on("open", takeOver);

  webSocket.on("error", (error) => {
    cause ??= error;
  });
  webSocket.on("close", (code) => {
    closed = true;
    block = null;
    if (!saidGoodbye && code !== 1000 && code !== 1001) cause ??= new Error(`The WebSocket ended with code ${code}.`);
    onClose?.(cause);
  });

  return {
    send: (payload) => send(OPCODE.binary, payload),
    cork() {
      corked = true;
      socket.cork();
    },
    uncork() {
      corked = false;
      flush();
      socket.uncork();
    },
    get bufferedBytes() {
      return socket.writableLength + (block === null ? 0 : blockAt);
    },
    onMessage(next, options) {
      receiver = next;
      inParts = options?.inParts === true;
      while (receiver !== null && early.length > 0) receiver(early.shift()!, false);
    },
    onDrain: (listener) => void socket.on("drain", listener),
    onClose(listener) {
      onClose = listener;
      if (closed) listener(cause);
    },
    close() {
      if (closing || closed) return;
      flush();
      closing = true;
      webSocket.close(1000);
    },
    destroy: () => webSocket.terminate(),
    remoteAddress,
  };
}
