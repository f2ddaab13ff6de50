// The store over SQLite, as the rest of the cloud sees it: starts the writer and the reader, hands each operation to its
// worker and its answer back. No SQL here, and no fsync on the caller's event loop.
import { chmodSync, closeSync, mkdirSync, openSync } from "node:fs";
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import { ConnectorError, entryUrl, type WorkspaceId } from "@sallyport/protocol";
import type { READS, WRITES } from "./operations/index.ts";
import { storeOf, type Operations } from "./store-of.ts";
import type { ChangeRow, Store } from "./store.ts";
import type { Call, FromWorker, ToWorker, WorkerInput } from "./store-worker.ts";

const WRITE_NAMES = [
  "incarnation",
  "ensureAdmin",
  "makeWorkspace",
  "putCloudKeys",
  "addSignIn",
  "redeemSignIn",
  "setPassword",
  "addWebSession",
  "touchWebSession",
  "removeWebSession",
  "addToken",
  "revokeToken",
  "touchToken",
  "ensurePool",
  "limitPool",
  "addEnrollment",
  "withdrawEnrollment",
  "redeemEnrollment",
  "renameReplica",
  "revokeReplica",
  "offerKey",
  "takeKey",
  "deleteReplica",
  "openSession",
  "closeSession",
  "refuseConnection",
  "releaseSessions",
  "joinProcess",
  "beatProcess",
  "announceLeaving",
  "leaveProcess",
  "releaseProcess",
  "holdSession",
  "seen",
  "addAlarm",
  "createCommand",
  "nextDispatch",
  "reserveDispatches",
  "markAccepted",
  "markRefused",
  "markNotTaken",
  "cancelQueued",
  "declareLost",
  "expireQueued",
  "commitReports",
  "takeOver",
  "markSettled",
  "commitDeployment",
  "collect",
] as const satisfies readonly (keyof typeof WRITES)[];
const READ_NAMES = [
  "hasSignedIn",
  "userByName",
  "peekWebSession",
  "peekToken",
  "tokens",
  "pools",
  "poolByName",
  "enrollments",
  "enrollment",
  "replicas",
  "replica",
  "replicaByKey",
  "checkIdentity",
  "processes",
  "presence",
  "presenceOf",
  "changeNumbers",
  "connections",
  "idempotent",
  "command",
  "commands",
  "offerable",
  "offersDue",
  "queue",
  "history",
  "run",
  "runs",
  "heldWork",
  "unacceptedTakeovers",
  "handoffs",
  "lastTakeovers",
  "deployment",
  "deployments",
  "deploymentRevisions",
  "deploymentRevision",
  "deploymentRollups",
  "deploymentHolder",
  "changesAfter",
] as const satisfies readonly (keyof typeof READS)[];
type Named = (typeof WRITE_NAMES)[number] | (typeof READ_NAMES)[number];
/** Not `true`: an operation that the lists above lack. */
const whole: [Exclude<keyof typeof WRITES | keyof typeof READS, Named>] extends [never] ? true : false = true;
void whole;

class WorkerCalls {
  readonly #worker: Worker;
  readonly #waiting = new Map<number, { resolve(value: unknown): void; reject(error: Error): void }>();
  readonly #closed: Promise<void>;
  readonly ready: Promise<void>;
  #unsent: Call[] = [];
  #next = 1;
  #ended: ConnectorError | null = null;

  constructor(
    input: WorkerInput,
    onChanges: (workspace: string, changes: ChangeRow[]) => void,
    onDeath: (error: ConnectorError) => void,
  ) {
    this.#worker = new Worker(entryUrl(import.meta.url, "./store-worker"), {
      workerData: input,
      name: `store-${input.role}`,
    });
    let ready!: () => void;
    let failed!: (error: Error) => void;
    this.ready = new Promise((resolve, reject) => {
      ready = resolve;
      failed = reject;
    });
    this.ready.catch(() => {});
    this.#worker.on("message", (message: FromWorker) => {
      switch (message.type) {
        case "ready":
          this.#worker.unref();
          return ready();
        case "failed":
          return failed(errorOf(message));
        case "closed":
          return;
        case "answers":
          // Changes first: whoever awaits the write finds that listeners were told already.
          for (const { workspace, changes } of message.changes) onChanges(workspace, changes);
          for (const answer of message.answers) {
            const caller = this.#waiting.get(answer.id);
            this.#waiting.delete(answer.id);
            if ("error" in answer) caller?.reject(errorOf(answer));
            else caller?.resolve(answer.value);
          }
          // While it closes, its end is waited for.
          if (this.#waiting.size === 0 && this.#ended === null) this.#worker.unref();
      }
    });
    let fault: unknown;
    this.#worker.on("error", (error) => (fault = error));
    this.#closed = new Promise((resolve) => {
      this.#worker.on("exit", () => {
        const wanted = this.#ended !== null;
        const error =
          this.#ended ??
          new ConnectorError("INTERNAL", "The store's worker ended by itself.", {
            fix: "Start the program again; its log says why.",
            cause: fault,
          });
        this.#ended = error;
        failed(error);
        for (const caller of this.#waiting.values()) caller.reject(error);
        this.#waiting.clear();
        resolve();
        if (!wanted) onDeath(error);
      });
    });
  }

  call(operation: string, args: unknown[]): Promise<unknown> {
    if (this.#ended !== null) return Promise.reject(this.#ended);
    return new Promise((resolve, reject) => {
      const id = this.#next++;
      this.#waiting.set(id, { resolve, reject });
      this.#worker.ref();
      if (this.#unsent.push({ id, operation, args }) === 1) setImmediate(() => this.#send());
    });
  }

  /** What was asked for in one turn of the event loop goes in one message: each message costs both threads a wake-up. */
  #send(): void {
    const calls = this.#unsent;
    this.#unsent = [];
    if (calls.length === 0 || this.#waiting.size === 0) return;
    try {
      this.#post({ type: "calls", calls });
    } catch {
      // One of them holds what cannot be sent: the others are not to suffer for it.
      for (const call of calls) {
        try {
          this.#post({ type: "calls", calls: [call] });
        } catch (error) {
          this.#waiting.get(call.id)?.reject(error as Error);
          this.#waiting.delete(call.id);
        }
      }
    }
  }

  close(): Promise<void> {
    if (this.#ended === null) {
      this.#send();
      this.#post({ type: "close" });
      this.#ended = new ConnectorError("GOING_AWAY", "The store is closed: the control plane is stopping.");
      this.#worker.ref();
    }
    return this.#closed;
  }

  #post(message: ToWorker): void {
    this.#worker.postMessage(message);
  }
}

const errorOf = ({
  error,
  trace,
}: {
  error: { code: string; message: string; fix?: string; details?: Record<string, unknown> };
  trace: string;
}): ConnectorError => {
  const known = ConnectorError.fromBody(error);
  known.cause = Object.assign(new Error(error.message), { stack: trace });
  return known;
};

export interface SqliteStoreOptions {
  /** The data directory; made when missing, with rights for its owner alone. */
  dir: string;
  /** A worker died by itself: nothing can be stored any more. Absent = pending and later calls reject, nothing else. */
  onDeath?: (error: ConnectorError) => void;
}

/** Name of the database's file in the data directory. */
export const DATABASE_FILE = "sallyport.db";

export async function openSqliteStore(options: SqliteStoreOptions): Promise<Store> {
  const path = join(options.dir, DATABASE_FILE);
  try {
    mkdirSync(options.dir, { recursive: true, mode: 0o700 });
    // Made before SQLite does, which gives its -wal and -shm files the same rights.
    closeSync(openSync(path, "a", 0o600));
    chmodSync(path, 0o600);
  } catch (cause) {
    throw new ConnectorError("CONFIG_INVALID", `The database ${path} cannot be opened for writing.`, {
      fix: "Give the program's user rights on the data directory, or choose another by --data.",
      cause,
    });
  }

  const listeners = new Set<(workspace: WorkspaceId, changes: ChangeRow[]) => void>();
  const onChanges = (workspace: string, changes: ChangeRow[]) => {
    for (const listener of listeners) listener(workspace as WorkspaceId, changes);
  };
  const onDeath = options.onDeath ?? (() => {});
  const writer = new WorkerCalls({ role: "write", path }, onChanges, onDeath);
  await writer.ready;
  const reader = new WorkerCalls({ role: "read", path }, () => {}, onDeath);
  try {
    await reader.ready;
  } catch (error) {
    await writer.close();
    throw error;
  }

  const operations = Object.fromEntries([
    ...WRITE_NAMES.map((name) => [name, (...args: unknown[]) => writer.call(name, args)]),
    ...READ_NAMES.map((name) => [name, (...args: unknown[]) => reader.call(name, args)]),
  ]) as Operations;
  return storeOf(operations, listeners, async () => {
    await Promise.all([reader.close(), writer.close()]);
  });
}
