// The transport between two processes, from both ends: a WebSocket on a port of its own. TLS there is a certificate made
// at each start; the handshake binds it, so no authority is needed.
import { createHash } from "node:crypto";
import type { Duplex } from "node:stream";
import type { TLSSocket } from "node:tls";
import {
  ConnectorError,
  MAX_MESSAGE_BYTES,
  webSocketTransport,
  type Clock,
  type SocketLike,
  type Transport,
} from "@sallyport/protocol";
import WebSocket from "ws";

/** From the TCP connection to the end of the handshake. */
export const PEER_GREETING_MS = 4_000;
/** All that may come before the other process has proved itself. */
export const MAX_PEER_GREETING_BYTES = 16 * 1024;
/** Streams that one process may have open at another: those of many agents share it. */
export const PEER_STREAMS = 8192;

export const SOCKET_OPTIONS = {
  perMessageDeflate: false,
  maxPayload: MAX_MESSAGE_BYTES,
  maxFragments: 1024,
  maxBufferedChunks: 16 * 1024,
  skipUTF8Validation: true,
} as const;

export const certificateDigest = (der: Uint8Array): string => createHash("sha256").update(der).digest("hex");

export interface Dialled {
  readonly transport: Transport;
  /** Of what the other end showed; null without TLS. */
  readonly certificate: string | null;
}

/** `url`: ws:// or wss://. */
export function dialPeer(url: string, signal: AbortSignal): Promise<Dialled> {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(`${url}/peer`, {
      ...SOCKET_OPTIONS,
      handshakeTimeout: PEER_GREETING_MS,
      followRedirects: false,
      // Its identity is proved by the handshake, which names this very certificate.
      rejectUnauthorized: false,
      // Masks that hide nothing cost time: there is no proxy that could be fooled by what a process sends.
      generateMask: (mask: Buffer) => void mask.fill(0),
    } as WebSocket.ClientOptions);
    let raw: Duplex | null = null;
    const onAbort = (): void => socket.terminate();
    signal.addEventListener("abort", onAbort, { once: true });
    socket.on("upgrade", (response) => {
      raw = response.socket;
      response.socket.setNoDelay(true);
    });
    socket.once("error", (cause) => {
      signal.removeEventListener("abort", onAbort);
      reject(new ConnectorError("LINK_LOST", `No connection to another process at ${url}.`, { cause }));
    });
    socket.once("open", () => {
      signal.removeEventListener("abort", onAbort);
      const peer = (raw as Partial<TLSSocket> | null)?.getPeerX509Certificate?.();
      resolve({
        transport: webSocketTransport(socket, raw as unknown as SocketLike),
        certificate: peer === undefined ? null : certificateDigest(peer.raw),
      });
    });
  });
}

/** Messages one after the other, until the greeting is over. */
export function greeter(transport: Transport, clock: Clock): { next(): Promise<Buffer>; done(): void } {
  let fail!: (error: ConnectorError) => void;
  const over = new Promise<never>((_resolve, reject) => {
    fail = reject;
  });
  over.catch(() => {});
  const broken = (why: string, cause?: unknown) =>
    fail(new ConnectorError("HANDSHAKE_FAILED", `The link between two processes was not made: ${why}.`, { cause }));
  const deadline = clock.after(PEER_GREETING_MS, () => broken("the other one did not finish the handshake in time"), {
    keepAlive: true,
  });
  let bytes = 0;
  transport.onClose((cause) => broken("the connection broke", cause));
  return {
    next: () =>
      Promise.race([
        over,
        new Promise<Buffer>((resolve) =>
          transport.onMessage((message) => {
            transport.onMessage(null);
            bytes += message.length;
            if (bytes > MAX_PEER_GREETING_BYTES) broken("the other one said too much");
            else resolve(message);
          }),
        ),
      ]),
    done: () => deadline.cancel(),
  };
}
