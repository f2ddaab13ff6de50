// Addresses of NATS servers and a connection to one of them. The client's own loop of redialling is never used: it gives
// up, follows what servers gossip, and loses what was published meanwhile without a word. Who connects also redials.
import { readFileSync } from "node:fs";
import { isIP } from "node:net";
import type { ConnectionOptions, NatsConnection } from "@nats-io/nats-core";
import { ConnectorError, dialCleanly } from "@sallyport/protocol";

export interface NatsAccess {
  /** `host:port`, tried in turn at random. */
  readonly servers: readonly string[];
  readonly tls: boolean;
  /** PEM file; null: the machine's own list. */
  readonly caFile: string | null;
  readonly user: string | null;
  /** With a user its password, alone a token. */
  readonly password: string | null;
  /** First part of all subjects; null: the usual one. */
  readonly prefix: string | null;
  /** A NATS credentials file (JWT and seed); null: none. */
  readonly credsFile: string | null;
}

const CONNECT_MS = 4_000;
/** A connection that is silent for two of these is dead. */
const PING_MS = 10_000;

const invalid = (message: string, fix: string, cause?: unknown) =>
  new ConnectorError("CONFIG_INVALID", message, { fix, ...(cause === undefined ? {} : { cause }) });

const isLoopbackHost = (host: string): boolean =>
  host === "localhost" || host === "[::1]" || (isIP(host) === 4 && host.startsWith("127."));

/** `address`: one URL, or several of one kind with commas between; user and password in the first. Throws CONFIG_INVALID. */
export function natsAccess(
  address: string,
  files: { ca: string | null; creds: string | null },
  prefix: string | null = null,
): NatsAccess {
  const urls = address.split(",").map((text) => {
    const url = URL.parse(text.trim());
    if (url === null || !["nats:", "tls:"].includes(url.protocol) || url.hostname === "" || url.pathname.length > 1)
      throw invalid(
        "The address of the NATS server is not one.",
        "Give it as tls://host[:port], or nats://… on loopback; several with commas between.",
      );
    return url;
  });
  const [first] = urls as [URL, ...URL[]];
  const tls = first.protocol === "tls:";
  for (const url of urls) {
    if (url.protocol !== first.protocol)
      throw invalid("The addresses of the NATS servers mix nats:// and tls://.", "Use tls:// for all.");
    if (!tls && !isLoopbackHost(url.hostname))
      throw invalid(
        `The NATS server ${url.host} is not on this machine, and nats:// has no TLS.`,
        "Use tls://; plain nats:// is for loopback only.",
      );
  }
  const [user, password] = [decodeURIComponent(first.username), decodeURIComponent(first.password)];
  return {
    servers: urls.map((url) => (url.port === "" ? `${url.hostname}:4222` : url.host)),
    tls,
    caFile: files.ca,
    user: user === "" || password === "" ? null : user,
    password: password !== "" ? password : user !== "" ? user : null,
    credsFile: files.creds,
    prefix,
  };
}

/** For people. */
export function withoutNatsSecret(address: string): string {
  return address
    .split(",")
    .map((text) => {
      const url = URL.parse(text.trim());
      if (url === null) return "(not an address)";
      // A user without a password is a token.
      if (url.password !== "") url.password = "redacted";
      else if (url.username !== "") url.username = "redacted";
      return url.href;
    })
    .join(",");
}

/** One connection that ends when it is cut: `closed()` tells. `name` is shown by the server. */
export async function connectNats(access: NatsAccess, name: string): Promise<NatsConnection> {
  // Loaded only where NATS is used.
  const { connect, credsAuthenticator } = await import("@nats-io/transport-node");
  let creds: Uint8Array | null = null;
  if (access.credsFile !== null) {
    try {
      creds = readFileSync(access.credsFile);
    } catch (cause) {
      throw invalid(
        `The NATS credentials ${access.credsFile} cannot be read.`,
        "Check the path and the rights.",
        cause,
      );
    }
  }
  let failure: unknown;
  for (const server of inAnyOrder(access.servers)) {
    // `host`: without it the certificate of a server that is named by its address would be held against `localhost`.
    const tls = { host: new URL(`tls://${server}`).hostname.replace(/^\[|\]$/g, "") };
    try {
      const options: ConnectionOptions = {
        servers: server,
        name,
        tls: access.tls ? { ...tls, ...(access.caFile === null ? {} : { caFile: access.caFile }) } : null,
        ...(creds !== null
          ? { authenticator: credsAuthenticator(creds) }
          : access.user !== null
            ? { user: access.user, pass: access.password ?? "" }
            : access.password !== null
              ? { token: access.password }
              : {}),
        reconnect: false,
        ignoreClusterUpdates: true,
        noAsyncTraces: true,
        timeout: CONNECT_MS,
        pingInterval: PING_MS,
        maxPingOut: 2,
      };
      return await dialCleanly(() => connect(options));
    } catch (error) {
      // Of several, a server that answered says more than one that did not.
      if (!(failure instanceof Error && failure.name === "AuthorizationError")) failure = error;
    }
  }
  throw failure;
}

function inAnyOrder<T>(values: readonly T[]): T[] {
  return values
    .map((value) => ({ value, at: Math.random() }))
    .toSorted((a, b) => a.at - b.at)
    .map(({ value }) => value);
}
