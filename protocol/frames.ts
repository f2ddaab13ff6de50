// The words of the wire: frame types, flags, limits, and what each control payload holds.
//
//   0        1        2                 6                 10 (DATA only)
//   +--------+--------+-----------------+-----------------+-- ... --+-----------+
//   | type   | flags  | stream id  u32  | timestamp  u32  | payload | MAC  16   |
//   +--------+--------+-----------------+-----------------+-- ... --+-----------+
//
// One frame is one message of the transport; a DATA frame with the flag `detached` has its payload in the next message
// (a u32 length stands where the payload would), so that large payloads are never copied. The MAC is there exactly when
// the flag `maced` is set. Integers are big-endian.
import { z } from "zod";

export const FRAME = {
  // before authentication, in this order; stream 0
  hello: 1,
  challenge: 2,
  proof: 3,
  ready: 4,
  refuse: 5,
  // after
  open: 8,
  data: 9,
  credit: 10,
  ack: 11,
  end: 12,
  reset: 13,
  ping: 14,
  pong: 15,
  goAway: 16,
} as const;
export type FrameType = (typeof FRAME)[keyof typeof FRAME];

export const FRAME_NAMES: Readonly<Record<FrameType, string>> = {
  1: "HELLO",
  2: "CHALLENGE",
  3: "PROOF",
  4: "READY",
  5: "REFUSE",
  8: "OPEN",
  9: "DATA",
  10: "CREDIT",
  11: "ACK",
  12: "END",
  13: "RESET",
  14: "PING",
  15: "PONG",
  16: "GOAWAY",
};

export const FLAG = {
  /** OPEN: no DATA and no END follow from this side. */
  fin: 0x01,
  /** OPEN that opens: the stream's DATA belong to the bulk lane. */
  bulk: 0x02,
  /** DATA: the payload is the next message. */
  detached: 0x04,
  /** The last 16 bytes of this message are its MAC. */
  maced: 0x80,
} as const;

export const HEADER_BYTES = 6;
export const DATA_HEADER_BYTES = 10;
export const DETACHED_HEADER_BYTES = 14;
export const MAC_BYTES = 16;

/** Largest payload of one DATA frame. */
export const MAX_DATA_BYTES = 256 * 1024;
/** Largest head of a stream (OPEN, either way): a body of 512 KiB with its JSON escapes, and two signed texts. */
export const MAX_HEAD_BYTES = 2 * 1024 * 1024;
/** Largest payload of every other control frame of a session. */
export const MAX_CONTROL_BYTES = 16 * 1024;
/** Largest first message of each side, when nobody is known yet. */
export const MAX_HELLO_BYTES = 8 * 1024;
/** Largest PROOF and READY: the cloud has proved itself, the agent reports what it holds. */
export const MAX_PROOF_BYTES = 64 * 1024;
/** What the transport itself must refuse beyond. */
export const MAX_MESSAGE_BYTES = MAX_HEAD_BYTES + DETACHED_HEADER_BYTES + MAC_BYTES;
/** All that one side may have received before the peer is authenticated: any more and the socket is cut. */
export const MAX_GREETING_BYTES = 128 * 1024;

export const maxPayloadBytes = (type: FrameType): number => {
  switch (type) {
    case FRAME.data:
      return MAX_DATA_BYTES;
    case FRAME.open:
      return MAX_HEAD_BYTES;
    case FRAME.hello:
    case FRAME.challenge:
    case FRAME.refuse:
      return MAX_HELLO_BYTES;
    case FRAME.proof:
    case FRAME.ready:
      return MAX_PROOF_BYTES;
    default:
      return MAX_CONTROL_BYTES;
  }
};

/** A frame as it was read. Always this one shape, so that the reader's hot path stays monomorphic. */
export interface Frame {
  readonly type: FrameType;
  readonly flags: number;
  /** 0 = the session itself. */
  readonly stream: number;
  /** DATA: the sender's monotonic clock in µs, modulo 2^32. 0 otherwise. */
  readonly timestampUs: number;
  readonly payload: Buffer;
}

const count = z.int().nonnegative();
/** Longest words of a failure that are sent, and read. */
const MAX_MESSAGE_CHARS = 4096;
const MAX_FIX_CHARS = 2048;

/** Stream: the peer may have sent so many bytes in all. */
export const creditSchema = z.object({ limit: count });
/** Session: DATA bytes received in all, the newest timestamp among them, and how long it lay here before this ACK (µs). */
export const ackSchema = z.object({ bytes: count, echo: count, holdUs: count });
/** Stream: bytes sent in all in this direction, and their sum: `gmac` in the bulk lane, `crc32` elsewhere, where both ends can (checksum.ts). */
export const endSchema = z.object({
  bytes: count,
  crc32: count.max(0xffffffff).optional(),
  gmac: z.string().max(32).optional(),
});
export const pingSchema = z.object({ n: count });
/** RESET of a stream, or, on stream 0, the end of the session; REFUSE and GOAWAY have the same shape. */
export const failureSchema = z.object({
  code: z.string().max(64),
  message: z.string().max(MAX_MESSAGE_CHARS),
  fix: z.string().max(MAX_FIX_CHARS).optional(),
  details: z.record(z.string(), z.unknown()).optional(),
  /** REFUSE and GOAWAY: do not dial again before this many ms. */
  retryAfterMs: count.max(24 * 3600 * 1000).optional(),
});
export type Failure = z.infer<typeof failureSchema>;

/**
 * The JSON of a failure, cut to what its frame may hold and its reader takes. Its words may quote what a stranger sent:
 * however long that was, saying so must not fail.
 */
export function failureJson(failure: Failure, type: FrameType): string {
  const cut = (text: string, most: number): string => (text.length <= most ? text : `${text.slice(0, most - 1)}…`);
  const { code, message, fix, details, retryAfterMs } = failure;
  const words = (messageChars: number, fixChars: number) => ({
    code,
    message: cut(message, messageChars),
    ...(fix === undefined ? {} : { fix: cut(fix, fixChars) }),
    ...(retryAfterMs === undefined ? {} : { retryAfterMs }),
  });
  const whole = words(MAX_MESSAGE_CHARS, MAX_FIX_CHARS);
  // One character is six bytes at most, as an escape of JSON.
  const tries = [details === undefined ? whole : { ...whole, details }, whole, words(640, 320)];
  const texts = tries.map((one) => JSON.stringify(one));
  return texts.find((text) => Buffer.byteLength(text) <= maxPayloadBytes(type)) ?? texts.at(-1)!;
}
