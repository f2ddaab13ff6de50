// Segment files of one attempt: `<first seq>.ndjson`, each about a megabyte, so that the names are the index by seq. Over
// its cap a log keeps its beginning and its end: whole segments are dropped between them, and whoever reads over the hole
// is given a gap record. A record on disk has one field more than on the wire: `c`, the cursors behind it.
import { open, readdir, readFile, rm, stat, truncate, writeFile, type FileHandle } from "node:fs/promises";
import { join } from "node:path";
import { lastSeq, type LogRecord } from "@sallyport/protocol";
import { START, type Cursor } from "./line-splitter.ts";

const SEGMENT_BYTES = 1024 * 1024;
/** A log of any cap has at least so many segments. */
const MIN_SEGMENTS = 8;

export interface Cursors {
  stdout: Cursor;
  stderr: Cursor;
}
type PackedCursors = [number, number, 0 | 1, number, number, 0 | 1];
const pack = ({ stdout: o, stderr: e }: Cursors): PackedCursors => [
  o.from,
  o.out,
  o.open ? 1 : 0,
  e.from,
  e.out,
  e.open ? 1 : 0,
];
const unpack = (c: PackedCursors): Cursors => ({
  stdout: { from: c[0], out: c[1], open: c[2] === 1 },
  stderr: { from: c[3], out: c[4], open: c[5] === 1 },
});
type StoredRecord = LogRecord & { c: PackedCursors };

interface Segment {
  first: number;
  bytes: number;
}

const fileName = (first: number): string => `${String(first).padStart(12, "0")}.ndjson`;

/** First numbers of the segments in a folder, rising. */
async function segmentsIn(folder: string): Promise<number[]> {
  const names = await readdir(folder).catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return [];
    throw error;
  });
  return names
    .filter((name) => /^\d{12}\.ndjson$/.test(name))
    .map((name) => Number(name.slice(0, 12)))
    .sort((a, b) => a - b);
}

export class SegmentWriter {
  readonly #folder: string;
  readonly #capBytes: number;
  readonly #segmentBytes: number;
  #segments: Segment[];
  #file: FileHandle | null = null;
  #lastSeq: number;
  #cursors: Cursors;

  private constructor(folder: string, capBytes: number, segments: Segment[], last: number, cursors: Cursors) {
    this.#folder = folder;
    this.#capBytes = capBytes;
    this.#segmentBytes = Math.min(SEGMENT_BYTES, Math.floor(capBytes / MIN_SEGMENTS));
    this.#segments = segments;
    this.#lastSeq = last;
    this.#cursors = cursors;
  }

  /** Goes on behind the last whole record; what is torn behind it is cut off. */
  static async open(folder: string, capBytes: number): Promise<SegmentWriter> {
    const segments: Segment[] = [];
    for (const first of await segmentsIn(folder))
      segments.push({ first, bytes: (await stat(join(folder, fileName(first)))).size });
    for (let last = segments.at(-1); last !== undefined; last = segments.at(-1)) {
      const path = join(folder, fileName(last.first));
      const { records, wholeBytes } = parse(await readFile(path));
      const record = records.at(-1);
      if (record === undefined) {
        await rm(path);
        segments.pop();
        continue;
      }
      if (wholeBytes < last.bytes) await truncate(path, wholeBytes);
      last.bytes = wholeBytes;
      return new SegmentWriter(folder, capBytes, segments, lastSeq(record), unpack(record.c));
    }
    return new SegmentWriter(folder, capBytes, segments, 0, { stdout: START, stderr: START });
  }

  get lastSeq(): number {
    return this.#lastSeq;
  }
  get cursors(): Cursors {
    return this.#cursors;
  }

  /** After a crash a beginning of it is there. Calls must not overlap; a failed one may be repeated as it was. */
  async append(records: readonly { record: LogRecord; cursors: Cursors }[]): Promise<void> {
    let at = records.findIndex(({ record }) => lastSeq(record) > this.#lastSeq);
    while (at !== -1 && at < records.length) {
      const { record: first } = records[at]!;
      const segment = await this.#roomy("gap" in first ? first.from : first.seq);
      let text = "";
      let written = records[at]!;
      do {
        written = records[at]!;
        text += `${JSON.stringify({ ...written.record, c: pack(written.cursors) })}\n`;
        at++;
      } while (at < records.length && segment.bytes + text.length < this.#segmentBytes);
      const bytes = Buffer.from(text);
      try {
        for (let done = 0; done < bytes.length;)
          done += (await this.#file!.write(bytes, done, bytes.length - done, segment.bytes + done)).bytesWritten;
      } catch (error) {
        await this.#file!.truncate(segment.bytes).catch(() => undefined);
        throw error;
      }
      segment.bytes += bytes.length;
      this.#lastSeq = lastSeq(written.record);
      this.#cursors = written.cursors;
      await this.#drop();
    }
  }

  async close(): Promise<void> {
    const file = this.#file;
    this.#file = null;
    if (file === null) return;
    await file.datasync();
    await file.close();
  }

  async #roomy(nextSeq: number): Promise<Segment> {
    let current = this.#segments.at(-1);
    if (current === undefined || current.bytes >= this.#segmentBytes) {
      await this.#file?.close();
      this.#file = null;
      current = { first: nextSeq, bytes: 0 };
      await writeFile(join(this.#folder, fileName(nextSeq)), "", { mode: 0o600 });
      this.#segments.push(current);
    }
    this.#file ??= await open(join(this.#folder, fileName(current.first)), "r+");
    return current;
  }

  /** Over the cap: the oldest segment behind the kept beginning goes. */
  async #drop(): Promise<void> {
    let total = this.#segments.reduce((sum, s) => sum + s.bytes, 0);
    let head = 0;
    for (
      let bytes = 0;
      head < this.#segments.length && bytes + this.#segments[head]!.bytes <= this.#capBytes / 2;
      head++
    )
      bytes += this.#segments[head]!.bytes;
    while (total > this.#capBytes && head < this.#segments.length - 1) {
      const [dropped] = this.#segments.splice(head, 1);
      total -= dropped!.bytes;
      await rm(join(this.#folder, fileName(dropped!.first)), { force: true });
    }
  }
}

/** Whole records from the beginning of `bytes`, up to the first that is torn. */
function parse(bytes: Buffer): { records: StoredRecord[]; wholeBytes: number } {
  const records: StoredRecord[] = [];
  let from = 0;
  for (let at = bytes.indexOf(10); at !== -1; at = bytes.indexOf(10, from)) {
    try {
      records.push(JSON.parse(bytes.toString("utf8", from, at)) as StoredRecord);
    } catch {
      break; // a crash of the machine can leave zeros
    }
    from = at + 1;
  }
  return { records, wholeBytes: from };
}

/** Reads records in order of seq; goes on where it stopped, so that it can follow a log that grows. */
export class SegmentReader {
  readonly #folder: string;
  #after: number;
  #at: { first: number; offset: number } | null = null;

  constructor(folder: string, after: number) {
    this.#folder = folder;
    this.#after = after;
  }

  /** The next at most `limit` records that are there; empty = at the end for now. */
  async next(limit: number): Promise<LogRecord[]> {
    const found: LogRecord[] = [];
    for (;;) {
      const segments = await segmentsIn(this.#folder);
      const holder = this.#at?.first ?? segments.findLast((first) => first <= this.#after + 1) ?? segments[0];
      if (holder === undefined) return found;
      this.#at ??= { first: holder, offset: 0 };
      const bytes = await this.#rest(this.#at);
      let from = 0;
      for (let at = bytes.indexOf(10); at !== -1 && found.length < limit; at = bytes.indexOf(10, from)) {
        const { c: _, ...record } = JSON.parse(bytes.toString("utf8", from, at)) as StoredRecord;
        const first = "gap" in record ? record.from : record.seq;
        if (first > this.#after + 1) {
          found.push({
            gap: true,
            from: this.#after + 1,
            to: first - 1,
            ts: record.ts,
            reason: "The log is over its limit: its middle is not kept.",
          });
          this.#after = first - 1;
          if (found.length >= limit) break;
        }
        this.#at.offset += at + 1 - from;
        from = at + 1;
        if (lastSeq(record) <= this.#after) continue;
        this.#after = lastSeq(record);
        found.push(record);
      }
      if (found.length >= limit) return found;
      // A segment is complete once a later one is there. The list was made before the read.
      const next = segments.find((first) => first > this.#at!.first);
      if (next === undefined) return found;
      this.#at = { first: next, offset: 0 };
    }
  }

  async #rest(at: { first: number; offset: number }): Promise<Buffer> {
    let file: FileHandle;
    try {
      file = await open(join(this.#folder, fileName(at.first)), "r");
    } catch (error) {
      // Dropped meanwhile: a gap.
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return Buffer.alloc(0);
      throw error;
    }
    try {
      const bytes = Buffer.alloc(Math.max(0, (await file.stat()).size - at.offset));
      const { bytesRead } = await file.read(bytes, 0, bytes.length, at.offset);
      return bytes.subarray(0, bytesRead);
    } finally {
      await file.close();
    }
  }
}

/** Number of the last record in a folder; 0 = none. Reads one segment. */
export async function lastSeqIn(folder: string): Promise<number> {
  for (const first of (await segmentsIn(folder)).toReversed()) {
    const record = parse(await readFile(join(folder, fileName(first))).catch(() => Buffer.alloc(0))).records.at(-1);
    if (record !== undefined) return lastSeq(record);
  }
  return 0;
}
