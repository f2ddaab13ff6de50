// The audit log on disk: append-only NDJSON, each record holding the hash of the one before. Records that are waiting
// when the disk becomes free are written and fsynced together (in libuv's thread pool, never on the event loop).
//
// A line is `{"seq":…,"at":…,"prev":"…",…,"hash":"…"}`; the hash is sha-256 over the line's bytes without the hash.
import { chmodSync, mkdirSync } from "node:fs";
import { open, readdir, rename, rm, stat, type FileHandle } from "node:fs/promises";
import { join } from "node:path";
import { ConnectorError, sha256, type Clock, type Timer } from "@sallyport/protocol";
import type { Audit, AuditEntry } from "./audit.ts";

export interface FileAuditOptions {
  folder: string;
  clock: Clock;
  /** A file of this size is closed and a new one begun. Default 16 MiB. */
  fileBytes?: number;
  /** All files together; the oldest goes first, and its going is a record. Default 1 GiB. */
  totalBytes?: number;
  onFault?: (error: ConnectorError) => void;
}

interface Waiting {
  entry: AuditEntry;
  at: number;
  resolve?: () => void;
  reject?: (error: ConnectorError) => void;
}

/** The file that is written to. Closed ones are named `audit-<last seq>.ndjson`. */
export const CURRENT = "audit.ndjson";
export const GENESIS = "0".repeat(64);
const HASH = /,"hash":"([0-9a-f]{64})"\}$/;
/** A write that takes longer than this counts as failed for whoever wants to begin something. */
const STALLED_MS = 900;
const RETRY_MS = 500;
/**
 * Records that nobody waits for are gathered for so long: an fsync for each would cost more than what they tell of. Part of
 * the second within which a failed disk refuses.
 */
const GATHER_MS = 20;
const DEFAULT_FILE_BYTES = 16 * 1024 ** 2;
const DEFAULT_TOTAL_BYTES = 1024 ** 3;
/** Records that are kept while the disk is away. New commands are refused then, so only ends of old ones come. */
const MAX_WAITING = 10_000;
/** Longest record; texts in it are cut before, to so many characters. */
const MAX_LINE_BYTES = 16 * 1024;
const MAX_TEXT = 1200;

export interface AuditHead {
  seq: number;
  hash: string;
}

/** The line of a record, without newline. */
export function auditLine(record: Record<string, unknown>): { line: string; hash: string } {
  const open = JSON.stringify(record).slice(0, -1);
  const hash = sha256(`${open}}`);
  return { line: `${open},"hash":"${hash}"}`, hash };
}

/** What a line says, and whether its hash is its own; null when it is no record at all. */
export function readAuditLine(
  line: string,
): { record: Record<string, unknown> & { seq: number; prev: string }; hash: string; sound: boolean } | null {
  const match = HASH.exec(line);
  if (match === null) return null;
  try {
    const record = JSON.parse(line) as Record<string, unknown> & { seq: number; prev: string };
    return { record, hash: match[1]!, sound: sha256(`${line.slice(0, match.index)}}`) === match[1] };
  } catch {
    return null;
  }
}

/** Names of the audit files, oldest first, the current one last. */
export async function auditFiles(folder: string): Promise<string[]> {
  const names: string[] = await readdir(folder).catch((error: NodeJS.ErrnoException): string[] => {
    if (error.code === "ENOENT") return [];
    throw error;
  });
  const closed = names.filter((name) => /^audit-\d{12}\.ndjson$/.test(name)).sort();
  return names.includes(CURRENT) ? [...closed, CURRENT] : closed;
}

const unavailable = (folder: string, why: string, cause?: unknown) =>
  new ConnectorError(
    "AUDIT_UNAVAILABLE",
    `The audit log in ${folder} cannot be written: ${why}. Nothing new is begun without it.`,
    {
      fix: "Mend the disk that holds the agent's state directory (free space, mount it read-write). The agent goes on by itself.",
      cause,
    },
  );

/** Opens the log and finds its end. A last line that was cut off by a crash was never promised to anyone: it is dropped, and that is a record. */
export async function openAudit(options: FileAuditOptions): Promise<FileAudit> {
  const { folder } = options;
  try {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    chmodSync(folder, 0o700);
    const handle = await open(join(folder, CURRENT), "a+", 0o600);
    const { size } = await handle.stat();
    const tail = await readTail(handle, size);
    let head: AuditHead | null = null;
    if (tail.last !== null) {
      const read = readAuditLine(tail.last);
      if (read === null) {
        await handle.close();
        throw unavailable(folder, "its last record is not one. Run: sallyport-agent audit verify");
      }
      head = { seq: read.record.seq, hash: read.hash };
    } else {
      const closed = (await auditFiles(folder)).filter((name) => name !== CURRENT).at(-1);
      if (closed !== undefined) head = await lastOf(join(folder, closed));
    }
    if (tail.tornBytes > 0) await handle.truncate(size - tail.tornBytes);
    const audit = new FileAudit(options, handle, size - tail.tornBytes, head ?? { seq: 0, hash: GENESIS });
    if (tail.tornBytes > 0)
      audit.append({
        event: "audit.recovered",
        who: "agent",
        note: `${tail.tornBytes} bytes of a record that was never completed were dropped`,
      });
    return audit;
  } catch (error) {
    if (error instanceof ConnectorError) throw error;
    throw unavailable(folder, (error as NodeJS.ErrnoException).code ?? "unknown fault", error);
  }
}

async function readTail(handle: FileHandle, size: number): Promise<{ last: string | null; tornBytes: number }> {
  const length = Math.min(size, 2 * MAX_LINE_BYTES);
  const bytes = Buffer.alloc(length);
  await handle.read(bytes, 0, length, size - length);
  const end = bytes.lastIndexOf(10);
  if (end === -1) return { last: null, tornBytes: length };
  const start = bytes.lastIndexOf(10, end - 1);
  return { last: bytes.toString("utf8", end === 0 ? 0 : start + 1, end), tornBytes: length - end - 1 };
}

async function lastOf(path: string): Promise<AuditHead | null> {
  const handle = await open(path, "r");
  try {
    const { last } = await readTail(handle, (await handle.stat()).size);
    const read = last === null ? null : readAuditLine(last);
    return read === null ? null : { seq: read.record.seq, hash: read.hash };
  } finally {
    await handle.close();
  }
}

export class FileAudit implements Audit {
  readonly #options: FileAuditOptions;
  #handle: FileHandle | null;
  /** Of the current file, up to the last record that was fsynced. */
  #goodBytes: number;
  #head: AuditHead;
  #waiting: Waiting[] = [];
  /** Ends of reads that were not kept while the disk was away. */
  #dropped = 0;
  #writing: Promise<void> | null = null;
  #gathering: Timer | null = null;
  #writingSinceMs = 0;
  #fault: ConnectorError | null = null;
  #closed = false;

  constructor(options: FileAuditOptions, handle: FileHandle, goodBytes: number, head: AuditHead) {
    this.#options = options;
    this.#handle = handle;
    this.#goodBytes = goodBytes;
    this.#head = head;
  }

  /** Last record on disk. */
  get head(): AuditHead {
    return this.#head;
  }

  require(): void {
    if (this.#closed) throw unavailable(this.#options.folder, "it is closed");
    if (this.#fault !== null) throw this.#fault;
    if (this.#writing !== null && this.#options.clock.monotonic() - this.#writingSinceMs > STALLED_MS) {
      throw unavailable(this.#options.folder, "the disk does not answer");
    }
  }

  append(entry: AuditEntry): void {
    if (this.#closed) return;
    if (this.#waiting.length >= MAX_WAITING) {
      this.#dropped++;
      return;
    }
    this.#waiting.push({ entry, at: this.#options.clock.now() });
    if (this.#writing === null) this.#gather();
  }

  async commit(entry: AuditEntry): Promise<void> {
    this.require();
    await new Promise<void>((resolve, reject) => {
      this.#waiting.push({ entry, at: this.#options.clock.now(), resolve, reject });
      this.#kick();
    });
  }

  /** Writes what waits, then closes. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#gathering?.cancel();
    await this.#writing;
    if (this.#fault === null && this.#waiting.length > 0) await this.#writeAll();
    await this.#handle?.close().catch(() => undefined);
    this.#handle = null;
  }

  #gather(): void {
    this.#gathering ??= this.#options.clock.after(GATHER_MS, () => this.#kick());
  }

  #kick(): void {
    this.#gathering?.cancel();
    this.#gathering = null;
    if (this.#writing !== null || this.#fault !== null || this.#closed) return;
    this.#writingSinceMs = this.#options.clock.monotonic();
    this.#writing = this.#writeAll().finally(() => {
      this.#writing = null;
      // What came while the last batch was written or settled.
      if (this.#isAwaited()) this.#kick();
      else if (this.#waiting.length > 0 && this.#fault === null && !this.#closed) this.#gather();
    });
  }

  #isAwaited(): boolean {
    return this.#waiting.some((waiting) => waiting.resolve !== undefined);
  }

  async #writeAll(): Promise<void> {
    // One turn of the loop for records of the same moment to join.
    await Promise.resolve();
    do {
      const batch = this.#waiting;
      this.#waiting = [];
      this.#writingSinceMs = this.#options.clock.monotonic();
      try {
        await this.#write(batch);
        this.#fault = null;
      } catch (error) {
        this.#failed(batch, error);
        return;
      }
      for (const waiting of batch) waiting.resolve?.();
      try {
        if (this.#goodBytes >= (this.#options.fileBytes ?? DEFAULT_FILE_BYTES)) await this.#rotate();
      } catch (error) {
        this.#failed([], error);
        return;
      }
    } while (this.#isAwaited());
  }

  async #write(batch: Waiting[]): Promise<void> {
    this.#handle ??= await open(join(this.#options.folder, CURRENT), "a+", 0o600);
    let { seq, hash } = this.#head;
    const lines: string[] = [];
    const add = (at: number, entry: AuditEntry) => {
      const made = auditLine({ seq: ++seq, at, prev: hash, ...bounded(entry) });
      hash = made.hash;
      lines.push(made.line);
    };
    if (this.#dropped > 0)
      add(this.#options.clock.now(), {
        event: "audit.gap",
        who: "agent",
        note: `${this.#dropped} records were not kept while the disk was away`,
      });
    for (const { at, entry } of batch) add(at, entry);
    const bytes = Buffer.from(`${lines.join("\n")}\n`);
    await this.#handle.appendFile(bytes);
    await this.#handle.datasync();
    this.#dropped = 0;
    this.#goodBytes += bytes.length;
    this.#head = { seq, hash };
  }

  #failed(batch: Waiting[], error: unknown): void {
    const fault = unavailable(this.#options.folder, (error as NodeJS.ErrnoException).code ?? "unknown fault", error);
    if (this.#fault === null) this.#options.onFault?.(fault);
    this.#fault = fault;
    // Who waits is told; the others are kept and written when the disk is back.
    const all = [...batch, ...this.#waiting];
    this.#waiting = all.filter((waiting) => waiting.reject === undefined).slice(0, MAX_WAITING);
    for (const waiting of all) waiting.reject?.(fault);
    this.#options.clock.after(RETRY_MS, () => void this.#retry());
  }

  async #retry(): Promise<void> {
    if (this.#closed) return;
    try {
      // A failed append may have left a part of a line: cut it off before anything follows it.
      await this.#handle?.close().catch(() => undefined);
      this.#handle = null;
      this.#handle = await open(join(this.#options.folder, CURRENT), "a+", 0o600);
      await this.#handle.truncate(this.#goodBytes);
      await this.#write([
        {
          at: this.#options.clock.now(),
          entry: { event: "audit.recovered", who: "agent", note: this.#fault!.message },
        },
      ]);
      this.#fault = null;
      this.#kick();
    } catch (error) {
      this.#failed([], error);
    }
  }

  async #rotate(): Promise<void> {
    const { folder, fileBytes = DEFAULT_FILE_BYTES, totalBytes = DEFAULT_TOTAL_BYTES } = this.#options;
    await this.#handle?.close();
    this.#handle = null;
    await rename(join(folder, CURRENT), join(folder, `audit-${String(this.#head.seq).padStart(12, "0")}.ndjson`));
    this.#goodBytes = 0;
    const closed = (await auditFiles(folder)).filter((name) => name !== CURRENT);
    const sizes = await Promise.all(closed.map(async (name) => (await stat(join(folder, name))).size));
    let total = sizes.reduce((sum, size) => sum + size, 0) + fileBytes;
    for (const [n, name] of closed.entries()) {
      if (total <= totalBytes) break;
      const last = await lastOf(join(folder, name));
      // First the record, then the removal: a chain never begins in the middle without a word.
      if (last !== null)
        await this.#write([
          {
            at: this.#options.clock.now(),
            entry: { event: "audit.removed", who: "agent", note: `${last.seq} ${last.hash}` },
          },
        ]);
      await rm(join(folder, name));
      total -= sizes[n]!;
    }
  }
}

/** Names come from the cloud: none may make a record longer than a reader expects. */
function bounded(entry: AuditEntry): AuditEntry {
  if (!Object.values(entry).some((value) => typeof value === "string" && value.length > MAX_TEXT)) return entry;
  const cut = Object.entries(entry).map(([key, value]) => [
    key,
    typeof value === "string" ? value.slice(0, MAX_TEXT) : value,
  ]);
  return Object.fromEntries(cut) as AuditEntry;
}
