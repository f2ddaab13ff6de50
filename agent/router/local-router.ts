// The router: routes, the listener's life, minutes, and requests that come through the link.
import { request as httpRequest } from "node:http";
import type { Server } from "node:http";
import type { AddressInfo } from "node:net";
import { hostname } from "node:os";
import { ConnectorError, type Clock, type DeploymentId, type Rollup, type Timer } from "@sallyport/protocol";
import type { Logger } from "pino";
import { Balancer, type BalancerLimits } from "./balancer.ts";
import { Deadlines, Exchange, type Sink } from "./exchange.ts";
import { forwardedHeaders, headerOf } from "./headers.ts";
import { createListener, type ListenerLimits } from "./listener.ts";
import { MINUTE_MS } from "./minute.ts";
import type { ReplicaTarget, RoutedAnswer, RoutedRequest, Route, Router } from "./router.ts";

export interface RouterLimits extends ListenerLimits, BalancerLimits {
  /** A port that is taken is tried again after so long. */
  listenAgainMs: number;
}

const MIB = 1024 * 1024;
export const DEFAULT_ROUTER_LIMITS: RouterLimits = {
  maxBodyBytes: 32 * MIB,
  repeatableBytes: MIB,
  bufferedBytes: 64 * MIB,
  headerBytes: 16 * 1024,
  headers: 100,
  clientConnections: 4096,
  headersTimeoutMs: 10_000,
  bodyTimeoutMs: 30_000,
  requestTimeoutMs: 60_000,
  connections: 128,
  connectTimeoutMs: 2000,
  suspectMs: 100,
  suspectMaxMs: 2000,
  heldRequests: 1024,
  heldBytes: 64 * MIB,
  listenAgainMs: 3000,
};

export interface RouterOptions {
  /** `host:port`; an IPv6 host in brackets. */
  listen: string;
  /** Base as clients in the network reach it; null: made from `listen`. */
  advertise: string | null;
  /** PEM files, read when it begins to listen. */
  tls: { cert: string; key: string } | null;
  clock: Clock;
  log: Logger;
  limits?: Partial<RouterLimits>;
}

interface Entry {
  balancer: Balancer;
  key: Buffer;
}

const PROBE_BYTES = 64 * 1024;

export class LocalRouter implements Router {
  readonly #options: RouterOptions;
  readonly #limits: RouterLimits;
  readonly #clock: Clock;
  readonly #host: string;
  readonly #port: number;
  readonly #byId = new Map<DeploymentId, Entry>();
  readonly #byName = new Map<string, Entry>();
  /** Removed, with requests under way. */
  readonly #removed = new Map<DeploymentId, Balancer>();
  readonly #deadlines: Deadlines;
  readonly #onChange: (() => void)[] = [];
  readonly #onSuspect: ((deployment: DeploymentId, replica: string) => void)[] = [];
  readonly #onRollup: (() => void)[] = [];
  #server: Server | null = null;
  #problem: ConnectorError | null = null;
  #again: Timer | null = null;
  #tick: Timer | null = null;
  #minute: number;
  #closing = false;

  constructor(options: RouterOptions) {
    this.#options = options;
    this.#limits = { ...DEFAULT_ROUTER_LIMITS, ...options.limits };
    this.#clock = options.clock;
    const colon = options.listen.lastIndexOf(":");
    this.#host = options.listen.slice(0, colon).replace(/^\[|\]$/g, "");
    this.#port = Number(options.listen.slice(colon + 1));
    this.#deadlines = new Deadlines(options.clock);
    this.#minute = Math.floor(options.clock.now() / MINUTE_MS);
    this.#armMinute();
  }

  // -- listening -----------------------------------------------------------------------------------------------------

  get problem(): ConnectorError | null {
    return this.#problem;
  }

  async start(): Promise<void> {
    if (this.#closing) return;
    let problem: ConnectorError | null = null;
    try {
      const server = await createListener({
        tls: this.#options.tls,
        clock: this.#clock,
        limits: this.#limits,
        deadlines: this.#deadlines,
        find: (name) => this.#byName.get(name) ?? null,
        closing: () => this.#closing,
      });
      await new Promise<void>((resolve, reject) => {
        server.once("error", reject);
        server.listen({ host: this.#host, port: this.#port }, () => {
          server.off("error", reject);
          resolve();
        });
      });
      server.on("error", (error) => this.#options.log.warn({ err: error }, "the router's listener"));
      if (this.#closing) server.close();
      else this.#server = server;
    } catch (error) {
      problem = listenProblem(error as NodeJS.ErrnoException, this.#options);
    }
    if (problem?.message !== this.#problem?.message) {
      if (problem !== null) this.#options.log.warn({ code: problem.code }, problem.message);
      else this.#options.log.info(`Endpoints of deployments answer at ${this.#base()}.`);
      this.#problem = problem;
      for (const listener of this.#onChange) listener();
    }
    if (problem !== null && !this.#closing)
      this.#again = this.#clock.after(this.#limits.listenAgainMs, () => void this.start());
  }

  onChange(listener: () => void): void {
    this.#onChange.push(listener);
  }

  endpoint(name: string): string {
    return `${this.#base()}/${name}`;
  }

  #base(): string {
    const { advertise, tls } = this.#options;
    if (advertise !== null) return advertise.replace(/\/+$/, "");
    const any = this.#host === "" || this.#host === "0.0.0.0" || this.#host === "::";
    const host = any ? hostname() : this.#host.includes(":") ? `[${this.#host}]` : this.#host;
    const port = (this.#server?.address() as AddressInfo | null | undefined)?.port ?? this.#port;
    return `${tls === null ? "http" : "https"}://${host}:${port}`;
  }

  async close(graceMs: number): Promise<void> {
    this.#closing = true;
    this.#again?.cancel();
    this.#tick?.cancel();
    const server = this.#server;
    const closed = new Promise<void>((resolve) => (server === null ? resolve() : server.close(() => resolve())));
    server?.closeIdleConnections();
    // Those that wait for a replica are told now; the rest has its grace.
    for (const { balancer } of this.#byId.values()) balancer.remove();
    const over = this.#clock.monotonic() + graceMs;
    while (this.#deadlines.open > 0 && this.#clock.monotonic() < over)
      await new Promise<void>((resolve) => this.#clock.after(20, resolve, { keepAlive: true }));
    for (const exchange of this.#deadlines.all()) exchange.abandon();
    server?.closeAllConnections();
    for (const balancer of [...this.#removed.values(), ...[...this.#byId.values()].map((e) => e.balancer)])
      balancer.destroy();
    this.#byId.clear();
    this.#byName.clear();
    await closed;
  }

  // -- routes --------------------------------------------------------------------------------------------------------

  set(route: Route): void {
    if (this.#closing) return;
    const key = Buffer.from(route.key);
    const known = this.#byId.get(route.deployment);
    if (known !== undefined) {
      if (known.balancer.route.name !== route.name) {
        this.#byName.delete(known.balancer.route.name);
        this.#byName.set(route.name, known);
      }
      known.key = key;
      return known.balancer.set(route);
    }
    const balancer = new Balancer(route, this.#clock, this.#limits, (replica) => {
      for (const listener of this.#onSuspect) listener(route.deployment, replica);
    });
    const entry = { balancer, key };
    this.#byId.set(route.deployment, entry);
    this.#byName.set(route.name, entry);
  }

  remove(deployment: DeploymentId): void {
    const entry = this.#byId.get(deployment);
    if (entry === undefined) return;
    this.#byId.delete(deployment);
    if (this.#byName.get(entry.balancer.route.name) === entry) this.#byName.delete(entry.balancer.route.name);
    entry.balancer.remove();
    this.#removed.set(deployment, entry.balancer);
  }

  busy(deployment: DeploymentId, replica: string): number {
    return (
      (this.#byId.get(deployment)?.balancer.busy(replica) ?? 0) + (this.#removed.get(deployment)?.busy(replica) ?? 0)
    );
  }

  async drained(deployment: DeploymentId, replica: string, withinMs: number): Promise<void> {
    await Promise.all([
      this.#byId.get(deployment)?.balancer.drained(replica, withinMs),
      this.#removed.get(deployment)?.drained(replica, withinMs),
    ]);
  }

  onSuspect(listener: (deployment: DeploymentId, replica: string) => void): void {
    this.#onSuspect.push(listener);
  }

  // -- requests that come through the link ---------------------------------------------------------------------------

  request(deployment: DeploymentId, routed: RoutedRequest): Promise<RoutedAnswer> {
    const entry = this.#byId.get(deployment);
    if (entry === undefined)
      return Promise.reject(new ConnectorError("DEPLOYMENT_UNKNOWN", `There is no deployment ${deployment} here.`));
    const sinceMs = this.#clock.monotonic();
    const { headers, requestId } = forwardedHeaders(Object.entries(routed.headers).flat());
    const { signal } = routed;
    return new Promise((resolve, reject) => {
      const body = new AnswerBody();
      const over = () => signal?.removeEventListener("abort", onAbort);
      const sink: Sink = {
        start: (status, answered, replica) =>
          resolve({
            status,
            mediaType: headerOf(answered, "content-type") ?? "application/octet-stream",
            replica,
            tookMs: this.#clock.monotonic() - sinceMs,
            body,
          }),
        data: (chunk) => body.push(chunk),
        end: () => {
          over();
          body.end(null);
        },
        failed: (error) => {
          over();
          reject(error);
          body.end(error);
        },
      };
      const exchange = new Exchange(
        entry.balancer,
        this.#clock,
        this.#deadlines,
        {
          method: routed.method,
          path: routed.path,
          headers,
          requestId,
          body: routed.body,
          timeoutMs: routed.timeoutMs,
          sinceMs,
        },
        sink,
      );
      body.exchange = exchange;
      const onAbort = () => {
        const error = new ConnectorError("CANCELLED", "The request was cancelled.");
        exchange.abandon();
        sink.failed(error, 499, false);
      };
      if (signal?.aborted === true) return onAbort();
      signal?.addEventListener("abort", onAbort, { once: true });
      exchange.start();
    });
  }

  probe(target: ReplicaTarget, path: string, timeoutMs: number): Promise<{ status: number; body: string } | null> {
    return new Promise((resolve) => {
      const { address, token } = target;
      const finish = (answer: { status: number; body: string } | null) => {
        timer.cancel();
        request.destroy();
        resolve(answer);
      };
      const request = httpRequest({
        ...(address.kind === "socket" ? { socketPath: address.path } : { host: address.host, port: address.port }),
        path,
        agent: false,
        headers: { authorization: `Bearer ${token}`, connection: "close" },
      });
      const timer = this.#clock.after(timeoutMs, () => finish(null), { keepAlive: true });
      request.on("error", () => finish(null));
      request.on("response", (response) => {
        let text = "";
        response.setEncoding("utf8");
        response.on("data", (chunk: string) => {
          text += chunk;
          if (text.length > PROBE_BYTES) finish({ status: response.statusCode ?? 0, body: text.slice(0, PROBE_BYTES) });
        });
        response.on("end", () => finish({ status: response.statusCode ?? 0, body: text }));
        response.on("error", () => finish(null));
      });
      request.end();
    });
  }

  // -- minutes -------------------------------------------------------------------------------------------------------

  rollup(deployment: DeploymentId): Rollup | null {
    return this.#byId.get(deployment)?.balancer.figures.last ?? null;
  }

  onRollup(listener: () => void): void {
    this.#onRollup.push(listener);
  }

  #armMinute(): void {
    this.#tick = this.#clock.after(MINUTE_MS - (this.#clock.now() % MINUTE_MS), () => {
      this.#closeMinutes();
      this.#armMinute();
    });
  }

  #closeMinutes(): void {
    const now = Math.floor(this.#clock.now() / MINUTE_MS);
    // The wall clock was set back: what was counted goes on in the minute that is now.
    if (now < this.#minute) this.#minute = now;
    if (now === this.#minute) return;
    // After a jump (a suspended machine), what was counted belongs to its own minute, and the last one had nothing.
    for (const end of new Set([this.#minute + 1, now])) {
      for (const { balancer } of this.#byId.values()) balancer.figures.close(end * MINUTE_MS);
      for (const listener of this.#onRollup) listener();
    }
    this.#minute = now;
    for (const [id, balancer] of this.#removed) if (!balancer.hasWork) this.#removed.delete(id);
  }
}

/** An answer's body on its way to who asked: a bounded queue; whoever stops reading ends the request. */
class AnswerBody implements AsyncIterable<Buffer> {
  exchange: Exchange | null = null;
  readonly #chunks: Buffer[] = [];
  #bytes = 0;
  #paused = false;
  #ended = false;
  #error: ConnectorError | null = null;
  #wake: (() => void) | null = null;

  push(chunk: Buffer): boolean {
    this.#chunks.push(Buffer.from(chunk));
    this.#bytes += chunk.length;
    this.#wake?.();
    this.#paused = this.#bytes > 256 * 1024;
    return !this.#paused;
  }

  end(error: ConnectorError | null): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#error = error;
    this.#wake?.();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Buffer> {
    try {
      for (;;) {
        const chunk = this.#chunks.shift();
        if (chunk !== undefined) {
          this.#bytes -= chunk.length;
          yield chunk;
          continue;
        }
        if (this.#error !== null) throw this.#error;
        if (this.#ended) return;
        const more = new Promise<void>((resolve) => (this.#wake = resolve));
        if (this.#paused) {
          this.#paused = false;
          this.exchange?.resume();
        }
        await more;
        this.#wake = null;
      }
    } finally {
      this.exchange?.abandon();
    }
  }
}

function listenProblem(error: NodeJS.ErrnoException, { listen, tls }: RouterOptions): ConnectorError {
  if (error.code === "EADDRINUSE")
    return new ConnectorError(
      "PORT_TAKEN",
      `Another program listens at ${listen}, where the endpoints of deployments should.`,
      {
        fix: "Stop that program, or give serving.listen another port; it is tried again by itself.",
        cause: error,
      },
    );
  const what =
    error.syscall === "open" || error.syscall === "read"
      ? `A file of serving.tls (${tls?.cert}, ${tls?.key}) cannot be read`
      : error.syscall === "listen" || error.syscall === "getaddrinfo" || error.syscall === "bind"
        ? `The router cannot listen at ${listen}`
        : "The certificate and key of serving.tls cannot be used";
  return new ConnectorError("CONFIG_INVALID", `${what} (${error.code ?? "unknown cause"}).`, {
    fix: "Mend serving in the agent's configuration; it is tried again by itself.",
    cause: error,
  });
}
