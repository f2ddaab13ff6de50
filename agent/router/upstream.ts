// The connections to one replica: kept alive, bounded, over its unix socket or address. Sends; decides nothing.
import { setFlagsFromString } from "node:v8";
import { createRequire } from "node:module";
import type { Dispatcher, Pool } from "undici";
import type { ReplicaTarget } from "./router.ts";

// Loaded with the first replica, at once and not later: 27 MiB that an agent which serves nothing does without.
const require = createRequire(import.meta.url);
const newPool = (origin: string, options: Pool.Options): Pool => {
  // In two steps: the compiler takes the brackets of `new (require(...) as ...).Pool()` away.
  const undici = require("undici") as typeof import("undici");
  markOnOneThread();
  return new undici.Pool(origin, options);
};

export interface UpstreamLimits {
  /** Requests at a time, and so connections, to one replica. */
  connections: number;
  connectTimeoutMs: number;
}

export class Upstream {
  readonly target: ReplicaTarget;
  inFlight = 0;
  /** Monotonic ms: a connection broke not long ago. It is taken only when there is no other. */
  avoidedUntil = 0;
  /** Monotonic ms: no connection could be made. It is not taken at all. */
  refusedUntil = 0;
  /** Connections that could not be made, one after another. */
  refusals = 0;
  readonly #pool: Pool;
  readonly #authorization: string;

  constructor(target: ReplicaTarget, limits: UpstreamLimits) {
    this.target = target;
    this.#authorization = `Bearer ${target.token}`;
    const { address } = target;
    const host = address.kind === "tcp" ? (address.host.includes(":") ? `[${address.host}]` : address.host) : "";
    this.#pool = newPool(address.kind === "tcp" ? `http://${host}:${address.port}` : "http://localhost", {
      connections: limits.connections,
      pipelining: 1,
      allowH2: false,
      // The exchange has a deadline of its own.
      headersTimeout: 0,
      bodyTimeout: 0,
      keepAliveTimeout: 30_000,
      maxHeaderSize: 32 * 1024,
      connect: {
        timeout: limits.connectTimeoutMs,
        ...(address.kind === "socket" ? { socketPath: address.path } : {}),
      },
    });
  }

  /** `headers` is taken over and grows by the replica's token. */
  send(
    method: string,
    path: string,
    headers: readonly string[],
    body: Dispatcher.DispatchOptions["body"],
    handler: Dispatcher.DispatchHandler,
  ): void {
    this.#pool.dispatch(
      { method, path, headers: [...headers, "authorization", this.#authorization], body: body ?? null },
      handler,
    );
  }

  /** Ends its connections. Requests under way break. */
  destroy(): void {
    void this.#pool.destroy().catch(() => {});
  }
}

/**
 * While a full collection marks, V8's helper threads take the cores that the event loop and its peers need: on two cores
 * each was a standstill of about 20 ms. Marked in small steps by the thread itself, the router's p99 was 8 instead of
 * 21 ms at a third of its rate (measured). Content in bulk costs 10 MiB more that way, so only an agent that serves has it.
 */
function markOnOneThread(): void {
  setFlagsFromString("--no-concurrent-marking");
}
