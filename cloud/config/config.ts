// From flags, environment and file to one compiled configuration. Pure but for reading the file that is named.
import { readFileSync } from "node:fs";
import { hostname } from "node:os";
import { isIP } from "node:net";
import { resolve } from "node:path";
import { ConnectorError } from "@sallyport/protocol";
import { parse as parseYaml } from "yaml";
import { natsAccess, type NatsAccess } from "../nats/index.ts";
import { postgresClientConfig } from "../store/index.ts";
import { OPTIONS, type OptionName, type Options } from "./options.ts";

export interface Origin {
  name: OptionName;
  /** As it may be shown. */
  value: unknown;
  /** Such as `flag --listen`, `environment SALLYPORT_CLOUD_LISTEN`, a file's path, or `default`. */
  origin: string;
}

export interface CloudConfig {
  data: string;
  /** PostgreSQL's address, password and all: never shown. Null: SQLite in the data directory. */
  database: string | null;
  /** Folder of given key rings; null: made in the data directory. */
  keys: string | null;
  /** Null: it is alone. `url` null: made from the port that is really bound. `tls`: the port has a certificate made at start. */
  peers: { host: string; port: number; url: string | null; tls: boolean } | null;
  /** Null: no NATS. Its password is never shown. */
  nats: NatsAccess | null;
  listen: { host: string; port: number };
  /** Null: made from the port that is really bound. */
  url: string | null;
  /** Host names requests may be addressed to. */
  hosts: string[];
  tls: { kind: "none" } | { kind: "given"; cert: string; key: string } | { kind: "own" };
  admin: string;
  workspace: string;
  /** Name of the agent's image in the lines that enrol one. */
  agentImage: string;
  keepDays: number;
  logLevel: Options["logLevel"];
  linkDeadMs: number;
  drainMs: number;
  origins: Origin[];
}

const invalid = (message: string, fix: string, cause?: unknown) =>
  new ConnectorError("CONFIG_INVALID", message, { fix, ...(cause === undefined ? {} : { cause }) });

export const isLoopbackHost = (host: string): boolean =>
  host === "localhost" || host === "::1" || (isIP(host) === 4 && host.startsWith("127."));

function readFile(path: string): Record<string, unknown> {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (cause) {
    throw invalid(`The configuration file ${path} cannot be read.`, "Check the path and the rights.", cause);
  }
  let value: unknown;
  try {
    value = parseYaml(text);
  } catch (cause) {
    throw invalid(
      `The configuration file ${path} is not YAML${cause instanceof Error ? `: ${cause.message.split("\n")[0]}` : ""}`,
      "Mend the file.",
      cause,
    );
  }
  if (value === null || value === undefined) return {};
  if (typeof value !== "object" || Array.isArray(value))
    throw invalid(`The configuration file ${path} is not a list of options.`, "Write one `option: value` a line.");
  for (const name of Object.keys(value)) {
    if (!Object.hasOwn(OPTIONS, name))
      throw invalid(
        `The configuration file ${path} has an option ${name}, which there is not.`,
        `Options are: ${Object.keys(OPTIONS).join(", ")}.`,
      );
  }
  return value as Record<string, unknown>;
}

/** `flags`: what commander found, by option name; undefined = not given. */
export function loadConfig(input: {
  flags: Partial<Record<OptionName, unknown>>;
  environment: Readonly<Record<string, string | undefined>>;
  file: string | null;
}): CloudConfig {
  const file = input.file === null ? {} : readFile(input.file);
  const origins: Origin[] = [];
  const values: Record<string, unknown> = {};
  for (const [name, option] of Object.entries(OPTIONS) as [OptionName, (typeof OPTIONS)[OptionName]][]) {
    const variable = input.environment[option.variable];
    const [raw, origin] =
      input.flags[name] !== undefined
        ? [input.flags[name], `flag --${option.flag}`]
        : variable !== undefined && variable !== ""
          ? [
              name === "names" ? variable.split(",").map((part) => part.trim()) : variable,
              `environment ${option.variable}`,
            ]
          : Object.hasOwn(file, name)
            ? [file[name], input.file!]
            : [undefined, "default"];
    if (raw === undefined) {
      values[name] = option.fallback();
    } else {
      const parsed = option.schema.safeParse(raw);
      if (!parsed.success)
        throw invalid(
          `${origin}: ${name} is not valid: ${parsed.error.issues[0]?.message ?? "wrong type"} is expected.`,
          `Mend ${origin}.`,
        );
      values[name] = parsed.data;
    }
    const value = values[name] ?? null;
    origins.push({ name, value: "shown" in option ? option.shown(value) : value, origin });
  }
  return compile(values as unknown as Options, origins);
}

function compile(options: Options, origins: Origin[]): CloudConfig {
  const colon = options.listen.lastIndexOf(":");
  const host = options.listen.slice(0, colon).replace(/^\[|\]$/g, "");
  const port = Number(options.listen.slice(colon + 1));
  if ((options.tlsCert === undefined) !== (options.tlsKey === undefined))
    throw invalid("Of tlsCert and tlsKey only one is given.", "Give both, or neither.");
  let tls: CloudConfig["tls"];
  if (options.tlsCert !== undefined && options.tlsKey !== undefined) {
    if (options.tls !== "auto") throw invalid(`tls is ${options.tls}, and a certificate is given.`, "Leave `tls` out.");
    tls = { kind: "given", cert: resolve(options.tlsCert), key: resolve(options.tlsKey) };
  } else if (options.tls === "own" || (options.tls === "auto" && !isLoopbackHost(host))) {
    tls = { kind: "own" };
  } else {
    if (!isLoopbackHost(host))
      throw invalid(
        `Without TLS it listens on loopback only, not on ${host}.`,
        "Leave `tls` out for a certificate of its own CA, give one by tlsCert and tlsKey, or listen on 127.0.0.1 behind a proxy.",
      );
    tls = { kind: "none" };
  }
  const url = options.url ?? null;
  if (
    url !== null &&
    url.startsWith("http://") &&
    (tls.kind !== "none" || !isLoopbackHost(new URL(url).hostname.replace(/^\[|\]$/g, "")))
  ) {
    throw invalid(
      `The address ${url} is plain http, which is for loopback without TLS only.`,
      "Give an https:// address.",
    );
  }
  const hosts = [...options.names];
  if (url !== null) hosts.push(new URL(url).hostname.replace(/^\[|\]$/g, ""));
  const everywhere = host === "0.0.0.0" || host === "::";
  hosts.push(everywhere ? hostname() : host);
  // Mistakes in it are told now, not at the first connection.
  if (options.database !== undefined) postgresClientConfig(options.database);
  return {
    data: resolve(options.data),
    database: options.database ?? null,
    keys: options.keys === undefined ? null : resolve(options.keys),
    peers: peersOf(options),
    nats: natsOf(options),
    listen: { host, port },
    url,
    hosts: [...new Set(hosts.map((name) => name.toLowerCase()))],
    tls,
    admin: options.admin,
    workspace: options.workspace,
    agentImage: options.agentImage,
    keepDays: options.keepDays,
    logLevel: options.logLevel,
    linkDeadMs: options.linkDeadMs,
    drainMs: options.drainMs,
    origins,
  };
}

function peersOf({ peerListen, peerUrl, database, keys }: Options): CloudConfig["peers"] {
  if (peerListen === undefined) {
    if (peerUrl !== undefined) throw invalid("peerUrl is given, and no peerListen.", "Give both, or neither.");
    return null;
  }
  if (database === undefined)
    throw invalid(
      "Several processes need a database that they share, and none is given.",
      "Give PostgreSQL's address by --database. SQLite is for one process.",
    );
  if (keys === undefined)
    throw invalid(
      "Several processes need the same keys, and none are given.",
      "Make them once with: sallyport-cloud keys FOLDER, copy the folder to each host, and name it by --keys.",
    );
  const colon = peerListen.lastIndexOf(":");
  const host = peerListen.slice(0, colon).replace(/^\[|\]$/g, "");
  const tls = !isLoopbackHost(host);
  if (peerUrl !== undefined && peerUrl.startsWith("wss:") !== tls)
    throw invalid(
      `The address for other processes is ${peerUrl}, and the port has ${tls ? "" : "no "}TLS.`,
      "It has TLS unless peerListen is on loopback: wss:// or ws:// accordingly.",
    );
  return { host, port: Number(peerListen.slice(colon + 1)), url: peerUrl ?? null, tls };
}

function natsOf({ natsUrl, natsCa, natsCreds, natsPrefix }: Options): NatsAccess | null {
  if (natsUrl !== undefined)
    return natsAccess(
      natsUrl,
      { ca: natsCa === undefined ? null : resolve(natsCa), creds: natsCreds === undefined ? null : resolve(natsCreds) },
      natsPrefix ?? null,
    );
  if ((natsCa ?? natsCreds ?? natsPrefix) !== undefined)
    throw invalid("There are settings for NATS, but no natsUrl.", "Give natsUrl, or leave the others out.");
  return null;
}

/** What the other processes dial, once the port is known. */
export function peerUrlOf({ host, url, tls }: NonNullable<CloudConfig["peers"]>, port: number): string {
  if (url !== null) return url;
  const name = host === "0.0.0.0" || host === "::" ? hostname() : isIP(host) === 6 ? `[${host}]` : host;
  return `${tls ? "wss" : "ws"}://${name}:${port}`;
}

/** What browsers and agents dial, once the port is known. */
export function publicUrlOf(config: CloudConfig, port: number): string {
  if (config.url !== null) return config.url;
  const { host } = config.listen;
  const name = host === "0.0.0.0" || host === "::" ? hostname() : isIP(host) === 6 ? `[${host}]` : host;
  const scheme = config.tls.kind === "none" ? "http" : "https";
  const usual = (scheme === "http" && port === 80) || (scheme === "https" && port === 443);
  return `${scheme}://${name}${usual ? "" : `:${port}`}`;
}
