// A store of its own for a test, on SQLite or, where the file runs on it, on PostgreSQL (see postgres.ts).
import { openStore, type Store } from "../../cloud/store/index.ts";
import { tempDir, type Teardown } from "./launcher.ts";
import { onPostgres, postgres } from "./postgres.ts";

export interface StorePlace {
  dir: string;
  /** PostgreSQL's address; null on SQLite. */
  database: string | null;
  /** Opens a store over it. The caller closes it. */
  open(): Promise<Store>;
}

/** Where nothing is yet. */
export async function storePlace(test: Teardown): Promise<StorePlace> {
  const dir = tempDir(test, "store");
  const database = onPostgres ? await (await postgres()).database() : null;
  return { dir, database, open: () => openStore({ dir, database }) };
}
