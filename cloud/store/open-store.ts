// The one or the other, by whether the configuration names a database.
import type { ConnectorError } from "@sallyport/protocol";
import { openSqliteStore } from "./sqlite-store.ts";
import type { Store } from "./store.ts";

export interface StoreOptions {
  /** The data directory; SQLite's file is in it. */
  dir: string;
  /** PostgreSQL's address. Null: SQLite. */
  database: string | null;
  /** Nothing can be stored any more. */
  onDeath?: (error: ConnectorError) => void;
  /** The database went away, or (null) is back. */
  onOutage?: (error: ConnectorError | null) => void;
}

/** PostgreSQL's client, and on this thread the queries, are loaded where there is a PostgreSQL. */
export async function openStore({ dir, database, onDeath, onOutage }: StoreOptions): Promise<Store> {
  if (database === null) return openSqliteStore({ dir, ...(onDeath === undefined ? {} : { onDeath }) });
  const { openPostgresStore } = await import("./postgres-store.ts");
  return openPostgresStore({ url: database, ...(onOutage === undefined ? {} : { onOutage }) });
}
