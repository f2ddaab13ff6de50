// The journal as the agent uses it: a thin front of the worker that owns the file. Main.ts opens it; everybody else
// knows the port (journal.ts) only.
import { chmodSync, mkdirSync } from "node:fs";
import { dirname } from "node:path";
import { Worker } from "node:worker_threads";
import {
  ConnectorError,
  entryUrl,
  type Clock,
  type CommandId,
  type JournalId,
  type ReportBody,
} from "@sallyport/protocol";
import type { Journal, JournaledCommand } from "./journal.ts";
import type { JournalOperations, OperationName } from "./journal-file.ts";
import type { WorkerReply, WorkerRequest } from "./journal-worker.ts";

export interface SqliteJournalOptions {
  /** Path of the SQLite file. Its folder is made, and both are the owner's alone. */
  file: string;
  clock: Clock;
  /** Default 1 GiB. New commands are refused from 80 % of it. */
  maxBytes?: number;
  /** Told of each fault with the detail that must not leave the machine. */
  onFault?: (error: ConnectorError, detail: string) => void;
}

interface Waiting {
  resolve(value: unknown): void;
  reject(error: ConnectorError): void;
}

const DEFAULT_MAX_BYTES = 1024 ** 3;

/** Opens or makes the journal. Rejects with JOURNAL_UNAVAILABLE when the file is damaged: it is never replaced. */
export async function openJournal(options: SqliteJournalOptions): Promise<SqliteJournal> {
  try {
    mkdirSync(dirname(options.file), { recursive: true, mode: 0o700 });
    chmodSync(dirname(options.file), 0o700);
  } catch (cause) {
    throw new ConnectorError(
      "JOURNAL_UNAVAILABLE",
      `The state directory ${dirname(options.file)} cannot be used (${(cause as NodeJS.ErrnoException).code}).`,
      {
        fix: "Give the agent's user a directory that it owns and can write.",
        cause,
      },
    );
  }
  const journal = new SqliteJournal(options);
  await journal.start();
  return journal;
}

export class SqliteJournal implements Journal {
  readonly #options: SqliteJournalOptions;
  #worker: Worker | null = null;
  #starting: Promise<void> | null = null;
  #closed = false;
  #counted = false;
  #unsent: WorkerRequest[] = [];
  #next = 1;
  readonly #waiting = new Map<number, Waiting>();
  readonly #watchers = new Set<{ sequence: number; wake(): void }>();
  #lastSequence = 0;
  #acknowledged = 0;
  #id = "";
  #startCounter = 0;
  #dispatchSequences: Record<string, number> = {};

  constructor(options: SqliteJournalOptions) {
    this.#options = options;
  }

  get id(): JournalId {
    return this.#id as JournalId;
  }
  get startCounter(): number {
    return this.#startCounter;
  }
  get lastSequence(): number {
    return this.#lastSequence;
  }
  get acknowledgedThrough(): number {
    return this.#acknowledged;
  }
  /** As of now, for hello. */
  get dispatchSequences(): Readonly<Record<string, number>> {
    return this.#dispatchSequences;
  }

  /** Starts the worker; again after it died, which only a fault of ours or of memory can bring about. */
  start(): Promise<void> {
    this.#starting ??= new Promise<void>((resolve, reject) => {
      const worker = new Worker(entryUrl(import.meta.url, "./journal-worker"), {
        workerData: {
          file: this.#options.file,
          maxBytes: this.#options.maxBytes ?? DEFAULT_MAX_BYTES,
          count: !this.#counted,
        },
        name: "journal",
      });
      let ready = false;
      let failed: ConnectorError | null = null;
      worker.on("message", (reply: WorkerReply) => {
        switch (reply.type) {
          case "ready":
            ready = true;
            this.#counted = true;
            this.#worker = worker;
            this.#id = reply.id;
            this.#startCounter = reply.startCounter;
            this.#acknowledged = Math.max(this.#acknowledged, reply.acknowledgedThrough);
            this.#dispatchSequences = reply.dispatchSequences;
            this.#advanceTo(reply.lastSequence);
            return resolve();
          case "refused":
            failed = ConnectorError.fromBody(reply.error);
            this.#options.onFault?.(failed, reply.detail);
            return;
          case "done":
            return this.#settle(reply);
        }
      });
      worker.on("error", (cause) => {
        failed = new ConnectorError("JOURNAL_UNAVAILABLE", "The journal's worker failed.", { cause });
        this.#options.onFault?.(failed, cause instanceof Error ? (cause.stack ?? cause.message) : String(cause));
      });
      worker.on("exit", () => {
        const error =
          failed ??
          new ConnectorError("JOURNAL_UNAVAILABLE", "The journal is closed.", { fix: "Start the agent again." });
        this.#worker = null;
        this.#starting = null;
        for (const waiting of this.#waiting.values()) waiting.reject(error);
        this.#waiting.clear();
        if (!ready) reject(error);
      });
    });
    return this.#starting;
  }

  #settle(reply: Extract<WorkerReply, { type: "done" }>): void {
    this.#advanceTo(reply.lastSequence);
    for (const answer of reply.answers) {
      const waiting = this.#waiting.get(answer.n);
      if (waiting === undefined) continue;
      this.#waiting.delete(answer.n);
      if ("error" in answer) {
        const error = ConnectorError.fromBody(answer.error);
        this.#options.onFault?.(error, answer.detail);
        waiting.reject(error);
      } else waiting.resolve(answer.value);
    }
  }

  #advanceTo(sequence: number): void {
    if (sequence <= this.#lastSequence) return;
    this.#lastSequence = sequence;
    for (const watcher of [...this.#watchers]) if (watcher.sequence < sequence) watcher.wake();
  }

  async #ask<N extends OperationName>(
    operation: N,
    ...args: Parameters<JournalOperations[N]>
  ): Promise<ReturnType<JournalOperations[N]>> {
    if (this.#closed) throw new ConnectorError("JOURNAL_UNAVAILABLE", "The journal is closed: the agent is stopping.");
    if (this.#worker === null) await this.start();
    return this.#post(operation, args) as Promise<ReturnType<JournalOperations[N]>>;
  }

  #post(operation: WorkerRequest["operation"], args: unknown[]): Promise<unknown> {
    const n = this.#next++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(n, { resolve, reject });
      if (this.#unsent.push({ n, operation, args }) === 1) setImmediate(() => this.#send());
    });
  }

  /** What was asked for in one turn of the event loop goes in one message: each message wakes both threads. */
  #send(): void {
    const requests = this.#unsent;
    this.#unsent = [];
    // Those that were waiting when it died were told so.
    this.#worker?.postMessage(requests satisfies WorkerRequest[]);
  }

  dispatchSequence(incarnation: string): Promise<number> {
    return Promise.resolve(this.#dispatchSequences[incarnation] ?? 0);
  }

  async accept(
    command: Omit<JournaledCommand, "state">,
    dispatch: { incarnation: string; sequence: number },
  ): Promise<{ known: boolean; state: JournaledCommand["state"] }> {
    const answer = await this.#ask("accept", command, dispatch);
    this.#dispatchSequences[dispatch.incarnation] = Math.max(
      this.#dispatchSequences[dispatch.incarnation] ?? 0,
      dispatch.sequence,
    );
    return answer;
  }

  advance(id: CommandId, state: JournaledCommand["state"], reports: ReportBody[]): Promise<boolean> {
    return this.#ask("advance", id, state, reports, this.#options.clock.now());
  }

  release(id: CommandId): Promise<void> {
    return this.#ask("release", id, this.#options.clock.now());
  }

  unacknowledged(id: CommandId): Promise<boolean> {
    return this.#ask("unacknowledged", id);
  }

  async report(id: CommandId, bodies: ReportBody[]): Promise<void> {
    if (bodies.length > 0) await this.#ask("report", id, bodies, this.#options.clock.now());
  }

  command(id: CommandId): Promise<JournaledCommand | null> {
    return this.#ask("command", id);
  }

  open(): Promise<JournaledCommand[]> {
    return this.#ask("open");
  }

  reportsAfter(after: number, limit: number): ReturnType<Journal["reportsAfter"]> {
    return this.#ask("reportsAfter", after, limit);
  }

  async acknowledge(through: number): Promise<void> {
    if (through <= this.#acknowledged) return;
    const upTo = Math.min(through, this.#lastSequence);
    await this.#ask("acknowledge", upTo);
    this.#acknowledged = Math.max(this.#acknowledged, upTo);
  }

  /** Drops commands that have ended, whose reports are acknowledged and whose intents nobody can offer again. */
  compact(cloudNow: number): Promise<number> {
    return this.#ask("compact", cloudNow);
  }

  changed(sequence: number, signal: AbortSignal): Promise<void> {
    if (this.#lastSequence > sequence || signal.aborted) return Promise.resolve();
    return new Promise((resolve) => {
      const watcher = {
        sequence,
        wake: () => {
          this.#watchers.delete(watcher);
          signal.removeEventListener("abort", watcher.wake);
          resolve();
        },
      };
      this.#watchers.add(watcher);
      signal.addEventListener("abort", watcher.wake, { once: true });
    });
  }

  put(namespace: string, key: string, value: unknown): Promise<void> {
    return this.commit({ put: [{ namespace, key, value }] });
  }

  commit(change: Parameters<Journal["commit"]>[0]): Promise<void> {
    return this.#ask("commit", change, this.#options.clock.now());
  }

  get(namespace: string, key: string): Promise<unknown> {
    return this.#ask("get", namespace, key);
  }

  entries(namespace: string, prefix = ""): Promise<{ key: string; value: unknown }[]> {
    return this.#ask("entries", namespace, prefix);
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    const worker = this.#worker;
    if (worker === null) return;
    const gone = new Promise((resolve) => worker.once("exit", resolve));
    await this.#post("close", []).catch(() => undefined);
    await gone;
  }
}
