// The schema on PostgreSQL: the same list of statements, applied once however many processes start at a time.
import { createHash } from "node:crypto";
import type pg from "pg";
import { MIGRATIONS, type Migration } from "./migrations.ts";
import { newerSchema } from "./newer-schema.ts";
import { query } from "./postgres-connection.ts";

/** Advisory locks are numbers of the whole database: ours are made from names nobody else has. */
export const lockNumber = (name: string): bigint =>
  createHash("sha256").update(`sallyport/${name}`).digest().readBigInt64BE(0);
export const MIGRATION_LOCK = lockNumber("migrations");

export const SCHEMA_TABLE =
  "create table if not exists schema_migrations (id bigint primary key, name text not null, applied_at bigint not null)";
/** `text` compares byte by byte, as on SQLite and whatever the server's language is. */
export const forPostgres = (statement: string): string => statement.replace(/\btext\b/g, 'text collate "C"');

export async function migrate(client: pg.PoolClient, where: string): Promise<void> {
  try {
    await query(client, "begin");
    await query(client, "set local statement_timeout = 0");
    await query(client, `select pg_advisory_xact_lock(${MIGRATION_LOCK})`);
    await query(client, forPostgres(SCHEMA_TABLE));
    const applied = new Set(
      (await query(client, "select id from schema_migrations")).rows.map((row) => row.id as number),
    );
    const newer = newerSchema(Math.max(0, ...applied), where);
    if (newer !== null) throw newer;
    for (const migration of MIGRATIONS) if (!applied.has(migration.id)) await apply(client, migration);
    await query(client, "commit");
  } catch (error) {
    await query(client, "rollback").catch(() => {});
    throw error;
  }
}

async function apply(client: pg.PoolClient, migration: Migration): Promise<void> {
  for (const statement of migration.statements) await query(client, forPostgres(statement));
  await query(client, "insert into schema_migrations (id, name, applied_at) values ($1, $2, $3)", [
    migration.id,
    migration.name,
    Date.now(),
  ]);
}
