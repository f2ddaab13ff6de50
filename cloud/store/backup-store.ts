// Backup and restore of the one database or the other, by whether the configuration names one.
import type { BackupFigures } from "./backup.ts";

// Loaded when asked for: a control plane that runs needs neither.
const ofSqlite = () => import("./sqlite-backup.ts");
const ofPostgres = () => import("./postgres-backup.ts");

/** `database` null: SQLite in the data directory. */
export interface StorePlace {
  dir: string;
  database: string | null;
}

export const backupStore = async ({ dir, database }: StorePlace, file: string, now: number): Promise<BackupFigures> =>
  database === null
    ? (await ofSqlite()).backupSqlite(dir, file, now)
    : (await ofPostgres()).backupPostgres(database, file, now);

/** `kept`: where the database lies that was there before; null when there was none, or (PostgreSQL) it was not kept. */
export async function restoreStore(
  { dir, database }: StorePlace,
  file: string,
  now: number,
  options: { replace: boolean },
): Promise<BackupFigures & { kept: string | null }> {
  return database === null
    ? (await ofSqlite()).restoreSqlite(dir, file, now, options)
    : { ...(await (await ofPostgres()).restorePostgres(database, file, now, options)), kept: null };
}
