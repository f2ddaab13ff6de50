// The journal's SQLite file and everything that is done to it, synchronously: it runs in the journal's worker, where
// waiting on a disk harms nobody. Callers group operations into one commit; see journal-worker.ts.
import { closeSync, existsSync, fsyncSync, openSync, renameSync, rmSync, statSync } from "node:fs";
import { dirname } from "node:path";
import { DatabaseSync, type StatementSync } from "node:sqlite";
import type { Body, CommandId, Report, ReportBody } from "@sallyport/protocol";
import { ConnectorError, newId } from "@sallyport/protocol/basics";
import type { JournaledCommand } from "./journal.ts";

/** Schema changes, in order, for ever: a released one is never edited. `user_version` counts those applied. */
const MIGRATIONS: readonly string[] = [
  `
  CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
  CREATE TABLE incarnation (incarnation TEXT PRIMARY KEY, sequence INTEGER NOT NULL) STRICT, WITHOUT ROWID;
  CREATE TABLE command (
    n INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    resource TEXT NOT NULL,
    state TEXT NOT NULL,
    intent TEXT NOT NULL,
    body TEXT NOT NULL,
    accepted_at INTEGER NOT NULL,
    expires INTEGER NOT NULL
  ) STRICT;
  CREATE INDEX command_open ON command (n) WHERE state IN ('accepted', 'running');
  CREATE TABLE report (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    command TEXT NOT NULL,
    at INTEGER NOT NULL,
    body TEXT NOT NULL
  ) STRICT;
  CREATE INDEX report_command ON report (command);
  CREATE TABLE record (namespace TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (namespace, key)) STRICT, WITHOUT ROWID;
  `,
  `ALTER TABLE command ADD COLUMN trace TEXT;`,
];

/** SQLite's primary result codes that mean: the disk, not the statement. */
const DISK_CODES = new Map([
  [7, "out of memory"],
  [8, "read-only"],
  [10, "input/output error"],
  [11, "the file is damaged"],
  [13, "the disk is full"],
  [14, "the file cannot be opened"],
  [26, "the file is no journal"],
]);

const DISK_ERRNOS = new Set([
  "EACCES",
  "EDQUOT",
  "EIO",
  "EMFILE",
  "ENFILE",
  "ENOENT",
  "ENOSPC",
  "ENOTDIR",
  "EPERM",
  "EROFS",
]);

/** Why the journal cannot be used now, in words; null when the fault is not the disk's. */
export function diskFault(error: unknown): string | null {
  const { errcode, code } = (error ?? {}) as { errcode?: unknown; code?: unknown };
  if (typeof errcode === "number") return DISK_CODES.get(errcode & 0xff) ?? null;
  return typeof code === "string" && DISK_ERRNOS.has(code) ? code : null;
}

/** A full disk leaves the file and its handle as they were; after other faults the handle cannot be trusted. */
export const leavesHandleSound = (error: unknown): boolean =>
  ((error as { errcode?: number } | null)?.errcode ?? 0) === 13;

/** Share of the cap that new commands may fill; the rest is for the ends of those that were accepted. */
const INTAKE_SHARE = 0.8;

export interface JournalFileOptions {
  file: string;
  /** Largest size of the file. */
  maxBytes: number;
}

type Change = {
  put?: { namespace: string; key: string; value: unknown }[];
  remove?: { namespace: string; key: string }[];
  command?: CommandId;
  reports?: ReportBody[];
};

/** Operations as the worker is asked for them: name -> arguments and answer. Plain data both ways. */
export interface JournalOperations {
  accept(
    command: Omit<JournaledCommand, "state">,
    dispatch: { incarnation: string; sequence: number },
  ): { known: boolean; state: JournaledCommand["state"] };
  advance(id: CommandId, state: JournaledCommand["state"], reports: ReportBody[], at: number): boolean;
  release(id: CommandId, at: number): void;
  unacknowledged(id: CommandId): boolean;
  report(id: CommandId, bodies: ReportBody[], at: number): void;
  command(id: CommandId): JournaledCommand | null;
  open(): JournaledCommand[];
  reportsAfter(after: number, limit: number): Report[];
  acknowledge(through: number): void;
  compact(cloudNow: number): number;
  commit(change: Change, at: number): void;
  get(namespace: string, key: string): unknown;
  entries(namespace: string, prefix: string): { key: string; value: unknown }[];
}
export type OperationName = keyof JournalOperations;

/** Those that change nothing: a batch of only these needs no commit. */
export const READS: ReadonlySet<OperationName> = new Set([
  "command",
  "unacknowledged",
  "open",
  "reportsAfter",
  "get",
  "entries",
]);

/** Kept this long after the expiry of the intent, by the cloud's clock. */
const DEDUPLICATION_SKEW_MS = 3600_000;

interface CommandRow {
  id: string;
  kind: string;
  resource: string;
  state: string;
  intent: string;
  body: string;
  accepted_at: number;
  expires: number;
  trace: string | null;
}

const toCommand = (row: CommandRow): JournaledCommand => ({
  id: row.id as CommandId,
  kind: row.kind,
  resource: row.resource,
  state: row.state as JournaledCommand["state"],
  intent: row.intent,
  body: JSON.parse(row.body) as Body,
  acceptedAt: row.accepted_at,
  expires: row.expires,
  trace: row.trace,
});

const damaged = (file: string, what: string, cause?: unknown) =>
  new ConnectorError("JOURNAL_UNAVAILABLE", `The journal ${file} cannot be used: ${what}.`, {
    fix: "Put the file back from a copy, or move it away by hand: the agent then begins a new journal and the cloud is told that the old one is lost. It is never replaced by itself, because it says what was done already.",
    cause,
  });

function syncFolder(path: string): void {
  const folder = openSync(path, "r");
  try {
    fsyncSync(folder);
  } finally {
    closeSync(folder);
  }
}

function configure(db: DatabaseSync): void {
  db.exec(
    "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 2000; PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON;",
  );
}

function migrate(db: DatabaseSync, file: string): void {
  const version = (db.prepare("PRAGMA user_version").get() as { user_version: number }).user_version;
  if (version > MIGRATIONS.length)
    throw damaged(file, `it was written by a newer agent (schema ${version}, this one knows ${MIGRATIONS.length})`);
  for (let next = version; next < MIGRATIONS.length; next++) {
    db.exec("BEGIN IMMEDIATE");
    db.exec(MIGRATIONS[next]!);
    db.exec(`PRAGMA user_version = ${next + 1}`);
    db.exec("COMMIT");
  }
}

/** Made aside and moved into place, so that a file of that name is always a whole journal. */
function create(file: string): void {
  const aside = `${file}.new`;
  for (const suffix of ["", "-wal", "-shm"]) rmSync(aside + suffix, { force: true });
  closeSync(openSync(aside, "wx", 0o600));
  const db = new DatabaseSync(aside);
  try {
    db.exec("PRAGMA synchronous = FULL");
    migrate(db, aside);
    db.prepare("INSERT INTO meta (key, value) VALUES ('id', ?), ('starts', '0')").run(newId("journal"));
  } finally {
    db.close();
  }
  renameSync(aside, file);
  syncFolder(dirname(file));
}

/** Empty when nothing is there. */
function placeOf(file: string): string {
  const found = statSync(file, { throwIfNoEntry: false, bigint: true });
  return found === undefined ? "" : `${found.dev}:${found.ino}`;
}

export class JournalFile {
  readonly #options: JournalFileOptions;
  #db: DatabaseSync;
  #statements = new Map<string, StatementSync>();
  /** Which file the handle is of: device and inode. */
  #place = "";
  readonly id: string;

  /** Makes the file when there is none. Refuses one that is damaged, emptied or newer. */
  constructor(options: JournalFileOptions) {
    this.#options = options;
    const { file } = options;
    if (!existsSync(file)) {
      // A log without its file: the file was lost, and what the log says of it would be lost with it.
      if (existsSync(`${file}-wal`)) throw damaged(file, "its -wal file is there, but it is not");
      create(file);
    }
    this.#db = this.#openFile({ check: true });
    this.id = (this.#one("SELECT value FROM meta WHERE key = 'id'").get() as { value: string }).value;
  }

  /** `check` reads the whole file: at start only. */
  #openFile({ check }: { check: boolean }): DatabaseSync {
    const { file, maxBytes } = this.#options;
    let db: DatabaseSync | undefined;
    try {
      if (!existsSync(file)) throw damaged(file, "it has gone");
      db = new DatabaseSync(file);
      const version = (db.prepare("PRAGMA user_version").get() as { user_version: number }).user_version;
      if (version === 0) throw damaged(file, "it is empty");
      configure(db);
      if (check) {
        const { quick_check: verdict } = db.prepare("PRAGMA quick_check(1)").get() as { quick_check: string };
        if (verdict !== "ok") throw damaged(file, `SQLite finds it damaged (${verdict.slice(0, 200)})`);
      }
      migrate(db, file);
      const pageBytes = (db.prepare("PRAGMA page_size").get() as { page_size: number }).page_size;
      db.exec(`PRAGMA max_page_count = ${Math.floor(maxBytes / pageBytes)}`);
      this.#place = placeOf(file);
      return db;
    } catch (error) {
      db?.close();
      const fault = diskFault(error);
      throw fault === null ? error : damaged(file, fault, error);
    }
  }

  #one(sql: string): StatementSync {
    let statement = this.#statements.get(sql);
    if (statement === undefined) {
      statement = this.#db.prepare(sql);
      this.#statements.set(sql, statement);
    }
    return statement;
  }

  /** After a failed write what the file's handle believes may differ from the disk: begin again from the disk. */
  reopen(): void {
    this.#statements.clear();
    try {
      this.#db.close();
    } catch {
      // It was closed by an earlier attempt.
    }
    this.#db = this.#openFile({ check: false });
  }

  /**
   * Throws when the file was removed or replaced while it is open: what is written now would be on a disk, and never be
   * found again. Heals by itself when the file comes back to its place.
   */
  mustBeInPlace(): void {
    const { file } = this.#options;
    if (placeOf(file) === this.#place) return;
    throw new ConnectorError(
      "JOURNAL_UNAVAILABLE",
      `The journal ${file} was removed or replaced while the agent runs.`,
      {
        fix: "Put the state directory back, or stop the agent, restore the directory and start it again.",
      },
    );
  }

  /** Counts this start. */
  begin(): number {
    this.#one("UPDATE meta SET value = CAST(CAST(value AS INTEGER) + 1 AS TEXT) WHERE key = 'starts'").run();
    return this.starts();
  }

  starts(): number {
    return Number((this.#one("SELECT value FROM meta WHERE key = 'starts'").get() as { value: string }).value);
  }

  lastSequence(): number {
    const row = this.#one("SELECT seq FROM sqlite_sequence WHERE name = 'report'").get() as { seq: number } | undefined;
    return row?.seq ?? 0;
  }

  /** Everything up to here was acknowledged and dropped. */
  acknowledgedThrough(): number {
    const row = this.#one("SELECT MIN(sequence) AS first FROM report").get() as { first: number | null };
    return row.first === null ? this.lastSequence() : row.first - 1;
  }

  dispatchSequences(): Record<string, number> {
    const rows = this.#one("SELECT incarnation, sequence FROM incarnation").all() as {
      incarnation: string;
      sequence: number;
    }[];
    return Object.fromEntries(rows.map((row) => [row.incarnation, row.sequence]));
  }

  /** One transaction around `work`; rolls back when it throws. Returns after the fsync. */
  transaction<T>(work: () => T): T {
    this.#one("BEGIN IMMEDIATE").run();
    try {
      const result = work();
      this.#one("COMMIT").run();
      return result;
    } catch (error) {
      // A full disk makes SQLite roll back by itself.
      if (this.#db.isTransaction) this.#db.exec("ROLLBACK");
      throw error;
    }
  }

  /** Within a transaction: undoes only its own work when it throws. */
  savepoint<T>(work: () => T): T {
    this.#one("SAVEPOINT operation").run();
    try {
      const result = work();
      this.#one("RELEASE operation").run();
      return result;
    } catch (error) {
      if (this.#db.isTransaction) this.#db.exec("ROLLBACK TO operation; RELEASE operation");
      throw error;
    }
  }

  #report(command: CommandId, bodies: readonly ReportBody[], at: number): void {
    const insert = this.#one("INSERT INTO report (command, at, body) VALUES (?, ?, ?)");
    for (const body of bodies) insert.run(command, at, JSON.stringify(body));
  }

  #roomForMore(): boolean {
    const { page_count: pages } = this.#one("PRAGMA page_count").get() as { page_count: number };
    const { freelist_count: free } = this.#one("PRAGMA freelist_count").get() as { freelist_count: number };
    const { max_page_count: most } = this.#one("PRAGMA max_page_count").get() as { max_page_count: number };
    return pages - free < most * INTAKE_SHARE;
  }

  readonly operations: JournalOperations = {
    accept: (command, dispatch) => {
      this.#one(
        "INSERT INTO incarnation (incarnation, sequence) VALUES (?1, ?2) ON CONFLICT (incarnation) DO UPDATE SET sequence = MAX(sequence, excluded.sequence)",
      ).run(dispatch.incarnation, dispatch.sequence);
      const held = this.#one("SELECT state FROM command WHERE id = ?").get(command.id) as
        | { state: JournaledCommand["state"] }
        | undefined;
      if (held?.state === "released") {
        this.#one("UPDATE command SET state = 'accepted' WHERE id = ?").run(command.id);
        return { known: false, state: "accepted" };
      }
      if (held !== undefined) return { known: true, state: held.state };
      if (!this.#roomForMore()) {
        throw new ConnectorError(
          "JOURNAL_UNAVAILABLE",
          `The journal has reached ${INTAKE_SHARE * 100} % of its cap of ${this.#options.maxBytes} bytes and takes no new commands.`,
          {
            fix: "Let the agent reach the cloud, so that reports are acknowledged and dropped, or raise the cap.",
          },
        );
      }
      this.#one(
        "INSERT INTO command (id, kind, resource, state, intent, body, accepted_at, expires, trace) VALUES (?, ?, ?, 'accepted', ?, ?, ?, ?, ?)",
      ).run(
        command.id,
        command.kind,
        command.resource,
        command.intent,
        JSON.stringify(command.body),
        command.acceptedAt,
        command.expires,
        command.trace ?? null,
      );
      return { known: false, state: "accepted" };
    },

    advance: (id, state, reports, at) => {
      const changed = this.#one("UPDATE command SET state = ?2 WHERE id = ?1 AND state IN ('accepted', 'running')").run(
        id,
        state,
      ).changes;
      if (Number(changed) === 0) return false;
      this.#report(id, reports, at);
      return true;
    },

    release: (id, at) => {
      const held = this.#one("SELECT state FROM command WHERE id = ?").get(id) as { state: string } | undefined;
      if (held?.state === "released") return;
      this.#one("UPDATE command SET state = 'released' WHERE id = ?").run(id);
      this.#report(id, [{ type: "command.released" }], at);
    },

    unacknowledged: (id) => this.#one("SELECT 1 FROM report WHERE command = ? LIMIT 1").get(id) !== undefined,

    report: (id, bodies, at) => this.#report(id, bodies, at),

    command: (id) => {
      const row = this.#one("SELECT * FROM command WHERE id = ?").get(id) as CommandRow | undefined;
      return row === undefined ? null : toCommand(row);
    },

    open: () =>
      (
        this.#one(
          "SELECT * FROM command WHERE state IN ('accepted', 'running') ORDER BY n",
        ).all() as unknown as CommandRow[]
      ).map(toCommand),

    reportsAfter: (after, limit) => {
      const rows = this.#one(
        "SELECT sequence, command, at, body FROM report WHERE sequence > ? ORDER BY sequence LIMIT ?",
      ).all(after, limit) as unknown as {
        sequence: number;
        command: string;
        at: number;
        body: string;
      }[];
      return rows.map((row) => ({
        journal: this.id as Report["journal"],
        sequence: row.sequence,
        at: row.at,
        command: row.command as CommandId,
        body: { encoding: "json", enc: "none", kid: null, data: row.body },
      }));
    },

    acknowledge: (through) => {
      this.#one("DELETE FROM report WHERE sequence <= ?").run(through);
    },

    compact: (cloudNow) =>
      Number(
        this.#one(
          "DELETE FROM command WHERE state NOT IN ('accepted', 'running') AND expires < ? AND NOT EXISTS (SELECT 1 FROM report WHERE report.command = command.id)",
        ).run(cloudNow - DEDUPLICATION_SKEW_MS).changes,
      ),

    commit: (change, at) => {
      for (const { namespace, key, value } of change.put ?? []) {
        this.#one(
          "INSERT INTO record (namespace, key, value) VALUES (?, ?, ?) ON CONFLICT (namespace, key) DO UPDATE SET value = excluded.value",
        ).run(namespace, key, JSON.stringify(value ?? null));
      }
      for (const { namespace, key } of change.remove ?? [])
        this.#one("DELETE FROM record WHERE namespace = ? AND key = ?").run(namespace, key);
      if (change.reports !== undefined && change.reports.length > 0) {
        if (change.command === undefined)
          throw new ConnectorError("INTERNAL", "Reports were to be journaled without naming their command.");
        this.#report(change.command, change.reports, at);
      }
    },

    get: (namespace, key) => {
      const row = this.#one("SELECT value FROM record WHERE namespace = ? AND key = ?").get(namespace, key) as
        | { value: string }
        | undefined;
      return row === undefined ? undefined : (JSON.parse(row.value) as unknown);
    },

    entries: (namespace, prefix) => {
      const rows = this.#one(
        "SELECT key, value FROM record WHERE namespace = ?1 AND key >= ?2 AND key < ?3 ORDER BY key",
      ).all(namespace, prefix, `${prefix}\u{10ffff}`) as {
        key: string;
        value: string;
      }[];
      return rows.map((row) => ({ key: row.key, value: JSON.parse(row.value) as unknown }));
    },
  };

  close(): void {
    this.#db.close();
  }
}
