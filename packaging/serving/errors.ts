// What a request or a start can fail with. A message is a sentence for the far end: it names the input or setting and
// what was expected, and holds no file path, no stack and no value out of a tensor longer than one element.

/** Why a request was not served; the label of the errors' metric, so the list is closed. */
export type Reason =
  | "unauthorized"
  | "not_found"
  | "method"
  | "bad_request"
  | "bad_tensor"
  | "too_large"
  | "encoding"
  | "timeout"
  | "not_ready"
  | "overloaded"
  | "model"
  | "output"
  | "internal";

export class RequestError extends Error {
  readonly status: number;
  readonly reason: Reason;

  constructor(status: number, reason: Reason, message: string) {
    super(message);
    this.name = "RequestError";
    this.status = status;
    this.reason = reason;
  }
}

export const badTensor = (message: string): RequestError => new RequestError(400, "bad_tensor", message);
export const badRequest = (message: string): RequestError => new RequestError(400, "bad_request", message);

/** sysexits: 64 usage, 65 data, 69 unavailable, 70 software. The agent reads code and exit code, never the message. */
export const EXIT = { USAGE: 64, MODEL_REFUSED: 65, PORT_TAKEN: 69, OUT_OF_MEMORY: 70, INTERNAL: 70 } as const;
export type StartCode = keyof typeof EXIT;

export class StartError extends Error {
  readonly code: StartCode;

  /** The message may quote a model's own names: what would move a terminal's cursor is taken out. */
  constructor(code: StartCode, message: string) {
    // oxlint-disable-next-line no-control-regex
    super(message.replace(/[\u0000-\u001f\u007f-\u009f]+/g, " "));
    this.name = "StartError";
    this.code = code;
  }
}

/**
 * A sentence of the runtime, fit to be shown: one line, at most 500 characters, without the places in its own sources.
 * The model reaches the runtime as bytes, so no path of this machine can be in it.
 */
export function runtimeSentence(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  const line = text
    .replace(/\S+\.(?:cc|cpp|h|hpp)(?::\d+)?/g, "")
    .replace(/\s+/g, " ")
    .trim();
  return line.length > 500 ? `${line.slice(0, 499)}…` : line;
}

/** The binding gives its errors no code: the C++ library's own words are all there is to tell exhaustion by. */
export const isOutOfMemory = (error: unknown): boolean =>
  error instanceof Error &&
  (/bad_alloc|bad allocation|Failed to allocate memory|Array buffer allocation failed/.test(error.message) ||
    (error as { code?: unknown }).code === "ERR_WORKER_OUT_OF_MEMORY");
