// The frames of RFC 6455, from the bytes of a socket to messages, without gathering: what of a message has come is
// handed on at once, as a view of what the socket read. No extension, binary messages alone.

/** Fragments of one message; more is an attempt to cost us. */
const MAX_FRAGMENTS = 1024;
const MAX_CONTROL_BYTES = 125;
/** Two bytes, eight of length, four of mask. */
const MAX_HEADER_BYTES = 14;

export const OPCODE = { continuation: 0, text: 1, binary: 2, close: 8, ping: 9, pong: 10 } as const;

export interface WsEvents {
  /** A part of a binary message. `more`: it goes on in the next. An empty message is one empty part. */
  part(bytes: Buffer, more: boolean): void;
  /** A control frame, its payload whole. */
  control(opcode: number, payload: Buffer): void;
}

// Filled and read within one call, so all parsers share them.
const HEADER = Buffer.alloc(MAX_HEADER_BYTES);
const MASK = Buffer.alloc(4);

export class WsViolation extends Error {
  override readonly name = "WsViolation";
}

export class WsParser {
  readonly #masked: boolean;
  readonly #maxMessageBytes: number;
  readonly #unmask: (buffer: Buffer, mask: Buffer, turn: number) => void;
  readonly #events: WsEvents;

  /** What came of a header whose rest is in the next chunk. Null: none is cut. */
  #cut: Buffer | null = null;
  #mask = 0;
  #opcode = 0;
  #fin = true;
  #leftBytes = -1;
  #frameBytes = 0;
  /** Of the message under way; -1 = none is. */
  #messageBytes = -1;
  #fragments = 0;
  /** Of a control frame under way. */
  #control: Buffer[] | null = null;

  /** `masked`: the peer is the client. */
  constructor(
    masked: boolean,
    maxMessageBytes: number,
    unmask: (buffer: Buffer, mask: Buffer, turn: number) => void,
    events: WsEvents,
  ) {
    this.#masked = masked;
    this.#maxMessageBytes = maxMessageBytes;
    this.#unmask = unmask;
    this.#events = events;
  }

  /** The next bytes of the socket, which are given away: they are unmasked where they lie. Throws WsViolation. */
  push(chunk: Buffer): void {
    let at = 0;
    while (at < chunk.length || this.#leftBytes === 0) {
      if (this.#leftBytes === -1) {
        at = this.#readHeader(chunk, at);
        continue;
      }
      const take = Math.min(this.#leftBytes, chunk.length - at);
      const bytes = take === chunk.length ? chunk : chunk.subarray(at, at + take);
      if (this.#masked && take > 0) {
        MASK.writeInt32BE(this.#mask, 0);
        this.#unmask(bytes, MASK, (this.#frameBytes - this.#leftBytes) & 3);
      }
      at += take;
      this.#leftBytes -= take;
      const over = this.#leftBytes === 0;
      if (over) this.#leftBytes = -1;
      if (this.#opcode >= OPCODE.close) {
        // Copied: a few bytes must not hold what the socket read.
        this.#control ??= [];
        this.#control.push(Buffer.from(bytes));
        if (!over) continue;
        const payload = Buffer.concat(this.#control);
        this.#control = null;
        this.#events.control(this.#opcode, payload);
      } else {
        const last = over && this.#fin;
        if (last) this.#messageBytes = -1;
        this.#events.part(bytes, !last);
      }
    }
  }

  /** Takes what is there of the frame's header; where the header ended. */
  #readHeader(chunk: Buffer, from: number): number {
    let have = 0;
    if (this.#cut !== null) {
      have = this.#cut.copy(HEADER);
      this.#cut = null;
    }
    let at = from;
    while (at < chunk.length) {
      HEADER[have++] = chunk[at++]!;
      if (have < 2) continue;
      if (have === 2) this.#checkStart(HEADER[0]!, HEADER[1]!);
      const short = HEADER[1]! & 0x7f;
      const need = 2 + (short === 126 ? 2 : short === 127 ? 8 : 0) + (this.#masked ? 4 : 0);
      if (have < need) continue;
      this.#begin(short, need);
      return at;
    }
    this.#cut = Buffer.from(HEADER.subarray(0, have));
    return at;
  }

  #checkStart(first: number, second: number): void {
    const opcode = first & 0x0f;
    const fin = (first & 0x80) !== 0;
    const short = second & 0x7f;
    if ((first & 0x70) !== 0) throw new WsViolation("A frame has bits set that nobody agreed on.");
    if (((second & 0x80) !== 0) !== this.#masked)
      throw new WsViolation(this.#masked ? "A frame has no mask." : "A frame has a mask.");
    if (opcode === OPCODE.text) throw new WsViolation("The peer sent a text message.");
    if (opcode === OPCODE.close || opcode === OPCODE.ping || opcode === OPCODE.pong) {
      if (!fin || short > MAX_CONTROL_BYTES) throw new WsViolation("A control frame is fragmented or too long.");
    } else if (opcode === OPCODE.binary) {
      if (this.#messageBytes !== -1) throw new WsViolation("A message began inside another.");
    } else if (opcode === OPCODE.continuation) {
      if (this.#messageBytes === -1) throw new WsViolation("A fragment belongs to no message.");
      if (++this.#fragments > MAX_FRAGMENTS) throw new WsViolation("A message has too many fragments.");
    } else throw new WsViolation(`A frame has the unknown opcode ${opcode}.`);
  }

  #begin(short: number, need: number): void {
    const lengthBytes =
      short === 126
        ? HEADER.readUInt16BE(2)
        : short === 127
          ? HEADER.readUInt32BE(2) * 0x1_0000_0000 + HEADER.readUInt32BE(6)
          : short;
    this.#opcode = HEADER[0]! & 0x0f;
    this.#fin = (HEADER[0]! & 0x80) !== 0;
    if (this.#opcode < OPCODE.close) {
      if (this.#opcode === OPCODE.binary) {
        this.#messageBytes = 0;
        this.#fragments = 0;
      }
      this.#messageBytes += lengthBytes;
      if (this.#messageBytes > this.#maxMessageBytes)
        throw new WsViolation(`A message is longer than ${this.#maxMessageBytes} bytes.`);
    }
    if (this.#masked) this.#mask = HEADER.readInt32BE(need - 4);
    this.#frameBytes = lengthBytes;
    this.#leftBytes = lengthBytes;
  }
}
