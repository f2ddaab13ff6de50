// Bytes to frames and back: the one place that checks sizes, flags, MACs and control payloads.
import { createHmac, createSecretKey, hash, timingSafeEqual, type KeyObject } from "node:crypto";
import type { z } from "zod";
import { ConnectorError } from "./errors.ts";
import {
  DATA_HEADER_BYTES,
  DETACHED_HEADER_BYTES,
  FLAG,
  FRAME,
  FRAME_NAMES,
  HEADER_BYTES,
  MAC_BYTES,
  maxPayloadBytes,
  type Frame,
  type FrameType,
} from "./frames.ts";

/** Payloads up to this size are copied behind their header: cheaper than a second message. Measured with `ws`. */
export const INLINE_BYTES = 4 * 1024;

const EMPTY = Buffer.alloc(0);

const violation = (what: string): ConnectorError =>
  new ConnectorError("PROTOCOL_ERROR", `The peer broke the protocol: ${what}.`);

/**
 * Up to this size the MAC is made of two one-shot hashes in buffers kept for it: about 3.5 µs a frame against 4.1 µs with
 * a Hmac object (measured, loaded machine).
 */
const SMALL_MAC_BYTES = 4 * 1024;
const BLOCK_BYTES = 64;
const COUNTER_BYTES = 8;
const DIGEST_BYTES = 32;

// Filled and read within one call, so all links share them: 10,000 idle ones would hold 80 MiB of their own.
const INNER = Buffer.allocUnsafeSlow(BLOCK_BYTES + COUNTER_BYTES + SMALL_MAC_BYTES);
const OUTER = Buffer.allocUnsafeSlow(BLOCK_BYTES + DIGEST_BYTES);
const TAG = Buffer.allocUnsafeSlow(DIGEST_BYTES);

/** One direction's authentication: HMAC-SHA-256 over a counter and the frame, cut to 16 bytes. */
export class FrameMac {
  // HMAC(k, m) = H(k^opad | H(k^ipad | m)); here m = counter | frame. k^ipad and k^opad, a character for each byte: a
  // buffer of its own takes half a KiB, which an idle link has two of.
  readonly #inner: string;
  readonly #outer: string;
  /** For frames too large for the buffers; made with the first of them. */
  #key: KeyObject | null = null;
  #next = 0;

  /** `key`: 32 bytes. */
  constructor(key: Uint8Array) {
    const padded = new Uint8Array(BLOCK_BYTES);
    padded.set(key);
    this.#inner = Buffer.from(padded.map((byte) => byte ^ 0x36)).toString("latin1");
    this.#outer = Buffer.from(padded.map((byte) => byte ^ 0x5c)).toString("latin1");
  }

  /** Tag of the next frame, valid until the next call of any. `head` is everything before the MAC in the frame's first message. */
  next(head: Uint8Array, detached: Uint8Array | null): Buffer {
    INNER.writeUInt32BE(Math.floor(this.#next / 0x1_0000_0000), BLOCK_BYTES);
    INNER.writeUInt32BE(this.#next >>> 0, BLOCK_BYTES + 4);
    this.#next++;
    const start = BLOCK_BYTES + COUNTER_BYTES;
    if (detached === null && head.length <= SMALL_MAC_BYTES) {
      INNER.write(this.#inner, 0, "latin1");
      OUTER.write(this.#outer, 0, "latin1");
      INNER.set(head, start);
      OUTER.write(hash("sha256", INNER.subarray(0, start + head.length), "hex"), BLOCK_BYTES, "hex");
      TAG.write(hash("sha256", OUTER, "hex"), 0, "hex");
      return TAG;
    }
    this.#key ??= createSecretKey(Buffer.from(this.#inner.slice(0, DIGEST_BYTES), "latin1").map((byte) => byte ^ 0x36));
    const hmac = createHmac("sha256", this.#key).update(INNER.subarray(BLOCK_BYTES, start)).update(head);
    if (detached !== null) hmac.update(detached);
    return hmac.digest();
  }
}

/** Writes one direction's frames. */
export class FrameWriter {
  /** Null: frames go without a MAC. */
  readonly mac: FrameMac | null;

  constructor(mac: FrameMac | null) {
    this.mac = mac;
  }

  /** A frame whose payload is text (JSON). */
  control(type: FrameType, flags: number, stream: number, json: string): Buffer {
    const length = Buffer.byteLength(json);
    if (length > maxPayloadBytes(type)) {
      throw new ConnectorError(
        "FRAME_TOO_LARGE",
        `A ${FRAME_NAMES[type]} of ${length} bytes is over the limit of ${maxPayloadBytes(type)}.`,
        {
          fix: "Send large content as stream bytes, not in a head.",
        },
      );
    }
    const macBytes = this.mac === null ? 0 : MAC_BYTES;
    const message = Buffer.allocUnsafe(HEADER_BYTES + length + macBytes);
    message[0] = type;
    message[1] = this.mac === null ? flags : flags | FLAG.maced;
    message.writeUInt32BE(stream, 2);
    message.write(json, HEADER_BYTES, "utf8");
    if (this.mac !== null)
      this.mac
        .next(message.subarray(0, HEADER_BYTES + length), null)
        .copy(message, HEADER_BYTES + length, 0, MAC_BYTES);
    return message;
  }

  /** Whether `data` of this size returns a message that must be followed by the payload itself as the next one. */
  detaches(payloadBytes: number): boolean {
    return payloadBytes > INLINE_BYTES;
  }

  /** A DATA frame: header and payload, or, when `detaches`, the header message alone. `maced` is false in the bulk lane. */
  data(stream: number, timestampUs: number, payload: Uint8Array, maced: boolean): Buffer {
    const mac = maced ? this.mac : null;
    const macBytes = mac === null ? 0 : MAC_BYTES;
    const flags = mac === null ? 0 : FLAG.maced;
    if (payload.length > INLINE_BYTES) {
      const head = Buffer.allocUnsafe(DETACHED_HEADER_BYTES + macBytes);
      head[0] = FRAME.data;
      head[1] = flags | FLAG.detached;
      head.writeUInt32BE(stream, 2);
      head.writeUInt32BE(timestampUs, 6);
      head.writeUInt32BE(payload.length, 10);
      if (mac !== null)
        mac.next(head.subarray(0, DETACHED_HEADER_BYTES), payload).copy(head, DETACHED_HEADER_BYTES, 0, MAC_BYTES);
      return head;
    }
    const end = DATA_HEADER_BYTES + payload.length;
    const message = Buffer.allocUnsafe(end + macBytes);
    message[0] = FRAME.data;
    message[1] = flags;
    message.writeUInt32BE(stream, 2);
    message.writeUInt32BE(timestampUs, 6);
    message.set(payload, DATA_HEADER_BYTES);
    if (mac !== null) mac.next(message.subarray(0, end), null).copy(message, end, 0, MAC_BYTES);
    return message;
  }
}

/**
 * Reads one direction's frames. `mac` null: a frame with a MAC is a violation. Otherwise every frame but DATA must have a
 * good one, and DATA that has one is checked; that DATA of an interactive stream has one is for the caller, who knows
 * the stream's lane, to see (`flags & FLAG.maced`).
 */
export class FrameReader {
  readonly mac: FrameMac | null;
  /** Of a DATA whose payload is the next message, and how much of that is still to come. */
  #head: Buffer | null = null;
  #leftBytes = 0;
  /** Of a message that must be whole before it is looked at. */
  #parts: Buffer[] = [];

  constructor(mac: FrameMac | null) {
    this.mac = mac;
  }

  /**
   * The next message or, with `more`, a part of it. A detached payload without a MAC is handed on part by part, each as a
   * frame of its own; anything else is gathered. Null: there is more to come before there is a frame. Throws
   * PROTOCOL_ERROR, FRAME_TOO_LARGE.
   */
  read(bytes: Buffer, more = false): Frame | null {
    if (this.#head !== null && (this.#head[1]! & FLAG.maced) === 0) return this.#readPart(this.#head, bytes, more);
    if (more || this.#parts.length > 0) {
      this.#parts.push(bytes);
      if (more) return null;
      const whole = Buffer.concat(this.#parts);
      this.#parts = [];
      return this.#readMessage(whole);
    }
    return this.#readMessage(bytes);
  }

  #readPart(head: Buffer, bytes: Buffer, more: boolean): Frame | null {
    this.#leftBytes -= bytes.length;
    if (this.#leftBytes < 0 || (!more && this.#leftBytes > 0)) throw wrongLength();
    if (!more) this.#head = null;
    if (bytes.length === 0) return null;
    return {
      type: FRAME.data,
      flags: head[1]!,
      stream: head.readUInt32BE(2),
      timestampUs: head.readUInt32BE(6),
      payload: bytes,
    };
  }

  #readMessage(message: Buffer): Frame | null {
    if (this.#head !== null) return this.#readDetached(this.#head, message);
    if (message.length < HEADER_BYTES) throw violation(`a message of ${message.length} bytes is shorter than a header`);
    const type = message[0] as FrameType;
    const flags = message[1]!;
    if (FRAME_NAMES[type] === undefined) throw violation(`frame type ${message[0]} does not exist`);
    const maced = (flags & FLAG.maced) !== 0;
    const isData = type === FRAME.data;
    if (maced !== (this.mac !== null) && !(isData && !maced)) {
      throw violation(maced ? "a frame has a MAC where none was agreed" : `a ${FRAME_NAMES[type]} has no MAC`);
    }
    const end = message.length - (maced ? MAC_BYTES : 0);
    if ((flags & FLAG.detached) !== 0) {
      if (!isData) throw violation(`a ${FRAME_NAMES[type]} cannot have a detached payload`);
      if (end !== DETACHED_HEADER_BYTES) throw violation("a detached DATA header has the wrong length");
      if (message.readUInt32BE(10) > maxPayloadBytes(type)) throw tooLarge(type, message.readUInt32BE(10));
      this.#head = message;
      this.#leftBytes = message.readUInt32BE(10);
      return null;
    }
    const start = isData ? DATA_HEADER_BYTES : HEADER_BYTES;
    if (end < start) throw violation(`a ${FRAME_NAMES[type]} of ${message.length} bytes is cut off`);
    if (end - start > maxPayloadBytes(type)) throw tooLarge(type, end - start);
    if (maced) this.#verify(message, end, null);
    return {
      type,
      flags,
      stream: message.readUInt32BE(2),
      timestampUs: isData ? message.readUInt32BE(6) : 0,
      payload: end === start ? EMPTY : message.subarray(start, end),
    };
  }

  #readDetached(head: Buffer, payload: Buffer): Frame {
    this.#head = null;
    if (payload.length !== head.readUInt32BE(10)) throw wrongLength();
    if ((head[1]! & FLAG.maced) !== 0) this.#verify(head, DETACHED_HEADER_BYTES, payload);
    return {
      type: FRAME.data,
      flags: head[1]!,
      stream: head.readUInt32BE(2),
      timestampUs: head.readUInt32BE(6),
      payload,
    };
  }

  #verify(message: Buffer, end: number, detached: Buffer | null): void {
    const tag = this.mac!.next(message.subarray(0, end), detached);
    if (!timingSafeEqual(tag.subarray(0, MAC_BYTES), message.subarray(end, end + MAC_BYTES))) {
      throw violation("a frame's MAC is wrong; it was changed, repeated or left out on the way");
    }
  }
}

const wrongLength = (): ConnectorError => violation("a detached payload does not have the length that was announced");

const tooLarge = (type: FrameType, bytes: number): ConnectorError =>
  new ConnectorError(
    "FRAME_TOO_LARGE",
    `The peer sent a ${FRAME_NAMES[type]} of ${bytes} bytes; the limit is ${maxPayloadBytes(type)}.`,
  );

/** JSON of a control payload. Throws PROTOCOL_ERROR. */
export function parseJson(frame: Frame): unknown {
  try {
    return JSON.parse(frame.payload.toString("utf8")) as unknown;
  } catch (cause) {
    throw new ConnectorError(
      "PROTOCOL_ERROR",
      `The peer broke the protocol: a ${FRAME_NAMES[frame.type]} is not JSON.`,
      { cause },
    );
  }
}

/** A control payload of the given shape. Unknown fields are ignored. Throws PROTOCOL_ERROR that names the first bad field. */
export function parseControl<S extends z.ZodType>(frame: Frame, schema: S): z.infer<S> {
  const result = schema.safeParse(parseJson(frame));
  if (!result.success) {
    const issue = result.error.issues[0];
    // A field's name may be the peer's own, of any length.
    throw violation(
      `field ${issue?.path.join(".").slice(0, 200) || "(all)"} of a ${FRAME_NAMES[frame.type]}: ${issue?.message ?? "is not valid"}`,
    );
  }
  return result.data;
}
