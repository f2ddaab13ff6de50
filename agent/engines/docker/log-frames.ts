// The Engine's answer to "logs with timestamps": frames of {stream, length}, each one message: a time, a blank, the
// bytes. A line over 16 KiB comes as several messages of one time.
const HEADER_BYTES = 8;
const MAX_FRAME_BYTES = 4 * 1024 ** 2;

export interface LogFrame {
  stream: "stdout" | "stderr";
  /** Nanoseconds, UTC, of fixed width: later is greater as text. */
  at: string;
  bytes: Buffer;
}

/** The Engine answered, and what it gave is no log: also its way to say that it cannot read on (a frame of kind 3). */
export class DamagedLog extends Error {}

/** Feed it what arrives. Throws DamagedLog, behind the frames that came before, when it is not what the Engine speaks. */
export class FrameReader {
  #rest: Buffer = Buffer.alloc(0);

  *push(chunk: Buffer): Generator<LogFrame> {
    let rest = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]);
    while (rest.length >= HEADER_BYTES) {
      const length = rest.readUInt32BE(4);
      if (rest[0]! > 2 || length > MAX_FRAME_BYTES) throw new DamagedLog("the Engine's log is not in frames");
      if (rest.length < HEADER_BYTES + length) break;
      yield frameOf(rest[0]!, rest.subarray(HEADER_BYTES, HEADER_BYTES + length));
      rest = rest.subarray(HEADER_BYTES + length);
    }
    // A copy: what is left must not keep the whole chunk.
    this.#rest = Buffer.from(rest);
  }
}

function frameOf(stream: number, message: Buffer): LogFrame {
  const blank = message.subarray(0, 48).indexOf(0x20);
  const at = blank === -1 ? null : timeOf(message.toString("latin1", 0, blank));
  if (at === null) throw new DamagedLog("a message of the Engine's log has no time");
  return { stream: stream === 2 ? "stderr" : "stdout", at, bytes: message.subarray(blank + 1) };
}

function timeOf(text: string): string | null {
  const found = /^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)$/.exec(text);
  if (found === null) return null;
  const nanos = (found[2] ?? "").padEnd(9, "0");
  const utc = found[3] === "Z" ? found[1]! : new Date(`${found[1]}${found[3]}`).toISOString().slice(0, 19);
  return `${utc}.${nanos}Z`;
}

/** Whole seconds, for the Engine's `since`. */
export const secondsOf = (at: string): number => Math.floor(Date.parse(`${at.slice(0, 19)}Z`) / 1000);
