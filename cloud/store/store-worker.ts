// Entry of the store's two workers: the writer (one transaction a batch, one savepoint an operation, answers after
// COMMIT) and the reader (one snapshot an operation). Nothing imports this file; sqlite-store.ts starts it.
import { DatabaseSync } from "node:sqlite";
import { parentPort, workerData } from "node:worker_threads";
import { ConnectorError, toConnectorError, type ErrorBody } from "@sallyport/protocol";
import { MIGRATIONS } from "./migrations.ts";
import { newerSchema } from "./newer-schema.ts";
import { numberChanges } from "./operations/changes.ts";
import { READS, WRITES } from "./operations/index.ts";
import type { Tx } from "./operations/tx.ts";
import { kyselyOver } from "./sqlite-dialect.ts";
import type { ChangeRow } from "./store.ts";

export interface WorkerInput {
  role: "write" | "read";
  path: string;
}
export interface Call {
  id: number;
  operation: string;
  args: unknown[];
}
export type Answer = { id: number; value: unknown } | { id: number; error: ErrorBody; trace: string };
export type FromWorker =
  | { type: "ready" }
  | { type: "failed"; error: ErrorBody; trace: string }
  | { type: "answers"; answers: Answer[]; changes: { workspace: string; changes: ChangeRow[] }[] }
  | { type: "closed" };
export type ToWorker = { type: "calls"; calls: Call[] } | { type: "close" };

type Operation = (tx: Tx, ...args: unknown[]) => Promise<unknown>;
const { role, path } = workerData as WorkerInput;
const port = parentPort!;
/** Operations of one transaction: bounds how long the first of them waits for the last. */
const MAX_BATCH = 256;
/** Primary result codes of SQLite that have an answer of their own. */
const SQLITE_CORRUPT = 11;
const SQLITE_FULL = 13;
const SQLITE_NOTADB = 26;
/** Those that say: the disk or the machine, not the statement. They pass, and the next transaction may go. */
const PASSING = new Map([
  [5, "it is locked"],
  [7, "out of memory"],
  [8, "the disk is read-only"],
  [10, "input/output error"],
  [14, "it cannot be opened"],
]);

/** A database's failure in our words; everything else by the common entrance. */
function toError(value: unknown): ConnectorError {
  const code = (value as { errcode?: number } | null)?.errcode;
  const primary = code === undefined ? undefined : code & 0xff;
  if (primary === SQLITE_FULL)
    return new ConnectorError("STORAGE_FULL", `No space is left for the database ${path}.`, {
      fix: "Free space on that disk; work goes on by itself.",
      cause: value,
    });
  const passing = primary === undefined ? undefined : PASSING.get(primary);
  if (passing !== undefined)
    return new ConnectorError("DATABASE_UNAVAILABLE", `The database ${path} cannot be used now: ${passing}.`, {
      fix: "Mend the disk of the data directory; work goes on by itself.",
      cause: value,
    });
  if (primary === SQLITE_CORRUPT || primary === SQLITE_NOTADB) return damaged(value);
  return toConnectorError(value);
}
const damaged = (cause: unknown) =>
  new ConnectorError(
    "STORAGE_CORRUPT",
    `The database ${path} cannot be read: it is damaged or not a database of Sallyport.`,
    { fix: "Put a backup in its place, or move the file away to begin with an empty one.", cause },
  );
const traceOf = (error: ConnectorError): string =>
  error.cause instanceof Error ? (error.cause.stack ?? String(error.cause)) : (error.stack ?? "");

function migrate(database: DatabaseSync): void {
  database.exec(
    "create table if not exists schema_migrations (id bigint primary key, name text not null, applied_at bigint not null)",
  );
  const applied = new Set(
    database
      .prepare("select id from schema_migrations")
      .all()
      .map((row) => row["id"] as number),
  );
  const newer = newerSchema(Math.max(0, ...applied), path);
  if (newer !== null) throw newer;
  for (const migration of MIGRATIONS) {
    if (applied.has(migration.id)) continue;
    database.exec("begin immediate");
    try {
      for (const statement of migration.statements) database.exec(statement);
      database
        .prepare("insert into schema_migrations (id, name, applied_at) values (?, ?, ?)")
        .run(migration.id, migration.name, Date.now());
      database.exec("commit");
    } catch (error) {
      database.exec("rollback");
      throw error;
    }
  }
}

function open(): DatabaseSync {
  const database = new DatabaseSync(path, {
    readOnly: role === "read",
    enableForeignKeyConstraints: true,
    timeout: 10_000,
  });
  try {
    if (role === "write") {
      database.exec("pragma journal_mode = wal");
      database.exec("pragma synchronous = full");
      const check = database.prepare("pragma quick_check(1)").get()?.["quick_check"];
      if (check !== "ok") throw damaged(new Error(String(check)));
      migrate(database);
    } else {
      database.exec("pragma query_only = on");
    }
    return database;
  } catch (error) {
    database.close();
    throw error;
  }
}

type Thing = { entity: ChangeRow["entity"]; id: string };
type Touched = Map<string, Map<string, Thing>>;
const addTouched = (touched: Touched, workspace: string, key: string, thing: Thing): void => {
  const of = touched.get(workspace);
  if (of === undefined) touched.set(workspace, new Map([[key, thing]]));
  else of.set(key, thing);
};

const queue: Call[] = [];
let scheduled = false;
let closing = false;

function start(database: DatabaseSync): void {
  const { db, execute } = kyselyOver(database);
  const prepared = (sql: string): (() => void) => {
    const statement = database.prepare(sql);
    return () => void statement.run();
  };
  const begin = prepared(role === "write" ? "begin immediate" : "begin");
  const commit = prepared("commit");
  const savepoint = prepared("savepoint operation");
  const release = prepared("release operation");

  const failedAnswer = (call: Call, value: unknown): Answer => {
    const error = toError(value);
    return { id: call.id, error: error.toBody(), trace: traceOf(error) };
  };

  /**
   * Savepoints cost a copy of each page that an operation changes, and hardly any operation fails. So the first try goes
   * without: when one fails, all is rolled back and done again, each `apart` in its savepoint.
   */
  const write = async (calls: Call[], apart = false): Promise<void> => {
    const answers: Answer[] = [];
    const changed: { workspace: string; changes: ChangeRow[] }[] = [];
    /** By workspace, of those operations that succeeded; one change of a thing however many touched it. */
    const touched: Touched = new Map();
    try {
      begin();
      for (const call of calls) {
        const own: Touched = new Map();
        const tx: Tx = {
          db,
          execute,
          touch: (workspace, entity, id) => addTouched(own, workspace, `${entity} ${id}`, { entity, id }),
        };
        if (apart) savepoint();
        try {
          const value = await (WRITES as Record<string, unknown> as Record<string, Operation>)[call.operation]!(
            tx,
            ...call.args,
          );
          if (apart) release();
          answers.push({ id: call.id, value });
          for (const [workspace, things] of own)
            for (const [key, thing] of things) addTouched(touched, workspace, key, thing);
        } catch (error) {
          // A full disk may have rolled the whole transaction back by itself: then nothing of the batch holds.
          if (!database.isTransaction) throw error;
          if (!apart) {
            database.exec("rollback");
            return await write(calls, true);
          }
          database.exec("rollback to operation");
          release();
          answers.push(failedAnswer(call, error));
        }
      }
      const tx: Tx = { db, execute, touch: () => {} };
      for (const [workspace, things] of touched)
        changed.push({ workspace, changes: await numberChanges(tx, workspace, [...things.values()]) });
      commit();
      post({ type: "answers", answers, changes: changed });
    } catch (error) {
      if (database.isTransaction) database.exec("rollback");
      post({ type: "answers", answers: calls.map((call) => failedAnswer(call, error)), changes: [] });
    }
  };

  const read = async (calls: Call[]): Promise<void> => {
    const tx: Tx = { db, execute, touch: () => {} };
    for (const call of calls) {
      let answer: Answer;
      try {
        begin();
        answer = {
          id: call.id,
          value: await (READS as Record<string, unknown> as Record<string, Operation>)[call.operation]!(
            tx,
            ...call.args,
          ),
        };
      } catch (error) {
        answer = failedAnswer(call, error);
      }
      if (database.isTransaction) commit();
      post({ type: "answers", answers: [answer], changes: [] });
    }
  };

  const drain = async (): Promise<void> => {
    scheduled = false;
    const calls = queue.splice(0, MAX_BATCH);
    // Operations await nothing but microtasks, so no message comes in between and batches do not overlap.
    if (calls.length > 0) await (role === "write" ? write(calls) : read(calls));
    if (queue.length > 0) return schedule();
    if (!closing) return;
    if (role === "write") database.exec("pragma wal_checkpoint(truncate)");
    database.close();
    post({ type: "closed" });
    port.close();
  };
  const schedule = (): void => {
    if (scheduled) return;
    scheduled = true;
    setImmediate(() => void drain());
  };

  port.on("message", (message: ToWorker) => {
    if (message.type === "close") closing = true;
    else queue.push(...message.calls);
    schedule();
  });
}

const post = (message: FromWorker): void => port.postMessage(message);

try {
  start(open());
  post({ type: "ready" });
} catch (error) {
  const known = toError(error);
  post({ type: "failed", error: known.toBody(), trace: traceOf(known) });
  port.close();
}
