// Dials the control plane over a NATS network: one connection to a NATS server, one session of it. The client's own loop
// of redialling is not used: it gives up, follows what servers gossip, and loses what was sent meanwhile without a word.
import { randomBytes } from "node:crypto";
import { isIP } from "node:net";
import type { Duplex } from "node:stream";
import type { ConnectionOptions, NatsConnection } from "@nats-io/nats-core";
import {
  ConnectorError,
  NATS_PREFIX,
  dialCleanly,
  dialNats,
  natsNameSchema,
  natsSocket,
  type Clock,
  type NatsSocketLike,
  type Transport,
} from "@sallyport/protocol";
import { LinkFailure } from "./link-failure.ts";
import type { LinkNetwork } from "./network.ts";
import { openWay } from "./way.ts";

export type NatsLogin =
  | { readonly kind: "none" }
  | { readonly kind: "password"; readonly user: string; readonly password: string }
  | { readonly kind: "token"; readonly token: string }
  /** Seed of a user's nkey, SU…. */
  | { readonly kind: "nkey"; readonly seed: string }
  /** Text of a credentials file: JWT and seed. */
  | { readonly kind: "creds"; readonly creds: string };

export interface NatsRoute {
  /** nats:// on loopback, tls://, or wss+nats:// for the server's WebSocket listener. */
  readonly url: string;
  /** PEM of the only CA to trust; null: the machine's own list. */
  ca(): string | null;
  /** Null: the default. */
  readonly prefix: string | null;
  /** Its part of the subjects; null: the name of its NATS user. */
  readonly name: string | null;
  /** Proxy and client certificate of the way to a WebSocket listener. What is not HTTP goes straight. */
  readonly network: LinkNetwork;
  /** Resolved at each dial. */
  login(signal: AbortSignal): Promise<NatsLogin>;
}

/** From the first packet to the control plane's welcome. */
const DIAL_MS = 4_000;
/** A connection that is silent for two of these is dead; the link's own beats notice first. */
const PING_MS = 10_000;
/** One WebSocket message holds whatever the server had waiting: never more than its own limit for a client. */
const MAX_WEBSOCKET_BYTES = 64 * 1024 * 1024;

const SCHEMES = {
  "nats:": { webSocket: false, tls: false, port: 4222 },
  "tls:": { webSocket: false, tls: true, port: 4222 },
  "wss+nats:": { webSocket: true, tls: true, port: 443 },
} as const;

interface NatsTarget {
  readonly webSocket: boolean;
  readonly tls: boolean;
  /** Without brackets. */
  readonly host: string;
  /** `host:port`, and for a WebSocket with a path. */
  readonly server: string;
}

export const isNatsUrl = (url: string): boolean => Object.keys(SCHEMES).some((scheme) => url.startsWith(scheme));

/** Throws CONFIG_INVALID, and CLOUD_UNTRUSTED for a server on another machine without TLS. */
export function natsTarget(address: string): NatsTarget {
  const text = URL.parse(address);
  const scheme = SCHEMES[(text?.protocol ?? "") as keyof typeof SCHEMES] as (typeof SCHEMES)["nats:"] | undefined;
  // An unknown scheme is parsed by other rules than http's: only its name is taken from there.
  const url = scheme === undefined ? null : URL.parse(address.replace(/^[a-z+]+:/, "https:"));
  if (scheme === undefined || url === null)
    throw new ConnectorError("CONFIG_INVALID", "The address of the NATS server is not one.", {
      fix: "Give link.url as tls://host[:port], as wss+nats://host[:port], or on this machine as nats://host[:port].",
    });
  const host = url.hostname.replace(/^\[|\]$/g, "");
  const loopback = host === "localhost" || host === "::1" || (isIP(host) === 4 && host.startsWith("127."));
  if (!scheme.tls && !loopback)
    throw new ConnectorError("CLOUD_UNTRUSTED", `The NATS server ${host} is not on this machine and has no TLS.`, {
      fix: "Use tls:// or wss+nats://; plain nats:// is for loopback only.",
    });
  // 443 is https's own port, which `url.port` leaves out.
  const port = url.port !== "" ? url.port : /:443\/?$/.test(address) ? "443" : String(scheme.port);
  const path = scheme.webSocket && url.pathname !== "/" ? url.pathname : "";
  return { webSocket: scheme.webSocket, tls: scheme.tls, host, server: `${url.hostname}:${port}${path}` };
}

/** Rejects with a LinkFailure, or with what `login` threw. */
export async function dialNatsLink(route: NatsRoute, clock: Clock, signal: AbortSignal): Promise<Transport> {
  const target = natsTarget(route.url);
  const login = await route.login(signal);
  const name = nameOf(route, login);
  let connection: NatsConnection | null = null;
  const opening = open(target, route, login, signal);
  const given = (failure: LinkFailure) => {
    // Whatever comes of the attempt, nothing of it may stay.
    if (connection !== null) void connection.close();
    else void opening.then(({ connection: late }) => late.close()).catch(() => {});
    return failure;
  };
  let settle!: () => void;
  const over = new Promise<never>((_resolve, reject) => {
    const timer = clock.after(
      DIAL_MS,
      () =>
        reject(
          given(
            new LinkFailure(
              new ConnectorError(
                "CLOUD_UNREACHABLE",
                connection === null
                  ? `No answer from the NATS server ${target.server} within ${DIAL_MS / 1000} s.`
                  : `The control plane did not answer over NATS within ${DIAL_MS / 1000} s.`,
                { fix: "Check the address, that this host may open connections to it, and the control plane's log." },
              ),
            ),
          ),
        ),
      { keepAlive: true },
    );
    const onAbort = () => reject(given(new LinkFailure(new ConnectorError("CANCELLED", "The dial was given up."))));
    signal.addEventListener("abort", onAbort, { once: true });
    settle = () => {
      timer.cancel();
      signal.removeEventListener("abort", onAbort);
    };
  });
  over.catch(() => {});
  try {
    const opened = await Promise.race([opening, over]);
    connection = opened.connection;
    return await Promise.race([
      dialNats({
        connection,
        socket: opened.socket,
        prefix: route.prefix ?? NATS_PREFIX,
        name,
        session: randomBytes(16).toString("hex"),
        clock,
      }),
      over,
    ]);
  } catch (caught) {
    // A session that was not to be: no attempt may leave a connection behind.
    void connection?.close();
    throw caught;
  } finally {
    settle();
  }
}

function nameOf(route: NatsRoute, login: NatsLogin): string {
  const known =
    route.name ?? (login.kind === "password" ? login.user : login.kind === "creds" ? userOfCreds(login.creds) : null);
  const name = natsNameSchema.safeParse(known);
  if (name.success) return name.data;
  throw new ConnectorError(
    "CONFIG_INVALID",
    known === null
      ? "The agent does not know its name in the NATS network."
      : "The name of the NATS user cannot be a part of a subject.",
    {
      fix: "Set link.nats.name: 1 to 64 letters, digits, '-' and '_', as the permissions of its NATS user have it.",
    },
  );
}

/** `name` of the JWT; null when there is none to be read. */
function userOfCreds(creds: string): string | null {
  const payload = /^[A-Za-z0-9_-]+\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+$/m.exec(creds)?.[1];
  if (payload === undefined) return null;
  try {
    const { name } = JSON.parse(Buffer.from(payload, "base64url").toString("utf8")) as { name?: unknown };
    return typeof name === "string" ? name : null;
  } catch {
    return null;
  }
}

/** A connection to the server. Rejects with a LinkFailure. */
async function open(
  target: NatsTarget,
  { network, ...route }: NatsRoute,
  login: NatsLogin,
  signal: AbortSignal,
): Promise<{ connection: NatsConnection; socket: NatsSocketLike }> {
  const ca = route.ca();
  // Loaded only when NATS is the way: an agent that does not use it does not pay for it.
  const core = await import("@nats-io/nats-core");
  const bytes = (text: string) => Buffer.from(`${text}\n`);
  const options: ConnectionOptions = {
    servers: target.server,
    name: "sallyport-agent",
    ...(login.kind === "password"
      ? { user: login.user, pass: login.password }
      : login.kind === "token"
        ? { token: login.token }
        : login.kind === "nkey"
          ? { authenticator: core.nkeyAuthenticator(Buffer.from(login.seed.trim())) }
          : login.kind === "creds"
            ? { authenticator: core.credsAuthenticator(bytes(login.creds)) }
            : {}),
    reconnect: false,
    ignoreClusterUpdates: true,
    noAsyncTraces: true,
    timeout: DIAL_MS,
    pingInterval: PING_MS,
    maxPingOut: 2,
  };
  // The client wraps what a WebSocket said into words; its code is kept here.
  let cause: Error | null = null;
  let below: Duplex | null = null;
  try {
    if (!target.webSocket) {
      const { connect } = await import("@nats-io/transport-node");
      // `host`: without it the certificate of a server that is named by its address would be held against `localhost`.
      const tls = { host: target.host, ...(ca === null ? {} : { ca }) };
      const connection = await dialCleanly(() => connect({ ...options, tls: target.tls ? tls : null }));
      return { connection, socket: natsSocket(connection) };
    }
    const cloudUrl = `https://${target.server}`;
    const way = { ...(await network.wayTo(cloudUrl, signal)), cloudUrl, ca };
    const tcp = await openWay(way, { signal });
    below = tcp;
    const { WebSocket } = await import("ws");
    let socket: NatsSocketLike | null = null;
    const connection = await core.wsconnect({
      ...options,
      servers: `wss://${target.server}`,
      wsFactory: (url) => {
        const webSocket = new WebSocket(url, {
          perMessageDeflate: false,
          followRedirects: false,
          maxPayload: MAX_WEBSOCKET_BYTES,
          skipUTF8Validation: true,
          // Within TLS a mask hides nothing and costs a copy of each byte.
          generateMask: (mask) => void mask.fill(0),
          createConnection: () => tcp as never,
          headers: { "user-agent": "sallyport-agent" },
        });
        webSocket.on("error", (error) => (cause ??= error));
        webSocket.on("upgrade", () => {
          socket = {
            get bufferedBytes() {
              return webSocket.bufferedAmount;
            },
            onDrain: (listener) => void tcp.on("drain", listener),
            destroy: () => webSocket.terminate(),
          };
        });
        return Promise.resolve({ socket: webSocket as unknown as globalThis.WebSocket, encrypted: true });
      },
    });
    return { connection, socket: socket! };
  } catch (caught) {
    (below as Duplex | null)?.destroy();
    if (caught instanceof LinkFailure) throw caught;
    throw new LinkFailure(connectError(cause ?? caught, target));
  }
}

function connectError(caught: unknown, { server }: NatsTarget): ConnectorError {
  const error = caught instanceof Error ? caught : new Error(String(caught));
  const below = error.cause instanceof Error ? error.cause : error;
  const code = (below as NodeJS.ErrnoException).code ?? "";
  if (error.name === "AuthorizationError" || error.name === "UserAuthenticationExpiredError")
    return new ConnectorError("CLOUD_UNREACHABLE", `The NATS server ${server} refuses the agent's credentials.`, {
      fix: "Check link.nats in the agent's configuration against the NATS server's users.",
      cause: error,
    });
  if (/CERT|SELF_SIGNED|UNABLE_TO_|INVALID_CA|HOSTNAME_MISMATCH/.test(code))
    return new ConnectorError(
      "CLOUD_UNTRUSTED",
      `The certificate of ${server} is not trusted by this agent (${code}).`,
      {
        fix: "Set link.nats.ca in the agent's configuration to the CA that signed it.",
        cause: error,
      },
    );
  const words: Record<string, string> = {
    ECONNREFUSED: "nothing listens there",
    ENOTFOUND: "the name does not resolve",
    EAI_AGAIN: "the name service does not answer",
    ETIMEDOUT: "the connection timed out",
    EHOSTUNREACH: "there is no route",
    ENETUNREACH: "there is no network",
    ECONNRESET: "the connection was reset",
  };
  return new ConnectorError(
    "CLOUD_UNREACHABLE",
    `No connection to the NATS server ${server}: ${words[code] ?? (code !== "" ? code : error.message)}.`,
    {
      fix: "Nothing to do when the server is down: the agent tries again by itself. Otherwise check link.url and the way there.",
      cause: error,
    },
  );
}
