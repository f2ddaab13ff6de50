// Backup and restore of the SQLite file. Runs in a program of its own (sallyport-cloud backup, restore), not beside beats.
import { chmodSync, closeSync, existsSync, fsyncSync, mkdirSync, openSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync, type SQLOutputValue } from "node:sqlite";
import { ConnectorError } from "@sallyport/protocol";
import { readBackup, writeBackup, type BackupFigures, type Row } from "./backup.ts";
import { newerSchema } from "./newer-schema.ts";
import { DATABASE_FILE } from "./sqlite-store.ts";

const SCHEMA_TABLE =
  "create table if not exists schema_migrations (id bigint primary key, name text not null, applied_at bigint not null)";

/** Online: the control plane may go on writing meanwhile, this is one snapshot. */
export async function backupSqlite(dir: string, file: string, now: number): Promise<BackupFigures> {
  const path = join(dir, DATABASE_FILE);
  if (!existsSync(path))
    throw new ConnectorError("CONFIG_INVALID", `There is no database in ${dir}.`, {
      fix: "Name the data directory of the control plane by --data, and its user by sudo -u.",
    });
  const database = new DatabaseSync(path, { readOnly: true, timeout: 10_000 });
  try {
    database.exec("begin");
    const schema = Number(database.prepare("select max(id) as id from schema_migrations").get()?.["id"]);
    const newer = newerSchema(schema, path);
    if (newer !== null) throw newer;
    return await writeBackup(
      {
        schema,
        async table(name) {
          const statement = database.prepare(`select * from ${name}`);
          const columns = statement.columns().map((column) => column.name);
          const rows = function* (): Iterable<Row> {
            for (const row of statement.iterate() as Iterable<Record<string, SQLOutputValue>>)
              yield columns.map((column) => row[column] as string | number | null);
          };
          return { columns, rows: rows() };
        },
      },
      file,
      now,
    );
  } finally {
    database.close();
  }
}

/** The control plane must stand still (its data directory is locked by the caller). A present database is kept beside. */
export async function restoreSqlite(
  dir: string,
  file: string,
  now: number,
  options: { replace: boolean },
): Promise<BackupFigures & { kept: string | null }> {
  const path = join(dir, DATABASE_FILE);
  const there = existsSync(path);
  if (there && !options.replace) throw occupied(path);
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  const beside = `${path}.restoring`;
  for (const name of [beside, `${beside}-journal`]) rmSync(name, { force: true });
  closeSync(openSync(beside, "wx", 0o600));
  const database = new DatabaseSync(beside, { enableForeignKeyConstraints: true });
  let figures: BackupFigures;
  try {
    database.exec("begin");
    database.exec(SCHEMA_TABLE);
    figures = await readBackup(
      {
        async migrate(migration) {
          for (const statement of migration.statements) database.exec(statement);
          database
            .prepare("insert into schema_migrations (id, name, applied_at) values (?, ?, ?)")
            .run(migration.id, migration.name, now);
        },
        async insert(table, columns, rows) {
          const names = columns.map((column) => `"${column}"`).join(", ");
          const statement = database.prepare(
            `insert into ${table} (${names}) values (${columns.map(() => "?").join(", ")})`,
          );
          for (const row of rows) statement.run(...row);
        },
        run: async (statement) => database.exec(statement),
      },
      file,
      now,
    );
    database.exec("commit");
    database.close();
  } catch (error) {
    if (database.isOpen) database.close();
    rmSync(beside, { force: true });
    throw error;
  }
  const fd = openSync(beside, "r");
  fsyncSync(fd);
  closeSync(fd);
  chmodSync(beside, 0o600);
  const kept = there ? `${path}.before-${new Date(now).toISOString().replaceAll(/[:.]/g, "-")}` : null;
  if (kept !== null)
    for (const end of ["", "-wal", "-shm"])
      if (existsSync(`${path}${end}`)) renameSync(`${path}${end}`, `${kept}${end}`);
  renameSync(beside, path);
  const folder = openSync(dir, "r");
  fsyncSync(folder);
  closeSync(folder);
  return { ...figures, kept };
}

export const occupied = (where: string) =>
  new ConnectorError("CONFLICT", `There is a database already: ${where}.`, {
    fix: "Restore into an empty place, or say --replace to put the backup in its stead.",
  });
