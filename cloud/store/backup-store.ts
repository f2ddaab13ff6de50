// Backup and restore of the one database or the other, by whether the configuration names one.
import type { BackupFigures } from "./backup.ts";
import { backupPostgres, restorePostgres } from "./postgres-backup.ts";
import { backupSqlite, restoreSqlite } from "./sqlite-backup.ts";

/** `database` null: SQLite in the data directory. */
export interface StorePlace {
  dir: string;
  database: string | null;
}

export const backupStore = ({ dir, database }: StorePlace, file: string, now: number): Promise<BackupFigures> =>
  database === null ? backupSqlite(dir, file, now) : backupPostgres(database, file, now);

/** `kept`: where the database lies that was there before; null when there was none, or (PostgreSQL) it was not kept. */
export async function restoreStore(
  { dir, database }: StorePlace,
  file: string,
  now: number,
  options: { replace: boolean },
): Promise<BackupFigures & { kept: string | null }> {
  return database === null
    ? restoreSqlite(dir, file, now, options)
    : { ...(await restorePostgres(database, file, now, options)), kept: null };
}
