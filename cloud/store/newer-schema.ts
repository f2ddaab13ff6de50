// What both databases say when a newer program was here before.
import { ConnectorError } from "@sallyport/protocol";
import { MIGRATIONS } from "./migrations.ts";

/** The refusal of a database that a newer program has written; null when this one may open it. */
export function newerSchema(newest: number, where: string): ConnectorError | null {
  const ours = MIGRATIONS.at(-1)!.id;
  if (newest <= ours) return null;
  return new ConnectorError(
    "CONFIG_INVALID",
    `The database ${where} was written by a newer version (schema ${newest}, this program knows ${ours}).`,
    { fix: "Start the newer version, or restore the backup that was made before the upgrade." },
  );
}
