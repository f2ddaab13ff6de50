// The lines of one attempt's log as the page holds them: ordered, without doubles, bounded, gaps visible. And when
// following is on. Pure: no DOM, no network.
import type { LogRecord } from "../api/types.ts";
import { stripAnsi } from "../parts/format.ts";
import { levelOf, type Level } from "../viewers/lines.ts";

export interface LogLine {
  /** First (and, but for gaps, only) record number that it stands for. */
  seq: number;
  lastSeq: number;
  ts: number;
  kind: "stdout" | "stderr" | "system" | "gap";
  level: Level;
  text: string;
}

/** Lines kept in memory. Older ones go and can be loaded again. */
export const MAX_LINES = 100_000;

function textOf(record: Extract<LogRecord, { seq: number }>): string {
  const { body } = record;
  if (body.enc !== "none")
    return "This line is sealed for its readers; the control plane and this page cannot open it.";
  if (body.encoding !== "bytes") return stripAnsi(body.data.replace(/\r?\n$/, ""));
  try {
    const raw = atob(body.data.replaceAll("-", "+").replaceAll("_", "/"));
    return stripAnsi(
      new TextDecoder().decode(Uint8Array.from(raw, (char) => char.charCodeAt(0))).replace(/\r?\n$/, ""),
    );
  } catch {
    return `(${body.data.length} characters that are no text)`;
  }
}

export function lineOf(record: LogRecord): LogLine {
  if ("gap" in record) {
    const count = record.to - record.from + 1;
    return {
      seq: record.from,
      lastSeq: record.to,
      ts: record.ts,
      kind: "gap",
      level: null,
      text: `${count === 1 ? "1 line is" : `${count.toLocaleString("en")} lines are`} missing: ${record.reason}`,
    };
  }
  const text = textOf(record);
  return {
    seq: record.seq,
    lastSeq: record.seq,
    ts: record.ts,
    kind: record.stream,
    level: record.stream === "system" ? null : levelOf(text),
    text,
  };
}

/** Immutable: `add` answers a new value, or itself when nothing was new. */
export interface LogLines {
  readonly lines: readonly LogLine[];
  /** Highest record number seen: where to go on after a cut. 0 = none. */
  readonly lastSeq: number;
}
export const EMPTY_LOG: LogLines = { lines: [], lastSeq: 0 };

/** Appends what is newer than all held, ignoring repeats; the oldest go when there are too many. */
export function append(log: LogLines, records: readonly LogRecord[], max = MAX_LINES): LogLines {
  let lastSeq = log.lastSeq;
  const fresh: LogLine[] = [];
  for (const record of records) {
    const line = lineOf(record);
    if (line.lastSeq <= lastSeq) continue;
    fresh.push(line);
    lastSeq = line.lastSeq;
  }
  if (fresh.length === 0) return log;
  const lines = [...log.lines, ...fresh];
  return { lines: lines.length > max ? lines.slice(lines.length - max) : lines, lastSeq };
}

/** Puts older records before those held; ones that are not older are ignored. */
export function prepend(log: LogLines, records: readonly LogRecord[]): LogLines {
  const first = log.lines[0]?.seq ?? Infinity;
  const older = records.map(lineOf).filter((line) => line.lastSeq < first);
  return older.length === 0
    ? log
    : { lines: [...older, ...log.lines], lastSeq: Math.max(log.lastSeq, older.at(-1)!.lastSeq) };
}

/** How many records lie before the first one held. */
export const missingBefore = (log: LogLines): number => (log.lines[0]?.seq ?? 1) - 1;

/** Cuts NDJSON out of chunks of text; the last, unfinished line waits for the next chunk. */
export function splitNdjson(pending: string, chunk: string): { records: LogRecord[]; pending: string } {
  const parts = (pending + chunk).split("\n");
  const rest = parts.pop() ?? "";
  const records: LogRecord[] = [];
  for (const part of parts) if (part.trim() !== "") records.push(JSON.parse(part) as LogRecord);
  return { records, pending: rest };
}

// ---- following ----

/** Distance from the bottom, in px, that still counts as being there. */
const BOTTOM_PX = 24;
export type FollowEvent =
  | { type: "scrolled"; top: number; height: number; view: number; byReader: boolean }
  | { type: "button"; on: boolean }
  | { type: "jumped" };

/** Following stops when the reader scrolls up or jumps to a line, and begins again at the bottom. */
export function followNext(following: boolean, event: FollowEvent): boolean {
  switch (event.type) {
    case "button":
      return event.on;
    case "jumped":
      return false;
    case "scrolled": {
      const atBottom = event.height - event.top - event.view <= BOTTOM_PX;
      if (atBottom) return true;
      // The page itself scrolls while lines arrive; only a reader's movement away from the bottom is a wish.
      return event.byReader ? false : following;
    }
  }
}
