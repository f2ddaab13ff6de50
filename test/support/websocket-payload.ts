// Reads what a WebSocket client sent from the recorded bytes of its connection: HTTP until the upgrade, then RFC 6455
// frames, with their masks undone. Without that a search for plaintext in a recording would find nothing at all.

const MAX_HEAD_BYTES = 256 * 1024;

interface Frame {
  readonly mask: Buffer | undefined;
  /** Payload bytes already seen of this frame. */
  seen: number;
  readonly length: number;
}

/** Feed it the bytes of one connection and one direction in order. It hands out HTTP bytes and payloads, in order. */
export class WebSocketPayloadReader {
  /** Frames begun so far. */
  frames = 0;
  readonly #out: (bytes: Buffer) => void;
  #upgraded = false;
  #rest: Buffer = Buffer.alloc(0);
  #frame: Frame | undefined;

  constructor(out: (bytes: Buffer) => void) {
    this.#out = out;
  }

  /** True after the request (or, in the other direction, the answer) that turns HTTP into WebSocket. */
  get upgraded(): boolean {
    return this.#upgraded;
  }

  write(chunk: Uint8Array): void {
    let bytes: Buffer = this.#rest.length > 0 ? Buffer.concat([this.#rest, chunk]) : Buffer.from(chunk);
    this.#rest = Buffer.alloc(0);
    if (!this.#upgraded) bytes = this.#http(bytes);
    if (this.#upgraded) this.#websocket(bytes);
  }

  /** HTTP bytes that were held back while their head was not whole. */
  end(): void {
    if (!this.#upgraded && this.#rest.length > 0) this.#out(this.#rest);
    this.#rest = Buffer.alloc(0);
  }

  /** Hands out whole heads (and the bodies between them) and returns what follows the upgrade. */
  #http(bytes: Buffer): Buffer {
    let from = 0;
    for (;;) {
      const end = bytes.indexOf("\r\n\r\n", from);
      if (end < 0) break;
      const head = bytes.subarray(from, end + 4);
      this.#out(head);
      from = end + 4;
      if (/\r\nupgrade:[ \t]*websocket[ \t]*\r\n/i.test(head.toString("latin1"))) {
        this.#upgraded = true;
        return bytes.subarray(from);
      }
    }
    const rest = bytes.subarray(from);
    // A long body holds no head; what is kept back is only what could still be the beginning of one.
    const surplus = rest.length - MAX_HEAD_BYTES;
    if (surplus > 0) this.#out(rest.subarray(0, surplus));
    this.#rest = surplus > 0 ? rest.subarray(surplus) : rest;
    return Buffer.alloc(0);
  }

  #websocket(bytes: Buffer): void {
    let at = 0;
    while (at < bytes.length) {
      if (!this.#frame) {
        const header = readHeader(bytes.subarray(at));
        if (!header) {
          this.#rest = bytes.subarray(at);
          return;
        }
        at += header.bytes;
        this.frames += 1;
        this.#frame = { mask: header.mask, length: header.length, seen: 0 };
      }
      const frame = this.#frame;
      const piece = Buffer.from(bytes.subarray(at, at + frame.length - frame.seen));
      if (frame.mask) {
        for (let i = 0; i < piece.length; i += 1) {
          piece[i] = (piece[i] ?? 0) ^ (frame.mask[(frame.seen + i) & 3] ?? 0);
        }
      }
      if (piece.length > 0) this.#out(piece);
      at += piece.length;
      frame.seen += piece.length;
      if (frame.seen === frame.length) this.#frame = undefined;
    }
  }
}

/** Undefined while the header is not whole. */
function readHeader(bytes: Buffer): { bytes: number; length: number; mask: Buffer | undefined } | undefined {
  const [first, second] = bytes;
  if (first === undefined || second === undefined) return undefined;
  // A compressed message would hide its text from every search: better to fail than to find nothing.
  if ((first & 0x40) !== 0) throw new Error("a WebSocket frame is compressed: its content cannot be searched");
  let at = 2;
  let length = second & 0x7f;
  if (length === 126) {
    if (bytes.length < 4) return undefined;
    length = bytes.readUInt16BE(2);
    at = 4;
  } else if (length === 127) {
    if (bytes.length < 10) return undefined;
    length = Number(bytes.readBigUInt64BE(2));
    at = 10;
  }
  if ((second & 0x80) === 0) return { bytes: at, length, mask: undefined };
  if (bytes.length < at + 4) return undefined;
  return { bytes: at + 4, length, mask: Buffer.from(bytes.subarray(at, at + 4)) };
}
