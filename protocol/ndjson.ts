// Newline-delimited JSON over a stream: how records travel in DATA.
import { ConnectorError } from "./errors.ts";

/** Longest line of a record stream. */
export const MAX_LINE_BYTES = 1024 * 1024;

export const ndjsonLine = (value: unknown): Buffer => Buffer.from(`${JSON.stringify(value)}\n`);

/** Chunks in, values of lines out. Throws PROTOCOL_ERROR for a line that is too long, no JSON, or cut off. */
export class NdjsonReader {
  readonly #maxBytes: number;
  /** Room for the line under way, and how much of it came. Copied, so that a peer's tiny frames cost no more than their bytes. */
  #room: Buffer | null = null;
  #heldBytes = 0;

  constructor(maxBytes = MAX_LINE_BYTES) {
    this.#maxBytes = maxBytes;
  }

  /** Values of the lines that end in `chunk`. */
  *read(chunk: Uint8Array): Generator<unknown, void> {
    let from = 0;
    for (let at = chunk.indexOf(10); at !== -1; at = chunk.indexOf(10, from)) {
      const line = this.#line(chunk, from, at);
      from = at + 1;
      if (line !== "") yield parse(line);
    }
    this.#hold(chunk, from, chunk.length);
  }

  /** The line that ends at `to`. */
  #line(chunk: Uint8Array, from: number, to: number): string {
    if (this.#room === null) {
      if (to - from > this.#maxBytes) throw tooLong(this.#maxBytes);
      return Buffer.from(chunk.buffer, chunk.byteOffset + from, to - from).toString();
    }
    this.#hold(chunk, from, to);
    const line = this.#room.toString("utf8", 0, this.#heldBytes);
    this.#room = null;
    this.#heldBytes = 0;
    return line;
  }

  #hold(chunk: Uint8Array, from: number, to: number): void {
    const bytes = this.#heldBytes + to - from;
    if (bytes > this.#maxBytes) throw tooLong(this.#maxBytes);
    if (to === from) return;
    if (this.#room === null || this.#room.length < bytes) {
      const larger = Buffer.allocUnsafeSlow(Math.min(this.#maxBytes, 2 * bytes));
      this.#room?.copy(larger, 0, 0, this.#heldBytes);
      this.#room = larger;
    }
    this.#room.set(chunk.subarray(from, to), this.#heldBytes);
    this.#heldBytes = bytes;
  }

  /** No chunk follows. */
  end(): void {
    if (this.#heldBytes > 0)
      throw new ConnectorError("PROTOCOL_ERROR", "The record stream ended in the middle of a line.");
  }
}

/** Values of the lines of `bytes`. Throws as NdjsonReader. */
export async function* readNdjson(
  bytes: AsyncIterable<Uint8Array>,
  maxBytes = MAX_LINE_BYTES,
): AsyncGenerator<unknown> {
  const lines = new NdjsonReader(maxBytes);
  for await (const chunk of bytes) for (const value of lines.read(chunk)) yield value;
  lines.end();
}

const tooLong = (maxBytes: number) =>
  new ConnectorError("PROTOCOL_ERROR", `A record is longer than ${maxBytes} bytes.`);

function parse(line: string): unknown {
  try {
    return JSON.parse(line) as unknown;
  } catch (cause) {
    throw new ConnectorError("PROTOCOL_ERROR", "A record is not JSON.", { cause });
  }
}
