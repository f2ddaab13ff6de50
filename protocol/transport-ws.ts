// A Transport over a WebSocket of the package `ws`. Both ends use it; the package itself is not imported here, only the
// shape of what it gives, so that `protocol` needs nothing but zod.
import type { Transport } from "./transport.ts";

/** The part of `ws`'s WebSocket that is used. */
export interface WebSocketLike {
  readonly bufferedAmount: number;
  send(data: Uint8Array): void;
  close(code?: number, reason?: string): void;
  terminate(): void;
  on(event: "message", listener: (data: Buffer, isBinary: boolean) => void): unknown;
  on(event: "close", listener: (code: number, reason: Buffer) => void): unknown;
  on(event: "error", listener: (error: Error) => void): unknown;
}

/** The part of the net or TLS socket under it that is used. */
export interface SocketLike {
  readonly remoteAddress?: string | undefined;
  cork(): void;
  uncork(): void;
  on(event: "drain", listener: () => void): unknown;
}

/** Messages that came before anybody asked for them; more means the peer talks out of turn. */
const MAX_EARLY_MESSAGES = 64;

export function webSocketTransport(webSocket: WebSocketLike, socket: SocketLike): Transport {
  let receiver: ((message: Buffer) => void) | null = null;
  const early: Buffer[] = [];
  let cause: Error | null = null;
  let closed = false;
  let onClose: ((cause: Error | null) => void) | null = null;
  const remoteAddress = socket.remoteAddress ?? "";

  webSocket.on("message", (data, isBinary) => {
    if (!isBinary) {
      cause ??= new Error("The peer sent a text message.");
      webSocket.terminate();
    } else if (receiver !== null) receiver(data);
    else if (early.length < MAX_EARLY_MESSAGES) early.push(data);
    else {
      cause ??= new Error("The peer sent messages before it was asked.");
      webSocket.terminate();
    }
  });
  webSocket.on("error", (error) => {
    cause ??= error;
  });
  webSocket.on("close", (code) => {
    closed = true;
    // 1000 and 1001 are said on purpose; anything else, a plain cut (1006) included, is a loss.
    if (code !== 1000 && code !== 1001) cause ??= new Error(`The WebSocket ended with code ${code}.`);
    onClose?.(cause);
  });

  return {
    send: (message) => {
      if (!closed) webSocket.send(message);
    },
    cork: () => socket.cork(),
    uncork: () => socket.uncork(),
    get bufferedBytes() {
      return webSocket.bufferedAmount;
    },
    onMessage(next) {
      receiver = next;
      while (receiver !== null && early.length > 0) receiver(early.shift()!);
    },
    onDrain: (listener) => void socket.on("drain", listener),
    onClose(listener) {
      onClose = listener;
      if (closed) listener(cause);
    },
    close: () => webSocket.close(1000),
    destroy: () => webSocket.terminate(),
    remoteAddress,
  };
}
