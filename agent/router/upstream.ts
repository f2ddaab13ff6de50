// The connections to one replica: kept alive, bounded, over its unix socket or address. Sends; decides nothing.
import { connect, type Socket } from "node:net";
import type { Readable } from "node:stream";
import type { Clock, Timer } from "@sallyport/protocol";
import { AnswerParser, type AnswerEvents } from "./answer-parser.ts";
import type { ReplicaTarget } from "./router.ts";
import { startServing, stopServing } from "./young-generation.ts";

export interface UpstreamLimits {
  /** Requests at a time, and so connections, to one replica: kept by whoever sends. */
  connections: number;
  connectTimeoutMs: number;
}

/** Whoever sent a request hears of it by these; of `end` and `broken` one comes, and nothing after it. */
export interface Sender {
  /** There is a connection: from now on a byte of it may have left. */
  leaves(): void;
  /** A byte came back. */
  stirs(): void;
  /** Names in small letters: name, value, name, value, ... */
  head(status: number, headers: string[]): void;
  /** Its bytes are overwritten after the call. False: stop until `resume`. */
  data(chunk: Buffer): boolean;
  end(): void;
  broken(error: Error): void;
}

/** A request under way. */
export interface Sending {
  resume(): void;
  /** Ends it and its connection. Nothing is heard of it any more. */
  abort(): void;
}

/** A header or path that cannot be written without meaning something else. Nothing of the request has left. */
export class NotWritable extends Error {}

/** A body of a length that was said beforehand, or in chunks. */
export interface BodyStream {
  readonly length: number | null;
  open(): Readable;
}

const IDLE_MS = 30_000;
/** A replica that says how long it keeps a connection is believed, but for this: it may be on the way to close it. */
const IDLE_MARGIN_MS = 2000;
/** Up to here head and body are one string, and so one write without buffers of its own. */
const JOINED_BYTES = 12 * 1024;
const SWEEP_MS = 5000;
const READ_BYTES = 64 * 1024;

const TOKEN = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;
const NO_VALUE = /[^\t\x20-\x7e\x80-\xff]/;
const NO_PATH = /[^\x21-\xff]/;
const EXPECTS_BODY = new Set(["POST", "PUT", "PATCH"]);

// One for all connections: it is read from before anybody else runs. Windows reads ahead into it.
const SHARED = process.platform === "win32" ? null : Buffer.allocUnsafeSlow(READ_BYTES);

export class Upstream {
  readonly target: ReplicaTarget;
  inFlight = 0;
  /** Monotonic ms: a connection broke not long ago. It is taken only when there is no other. */
  avoidedUntil = 0;
  /** Monotonic ms: no connection could be made. It is not taken at all. */
  refusedUntil = 0;
  /** Connections that could not be made, one after another. */
  refusals = 0;
  readonly clock: Clock;
  readonly limits: UpstreamLimits;
  /** What each request begins with, after its first line and before its own headers; and its token. */
  readonly #opening: string;
  /** The one used last is taken next, so that those that are too many grow old. */
  readonly #free: Connection[] = [];
  readonly #all = new Set<Connection>();
  #sweep: Timer | null = null;
  #destroyed = false;

  constructor(target: ReplicaTarget, limits: UpstreamLimits, clock: Clock) {
    this.target = target;
    this.limits = limits;
    this.clock = clock;
    startServing(clock);
    const { address } = target;
    const host = address.kind === "tcp" ? (address.host.includes(":") ? `[${address.host}]` : address.host) : "";
    this.#opening = `host: ${address.kind === "tcp" ? `${host}:${address.port}` : "localhost"}\r\nauthorization: Bearer ${target.token}\r\n`;
  }

  /** Throws NotWritable. */
  send(
    method: string,
    path: string,
    headers: readonly string[],
    body: Buffer | BodyStream | null,
    sender: Sender,
  ): Sending {
    if (!TOKEN.test(method) || NO_PATH.test(path)) throw new NotWritable("The method or path cannot be passed on.");
    let head = `${method} ${path} HTTP/1.1\r\n${this.#opening}`;
    // Some answer HEAD with a body, and some do not read one that comes with GET: such a connection is used once.
    const once = method === "HEAD" || (method === "GET" && body !== null);
    head += once ? "connection: close\r\n" : "connection: keep-alive\r\n";
    for (let i = 0; i < headers.length; i += 2) {
      const [name, value] = [headers[i]!, headers[i + 1]!];
      if (!TOKEN.test(name) || NO_VALUE.test(value)) throw new NotWritable("A header cannot be passed on.");
      head += `${name}: ${value}\r\n`;
    }
    const length = body === null ? 0 : body.length;
    if (length === null) head += "transfer-encoding: chunked\r\n\r\n";
    else if (length > 0 || EXPECTS_BODY.has(method)) head += `content-length: ${length}\r\n\r\n`;
    else head += "\r\n";

    const now = this.clock.monotonic();
    let connection = this.#free.pop();
    while (connection !== undefined && !connection.fresh(now)) {
      connection.destroy();
      connection = this.#free.pop();
    }
    if (connection === undefined) {
      connection = new Connection(this);
      this.#all.add(connection);
      if (this.#destroyed) connection.destroy();
    }
    return connection.send(method, head, body, once, sender);
  }

  /** Ends its connections. Requests under way break. */
  destroy(): void {
    if (!this.#destroyed) stopServing();
    this.#destroyed = true;
    this.#sweep?.cancel();
    this.#sweep = null;
    for (const connection of this.#all) connection.destroy();
  }

  // -- what a connection says ----------------------------------------------------------------------------------------

  freed(connection: Connection): void {
    if (this.#destroyed) return connection.destroy();
    this.#free.push(connection);
    if (this.#sweep === null) this.#armSweep();
  }

  gone(connection: Connection): void {
    this.#all.delete(connection);
    const at = this.#free.indexOf(connection);
    if (at !== -1) this.#free.splice(at, 1);
  }

  #armSweep(): void {
    this.#sweep = this.clock.after(SWEEP_MS, () => {
      this.#sweep = null;
      const now = this.clock.monotonic();
      for (const connection of [...this.#free]) if (!connection.fresh(now)) connection.destroy();
      if (this.#free.length > 0) this.#armSweep();
    });
  }
}

class Connection implements AnswerEvents, Sending {
  readonly #upstream: Upstream;
  readonly #socket: Socket;
  readonly #parser = new AnswerParser(this);
  #connecting: Timer | null;
  #sender: Sender | null = null;
  #stirred = false;
  /** What leaves when there is a connection. */
  #first: (() => void) | null = null;
  #body: Readable | null = null;
  #once = false;
  #paused = false;
  #staysUntilMs = 0;

  constructor(upstream: Upstream) {
    this.#upstream = upstream;
    const { address } = upstream.target;
    const socket = connect({
      ...(address.kind === "socket" ? { path: address.path } : { host: address.host, port: address.port }),
      noDelay: true,
      keepAlive: true,
      keepAliveInitialDelay: 60_000,
      onread: {
        buffer: SHARED ?? Buffer.allocUnsafeSlow(READ_BYTES),
        callback: (bytes: number, buffer: Uint8Array) => this.#read((buffer as Buffer).subarray(0, bytes)),
      },
    });
    this.#socket = socket;
    this.#connecting = upstream.clock.after(
      upstream.limits.connectTimeoutMs,
      () => socket.destroy(new Error("There was no connection in time.")),
      { keepAlive: true },
    );
    socket.on("connect", () => {
      this.#connecting?.cancel();
      this.#connecting = null;
      const first = this.#first;
      this.#first = null;
      first?.();
    });
    // Called for both ends of it: what came before the end is read already.
    socket.on("end", () => this.#ended());
    socket.on("error", (error) => this.#broken(error));
    socket.on("drain", () => this.#body?.resume());
    socket.on("close", () => {
      this.#connecting?.cancel();
      this.#broken(new Error("The connection closed."));
      upstream.gone(this);
    });
  }

  /** Idle for so short a time that the replica will not have closed it. */
  fresh(nowMs: number): boolean {
    return nowMs < this.#staysUntilMs && !this.#socket.destroyed;
  }

  send(method: string, head: string, body: Buffer | BodyStream | null, once: boolean, sender: Sender): Sending {
    this.#sender = sender;
    this.#stirred = false;
    this.#once = once;
    const first = () => {
      if (this.#sender !== sender) return;
      this.#parser.expect(method);
      sender.leaves();
      if (body === null) this.#socket.write(head, "latin1");
      else if (!Buffer.isBuffer(body)) this.#stream(head, body, body.open());
      else if (body.length <= JOINED_BYTES) this.#socket.write(head + body.toString("latin1"), "latin1");
      else {
        this.#socket.cork();
        this.#socket.write(head, "latin1");
        this.#socket.write(body);
        this.#socket.uncork();
      }
    };
    if (this.#connecting === null) first();
    else this.#first = first;
    return this;
  }

  resume(): void {
    if (!this.#paused) return;
    this.#paused = false;
    this.#socket.resume();
  }

  abort(): void {
    this.#sender = null;
    this.destroy();
  }

  destroy(): void {
    this.#parser.stop();
    this.#body?.destroy();
    this.#socket.destroy();
  }

  // -- its answer ----------------------------------------------------------------------------------------------------

  head(status: number, headers: string[]): void {
    this.#sender?.head(status, headers);
  }

  body(chunk: Buffer): void {
    if (this.#sender?.data(chunk) !== false || this.#sender === null) return;
    this.#paused = true;
    this.#socket.pause();
  }

  end(): void {
    const sender = this.#sender;
    this.#sender = null;
    const parser = this.#parser;
    this.resume();
    // An answer before all of the request has left: what is left would be read as another request.
    if (parser.keepAlive && !this.#once && this.#body === null && !this.#socket.destroyed) {
      const idleMs = parser.keepAliveMs === null ? IDLE_MS : Math.min(IDLE_MS, parser.keepAliveMs - IDLE_MARGIN_MS);
      this.#staysUntilMs = this.#upstream.clock.monotonic() + idleMs;
      if (idleMs > 0) this.#upstream.freed(this);
      else this.destroy();
    } else this.destroy();
    sender?.end();
  }

  #read(bytes: Buffer): boolean {
    // Nobody asked.
    if (this.#sender === null) this.destroy();
    else {
      if (!this.#stirred) {
        this.#stirred = true;
        this.#sender.stirs();
      }
      try {
        this.#parser.execute(bytes);
      } catch (error) {
        this.#fail(error as Error);
      }
    }
    return true;
  }

  #ended(): void {
    if (this.#sender === null || !this.#parser.close()) this.#broken(new Error("The replica closed the connection."));
    this.destroy();
  }

  #fail(error: Error): void {
    this.#broken(error);
    this.destroy();
  }

  #broken(error: Error): void {
    const sender = this.#sender;
    this.#sender = null;
    this.#body?.destroy();
    sender?.broken(error);
  }

  // -- a body that streams -------------------------------------------------------------------------------------------

  #stream(head: string, { length }: BodyStream, reader: Readable): void {
    const socket = this.#socket;
    let left = length;
    this.#body = reader;
    socket.write(head, "latin1");
    reader.on("data", (chunk: Buffer) => {
      if (left === null) {
        socket.cork();
        socket.write(`${chunk.length.toString(16)}\r\n`, "latin1");
        socket.write(chunk);
        socket.write("\r\n", "latin1");
        socket.uncork();
      } else {
        left -= chunk.length;
        if (left < 0) return void reader.destroy(new NotWritable("The body is longer than was said."));
        socket.write(chunk);
      }
      if (socket.writableNeedDrain) reader.pause();
    });
    reader.on("end", () => {
      if (left !== null && left > 0) return this.#fail(new NotWritable("The body is shorter than was said."));
      if (left === null) socket.write("0\r\n\r\n", "latin1");
      this.#body = null;
    });
    reader.on("error", (error) => this.#fail(error));
  }
}
