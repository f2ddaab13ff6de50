// The one or the other, by whether the configuration names a database.
import type { ConnectorError } from "@sallyport/protocol";
import { openPostgresStore } from "./postgres-store.ts";
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

export const openStore = ({ dir, database, onDeath, onOutage }: StoreOptions): Promise<Store> =>
  database === null
    ? openSqliteStore({ dir, ...(onDeath === undefined ? {} : { onDeath }) })
    : openPostgresStore({ url: database, ...(onOutage === undefined ? {} : { onOutage }) });
