// Backup and restore of a PostgreSQL database: our own tables, by our own reading, so that no pg_dump of the right version
// need be there and the file is the same as SQLite's.
import pg from "pg";
import { readBackup, tablesOf, writeBackup, type BackupFigures, type Row } from "./backup.ts";
import { MIGRATIONS } from "./migrations.ts";
import { newerSchema } from "./newer-schema.ts";
import { databaseError, marked, types } from "./postgres-connection.ts";
import { forPostgres, MIGRATION_LOCK, SCHEMA_TABLE } from "./postgres-schema.ts";
import { postgresClientConfig, shownDatabase } from "./postgres-url.ts";
import { occupied } from "./sqlite-backup.ts";

/** Rows of one answer: bounds memory, a row may hold a whole pipeline. */
const FETCH = 200;
const CONNECT_MS = 10_000;

async function withConnection<T>(address: string, work: (client: pg.Client, where: string) => Promise<T>): Promise<T> {
  const where = shownDatabase(address);
  const client = new pg.Client({ ...postgresClientConfig(address), types, connectionTimeoutMillis: CONNECT_MS });
  // Its failure reaches the statement that waits.
  client.on("error", () => {});
  try {
    await client.connect().catch((error: unknown) => {
      throw marked(error);
    });
    return await work(client, where);
  } catch (error) {
    throw databaseError(error, where);
  } finally {
    await client.end().catch(() => {});
  }
}

async function schemaOf(client: pg.Client): Promise<number> {
  const there = await client.query("select to_regclass('schema_migrations') is not null as there");
  if ((there.rows[0] as { there: boolean }).there !== true) return 0;
  const { rows } = await client.query("select coalesce(max(id), 0) as id from schema_migrations");
  return (rows[0] as { id: number }).id;
}

/** Online, in one snapshot. */
export const backupPostgres = (address: string, file: string, now: number): Promise<BackupFigures> =>
  withConnection(address, async (client, where) => {
    await client.query("begin isolation level repeatable read read only");
    const schema = await schemaOf(client);
    const newer = newerSchema(schema, where);
    if (newer !== null) throw newer;
    return writeBackup(
      {
        schema,
        async table(name) {
          const columns = (await client.query(`select * from ${name} limit 0`)).fields.map((field) => field.name);
          async function* rows(): AsyncIterable<Row> {
            await client.query(`declare every_row no scroll cursor for select * from ${name}`);
            for (;;) {
              const part = await client.query({ text: `fetch ${FETCH} from every_row`, rowMode: "array" });
              yield* part.rows as Row[];
              if (part.rows.length < FETCH) break;
            }
            await client.query("close every_row");
          }
          return { columns, rows: rows() };
        },
      },
      file,
      now,
    );
  });

/** One transaction: a database that the restore does not finish is what it was before. */
export const restorePostgres = (
  address: string,
  file: string,
  now: number,
  options: { replace: boolean },
): Promise<BackupFigures> =>
  withConnection(address, async (client, where) => {
    await client.query("begin");
    await client.query(`select pg_advisory_xact_lock(${MIGRATION_LOCK})`);
    const schema = await schemaOf(client);
    if (schema > 0) {
      const newer = newerSchema(schema, where);
      if (newer !== null) throw newer;
      const used = await client.query("select exists (select 1 from workspaces) as used");
      if ((used.rows[0] as { used: boolean }).used && !options.replace) throw occupied(where);
      for (const table of [...tablesOf(MIGRATIONS.at(-1)!.id), "schema_migrations"])
        await client.query(`drop table if exists ${table} cascade`);
    }
    await client.query(forPostgres(SCHEMA_TABLE));
    const figures = await readBackup(
      {
        async migrate(migration) {
          for (const statement of migration.statements) await client.query(forPostgres(statement));
          await client.query("insert into schema_migrations (id, name, applied_at) values ($1, $2, $3)", [
            migration.id,
            migration.name,
            now,
          ]);
        },
        async insert(table, columns, rows) {
          const names = columns.map((column) => `"${column}"`).join(", ");
          const places = rows
            .map((row, at) => `(${row.map((_value, column) => `$${at * columns.length + column + 1}`).join(", ")})`)
            .join(", ");
          await client.query(`insert into ${table} (${names}) values ${places}`, rows.flat());
        },
        run: async (statement) => void (await client.query(statement)),
      },
      file,
      now,
    );
    await client.query("commit");
    return figures;
  });
