// One request on its way: gets a replica or waits for one, is sent, sent once more when the connection breaks before the
// first byte of an answer, and handed back piece by piece. Where it came from and where the answer goes is its sink.
import type { Clock, Timer } from "@sallyport/protocol";
import { ConnectorError } from "@sallyport/protocol";
import { MalformedAnswer } from "./answer-parser.ts";
import type { Balancer, Waiter } from "./balancer.ts";
import { answeredHeaders, headerOf } from "./headers.ts";
import { StreamedBody, type RequestBody } from "./request-body.ts";
import { NotWritable, type Sender, type Sending, type Upstream } from "./upstream.ts";

/** Where the answer goes. After `end` or `failed` nothing comes. */
export interface Sink {
  start(status: number, headers: string[], replica: string): void;
  /** Its bytes are overwritten after the call: who keeps them copies them. False: stop until `Exchange.resume`. */
  data(chunk: Buffer): boolean;
  end(): void;
  /** `status` for a client by HTTP. `begun`: the answer cannot be taken back, only cut off. */
  failed(error: ConnectorError, status: number, begun: boolean): void;
}

export interface ExchangeRequest {
  readonly method: string;
  readonly path: string;
  readonly headers: readonly string[];
  readonly requestId: string;
  readonly body: RequestBody;
  /** Until the first byte of the answer, and then between any two pieces of it. */
  readonly timeoutMs: number;
  /** Monotonic, when its first byte was here. */
  readonly sinceMs: number;
}

/** Ends those whose time is over. One timer for all: an armed timer for each request would cost more than its routing. */
export class Deadlines {
  readonly #clock: Clock;
  readonly #open = new Set<Exchange>();
  #timer: Timer | null = null;
  constructor(clock: Clock) {
    this.#clock = clock;
  }
  add(exchange: Exchange): void {
    this.#open.add(exchange);
    if (this.#timer === null) this.#arm();
  }
  delete(exchange: Exchange): void {
    this.#open.delete(exchange);
  }
  get open(): number {
    return this.#open.size;
  }
  all(): Exchange[] {
    return [...this.#open];
  }
  #sweep(): void {
    const now = this.#clock.monotonic();
    for (const exchange of [...this.#open]) if (exchange.dueMs <= now) exchange.timedOut();
    this.#timer = null;
    if (this.#open.size > 0) this.#arm();
  }
  #arm(): void {
    this.#timer = this.#clock.after(100, () => this.#sweep(), { keepAlive: true });
  }
}

/** A request is sent at most so often: once more than once. A connection that could not be made sent nothing. */
const MAX_SENDS = 2;

export class Exchange implements Waiter {
  avoid: Upstream | null = null;
  /** Monotonic ms at which it ends unless something moves. */
  dueMs: number;
  readonly #balancer: Balancer;
  readonly #clock: Clock;
  readonly #deadlines: Deadlines;
  readonly #request: ExchangeRequest;
  readonly #sink: Sink;
  #attempt: Attempt | null = null;
  #before: Upstream | null = null;
  #sends = 0;
  #begun = false;
  #over = false;
  #holdUntilMs: number | null = null;
  #holdTimer: Timer | null = null;

  constructor(balancer: Balancer, clock: Clock, deadlines: Deadlines, request: ExchangeRequest, sink: Sink) {
    this.#balancer = balancer;
    this.#clock = clock;
    this.#deadlines = deadlines;
    this.#request = request;
    this.#sink = sink;
    this.dueMs = request.sinceMs + request.timeoutMs;
  }

  get heldBytes(): number {
    return Buffer.isBuffer(this.#request.body) ? this.#request.body.length : 0;
  }

  get clientWaits(): boolean {
    return !this.#over;
  }

  start(): void {
    this.#deadlines.add(this);
    this.#place();
  }

  /** The sink takes more. */
  resume(): void {
    this.#moved();
    this.#attempt?.resume();
  }

  /** Whoever asked went away. */
  abandon(): void {
    this.#finish(null, false);
  }

  timedOut(): void {
    this.fail(
      new ConnectorError(
        "TIMED_OUT",
        `The deployment ${this.#balancer.route.name} did not answer in ${this.#request.timeoutMs} ms.`,
      ),
      504,
    );
  }

  fail(error: ConnectorError, status: number): void {
    if (this.#over) return;
    const begun = this.#begun;
    // A fault of the request is no error of the deployment.
    this.#finish(this.#clock.monotonic() - this.#request.sinceMs, status >= 500);
    this.#sink.failed(error, status, begun);
  }

  go(upstream: Upstream): void {
    this.#holdTimer?.cancel();
    this.#holdTimer = null;
    this.#send(upstream);
  }

  dismissed(): void {
    this.fail(unready(this.#balancer.route.name, "the endpoint is going away"), 503);
  }

  #place(): void {
    const upstream = this.#balancer.pick(this.avoid);
    if (upstream !== null) return this.#send(upstream);
    const now = this.#clock.monotonic();
    const { holdMs, name } = this.#balancer.route;
    this.#holdUntilMs ??= now + holdMs;
    if (now >= this.#holdUntilMs) return this.#unready();
    if (!this.#balancer.wait(this)) return this.fail(unready(name, "too many requests wait for one already"), 503);
    this.#holdTimer = this.#clock.after(this.#holdUntilMs - now, () => this.#unready(), { keepAlive: true });
  }

  #unready(): void {
    this.fail(unready(this.#balancer.route.name, `none came in ${this.#balancer.route.holdMs} ms`), 503);
  }

  #send(upstream: Upstream): void {
    if (this.#before !== null) this.#balancer.figures.retried();
    this.#before = upstream;
    upstream.inFlight += 1;
    const attempt = new Attempt(this, upstream);
    this.#attempt = attempt;
    const { method, path, headers, body } = this.#request;
    try {
      attempt.sending = upstream.send(method, path, headers, body, attempt);
    } catch (error) {
      attempt.broken(error as Error);
    }
  }

  // -- what an attempt says ------------------------------------------------------------------------------------------

  isCurrent(attempt: Attempt): boolean {
    return this.#attempt === attempt;
  }

  sent(): void {
    this.#sends += 1;
  }

  /**
   * The replica is there and says that it does not serve yet: one that was ended and began anew under the same address,
   * before its route was told. It has done nothing of the request, so that counts like a connection that was not made.
   * False: it has to be answered with that.
   */
  turnedAway(attempt: Attempt): boolean {
    if (this.#over || this.#request.body instanceof StreamedBody) return false;
    this.#attempt = null;
    this.#sends -= 1;
    this.avoid = attempt.upstream;
    this.#balancer.refused(attempt.upstream);
    this.#place();
    return true;
  }

  answering(upstream: Upstream, status: number, raw: readonly string[]): void {
    this.#begun = true;
    this.#moved();
    this.#status = status;
    this.#balancer.answered(upstream);
    this.#sink.start(status, answeredHeaders(raw, this.#request.requestId), upstream.target.name);
  }
  #status = 0;

  piece(chunk: Buffer): boolean {
    this.#moved();
    return this.#sink.data(chunk);
  }

  ended(): void {
    if (this.#over) return;
    this.#attempt = null;
    this.#finish(this.#clock.monotonic() - this.#request.sinceMs, this.#status >= 500);
    this.#sink.end();
  }

  released(upstream: Upstream): void {
    this.#balancer.released(upstream);
  }

  broken(attempt: Attempt, error: Error): void {
    if (this.#over) return;
    this.#attempt = null;
    const { upstream } = attempt;
    const { name } = this.#balancer.route;
    if (error instanceof ConnectorError) return this.fail(error, error.status);
    if (error instanceof NotWritable)
      return this.fail(
        new ConnectorError("INPUT_INVALID", "The request has a header or path that cannot be passed on."),
        400,
      );
    this.avoid = upstream;
    if (!attempt.sent) {
      this.#balancer.refused(upstream);
      return this.#place();
    }
    if (!attempt.answered && !(error instanceof MalformedAnswer)) {
      this.#balancer.broke(upstream);
      if (this.#sends < MAX_SENDS && !(this.#request.body instanceof StreamedBody)) return this.#place();
    }
    this.fail(
      new ConnectorError(
        "REPLICA_UNREADY",
        `Replica ${upstream.target.name} of ${name} broke the connection before its answer was whole.`,
      ),
      502,
    );
  }

  #moved(): void {
    this.dueMs = this.#clock.monotonic() + this.#request.timeoutMs;
  }

  #finish(tookMs: number | null, failed: boolean): void {
    if (this.#over) return;
    this.#over = true;
    this.#deadlines.delete(this);
    this.#holdTimer?.cancel();
    this.#balancer.leave(this);
    this.#balancer.figures.ended(tookMs, failed);
    const attempt = this.#attempt;
    this.#attempt = null;
    attempt?.abort();
  }
}

const unready = (name: string, why: string): ConnectorError =>
  new ConnectorError("DEPLOYMENT_UNREADY", `No replica of ${name} takes the request: ${why}.`, {
    fix: "Try again in a moment; when it lasts, look at the deployment's conditions.",
  });

/** As `packaging/serving` says it. */
const saysNotReady = (headers: readonly string[]): boolean => headerOf(headers, "sallyport-serving") === "not-ready";

/** One sending of it to one replica. */
class Attempt implements Sender {
  readonly upstream: Upstream;
  sending: Sending | null = null;
  /** A byte of it may have left. */
  sent = false;
  /** A byte came back. */
  answered = false;
  readonly #exchange: Exchange;
  #released = false;

  constructor(exchange: Exchange, upstream: Upstream) {
    this.#exchange = exchange;
    this.upstream = upstream;
  }

  resume(): void {
    this.sending?.resume();
  }
  abort(): void {
    this.sending?.abort();
    this.#release();
  }

  leaves(): void {
    this.sent = true;
    this.#exchange.sent();
  }
  stirs(): void {
    this.answered = true;
  }
  head(status: number, headers: string[]): void {
    if (!this.#exchange.isCurrent(this)) return;
    if (status === 503 && saysNotReady(headers) && this.#exchange.turnedAway(this)) return this.abort();
    this.#exchange.answering(this.upstream, status, headers);
  }
  data(chunk: Buffer): boolean {
    return !this.#exchange.isCurrent(this) || this.#exchange.piece(chunk);
  }
  end(): void {
    const current = this.#exchange.isCurrent(this);
    // The connection may be another's from here on.
    this.sending = null;
    if (current) this.#exchange.ended();
    this.#release();
  }
  broken(error: Error): void {
    const current = this.#exchange.isCurrent(this);
    this.sending = null;
    this.#release();
    if (current) this.#exchange.broken(this, error);
  }

  #release(): void {
    if (this.#released) return;
    this.#released = true;
    this.#exchange.released(this.upstream);
  }
}
