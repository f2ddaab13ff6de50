// Files that only their owner may read: written whole or not at all, and durable before they are used.
import {
  closeSync,
  fsyncSync,
  linkSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from "node:fs";
import { dirname } from "node:path";
import { ConnectorError } from "@sallyport/protocol";

function syncFolder(path: string): void {
  const folder = openSync(dirname(path), "r");
  try {
    fsyncSync(folder);
  } finally {
    closeSync(folder);
  }
}

/** Null when there is no such file. Refuses one that others can read. */
export function readPrivateFile(path: string): string | null {
  try {
    const { mode } = statSync(path);
    if (process.platform !== "win32" && (mode & 0o077) !== 0) {
      throw new ConnectorError("CONFIG_INVALID", `Others than its owner can read ${path}.`, {
        fix: `Run: chmod 600 ${path}. If others may have read it, make new keys.`,
      });
    }
    return readFileSync(path, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw error;
  }
}

/** `exclusive`: never replaces a file that came into being meanwhile. */
export function writePrivateFile(path: string, text: string, options: { exclusive?: boolean } = {}): void {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  const aside = `${path}.${process.pid}.new`;
  const file = openSync(aside, "wx", 0o600);
  try {
    writeSync(file, text);
    fsyncSync(file);
  } finally {
    closeSync(file);
  }
  try {
    if (options.exclusive === true) linkSync(aside, path);
    else renameSync(aside, path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
  } finally {
    rmSync(aside, { force: true });
  }
  syncFolder(path);
}
