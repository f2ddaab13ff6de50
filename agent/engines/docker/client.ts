// Requests to the Engine, over dockerode's connection. Each answer is read as a stream: one that breaks off is an error
// here, while the client's own calls would wait for its end for ever. Speaks the Engine's own version of its API.
import type { IncomingMessage } from "node:http";
import type { Readable } from "node:stream";
import Docker from "dockerode";
import { ConnectorError } from "@sallyport/protocol";

const CALL_MS = 60_000;
const MAX_ANSWER_BYTES = 32 * 1024 ** 2;
/** Of the Engine's own words in ours. */
const MAX_WORDS = 400;

/** The Engine answered, and refused. `message` is its own text. */
export class EngineRefusal extends Error {
  readonly status: number;
  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

export interface CallOptions {
  query?: Record<string, unknown>;
  body?: object;
  /** Sent as it is (tar). */
  file?: Readable;
  signal?: AbortSignal | undefined;
  /** Null: as long as it takes. */
  timeoutMs?: number | null;
}

interface Dial {
  path: string;
  method: string;
  options: object;
  file?: Readable;
  isStream: true;
  statusCodes: Record<number, true>;
  abortSignal: AbortSignal;
}

interface Modem {
  dial(options: Dial, done: (error: unknown, answer: unknown) => void): void;
}

const GOOD: Record<number, true> = { 200: true, 201: true, 204: true, 304: true };

export class DockerClient {
  readonly socket: string;
  readonly #modem: Modem;
  readonly #closing = new AbortController();

  constructor(socket: string) {
    this.socket = socket;
    // `host` said to be none: a DOCKER_HOST in the environment must not lead elsewhere.
    const options = { socketPath: socket, host: undefined, protocol: "http" } as unknown as Docker.DockerOptions;
    this.#modem = new Docker(options).modem as Modem;
  }

  close(): void {
    this.#closing.abort(new ConnectorError("CANCELLED", "The engine docker was closed."));
  }

  get closed(): AbortSignal {
    return this.#closing.signal;
  }

  /** The answer as it comes; the caller reads it or destroys it. */
  async stream(method: string, path: string, options: CallOptions = {}): Promise<IncomingMessage> {
    const signal = this.#signal(options);
    return this.#guard(options.signal, signal, () => this.#dial(method, path, options, signal));
  }

  /** The answer as JSON; null when it has no body. */
  async call<T>(method: string, path: string, options: CallOptions = {}): Promise<T> {
    const signal = this.#signal(options);
    return this.#guard(options.signal, signal, async () => {
      const answer = await this.#dial(method, path, options, signal);
      const chunks: Buffer[] = [];
      let bytes = 0;
      for await (const chunk of answer as AsyncIterable<Buffer>) {
        bytes += chunk.length;
        if (bytes > MAX_ANSWER_BYTES) throw new Error("the Engine's answer is too large");
        chunks.push(chunk);
      }
      const text = Buffer.concat(chunks).toString("utf8").trim();
      return (text === "" ? null : JSON.parse(text)) as T;
    });
  }

  /** Like `call`, null when the Engine answers 404. */
  async find<T>(path: string, options: CallOptions = {}): Promise<T | null> {
    try {
      return await this.call<T>("GET", path, options);
    } catch (error) {
      if (error instanceof EngineRefusal && error.status === 404) return null;
      throw error;
    }
  }

  #signal(options: CallOptions): AbortSignal {
    const all = [this.#closing.signal];
    if (options.signal !== undefined) all.push(options.signal);
    if (options.timeoutMs !== null) all.push(AbortSignal.timeout(options.timeoutMs ?? CALL_MS));
    return AbortSignal.any(all);
  }

  #dial(method: string, path: string, options: CallOptions, signal: AbortSignal): Promise<IncomingMessage> {
    return new Promise((resolve, reject) => {
      signal.throwIfAborted();
      const onAbort = (): void => {
        options.file?.destroy();
        reject(signal.reason as Error);
      };
      signal.addEventListener("abort", onAbort, { once: true });
      const dial: Dial = {
        path: `${path}?`,
        method,
        options: { _query: options.query ?? {}, _body: options.body ?? {} },
        isStream: true,
        statusCodes: GOOD,
        abortSignal: signal,
        ...(options.file === undefined ? {} : { file: options.file }),
      };
      this.#modem.dial(dial, (error, answer) => {
        signal.removeEventListener("abort", onAbort);
        if (error === null || error === undefined) return resolve(answer as IncomingMessage);
        options.file?.destroy();
        reject(error as Error);
      });
    });
  }

  async #guard<T>(callers: AbortSignal | undefined, any: AbortSignal, work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (caught) {
      callers?.throwIfAborted();
      this.#closing.signal.throwIfAborted();
      // What is left is the time: however the cut connection shows, the Engine is there and hangs.
      throw any.aborted ? unreachable(this.socket, HANGS, caught) : this.explain(caught);
    }
  }

  /** What a failed request is in our words; also for what breaks while an answer of `stream` is read. */
  explain(caught: unknown): Error {
    if (caught instanceof EngineRefusal) return caught;
    const { statusCode, json, code } = caught as { statusCode?: number; json?: unknown; code?: string };
    if (statusCode !== undefined) {
      // dockerode puts the Engine's words behind its own: "(HTTP code 404) unexpected - no such image ".
      const text = (json as { message?: string } | null)?.message ?? (caught as Error).message;
      return new EngineRefusal(statusCode, engineWords(text.replace(/^\(HTTP code \d+\) \w+ - /, "")));
    }
    const fix = UNREACHABLE_FIX[code ?? ""];
    if (fix !== undefined) return unreachable(this.socket, fix, caught);
    if (caught instanceof ConnectorError) return caught;
    return new ConnectorError(
      "ENGINE_FAILED",
      `The Docker Engine at ${this.socket} gave an answer that cannot be read.`,
      {
        cause: caught,
      },
    );
  }
}

const HANGS = "It takes connections and does not answer: look into its log.";
const START = "Start it (systemctl start docker); work goes on by itself.";
const UNREACHABLE_FIX: Partial<Record<string, string>> = {
  ENOENT: "Start the Engine, or name its socket in engines.docker.socket; in a container, mount that socket.",
  ECONNREFUSED: START,
  ECONNRESET: START,
  EPIPE: START,
  ETIMEDOUT: HANGS,
  ERR_STREAM_PREMATURE_CLOSE: START,
  EACCES: "Let the agent's user use the socket: add it to the group that owns it (often docker).",
  EPERM: "Let the agent's user use the socket: add it to the group that owns it (often docker).",
  ENOTSOCK: "Name the Engine's socket in engines.docker.socket.",
};

function unreachable(socket: string, fix: string, cause: unknown): ConnectorError {
  return new ConnectorError("ENGINE_UNREACHABLE", `The Docker Engine does not answer at ${socket}.`, { fix, cause });
}

/** One short line without control characters. */
export function engineWords(text: string): string {
  // oxlint-disable-next-line no-control-regex
  const line = text.replace(/[\u0000-\u001f\u007f-\u009f\s]+/g, " ").trim();
  return line.length > MAX_WORDS ? `${line.slice(0, MAX_WORDS)}…` : line;
}

/** What a refusal becomes when nothing more is known of it. */
export function refused(what: string, caught: unknown, fix?: string): unknown {
  if (!(caught instanceof EngineRefusal)) return caught;
  return new ConnectorError("ENGINE_FAILED", `${what}: the Engine says ${JSON.stringify(caught.message)}.`, {
    cause: caught,
    ...(fix === undefined ? {} : { fix }),
  });
}
