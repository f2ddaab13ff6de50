// The database of a control plane under faults: SQLite in its data folder, a PostgreSQL server that is started here, or
// a URL that was given (for a set of cases, one world after the other, so it must be empty).
import type { Teardown } from "../support/launcher.ts";
import { startPostgres } from "../support/servers.ts";

/** URL for --database; null = SQLite. `wanted`: sqlite, postgres, or a postgres:// URL. */
export async function sweptDatabase(t: Teardown, wanted: string): Promise<string | null> {
  if (wanted === "sqlite") return null;
  // Nothing here cuts the power: what counts is that a commit was answered, not that the disk has it.
  if (wanted === "postgres") return (await startPostgres(t)).database();
  if (/^postgres(ql)?:\/\//.test(wanted)) return wanted;
  throw new Error(`--database is sqlite, postgres or a postgres:// URL, not ${JSON.stringify(wanted)}.`);
}
