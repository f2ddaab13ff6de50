// One output stream of an attempt, from raw bytes to redacted pieces of lines. Pure: no file, no time. Each piece carries
// a cursor from which a later splitter goes on exactly behind it, whatever the chunks were.
import type { RedactionStream, Redactor } from "../redaction/redactor.ts";

/** Longest body of a record, in bytes of redacted text before escapes. */
export const MAX_PIECE_BYTES = 16 * 1024;

/**
 * Redaction changes lengths, so a place behind a piece is not a place in the source. It is told as: start a new redaction
 * at source offset `from`, and drop its first `out` bytes. `from` moves up at line ends at which nothing is held back.
 */
export interface Cursor {
  from: number;
  out: number;
  /** The line that the next piece belongs to has begun in a piece before. */
  open: boolean;
}
export const START: Cursor = { from: 0, out: 0, open: false };

export interface Piece {
  text: string;
  continued: boolean;
  /** Behind this piece. */
  cursor: Cursor;
}

const EMPTY = Buffer.alloc(0);

export class LineSplitter {
  readonly #redactor: Redactor;
  #stream: RedactionStream;
  #from: number;
  /** Redacted bytes since `from` that are in pieces, or were line ends. */
  #out: number;
  #open: boolean;
  /** Source bytes pushed since `from`. */
  #pushed = 0;
  /** Redacted bytes still to be dropped: they were in pieces of an earlier splitter. */
  #skip: number;
  /** Let out by the redactor and not yet in a piece. */
  #pending: Buffer = EMPTY;

  constructor(redactor: Redactor, cursor: Cursor = START) {
    this.#redactor = redactor;
    this.#stream = redactor.stream();
    this.#from = cursor.from;
    this.#out = cursor.out;
    this.#skip = cursor.out;
    this.#open = cursor.open;
  }

  /** Where in the source the next chunk begins. */
  get offset(): number {
    return this.#from + this.#pushed;
  }

  /** Text that could be shown now, were its line at an end. */
  get hasPending(): boolean {
    return this.#pending.length > 0;
  }

  push(chunk: Buffer): Piece[] {
    const pieces: Piece[] = [];
    const lineEnd = chunk.lastIndexOf(10) + 1;
    if (lineEnd > 0) {
      this.#take(chunk.subarray(0, lineEnd), pieces);
      if (this.#stream.heldBytes === 0 && this.#pending.length === 0 && this.#skip === 0) {
        this.#from += this.#pushed;
        this.#pushed = 0;
        this.#out = 0;
        this.#stream = this.#redactor.stream();
        // The last piece stands at the same place, told the shorter way.
        const last = pieces.at(-1);
        if (last !== undefined) last.cursor = { from: this.#from, out: 0, open: false };
      }
    }
    if (lineEnd < chunk.length) this.#take(chunk.subarray(lineEnd), pieces);
    return pieces;
  }

  /** The stream has been silent: what may be shown of the unfinished line, is. */
  idle(): Piece[] {
    const pieces: Piece[] = [];
    const end = wholeCharacters(this.#pending, this.#pending.length);
    if (end > 0) this.#cut(end, true, pieces);
    return pieces;
  }

  /** Nothing more comes. */
  end(): Piece[] {
    const pieces: Piece[] = [];
    this.#consume(this.#stream.flush(), pieces);
    if (this.#pending.length > 0) this.#cut(this.#pending.length, true, pieces);
    return pieces;
  }

  #take(bytes: Buffer, pieces: Piece[]): void {
    this.#pushed += bytes.length;
    this.#consume(this.#stream.push(bytes), pieces);
  }

  #consume(released: Buffer, pieces: Piece[]): void {
    let bytes = released;
    if (this.#skip > 0) {
      const dropped = Math.min(this.#skip, bytes.length);
      this.#skip -= dropped;
      bytes = bytes.subarray(dropped);
    }
    if (bytes.length === 0) return;
    this.#pending = this.#pending.length === 0 ? bytes : Buffer.concat([this.#pending, bytes]);
    for (;;) {
      const lineEnd = this.#pending.indexOf(10);
      const length = lineEnd === -1 ? this.#pending.length : lineEnd;
      if (length > MAX_PIECE_BYTES) {
        this.#cut(wholeCharacters(this.#pending, MAX_PIECE_BYTES), true, pieces);
      } else if (lineEnd === -1) {
        // Let go of a large chunk of which only the tail is left.
        if (this.#pending.length > 0) this.#pending = Buffer.from(this.#pending);
        return;
      } else if (lineEnd === 0 && this.#open) {
        // The end of a line that was shown already.
        this.#pending = this.#pending.subarray(1);
        this.#out += 1;
        this.#open = false;
      } else {
        this.#cut(lineEnd, false, pieces);
      }
    }
  }

  /** Makes a piece of the first `length` pending bytes; `open`: they are not the end of their line. */
  #cut(length: number, open: boolean, pieces: Piece[]): void {
    let body = this.#pending.subarray(0, length);
    const used = open ? length : length + 1;
    this.#pending = this.#pending.subarray(used);
    this.#out += used;
    const continued = this.#open;
    this.#open = open;
    if (!open && body.at(-1) === 13) body = body.subarray(0, -1);
    pieces.push({ text: readable(body), continued, cursor: { from: this.#from, out: this.#out, open } });
  }
}

/** The largest length up to `length` that does not cut a UTF-8 character; `length` itself where the bytes are no UTF-8. */
function wholeCharacters(bytes: Buffer, length: number): number {
  for (let back = 1; back <= 3 && back <= length; back++) {
    const byte = bytes[length - back]!;
    if ((byte & 0xc0) === 0x80) continue;
    const needs = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1;
    return needs > back ? length - back : length;
  }
  return length;
}

/** Colours stay; all else that could steer a terminal is written out. Invalid UTF-8 becomes U+FFFD. */
function readable(bytes: Buffer): string {
  // oxlint-disable-next-line no-control-regex -- control characters are what this is about
  return bytes.toString("utf8").replace(/\x1b\[[0-9;]*m|[\0-\x08\n-\x1f\x7f-\x9f]/g, (found) => {
    if (found.length > 1) return found;
    if (found === "\r") return "\\r";
    return `\\x${found.charCodeAt(0).toString(16).padStart(2, "0")}`;
  });
}
