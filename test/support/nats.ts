// A NATS server for tests, by its recipe. Check `needs("nats")` of skip.ts first. Subjects are shared by all who use one
// server: give each test a prefix of its own.
// Where SALLYPORT_TEST_TRANSPORT is `nats`, link tests run over it instead of over WebSocket: a file does so by being
// imported anew (see test/contract/link/nats.test.ts).
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { tempDir, type Teardown } from "./launcher.ts";
import { startServer, type Server } from "./servers.ts";

export interface NatsOptions {
  /** The client port speaks TLS; so does the WebSocket listener. */
  readonly tls?: boolean;
  readonly webSocket?: boolean;
  /** A second server, whose clients reach the first through it. */
  readonly leaf?: boolean;
  /** The server's `max_payload` in bytes; absent: its default, 1 MiB. */
  readonly maxPayload?: number;
  /** Inside of NATS's `authorization { }` block, for instance `users: [...]`; absent: the one user `app`. */
  readonly authorization?: string;
  /** Of its configuration, in place of the `authorization { }` block: operator, resolver. */
  readonly config?: string;
}

export interface NatsServer extends Server {
  /** nats:// or tls://, without a user. */
  readonly url: string;
  /** ws+nats:// or wss+nats://; undefined without `webSocket`. */
  readonly webSocketUrl: string | undefined;
  /** Of the leaf node; undefined without `leaf`. */
  readonly leafUrl: string | undefined;
  /** The one user without `authorization`. */
  readonly user: string;
  readonly password: string;
  /** PEM file of the authority that signed its certificate; undefined without TLS. */
  readonly caFile: string | undefined;
}

/** Stop and resume, or restart: on the same addresses, with nothing kept. */
export async function startNats(t: Teardown, options: NatsOptions = {}): Promise<NatsServer> {
  const words: string[] = [];
  if (options.tls === true) words.push("--tls");
  if (options.webSocket === true) words.push("--websocket");
  if (options.leaf === true) words.push("--leaf");
  if (options.maxPayload !== undefined) words.push("--max-payload", String(options.maxPayload));
  for (const name of ["authorization", "config"] as const) {
    const text = options[name];
    if (text === undefined) continue;
    const file = join(tempDir(t, "nats-users"), `${name}.conf`);
    writeFileSync(file, text);
    words.push(`--${name}`, file);
  }
  const server = await startServer(t, "nats", words);
  const { settings } = server;
  return {
    ...server,
    url: settings["NATS_URL"]!,
    webSocketUrl: settings["NATS_WS_URL"],
    leafUrl: settings["NATS_LEAF_URL"],
    user: settings["NATS_USER"]!,
    password: settings["NATS_PASSWORD"]!,
    caFile: settings["NATS_CA"],
  };
}

export const overNats = process.env["SALLYPORT_TEST_TRANSPORT"] === "nats";

let server: Promise<NatsServer> | undefined;
/** One server a test process; it ends with the process's last test. */
export const nats = (): Promise<NatsServer> => (server ??= started());
async function started(): Promise<NatsServer> {
  const { default: t } = await import("tap");
  return startNats(t);
}
