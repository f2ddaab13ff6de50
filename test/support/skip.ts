// Which real servers this machine has, and the skip message that names the command which installs a missing one.
import { accessSync, constants } from "node:fs";
import { homedir } from "node:os";
import { delimiter, join } from "node:path";

/** The binaries of each recipe in test/support/servers; the first one found is used. */
const binaries = {
  s3: ["versitygw"],
  vault: ["vault-dev"],
  /** Found only by root: nobody else can start one. */
  docker: ["dockerd"],
  chromium: ["chromium", "chromium-browser", "google-chrome"],
} as const;

export type ServerName = keyof typeof binaries;

const cache = process.env["SALLYPORT_SERVERS_CACHE"] ?? join(homedir(), ".cache/sallyport-servers");

/** Path of a server's binary in the cache or on PATH; undefined when this machine has none. */
export function findServer(name: ServerName): string | undefined {
  if (name === "docker" && process.getuid?.() !== 0) return undefined;
  const folders = [join(cache, "bin"), ...(process.env["PATH"] ?? "").split(delimiter), "/usr/sbin"];
  for (const folder of folders) {
    for (const binary of binaries[name]) {
      const file = join(folder, binary);
      try {
        accessSync(file, constants.X_OK);
        return file;
      } catch {
        // not there: look on
      }
    }
  }
  return undefined;
}

/**
 * For tap's `skip` option: false when all these servers are here, else the reason with its remedy. Where CI is set a
 * missing server is an error instead: there a skip would hide an untested part.
 */
export function needs(...names: ServerName[]): string | false {
  const missing = names.filter((name) => findServer(name) === undefined);
  if (missing.length === 0) return false;
  const commands = missing.map((name) => `test/support/servers/${name} install`).join(" && ");
  const reason = `needs ${missing.join(" and ")}, not installed here. Run: ${commands}`;
  if (process.env["CI"]) throw new Error(reason);
  return reason;
}
