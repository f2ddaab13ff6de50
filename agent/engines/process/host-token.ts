// What a peer of the process host must show: proof that it can read a file of the agent's user.
import { randomBytes } from "node:crypto";
import { linkSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

/** Made once per state directory, by whoever comes first; never seen half written. */
export function hostToken(folder: string): string {
  const path = join(folder, "token");
  const read = (): string | null => {
    try {
      return readFileSync(path, "utf8");
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
      throw error;
    }
  };
  const known = read();
  if (known !== null) return known;
  const part = join(folder, `token.${process.pid}.${randomBytes(4).toString("hex")}`);
  writeFileSync(part, randomBytes(32).toString("hex"), { mode: 0o600, flag: "wx" });
  try {
    linkSync(part, path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
  } finally {
    rmSync(part, { force: true });
  }
  return readFileSync(path, "utf8");
}
