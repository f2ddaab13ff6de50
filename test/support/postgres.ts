// PostgreSQL for a whole file of tests: where SALLYPORT_TEST_DATABASE is `postgres`, stores and control planes of tests
// lie on it instead of on SQLite. A file runs on the other database by importing it anew (see cloud/store/postgres.test.ts).
import type { PostgresServer } from "./servers.ts";

export const onPostgres = process.env["SALLYPORT_TEST_DATABASE"] === "postgres";

let server: Promise<PostgresServer> | undefined;
/** One server a test process; it ends with the process's last test. */
export const postgres = (): Promise<PostgresServer> => (server ??= started());
async function started(): Promise<PostgresServer> {
  // Loaded only here: whoever imports this file for SQLite needs neither, and `tap` speaks up when it is loaded.
  const [{ default: t }, { startPostgres }] = await Promise.all([import("tap"), import("./servers.ts")]);
  return startPostgres(t);
}
