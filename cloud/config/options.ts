// Every option of the control plane, once: where it may come from, its default, and what it means. Flags win over the
// environment, that over the file, that over defaults. Secrets are in files, never in options; those that may be in an
// option all the same, in the addresses of database and NATS, are shown nowhere.
import { homedir } from "node:os";
import { join } from "node:path";
import { z } from "zod";
import { withoutNatsSecret } from "../nats/index.ts";
import { withoutPassword } from "../store/index.ts";

const LOG_LEVELS = ["trace", "debug", "info", "warn", "error", "fatal"] as const;
const hostName = z
  .string()
  .regex(
    /^[A-Za-z0-9]([A-Za-z0-9.:-]{0,251}[A-Za-z0-9])?$|^::1?$/,
    "a host name or an address, without scheme and port",
  );
const listen = z
  .string()
  .regex(/^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$/, "HOST:PORT, such as 127.0.0.1:8080 or [::]:443")
  .refine((text) => Number(text.slice(text.lastIndexOf(":") + 1)) <= 65_535, "a port up to 65535");
const publicUrl = z
  .string()
  .regex(/^https?:\/\/[^/?#@]+\/?$/, "http:// or https://, a host and perhaps a port, nothing more")
  .transform((text) => text.replace(/\/$/, ""));

const imageName = z
  .string()
  .max(255)
  .regex(
    /^[a-z0-9][a-z0-9._:-]*(\/[a-z0-9][a-z0-9._-]*)*(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha256:[0-9a-f]{64})?$/,
    "the name of an image, such as registry.example/sallyport/agent:1.2",
  );

const defaultData = (): string =>
  process.getuid?.() === 0 ? "/var/lib/sallyport-cloud" : join(homedir(), ".local/state/sallyport-cloud");

/** Raw: what the file may hold. All optional; unknown fields are refused. */
export const OPTIONS = {
  /** Folder for database, keys and certificates. One process at a time. */
  data: {
    schema: z.string().min(1),
    flag: "data",
    argument: "<folder>",
    variable: "SALLYPORT_CLOUD_DATA",
    fallback: defaultData,
    text: "folder for database, keys and certificates",
  },
  /** PostgreSQL's address; absent: SQLite in the data directory. A password may be left to PGPASSFILE or PGPASSWORD. */
  database: {
    schema: z.string().min(1),
    flag: "database",
    argument: "<url>",
    variable: "SALLYPORT_DATABASE_URL",
    fallback: (): undefined => undefined,
    text: "PostgreSQL's address, postgres://…; without it SQLite in the data folder",
    shown: (value: unknown): unknown => (typeof value === "string" ? withoutPassword(value) : value),
  },
  /** Folder with identity.json and command.json, read and never written. Absent: made in the data directory. */
  keys: {
    schema: z.string().min(1),
    flag: "keys",
    argument: "<folder>",
    variable: "SALLYPORT_CLOUD_KEYS",
    fallback: (): undefined => undefined,
    text: "folder of the key rings that all processes share; without it they are made in the data folder",
  },
  /** Where other processes of this control plane reach this one. Given: it is one of several. Absent: it is alone. */
  peerListen: {
    schema: listen,
    flag: "peer-listen",
    argument: "<host:port>",
    variable: "SALLYPORT_CLOUD_PEER_LISTEN",
    fallback: (): undefined => undefined,
    text: "address for other processes of this control plane; makes it one of several",
  },
  /** What they dial. Absent: made from `peerListen`. */
  peerUrl: {
    schema: z
      .string()
      .regex(/^wss?:\/\/[^/?#@]+$/, "ws:// (loopback only) or wss://, a host and perhaps a port, nothing more"),
    flag: "peer-url",
    argument: "<url>",
    variable: "SALLYPORT_CLOUD_PEER_URL",
    fallback: (): undefined => undefined,
    text: "what other processes dial to reach this one",
  },
  /** NATS servers, by which agents may be linked and further processes of this control plane reached. Absent: none. */
  natsUrl: {
    schema: z.string().min(1),
    flag: "nats-url",
    argument: "<url>",
    variable: "SALLYPORT_NATS_URL",
    fallback: (): undefined => undefined,
    text: "NATS server, tls://… or on loopback nats://…; several with commas between",
    shown: (value: unknown): unknown => (typeof value === "string" ? withoutNatsSecret(value) : value),
  },
  natsCa: {
    schema: z.string().min(1),
    flag: "nats-ca",
    argument: "<file>",
    variable: "SALLYPORT_NATS_CA",
    fallback: (): undefined => undefined,
    text: "PEM file of the CA that signed the NATS server's certificate",
  },
  natsCreds: {
    schema: z.string().min(1),
    flag: "nats-creds",
    argument: "<file>",
    variable: "SALLYPORT_NATS_CREDS",
    fallback: (): undefined => undefined,
    text: "NATS credentials file (.creds), in place of user and password in the address",
  },
  natsPrefix: {
    schema: z.string().regex(/^[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+){0,7}$/, "parts of a subject, such as sallyport"),
    flag: "nats-prefix",
    argument: "<subject>",
    variable: "SALLYPORT_NATS_PREFIX",
    fallback: (): undefined => undefined,
    text: "first part of all NATS subjects; sallyport unless agents are told another",
  },
  /** Loopback needs no TLS; anything else gets it. */
  listen: {
    schema: listen,
    flag: "listen",
    argument: "<host:port>",
    variable: "SALLYPORT_CLOUD_LISTEN",
    fallback: (): string => "127.0.0.1:8080",
    text: "address to listen on",
  },
  /** What browsers and agents dial. Absent: made from `listen`. Needed behind a proxy and when listening on all addresses. */
  url: {
    schema: publicUrl,
    flag: "url",
    argument: "<url>",
    variable: "SALLYPORT_CLOUD_URL",
    fallback: (): undefined => undefined,
    text: "what browsers and agents dial",
  },
  /** Further host names this control plane answers to, and that its own certificate is for. */
  names: {
    schema: z.array(hostName),
    flag: "name",
    argument: "<host...>",
    variable: "SALLYPORT_CLOUD_NAMES",
    fallback: (): string[] => [],
    text: "further host names it answers to",
  },
  /** `auto`: given files, else none on loopback, else a certificate of its own CA. `none` is refused off loopback. */
  tls: {
    schema: z.enum(["auto", "own", "none"]),
    flag: "tls",
    argument: "<auto|own|none>",
    variable: "SALLYPORT_CLOUD_TLS",
    fallback: (): "auto" => "auto",
    text: "how TLS is served",
  },
  tlsCert: {
    schema: z.string().min(1),
    flag: "tls-cert",
    argument: "<file>",
    variable: "SALLYPORT_CLOUD_TLS_CERT",
    fallback: (): undefined => undefined,
    text: "PEM certificate chain; with tls-key",
  },
  tlsKey: {
    schema: z.string().min(1),
    flag: "tls-key",
    argument: "<file>",
    variable: "SALLYPORT_CLOUD_TLS_KEY",
    fallback: (): undefined => undefined,
    text: "PEM private key; with tls-cert",
  },
  /** Of the first admin; only looked at when the database is made. */
  admin: {
    schema: z.string().min(1).max(128),
    flag: "admin",
    argument: "<name>",
    variable: "SALLYPORT_CLOUD_ADMIN",
    fallback: (): string => "admin",
    text: "name of the first admin",
  },
  workspace: {
    schema: z.string().min(1).max(128),
    flag: "workspace",
    argument: "<name>",
    variable: "SALLYPORT_CLOUD_WORKSPACE",
    fallback: (): string => "default",
    text: "name of the first workspace",
  },
  /** What the page's `docker run` line starts: the image as the agents' machines name it. */
  agentImage: {
    schema: imageName,
    flag: "agent-image",
    argument: "<name>",
    variable: "SALLYPORT_CLOUD_AGENT_IMAGE",
    fallback: (): string => "sallyport/agent",
    text: "image that the page's docker run line names",
  },
  /** Ended commands and runs, removed deployments and credentials that are over are kept for so long. */
  keepDays: {
    schema: z.coerce.number().int().min(8).max(3650),
    flag: "keep-days",
    argument: "<days>",
    variable: "SALLYPORT_CLOUD_KEEP_DAYS",
    fallback: (): number => 30,
    text: "how long ended commands and runs are kept",
  },
  logLevel: {
    schema: z.enum(LOG_LEVELS),
    flag: "log-level",
    argument: "<level>",
    variable: "SALLYPORT_CLOUD_LOG_LEVEL",
    fallback: (): "info" => "info",
    text: `${LOG_LEVELS.join(", ")}`,
  },
  /** Silence after which an agent's link counts as dead, ms. Beats keep pace. */
  linkDeadMs: {
    schema: z.coerce.number().int().min(500).max(600_000),
    flag: "link-dead-ms",
    argument: "<ms>",
    variable: "SALLYPORT_CLOUD_LINK_DEAD_MS",
    fallback: (): number => 12_000,
    text: "silence after which an agent's link counts as dead",
  },
  /** How long a stop waits for what is under way, ms. */
  drainMs: {
    schema: z.coerce.number().int().min(0).max(600_000),
    flag: "drain-ms",
    argument: "<ms>",
    variable: "SALLYPORT_CLOUD_DRAIN_MS",
    fallback: (): number => 10_000,
    text: "how long a stop waits for what is under way",
  },
} as const;
export type OptionName = keyof typeof OPTIONS;

/** With defaults. `url`, `tlsCert` and `tlsKey` undefined = not given. */
export type Options = {
  [K in OptionName]: z.output<(typeof OPTIONS)[K]["schema"]> | ReturnType<(typeof OPTIONS)[K]["fallback"]>;
};
