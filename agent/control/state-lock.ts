// One agent per state directory. The lock is the kernel's (a lock on a SQLite file), so it goes with the process that
// holds it, however that ends; the pid beside it is only for the message.
import { chmodSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { ConnectorError } from "@sallyport/protocol";

export interface StateLock {
  release(): void;
}

const SQLITE_BUSY = 5;

/** Makes the directory if need be, for its owner alone. Throws CONFIG_INVALID when it is in use or cannot be used. */
export function lockState(stateDir: string): StateLock {
  const pidFile = join(stateDir, "agent.pid");
  try {
    mkdirSync(stateDir, { recursive: true, mode: 0o700 });
    chmodSync(stateDir, 0o700);
    const lock = new DatabaseSync(join(stateDir, "agent.lock"), { timeout: 0 });
    try {
      lock.exec("BEGIN EXCLUSIVE");
    } catch (error) {
      lock.close();
      throw error;
    }
    writeFileSync(pidFile, `${process.pid}\n`, { mode: 0o600 });
    return {
      release: () => {
        rmSync(pidFile, { force: true });
        lock.close();
      },
    };
  } catch (error) {
    if ((error as { errcode?: number }).errcode === SQLITE_BUSY) {
      let pid = "unknown";
      try {
        pid = readFileSync(pidFile, "utf8").trim();
      } catch {
        // It is about to write it, or it was removed: the message does without.
      }
      throw new ConnectorError(
        "CONFIG_INVALID",
        `Another agent (process ${pid}) uses the state directory ${stateDir}.`,
        {
          fix: "Stop that one first, or give this one a state directory of its own: two agents are two replicas, each with its own key.",
          cause: error,
        },
      );
    }
    const { code } = error as NodeJS.ErrnoException;
    throw new ConnectorError(
      "CONFIG_INVALID",
      `The state directory ${stateDir} cannot be used (${code ?? "unknown fault"}).`,
      {
        fix: "Name a directory that the agent's user owns and can write: `state` in the configuration, or SALLYPORT_STATE.",
        cause: error,
      },
    );
  }
}
