// Where the CLI remembers which control plane it talks to. The token is in a file that only its owner can read.
import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { EndWith, EXIT } from "./exit.ts";

export interface Context {
  url: string;
  token: string;
  /** PEM of the authority that signed the control plane's certificate; null = the system's. */
  ca: string | null;
}

const folder = (): string => join(process.env["XDG_CONFIG_HOME"] || join(homedir(), ".config"), "sallyport");
const file = (): string => join(folder(), "context.json");

function readGiven(what: string, path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    throw new EndWith(
      EXIT.usage,
      `${what} ${path} cannot be read: ${(error as NodeJS.ErrnoException).code ?? String(error)}`,
    );
  }
}

/** The PEM of the authority that signed the control plane's certificate. */
export const readCa = (path: string): string => readGiven("the CA file", path);

/** SALLYPORT_URL and SALLYPORT_TOKEN (or SALLYPORT_TOKEN_FILE) go before what `login` stored. */
export function loadContext(): Context {
  const url = process.env["SALLYPORT_URL"];
  const tokenFile = process.env["SALLYPORT_TOKEN_FILE"];
  const token =
    process.env["SALLYPORT_TOKEN"] ??
    (tokenFile === undefined ? undefined : readGiven("SALLYPORT_TOKEN_FILE", tokenFile).trim());
  if (url !== undefined && token !== undefined) {
    const ca = process.env["SALLYPORT_CA"];
    return { url, token, ca: ca === undefined ? null : readCa(ca) };
  }
  try {
    return JSON.parse(readFileSync(file(), "utf8")) as Context;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT")
      throw new EndWith(EXIT.auth, `${file()} cannot be read; run: sallyport login <url>`);
    throw new EndWith(EXIT.auth, "not signed in to a control plane; run: sallyport login <url>");
  }
}

export function saveContext(context: Context): void {
  mkdirSync(folder(), { recursive: true, mode: 0o700 });
  const aside = `${file()}.${process.pid}`;
  writeFileSync(aside, `${JSON.stringify(context, null, 2)}\n`, { mode: 0o600 });
  renameSync(aside, file());
}

/** False when there was none. */
export function forgetContext(): boolean {
  try {
    rmSync(file());
    return true;
  } catch {
    return false;
  }
}
