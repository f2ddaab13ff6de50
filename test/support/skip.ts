// Which real servers this machine has, and the skip message that names the command which installs a missing one.
import { accessSync, constants, readdirSync } from "node:fs";
import { homedir } from "node:os";
import { delimiter, join } from "node:path";

/** The binaries of each recipe in test/support/servers; the first one found is used. */
const binaries = {
  s3: ["versitygw"],
  vault: ["vault-dev"],
  /** Found only by root: nobody else can start one. */
  docker: ["dockerd"],
  chromium: ["chromium", "chromium-browser", "google-chrome"],
  postgres: ["initdb"],
  nats: ["nats-server"],
  squid: ["squid"],
  nginx: ["nginx"],
  haproxy: ["haproxy"],
} as const;

export type ServerName = keyof typeof binaries;

const cache = process.env["SALLYPORT_SERVERS_CACHE"] ?? join(homedir(), ".cache/sallyport-servers");

/** Path of a server's binary in the cache or on PATH; undefined when this machine has none. */
export function findServer(name: ServerName): string | undefined {
  if (name === "docker" && process.getuid?.() !== 0) return undefined;
  const folders = [join(cache, "bin"), ...(process.env["PATH"] ?? "").split(delimiter), "/usr/sbin"];
  if (name === "postgres") folders.push(...postgresFolders());
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

/** Where Debian keeps the server's programs, out of PATH. */
function postgresFolders(): string[] {
  try {
    return readdirSync("/usr/lib/postgresql").map((version) => join("/usr/lib/postgresql", version, "bin"));
  } catch {
    return [];
  }
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

/** The same for a program of the system, with the Debian package that brings it. */
export function needsCommand(command: string, debian: string = command): string | false {
  for (const folder of [...(process.env["PATH"] ?? "").split(delimiter), "/usr/sbin"]) {
    try {
      accessSync(join(folder, command), constants.X_OK);
      return false;
    } catch {
      // not there: look on
    }
  }
  const reason = `needs ${command}, not installed here. Run: apt-get install ${debian}`;
  if (process.env["CI"]) throw new Error(reason);
  return reason;
}
