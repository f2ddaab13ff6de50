// Backup and restore of the store, for either database in one form: gzip over lines of JSON, written from one snapshot
// while the control plane runs. What one database wrote, the other can read: that is also how to move from one to the other.
//   {"sallyport":"backup","format":1,"schema":N,"madeAt":ms}, then for each table {"table","columns"} and a row a line,
//   then {"end":true,"rows":n}: a file without that line was cut short and is refused before anything is changed.
import { randomBytes } from "node:crypto";
import { createReadStream, createWriteStream, openSync, renameSync, rmSync } from "node:fs";
import { open } from "node:fs/promises";
import { dirname } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { createGunzip, createGzip } from "node:zlib";
import { ConnectorError } from "@sallyport/protocol";
import { MIGRATIONS, type Migration } from "./migrations.ts";

type Value = string | number | null;
export type Row = readonly Value[];

/** One snapshot of a database, read table by table. */
export interface BackupSource {
  schema: number;
  table(name: string): Promise<{ columns: string[]; rows: AsyncIterable<Row> | Iterable<Row> }>;
}
/** One transaction over a database that is being filled; the caller commits it or rolls it back. */
export interface RestoreTarget {
  migrate(migration: Migration): Promise<void>;
  insert(table: string, columns: readonly string[], rows: readonly Row[]): Promise<void>;
  run(statement: string): Promise<void>;
}
export interface BackupFigures {
  madeAt: number;
  rows: number;
}

const FORMAT = 1;
const BATCH = 200;
const HEAD_BYTES = 64 * 1024;

/** Tables in the order of their making: what a row points to lies in an earlier one. */
export const tablesOf = (schema: number): string[] =>
  MIGRATIONS.filter((migration) => migration.id <= schema).flatMap((migration) =>
    migration.statements.flatMap((statement) => /^create table (\w+)/.exec(statement)?.[1] ?? []),
  );

const line = (value: unknown): string => `${JSON.stringify(value)}\n`;

/** Written beside and renamed when it is whole and on the disk; for its owner alone. */
export async function writeBackup(source: BackupSource, file: string, now: number): Promise<BackupFigures> {
  const beside = `${file}.${process.pid}.part`;
  let count = 0;
  async function* lines(): AsyncIterable<string> {
    yield line({ sallyport: "backup", format: FORMAT, schema: source.schema, madeAt: now });
    for (const name of tablesOf(source.schema)) {
      const { columns, rows } = await source.table(name);
      let text = line({ table: name, columns });
      for await (const row of rows) {
        count++;
        text += line(row);
        if (text.length < HEAD_BYTES) continue;
        yield text;
        text = "";
      }
      yield text;
    }
    yield line({ end: true, rows: count });
  }
  try {
    const fd = openSync(beside, "wx", 0o600);
    await pipeline(Readable.from(lines()), createGzip(), createWriteStream(beside, { fd, flush: true }));
    renameSync(beside, file);
  } catch (error) {
    rmSync(beside, { force: true });
    const code = (error as NodeJS.ErrnoException).code;
    if (code === "ENOENT" || code === "EACCES" || code === "EISDIR" || code === "EROFS")
      throw new ConnectorError("CONFIG_INVALID", `The backup ${file} cannot be written (${code}).`, {
        fix: "Name a file in a folder that exists and that this user may write.",
        cause: error,
      });
    throw error;
  }
  const folder = await open(dirname(file), "r");
  await folder.sync();
  await folder.close();
  return { madeAt: now, rows: count };
}

const damaged = (file: string, why: string, cause?: unknown) =>
  new ConnectorError("STORAGE_CORRUPT", `${file} is not a whole backup of Sallyport: ${why}.`, {
    fix: "Take another backup. Nothing was changed.",
    ...(cause === undefined ? {} : { cause }),
  });

async function* linesOf(file: string): AsyncIterable<string> {
  let rest = "";
  const decoder = new TextDecoder("utf-8", { fatal: true });
  try {
    const input = createReadStream(file);
    const bytes = input.pipe(createGunzip());
    input.on("error", (error) => bytes.destroy(error));
    for await (const chunk of bytes as AsyncIterable<Buffer>) {
      const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n");
      rest = lines.pop()!;
      yield* lines;
    }
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? "";
    if (code === "ENOENT" || code === "EACCES" || code === "EISDIR")
      throw new ConnectorError("CONFIG_INVALID", `The backup ${file} cannot be read (${code}).`, {
        fix: "Check the path and the rights.",
        cause: error,
      });
    throw damaged(file, "its end is missing or its bytes were changed", error);
  }
  if (rest !== "") yield rest;
}

/**
 * Fills the target: schema as it was, rows, the migrations since, and then what makes it a new life of the control plane.
 * Throws before it is whole; then the caller rolls back.
 */
export async function readBackup(target: RestoreTarget, file: string, now: number): Promise<BackupFigures> {
  let head = null as { format: number; schema: number; madeAt: number } | null;
  let table: { name: string; columns: string[] } | null = null;
  let known: string[] = [];
  let batch: Row[] = [];
  let count = 0;
  let ended = false;
  const flush = async (): Promise<void> => {
    if (batch.length > 0) await target.insert(table!.name, table!.columns, batch);
    batch = [];
  };
  const take = async (value: unknown): Promise<void> => {
    if (ended) throw damaged(file, "there is more behind its end");
    if (Array.isArray(value)) {
      if (table?.columns.length !== value.length) throw damaged(file, "a row has another number of columns");
      if (!value.every((one) => one === null || typeof one === "string" || typeof one === "number"))
        throw damaged(file, "a row holds what no column does");
      batch.push(value as Row);
      count++;
      if (batch.length >= BATCH) await flush();
      return;
    }
    const said = value as Record<string, unknown>;
    if (head === null) {
      if (said["sallyport"] !== "backup") throw damaged(file, "it does not begin as one");
      const { format, schema } = (head = said as unknown as NonNullable<typeof head>);
      const ours = MIGRATIONS.at(-1)!.id;
      if (format !== FORMAT || schema > ours)
        throw new ConnectorError(
          "CONFIG_INVALID",
          `${file} was written by a newer version (format ${format}, schema ${schema}; this program knows ${FORMAT} and ${ours}).`,
          { fix: "Restore it with the newer version." },
        );
      known = tablesOf(schema);
      for (const migration of MIGRATIONS) if (migration.id <= schema) await target.migrate(migration);
      return;
    }
    await flush();
    if (said["end"] === true) {
      if (said["rows"] !== count) throw damaged(file, `it has ${count} of ${String(said["rows"])} rows`);
      ended = true;
      return;
    }
    const [name, columns] = [said["table"], said["columns"]];
    // Names go into statements: only those that this schema has, and columns that look like columns.
    if (typeof name !== "string" || !known.includes(name)) throw damaged(file, "it names a table that there is not");
    if (!Array.isArray(columns) || !columns.every((one) => /^[a-z][a-z0-9_]*$/.test(String(one))))
      throw damaged(file, `its columns of ${name} are none`);
    table = { name, columns: columns as string[] };
  };
  for await (const text of linesOf(file)) {
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch (error) {
      throw damaged(file, "a line of it is cut", error);
    }
    if (value === null || typeof value !== "object") throw damaged(file, "a line of it says nothing");
    await take(value);
  }
  if (!ended || head === null) throw damaged(file, "its end is missing");
  const { schema, madeAt } = head;
  for (const migration of MIGRATIONS) if (migration.id > schema) await target.migrate(migration);
  for (const statement of newLife(now)) await target.run(statement);
  return { madeAt, rows: count };
}

/** How far numbers of changes jump: nobody that followed them before can take the new ones for those it missed. */
const CHANGES_JUMP = 1_000_000;

/**
 * A restored database is another life: agents count its dispatches anew, and readers of changes fetch everything. What was
 * revoked, used or signed out since the backup must not be good again where that can be told.
 */
const newLife = (now: number): string[] => [
  `delete from cloud`,
  `insert into cloud (singleton, incarnation, made_at) values (1, '${randomBytes(16).toString("hex")}', ${now})`,
  `delete from changes`,
  `update change_counters set n = n + ${CHANGES_JUMP}`,
  `delete from web_sessions`,
  `delete from signins where redeemed_at is null`,
  `update enrollments set withdrawn_at = ${now} where used_at is null and withdrawn_at is null`,
  `update replicas set disconnected_at = coalesce(last_seen_at, ${now}) where session_id is not null and disconnected_at is null`,
  `update connections set ended_at = ${now}, code = 'LINK_LOST', message = 'The control plane was restored from a backup; how this connection ended is not known.' where ended_at is null`,
];
