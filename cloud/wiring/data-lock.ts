// One control plane per data directory. The lock is the kernel's (on a SQLite file): it goes with the process.
import { closeSync, mkdirSync, openSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { ConnectorError } from "@sallyport/protocol";

const SQLITE_BUSY = 5;

/** Makes the directory if need be. Throws CONFIG_INVALID when another process holds it or it cannot be used. */
export function lockData(folder: string): { release(): void } {
  let database: DatabaseSync | null = null;
  try {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    const path = join(folder, "cloud.lock");
    closeSync(openSync(path, "a", 0o600));
    database = new DatabaseSync(path, { timeout: 0 });
    database.exec("begin exclusive");
    const held = database;
    return { release: () => held.close() };
  } catch (cause) {
    database?.close();
    if ((cause as { errcode?: number }).errcode === SQLITE_BUSY) {
      throw new ConnectorError("CONFIG_INVALID", `Another control plane uses the data directory ${folder}.`, {
        fix: "Stop that one first, or give this one a directory of its own by --data.",
        cause,
      });
    }
    throw new ConnectorError(
      "CONFIG_INVALID",
      `The data directory ${folder} cannot be used (${(cause as NodeJS.ErrnoException).code ?? "unknown fault"}).`,
      { fix: "Name a directory that this user owns and can write, by --data.", cause },
    );
  }
}
