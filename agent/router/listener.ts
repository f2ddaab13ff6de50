// The one listener in the agent's network: who may ask for what, HTTP's limits, and answers back to the client. The rules:
//   /healthz                       200 "ok", for anybody
//   /<deployment>/v2/...           with `Authorization: Bearer <the deployment's key>`; forwarded as /v2/...
// No key, a wrong key and a deployment that is not there are one and the same 401, so names cannot be found by trying.
// An answer of the router's own is {"error": "a sentence"} with its code in the header `sallyport-code`.
import { readFile } from "node:fs/promises";
import { createServer as createHttp, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { createServer as createHttps } from "node:https";
import type { Socket } from "node:net";
import type { Clock, ConnectorError, ErrorCode } from "@sallyport/protocol";
import type { Balancer } from "./balancer.ts";
import { Exchange, type Deadlines, type Sink } from "./exchange.ts";
import { forwardedHeaders } from "./headers.ts";
import { shows } from "./key.ts";
import { BufferBudget, bodyTooLarge, readBody, type RequestBody } from "./request-body.ts";

export interface ListenerLimits {
  maxBodyBytes: number;
  repeatableBytes: number;
  /** Bodies kept whole, over all requests; what comes beyond streams and is sent once. */
  bufferedBytes: number;
  headerBytes: number;
  headers: number;
  clientConnections: number;
  headersTimeoutMs: number;
  /** A request, body included, is here in so long. */
  bodyTimeoutMs: number;
  requestTimeoutMs: number;
}

export interface ListenerOptions {
  tls: { cert: string; key: string } | null;
  clock: Clock;
  limits: ListenerLimits;
  deadlines: Deadlines;
  find(name: string): { balancer: Balancer; key: Buffer } | null;
  /** True while the router closes: connections end with their answer. */
  closing(): boolean;
}

/** Up to here an answer's body goes out as text. */
const JOINED_BYTES = 12 * 1024;
const ANSWERING = Symbol("answering");
type Tracked = Socket & { [ANSWERING]?: ServerResponse | null };
const DOT_SEGMENT = /\/(?:\.|%2e){1,2}(?=[/#]|$)|%2f|%5c|\\/i;

/** Reads the PEM files now. Does not listen yet. */
export async function createListener(options: ListenerOptions): Promise<Server> {
  const { limits, tls } = options;
  const settings = {
    maxHeaderSize: limits.headerBytes,
    headersTimeout: limits.headersTimeoutMs,
    requestTimeout: limits.bodyTimeoutMs,
    connectionsCheckingInterval: Math.min(5000, limits.bodyTimeoutMs / 4),
    keepAliveTimeout: 75_000,
    noDelay: true,
    insecureHTTPParser: false,
    requireHostHeader: true,
  };
  const server =
    tls === null
      ? createHttp(settings)
      : createHttps({
          ...settings,
          cert: await readFile(tls.cert),
          key: await readFile(tls.key),
          minVersion: "TLSv1.2",
        });
  // Node drops headers beyond this number in silence: all are let in, and counted below.
  server.maxHeadersCount = 0;
  server.maxConnections = limits.clientConnections;
  const budget = new BufferBudget(limits.bufferedBytes);
  server.on("request", (request, response) => take(options, budget, request, response, false));
  server.on("checkContinue", (request: IncomingMessage, response: ServerResponse) =>
    take(options, budget, request, response, true),
  );
  server.on("clientError", (error: NodeJS.ErrnoException, socket: Tracked) => {
    if (!socket.writable || error.code === "ECONNRESET" || socket[ANSWERING]?.headersSent === true)
      return void socket.destroy();
    const [status, code, text] =
      error.code === "HPE_HEADER_OVERFLOW"
        ? ([431, "INPUT_INVALID", "The headers are too large."] as const)
        : error.code === "ERR_HTTP_REQUEST_TIMEOUT"
          ? ([408, "TIMED_OUT", "The request did not come in time."] as const)
          : ([400, "INPUT_INVALID", "This is not a well-formed HTTP/1.1 request."] as const);
    const body = JSON.stringify({ error: text });
    socket.end(
      `HTTP/1.1 ${status} Refused\r\nconnection: close\r\ncontent-type: application/json\r\nsallyport-code: ${code}\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
    );
    // The rest of what it sends is not read: the connection is over whether the client ends it or not.
    socket.destroySoon();
  });
  return server;
}

function take(
  options: ListenerOptions,
  budget: BufferBudget,
  request: IncomingMessage,
  response: ServerResponse,
  expects: boolean,
): void {
  const { clock, limits } = options;
  const sinceMs = clock.monotonic();
  const url = request.url ?? "";
  if (url === "/healthz" && (request.method === "GET" || request.method === "HEAD")) {
    response.writeHead(200, ["content-type", "text/plain", "content-length", "3"]);
    return void response.end("ok\n");
  }
  const slash = url.indexOf("/", 1);
  const found = slash > 1 ? options.find(url.slice(1, slash)) : null;
  if (!shows(request.headers.authorization, found?.key ?? null) || found === null)
    return refuse(clock, request, response, 401, "UNAUTHENTICATED", "No such endpoint, or not its key.");
  const path = url.slice(slash);
  if (
    !(path === "/v2" || path.startsWith("/v2/") || path.startsWith("/v2?")) ||
    DOT_SEGMENT.test(path.split("?", 1)[0]!)
  )
    return refuse(clock, request, response, 404, "NOT_FOUND", "There is only /v2/... here.");
  if (request.method === "TRACE" || request.method === "CONNECT")
    return refuse(clock, request, response, 405, "INPUT_INVALID", "This method is not passed on.");
  const raw = request.rawHeaders;
  if (raw.length > 2 * limits.headers)
    return refuse(clock, request, response, 431, "INPUT_INVALID", `There are more than ${limits.headers} headers.`);
  const encoding = request.headers["transfer-encoding"];
  if (encoding !== undefined && (encoding.toLowerCase() !== "chunked" || request.httpVersion !== "1.1"))
    return refuse(clock, request, response, 400, "INPUT_INVALID", "The only transfer encoding taken is chunked.");
  const length = request.headers["content-length"];
  const declared = length === undefined ? null : Number(length);
  if (declared !== null && declared > limits.maxBodyBytes)
    return refuse(clock, request, response, 413, "TOO_LARGE", bodyTooLarge(limits.maxBodyBytes).message);

  const socket = request.socket as Tracked;
  socket[ANSWERING] = response;
  const { headers, requestId } = forwardedHeaders(raw);
  let exchange: Exchange | null = null;
  let kept = 0;
  const begin = (body: RequestBody, keptBytes: number) => {
    kept = keptBytes;
    if (response.destroyed) return budget.give(kept);
    const sink = new ClientSink(request, response, options);
    exchange = new Exchange(
      found.balancer,
      clock,
      options.deadlines,
      {
        method: request.method ?? "GET",
        path,
        headers,
        requestId,
        body,
        timeoutMs: limits.requestTimeoutMs,
        sinceMs,
      },
      sink,
    );
    sink.exchange = exchange;
    exchange.start();
  };
  response.once("close", () => {
    // A connection that waits for its next request holds nothing of the last one: what outlives young collections for
    // no reason is what brings the full ones.
    if (socket[ANSWERING] === response) socket[ANSWERING] = null;
    if (exchange === null) return;
    exchange.abandon();
    budget.give(kept);
  });
  if (expects) response.writeContinue();
  if (encoding === undefined && (declared === null || declared === 0)) {
    request.resume();
    begin(declared === null ? null : Buffer.alloc(0), 0);
  } else {
    readBody(
      request,
      declared,
      { maxBytes: limits.maxBodyBytes, repeatableBytes: limits.repeatableBytes },
      budget,
      begin,
      () => refuse(clock, request, response, 413, "TOO_LARGE", bodyTooLarge(limits.maxBodyBytes).message),
    );
  }
}

class ClientSink implements Sink {
  exchange: Exchange | null = null;
  readonly #request: IncomingMessage;
  readonly #response: ServerResponse;
  readonly #options: ListenerOptions;
  #left = -1;

  constructor(request: IncomingMessage, response: ServerResponse, options: ListenerOptions) {
    this.#request = request;
    this.#response = response;
    this.#options = options;
  }

  start(status: number, headers: string[]): void {
    const response = this.#response;
    for (let i = 0; i < headers.length; i += 2)
      if (headers[i] === "content-length") this.#left = Number(headers[i + 1]);
    if (this.#options.closing()) headers.push("connection", "close");
    response.writeHead(status, headers);
    // A stream of unknown length may pause here; else head and body go in one write.
    if (this.#left === -1) response.flushHeaders();
  }

  data(chunk: Buffer): boolean {
    const response = this.#response;
    if (this.#left !== -1 && (this.#left -= chunk.length) === 0) {
      // As text it is written together with the head.
      if (chunk.length <= JOINED_BYTES) response.end(chunk.toString("latin1"), "latin1");
      else response.end(Buffer.from(chunk));
      return true;
    }
    if (response.write(Buffer.from(chunk))) return true;
    response.once("drain", () => this.exchange?.resume());
    return false;
  }

  end(): void {
    this.#response.end();
  }

  failed(error: ConnectorError, status: number, begun: boolean): void {
    if (begun || this.#response.headersSent) return void this.#response.destroy();
    refuse(this.#options.clock, this.#request, this.#response, status, error.code, error.message);
  }
}

function refuse(
  clock: Clock,
  request: IncomingMessage,
  response: ServerResponse,
  status: number,
  code: ErrorCode,
  text: string,
): void {
  if (response.headersSent) return void response.destroy();
  const body = JSON.stringify({ error: text });
  const headers = [
    "content-type",
    "application/json",
    "content-length",
    String(Buffer.byteLength(body)),
    "sallyport-code",
    code,
  ];
  if (status === 401) headers.push("www-authenticate", "Bearer");
  if (status === 503) headers.push("retry-after", "1");
  if (request.complete) {
    response.writeHead(status, headers);
    return void response.end(body);
  }
  // Many clients read an answer only after they sent all: a connection that is closed under them loses it.
  headers.push("connection", "close");
  response.writeHead(status, headers);
  response.write(body);
  linger(request, clock, () => response.end());
}

const LINGER = { bytes: 64 * 1024 * 1024, ms: 2000 };

/** Reads on and keeps nothing, until the request ends or has had its share. */
function linger(request: IncomingMessage, clock: Clock, over: () => void): void {
  let left = LINGER.bytes;
  const done = (): void => {
    timer.cancel();
    request.off("data", onData).off("end", done).off("close", done);
    over();
  };
  const onData = (chunk: Buffer): void => {
    left -= chunk.length;
    if (left < 0) done();
  };
  const timer = clock.after(LINGER.ms, done);
  request.on("data", onData).once("end", done).once("close", done);
  request.resume();
}
