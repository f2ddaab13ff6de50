// What a PostgreSQL address says, as `pg` wants it: libpq's form and words, without its surprises. Off loopback it is TLS
// with a checked certificate unless the address says otherwise; an unknown parameter is refused, not ignored.
import { readFileSync } from "node:fs";
import { isIP } from "node:net";
import { ConnectorError } from "@sallyport/protocol";
import type { ClientConfig } from "pg";

const SSL_MODES = ["disable", "require", "verify-ca", "verify-full"] as const;
const PARAMETERS = ["host", "sslmode", "sslrootcert", "sslcert", "sslkey", "application_name", "options"];

const invalid = (message: string, fix: string, cause?: unknown) =>
  new ConnectorError("CONFIG_INVALID", message, { fix, ...(cause === undefined ? {} : { cause }) });

const parsed = (address: string): URL => {
  try {
    const url = new URL(address);
    if (url.protocol === "postgres:" || url.protocol === "postgresql:") return url;
  } catch {
    // Said below, without the address: it may hold a password.
  }
  throw invalid(
    "The database's address is not one of PostgreSQL.",
    "Write it as postgres://user:password@host:5432/database, with % codes for unusual characters.",
  );
};

/** Host, port and database, to show: no password, no parameters. */
export function shownDatabase(address: string): string {
  const url = parsed(address);
  const host = url.searchParams.get("host") ?? (url.hostname === "" ? "localhost" : url.hostname);
  return `${host}${url.port === "" ? "" : `:${url.port}`}${url.pathname === "/" ? "" : url.pathname}`;
}

/** The address with its password taken out, for `config show`. What is no address is not shown at all. */
export function withoutPassword(address: string): string {
  try {
    const url = parsed(address);
    if (url.password !== "") url.password = "redacted";
    return url.href;
  } catch {
    return "(not an address)";
  }
}

const isLocal = (host: string): boolean =>
  host === "localhost" || host === "::1" || host.startsWith("/") || (isIP(host) === 4 && host.startsWith("127."));

/** User, password and the rest that the address leaves out come from PGUSER, PGPASSWORD, PGPASSFILE and so on, as everywhere. */
export function postgresClientConfig(address: string): ClientConfig {
  const url = parsed(address);
  const parameters = url.searchParams;
  for (const name of parameters.keys())
    if (!PARAMETERS.includes(name))
      throw invalid(
        `The database's address has a parameter ${name}, which is not understood.`,
        `Parameters are: ${PARAMETERS.join(", ")}.`,
      );
  const host = parameters.get("host") ?? decodeURIComponent(url.hostname.replace(/^\[(.+)\]$/, "$1"));
  const database = decodeURIComponent(url.pathname.slice(1));
  const shown = host === "" ? (process.env["PGHOST"] ?? "localhost") : host;
  return {
    ...(host === "" ? {} : { host }),
    ...(url.port === "" ? {} : { port: Number(url.port) }),
    ...(url.username === "" ? {} : { user: decodeURIComponent(url.username) }),
    ...(url.password === "" ? {} : { password: decodeURIComponent(url.password) }),
    ...(database === "" ? {} : { database }),
    ...(parameters.has("options") ? { options: parameters.get("options")! } : {}),
    application_name: parameters.get("application_name") ?? "sallyport-cloud",
    ssl: tlsOf(parameters, shown),
  };
}

function tlsOf(parameters: URLSearchParams, host: string): ClientConfig["ssl"] {
  const mode = parameters.get("sslmode") ?? (isLocal(host) ? "disable" : "verify-full");
  if (!(SSL_MODES as readonly string[]).includes(mode))
    throw invalid(
      `The database's address has sslmode=${mode}, which leaves open whether the connection is safe.`,
      `Use one of: ${SSL_MODES.join(", ")}.`,
    );
  if (mode === "disable") return false;
  const file = (name: "sslrootcert" | "sslcert" | "sslkey"): string | undefined => {
    const path = parameters.get(name);
    if (path === null) return undefined;
    try {
      return readFileSync(path, "utf8");
    } catch (cause) {
      throw invalid(
        `The file ${path} of the database's ${name} cannot be read.`,
        "Check the path and the rights.",
        cause,
      );
    }
  };
  const [ca, cert, key] = [file("sslrootcert"), file("sslcert"), file("sslkey")];
  if (mode === "verify-ca" && ca === undefined)
    throw invalid(
      "sslmode=verify-ca without sslrootcert would trust every authority of this machine.",
      "Name the CA's file by sslrootcert, or use sslmode=verify-full.",
    );
  return {
    ...(ca === undefined ? {} : { ca }),
    ...(cert === undefined ? {} : { cert }),
    ...(key === undefined ? {} : { key }),
    // As libpq has it: `require` with a CA checks the chain, without one it checks nothing; only verify-full checks the name.
    ...(mode === "require" && ca === undefined ? { rejectUnauthorized: false } : {}),
    ...(mode === "verify-full" ? {} : { checkServerIdentity: () => undefined }),
  };
}
