// The database of a sweep's control plane: none of its own (SQLite in its data folder), a URL that was given, or a
// PostgreSQL server that is started here.
import type { Teardown } from "../support/launcher.ts";

/** URL for --database; null = SQLite. `wanted`: sqlite or a postgres:// URL. */
export async function sweptDatabase(_t: Teardown, wanted: string): Promise<string | null> {
  if (wanted === "sqlite") return null;
  if (/^postgres(ql)?:\/\//.test(wanted)) return wanted;
  throw new Error(`--database is sqlite or a postgres:// URL, not ${JSON.stringify(wanted)}.`);
}
