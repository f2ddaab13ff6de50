// The HTTP face: routes of Open Inference Protocol v2 (HTTP/REST) and /metrics, authentication, caps on what is read
// and for how long. Never computes: bodies go to the model's thread as they came. Every error is {"error": sentence}.
import { createHash, timingSafeEqual } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { Socket } from "node:net";
import type { Duplex } from "node:stream";
import { badRequest, RequestError } from "./errors.ts";
import type { InferReply, Signature, TensorInfo } from "./infer.ts";
import type { Metrics, Route } from "./metrics.ts";

export const PLATFORM = "onnxruntime_onnx";

export interface ServedModel {
  readonly ready: boolean;
  readonly inFlight: number;
  infer(body: Uint8Array<ArrayBuffer>, headerLength: number | undefined, gone: AbortSignal): Promise<InferReply>;
}

export interface ServingOptions {
  name: string;
  version: string;
  /** Of this program. */
  serverVersion: string;
  /** Undefined: none is asked for, the socket's file mode guards the door. */
  token: string | undefined;
  bodyBytesMax: number;
  /** A request must have arrived whole by then. */
  receiveMs: number;
  /** A connection on which nothing moves for so long is cut; must be more than a request may take. */
  idleMs: number;
}

const HEADER_BYTES_MAX = 16 * 1024;
const HEADERS_MS = 10_000;
/** Longer than what routers and balancers keep an idle connection, so that it is they who end it. */
const KEEP_ALIVE_MS = 75_000;
const CONNECTIONS_MAX = 1024;
/** Bodies that arrive, wait or are computed, all together, in multiples of the largest one: they hold this much at most. */
const HELD_FACTOR = 4;

interface Answer {
  status: number;
  type: string;
  body: string | Uint8Array;
  headers?: Record<string, string>;
}
const json = (status: number, value: unknown, headers?: Record<string, string>): Answer => ({
  status,
  type: "application/json",
  body: JSON.stringify(value),
  ...(headers === undefined ? {} : { headers }),
});
const failure = (error: RequestError, route: Route): Answer => {
  const headers: Record<string, string> = {};
  if (error.status === 405) headers["allow"] = route === "infer" ? "POST" : "GET, HEAD";
  if (error.status === 401) headers["www-authenticate"] = "Bearer";
  if (error.reason === "overloaded") headers["retry-after"] = "1";
  // Whoever spreads requests over replicas may give it to another: nothing of it was done.
  if (error.reason === "not_ready") headers["sallyport-serving"] = "not-ready";
  return json(error.status, { error: error.message }, headers);
};

const digest = (text: string): Buffer => createHash("sha256").update(text).digest();

export class ServingServer {
  readonly http: Server;
  readonly metrics: Metrics;
  readonly #options: ServingOptions;
  readonly #model: ServedModel;
  readonly #tokenDigest: Buffer | undefined;
  #signature: Signature | undefined;
  #stopping = false;
  #heldBytes = 0;
  readonly #sockets = new Set<Socket>();

  constructor(options: ServingOptions, model: ServedModel, metrics: Metrics) {
    this.#options = options;
    this.#model = model;
    this.metrics = metrics;
    this.#tokenDigest = options.token === undefined ? undefined : digest(options.token);
    this.http = createServer({
      maxHeaderSize: HEADER_BYTES_MAX,
      headersTimeout: Math.min(HEADERS_MS, options.receiveMs),
      requestTimeout: options.receiveMs,
      keepAliveTimeout: KEEP_ALIVE_MS,
      connectionsCheckingInterval: 1000,
      noDelay: true,
    });
    this.http.maxConnections = CONNECTIONS_MAX;
    this.http.timeout = options.idleMs;
    this.http.on("request", (request, response) => void this.#serve(request, response, false));
    // The body is asked for only when it would be read.
    this.http.on("checkContinue", (request, response) => void this.#serve(request, response, true));
    this.http.on("clientError", refuseConnection);
    this.http.on("connection", (socket) => {
      if (this.#stopping) {
        socket.destroy();
        return;
      }
      this.#sockets.add(socket);
      socket.once("close", () => this.#sockets.delete(socket));
    });
  }

  /** From now on the model's routes answer. */
  loaded(signature: Signature): void {
    this.#signature = signature;
  }

  get ready(): boolean {
    return !this.#stopping && this.#signature !== undefined && this.#model.ready;
  }

  /** No new connections; requests on the open ones are answered, and each connection ends with its answer. */
  stop(): Promise<void> {
    this.#stopping = true;
    // Node closes the idle ones by itself, but counts one that has never sent a byte as busy.
    for (const socket of this.#sockets) if (socket.bytesRead === 0) socket.destroy();
    return new Promise((resolve) => this.http.close(() => resolve()));
  }

  async #serve(request: IncomingMessage, response: ServerResponse, asksToContinue: boolean): Promise<void> {
    const begin = performance.now();
    const [path = ""] = (request.url ?? "").split("?");
    let route: Route = "other";
    let answer: Answer;
    try {
      route = routeOf(path);
      if (path !== "/v2/health/live") this.#authenticate(request);
      answer =
        route === "infer"
          ? await this.#infer(path, request, response, asksToContinue)
          : this.#read(path, route, request);
    } catch (error) {
      const known =
        error instanceof RequestError ? error : new RequestError(500, "internal", "The request could not be served.");
      this.metrics.failed(known.reason);
      answer = failure(known, route);
    }
    this.metrics.answered(route, answer.status);
    if (response.destroyed || response.headersSent) return;
    if (this.#stopping) response.setHeader("connection", "close");
    response.writeHead(answer.status, {
      ...answer.headers,
      "content-type": answer.type,
      "content-length": Buffer.byteLength(answer.body),
      "cache-control": "no-store",
    });
    response.end(answer.body, () => {
      if (route === "infer" && answer.status === 200) this.metrics.inferred((performance.now() - begin) / 1000);
    });
    // What is left of a body that was refused is read and dropped, so that the far end gets to read the answer; the
    // time that a request may take to arrive bounds that too.
    if (!request.complete) request.resume();
  }

  #authenticate(request: IncomingMessage): void {
    if (this.#tokenDigest === undefined) return;
    const [, given = ""] = /^Bearer +(\S+)$/i.exec(request.headers.authorization ?? "") ?? [];
    // Digests: equal in length whatever was sent, so that the comparison's time tells nothing.
    if (!timingSafeEqual(digest(given), this.#tokenDigest))
      throw new RequestError(401, "unauthorized", "Expected the bearer token of this server in 'Authorization'.");
  }

  /** Everything that is answered without the model's thread. */
  #read(path: string, route: Route, request: IncomingMessage): Answer {
    if (request.method !== "GET" && request.method !== "HEAD") {
      // An unknown path is that first of all.
      if (route === "other") throw unknownPath();
      throw wrongMethod(request, "GET");
    }
    const { name, version, serverVersion } = this.#options;
    const { ready } = this;
    if (path === "/v2")
      return json(200, { name: "sallyport-serving", version: serverVersion, extensions: ["binary_tensor_data"] });
    if (path === "/v2/health/live") return json(200, { live: true });
    if (path === "/v2/health/ready") return json(ready ? 200 : 503, { ready });
    if (path === "/metrics")
      return {
        status: 200,
        type: "text/plain; version=0.0.4; charset=utf-8",
        body: this.metrics.text({ inFlight: this.#model.inFlight, ready }),
      };
    const rest = this.#modelPath(path);
    if (rest === "/ready") return json(ready ? 200 : 503, { name, ready });
    if (rest !== "") throw unknownPath();
    const signature = this.#loadedSignature();
    return json(200, {
      name,
      versions: [version],
      platform: PLATFORM,
      inputs: signature.inputs.map(metadata),
      outputs: signature.outputs.map(metadata),
    });
  }

  #loadedSignature(): Signature {
    if (this.#signature === undefined) throw new RequestError(503, "not_ready", "The model is not loaded yet.");
    return this.#signature;
  }

  /** What follows `/v2/models/<name>[/versions/<version>]`, when those are this model's. */
  #modelPath(path: string): string {
    const match = /^\/v2\/models\/([^/]+)(?:\/versions\/([^/]+))?(\/.*)?$/.exec(path);
    if (match === null) throw unknownPath();
    const [, name = "", version, rest = ""] = match;
    if (decode(name) !== this.#options.name)
      throw new RequestError(404, "not_found", `There is no such model here: expected '${this.#options.name}'.`);
    if (version !== undefined && decode(version) !== this.#options.version)
      throw new RequestError(404, "not_found", `There is no such version: expected '${this.#options.version}'.`);
    return rest;
  }

  async #infer(
    path: string,
    request: IncomingMessage,
    response: ServerResponse,
    asksToContinue: boolean,
  ): Promise<Answer> {
    if (this.#modelPath(path) !== "/infer") throw unknownPath();
    if (request.method !== "POST") throw wrongMethod(request, "POST");
    this.#loadedSignature();
    const encoding = request.headers["content-encoding"] ?? "identity";
    if (encoding !== "identity")
      throw new RequestError(415, "encoding", "Expected a body without Content-Encoding: it is not unpacked here.");
    const headerLength = headerLengthOf(request);

    const gone = new AbortController();
    const onClose = () => gone.abort();
    response.once("close", onClose);
    const held = { bytes: 0 };
    try {
      const body = await this.#body(request, held, asksToContinue ? () => response.writeContinue() : undefined);
      const reply = await this.#model.infer(body, headerLength, gone.signal);
      if (reply.headerLength === undefined) return { status: 200, type: "application/json", body: reply.body };
      const headers = { "inference-header-content-length": String(reply.headerLength) };
      return { status: 200, type: "application/octet-stream", body: reply.body, headers };
    } finally {
      this.#heldBytes -= held.bytes;
      response.off("close", onClose);
    }
  }

  /** Into a buffer that grows with what has come, never by what a header claims. `held`: what the caller gives back. */
  async #body(
    request: IncomingMessage,
    held: { bytes: number },
    askFor: (() => void) | undefined,
  ): Promise<Uint8Array<ArrayBuffer>> {
    const max = this.#options.bodyBytesMax;
    const tooLarge = () =>
      new RequestError(413, "too_large", `The request's body is too large: expected at most ${max} bytes.`);
    const claimed = Number(request.headers["content-length"] ?? Number.NaN);
    if (claimed > max) throw tooLarge();
    askFor?.();
    let body = new Uint8Array(Math.min(Number.isNaN(claimed) ? 64 * 1024 : claimed, 1024 * 1024));
    let length = 0;
    // Listeners, not an iterator: that one would destroy the request, and with it the answer, when it is left early.
    await new Promise<void>((resolve, reject) => {
      const end = (settle: () => void) => {
        request.off("data", onData).off("end", onEnd).off("close", onClose);
        settle();
      };
      const onEnd = () => end(resolve);
      const onClose = () => end(() => reject(badRequest("The request ended before its body was complete.")));
      const onData = (chunk: Buffer) => {
        const needed = length + chunk.byteLength;
        if (needed > max) return end(() => reject(tooLarge()));
        if (this.#heldBytes + chunk.byteLength > HELD_FACTOR * max)
          return end(() =>
            reject(
              new RequestError(503, "overloaded", "Too many large requests arrive or wait already: try again later."),
            ),
          );
        if (needed > body.byteLength) {
          const target = Math.max(needed, Math.min(body.byteLength * 2, Number.isNaN(claimed) ? max : claimed));
          const larger = new Uint8Array(target);
          larger.set(body.subarray(0, length));
          body = larger;
        }
        body.set(chunk, length);
        length = needed;
        held.bytes = length;
        this.#heldBytes += chunk.byteLength;
      };
      request.on("data", onData).on("end", onEnd).on("close", onClose);
    });
    return body.subarray(0, length);
  }
}

const metadata = ({ name, datatype, shape }: TensorInfo) => ({
  name,
  datatype,
  // The protocol has no word for "any number of dimensions"; one open dimension is what comes nearest.
  shape: shape ?? [-1],
});

const unknownPath = (): RequestError =>
  new RequestError(404, "not_found", "There is nothing at this path: expected one of Open Inference Protocol v2.");

const wrongMethod = (request: IncomingMessage, expected: "GET" | "POST"): RequestError =>
  new RequestError(405, "method", `Expected ${expected} here, not ${request.method}.`);

function routeOf(path: string): Route {
  if (path === "/metrics") return "metrics";
  if (path.startsWith("/v2/health/") || /^\/v2\/models\/.+\/ready$/.test(path)) return "health";
  if (/^\/v2\/models\/[^/]+(?:\/versions\/[^/]+)?\/infer$/.test(path)) return "infer";
  if (path === "/v2" || path.startsWith("/v2/models/")) return "metadata";
  return "other";
}

function decode(segment: string): string {
  try {
    return decodeURIComponent(segment);
  } catch {
    throw badRequest("The path is not percent-encoded UTF-8.");
  }
}

function headerLengthOf(request: IncomingMessage): number | undefined {
  const value = request.headers["inference-header-content-length"];
  if (value === undefined) return undefined;
  if (typeof value !== "string" || !/^\d{1,10}$/.test(value))
    throw badRequest("Expected a number of bytes as Inference-Header-Content-Length.");
  return Number(value);
}

/** What Node's parser refused, or what did not arrive in time; there is no request object to answer through. */
function refuseConnection(error: NodeJS.ErrnoException, socket: Duplex): void {
  if (!socket.writable || error.code === "ECONNRESET") {
    socket.destroy();
    return;
  }
  const [status, text] =
    error.code === "ERR_HTTP_REQUEST_TIMEOUT"
      ? ["408 Request Timeout", "The request did not arrive in time."]
      : error.code === "HPE_HEADER_OVERFLOW"
        ? ["431 Request Header Fields Too Large", `Expected at most ${HEADER_BYTES_MAX} bytes of headers.`]
        : ["400 Bad Request", "This is not an HTTP request that could be read."];
  const body = JSON.stringify({ error: text });
  socket.end(
    `HTTP/1.1 ${status}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
  );
}
