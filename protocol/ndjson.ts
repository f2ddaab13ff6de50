// Newline-delimited JSON over a stream: how records travel in DATA.
import { ConnectorError } from "./errors.ts";

/** Longest line of a record stream. */
export const MAX_LINE_BYTES = 1024 * 1024;

export const ndjsonLine = (value: unknown): Buffer => Buffer.from(`${JSON.stringify(value)}\n`);

/** Values of the lines of `bytes`. Throws PROTOCOL_ERROR for a line that is too long, no JSON, or cut off. */
export async function* readNdjson(
  bytes: AsyncIterable<Uint8Array>,
  maxBytes = MAX_LINE_BYTES,
): AsyncGenerator<unknown> {
  let pending: Uint8Array[] = [];
  let pendingBytes = 0;
  for await (const chunk of bytes) {
    let from = 0;
    for (let at = chunk.indexOf(10); at !== -1; at = chunk.indexOf(10, from)) {
      const line = Buffer.concat([...pending, chunk.subarray(from, at)]);
      pending = [];
      pendingBytes = 0;
      from = at + 1;
      if (line.length > maxBytes) throw tooLong(maxBytes);
      if (line.length > 0) yield parse(line);
    }
    if (from < chunk.length) {
      pending.push(chunk.subarray(from));
      pendingBytes += chunk.length - from;
      if (pendingBytes > maxBytes) throw tooLong(maxBytes);
    }
  }
  if (pendingBytes > 0) throw new ConnectorError("PROTOCOL_ERROR", "The record stream ended in the middle of a line.");
}

const tooLong = (maxBytes: number) =>
  new ConnectorError("PROTOCOL_ERROR", `A record is longer than ${maxBytes} bytes.`);

function parse(line: Buffer): unknown {
  try {
    return JSON.parse(line.toString("utf8")) as unknown;
  } catch (cause) {
    throw new ConnectorError("PROTOCOL_ERROR", "A record is not JSON.", { cause });
  }
}
