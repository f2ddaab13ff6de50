// All logs of this agent, `<state>/logs/<run>/<step>.<attempt>/`: opens them for writing, answers readers, lets them
// follow, and keeps the whole under its cap.
import { readdir, readFile, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { ConnectorError, type Clock, type LogRecord } from "@sallyport/protocol";
import type { Redactor } from "../redaction/redactor.ts";
import { AttemptLog } from "./attempt-log.ts";
import { lastSeqIn, SegmentReader } from "./segments.ts";

export interface LogStoreOptions {
  stateDir: string;
  redactor: Redactor;
  clock: Clock;
  /** One attempt keeps its first and its last half of this. */
  capBytesPerAttempt: number;
  /** All logs together; whole runs go, the oldest first. */
  capBytes: number;
}

export interface LogAddress {
  run: string;
  step: string;
  attempt: number;
}

export interface ReadLogOptions extends LogAddress {
  /** Records with a higher number. */
  after: number;
  /** At most so many, unless `follow`. */
  limit: number;
  /** Begin with the last so many instead of `after`. */
  tail?: number;
  /** Go on until the log is sealed, or `over` says that nothing will come. */
  follow: boolean;
  signal?: AbortSignal;
  over?: () => boolean;
}

/** Records taken from disk at a time. */
const BATCH = 500;

export class LogStore {
  readonly #options: LogStoreOptions;
  readonly #root: string;
  readonly #watchers = new Map<string, Set<() => void>>();
  readonly #held = new Set<string>();

  constructor(options: LogStoreOptions) {
    this.#options = options;
    this.#root = join(options.stateDir, "logs");
  }

  async open(address: LogAddress): Promise<AttemptLog> {
    const folder = this.#folder(address);
    return AttemptLog.open({
      folder,
      redactor: this.#options.redactor,
      clock: this.#options.clock,
      capBytes: this.#options.capBytesPerAttempt,
      onChange: () => this.#changed(folder),
    });
  }

  /** Null when there is no log of it: not begun, or collected. */
  async status(address: LogAddress): Promise<{ lastSeq: number; ended: boolean } | null> {
    const folder = this.#folder(address);
    const end = await readFile(join(folder, "end.json"), "utf8").catch(() => null);
    if (end !== null) return { lastSeq: (JSON.parse(end) as { lastSeq: number }).lastSeq, ended: true };
    const there = await stat(folder).then(
      () => true,
      () => false,
    );
    return there ? { lastSeq: await lastSeqIn(folder), ended: false } : null;
  }

  /** Wakes followers of all attempts of a run: `over` is asked again. */
  wake(run: string): void {
    const prefix = `${join(this.#root, run)}/`;
    for (const folder of this.#watchers.keys()) if (folder.startsWith(prefix)) this.#changed(folder);
  }

  /** Throws LOGS_GONE for a sealed log that was collected meanwhile. */
  async *read(options: ReadLogOptions): AsyncGenerator<LogRecord> {
    const folder = this.#folder(options);
    const { signal } = options;
    let after = options.after;
    if (options.tail !== undefined) after = Math.max(0, ((await this.status(options))?.lastSeq ?? 0) - options.tail);
    const reader = new SegmentReader(folder, after);
    for (let given = 0; options.follow || given < options.limit;) {
      signal?.throwIfAborted();
      // All in this order: subscribe, look whether it has ended, read. So nothing falls between.
      const change = this.#watch(folder, signal);
      try {
        const over = options.over?.() === true || (await this.status(options))?.ended === true;
        const records = await reader.next(options.follow ? BATCH : Math.min(BATCH, options.limit - given));
        given += records.length;
        yield* records;
        if (records.length > 0) continue;
        if (over || !options.follow) return;
        await change.fired;
      } finally {
        change.cancel();
      }
    }
  }

  /** Keeps `collect` from the logs of a run for as long as it is held, whoever calls. */
  hold(run: string): void {
    this.#held.add(run);
  }
  letGo(run: string): void {
    this.#held.delete(run);
  }

  /** Removes the log of one attempt. */
  async remove(address: LogAddress): Promise<void> {
    await rm(this.#folder(address), { recursive: true, force: true });
  }

  /**
   * Removes the logs of the longest finished runs until the rest is under the cap. `unfinished` is asked which runs are
   * not over, after what there is was listed.
   */
  async collect(unfinished: () => Promise<(run: string) => boolean>): Promise<{ removed: string[]; bytes: number }> {
    const runs: { run: string; bytes: number; at: number }[] = [];
    for (const run of await readdir(this.#root).catch(() => [])) {
      const { bytes, at } = await folderSize(join(this.#root, run));
      runs.push({ run, bytes, at });
    }
    const kept = await unfinished();
    let bytes = runs.reduce((sum, r) => sum + r.bytes, 0);
    const removed: string[] = [];
    for (const r of runs.toSorted((a, b) => a.at - b.at)) {
      if (bytes <= this.#options.capBytes) break;
      if (kept(r.run) || this.#held.has(r.run)) continue;
      await rm(join(this.#root, r.run), { recursive: true, force: true });
      bytes -= r.bytes;
      removed.push(r.run);
    }
    return { removed, bytes };
  }

  #folder({ run, step, attempt }: LogAddress): string {
    // Run ids and step names have passed their schemas; this is the last line against a path.
    if (/[/\0]|^\./.test(run) || /[/\0]|^\./.test(step))
      throw new ConnectorError("PATH_INVALID", "The name of a run or step holds a character that no name has.");
    return join(this.#root, run, `${step}.${attempt}`);
  }

  #watch(folder: string, signal?: AbortSignal): { fired: Promise<void>; cancel(): void } {
    let fire!: () => void;
    const fired = new Promise<void>((resolve) => (fire = resolve));
    const watchers = this.#watchers.get(folder) ?? new Set();
    this.#watchers.set(folder, watchers.add(fire));
    signal?.addEventListener("abort", fire, { once: true });
    return {
      fired,
      cancel: () => {
        signal?.removeEventListener("abort", fire);
        watchers.delete(fire);
        if (watchers.size === 0 && this.#watchers.get(folder) === watchers) this.#watchers.delete(folder);
      },
    };
  }

  #changed(folder: string): void {
    for (const fire of this.#watchers.get(folder) ?? []) fire();
  }
}

/** Bytes on disk below a folder, and when anything in it last changed (ms). */
export async function folderSize(folder: string): Promise<{ bytes: number; at: number }> {
  let bytes = 0;
  let at = 0;
  const entries = await readdir(folder, { recursive: true, withFileTypes: true }).catch(() => []);
  for (const entry of entries) {
    if (!entry.isFile()) continue;
    const info = await stat(join(entry.parentPath, entry.name)).catch(() => null);
    if (info === null) continue;
    // Blocks, not length: a file with a hole is smaller than it looks.
    bytes += info.blocks * 512;
    at = Math.max(at, info.mtimeMs);
  }
  return { bytes, at };
}
