// The closed list of failures that may cross the link or reach a person, and the one class that carries them.
// A code is never reused for another meaning and never recognised by its text.

/** Can trying the same thing again help? `never`: not without a change; `later`: yes, by itself. */
export type Retry = "never" | "later";

interface CodeRow {
  /** HTTP status the API answers with. */
  status: number;
  retry: Retry;
  /** One line for the reference page: when it happens. */
  meaning: string;
}

/** Every code. Grouped by where it arises; the order within a group is not significant. */
export const ERROR_CODES = {
  // the link
  LINK_LOST: { status: 502, retry: "later", meaning: "the link to the agent broke while the answer was on its way" },
  GOING_AWAY: { status: 503, retry: "later", meaning: "the other end is shutting down or moving; dial again" },
  PROTOCOL_VERSION: { status: 502, retry: "never", meaning: "no protocol version in common" },
  PROTOCOL_ERROR: { status: 502, retry: "later", meaning: "the peer sent bytes that do not follow the protocol" },
  FRAME_TOO_LARGE: { status: 502, retry: "never", meaning: "a frame or a control payload is over its limit" },
  HANDSHAKE_FAILED: { status: 502, retry: "later", meaning: "the handshake did not finish in time or in order" },
  CLOUD_UNREACHABLE: {
    status: 502,
    retry: "later",
    meaning: "the agent reaches no control plane at the address it has",
  },
  CLOUD_UNTRUSTED: { status: 502, retry: "never", meaning: "the cloud did not prove the pinned identity key" },
  PROXY_UNREACHABLE: { status: 502, retry: "later", meaning: "the agent reaches no proxy at the address it has" },
  PROXY_UNTRUSTED: { status: 502, retry: "never", meaning: "the certificate of an https:// proxy is not trusted" },
  PROXY_AUTH_REQUIRED: { status: 502, retry: "never", meaning: "the proxy wants a user and password it accepts" },
  PROXY_REFUSED: { status: 502, retry: "later", meaning: "the proxy makes no connection to the control plane" },
  IDENTITY_UNKNOWN: { status: 401, retry: "never", meaning: "the cloud does not know this agent replica" },
  IDENTITY_REVOKED: { status: 401, retry: "never", meaning: "this agent replica was revoked" },
  IDENTITY_CLONED: { status: 409, retry: "later", meaning: "another live agent uses the same identity" },
  SESSION_SUPERSEDED: { status: 409, retry: "later", meaning: "a newer session of the same agent took over" },
  STREAM_REFUSED: { status: 429, retry: "later", meaning: "too many streams are open on the link" },
  // enrolment
  ENROLMENT_UNKNOWN: { status: 401, retry: "never", meaning: "the enrolment secret is not of this control plane" },
  ENROLMENT_USED: { status: 401, retry: "never", meaning: "the enrolment secret was used already" },
  ENROLMENT_EXPIRED: { status: 401, retry: "never", meaning: "the enrolment secret is past its hour" },
  ENROLMENT_REVOKED: { status: 401, retry: "never", meaning: "the enrolment secret was withdrawn" },
  ENROLMENT_MALFORMED: { status: 400, retry: "never", meaning: "the text is not an enrolment secret" },
  // commands
  KIND_UNKNOWN: { status: 400, retry: "never", meaning: "the agent does not know this command kind" },
  INPUT_INVALID: { status: 422, retry: "never", meaning: "a field is unknown, missing or of the wrong type" },
  SIGNATURE_INVALID: { status: 403, retry: "never", meaning: "a signature does not match the bytes it covers" },
  DISPATCH_INVALID: { status: 403, retry: "never", meaning: "the dispatch is for another replica, session or body" },
  DECLARED_LOST: { status: 410, retry: "never", meaning: "an operator said that its agent will never answer for it" },
  COMMAND_EXPIRED: { status: 410, retry: "never", meaning: "the command was past its expiry when it arrived" },
  POLICY_DENIED: { status: 403, retry: "never", meaning: "the customer's policy on the agent refuses this" },
  TIMED_OUT: { status: 504, retry: "later", meaning: "the deadline passed before the work was done" },
  CANCELLED: { status: 499, retry: "never", meaning: "the caller or an operator cancelled it" },
  AGENT_OFFLINE: { status: 503, retry: "later", meaning: "no replica of the pool is connected" },
  AGENT_PAUSED: { status: 503, retry: "later", meaning: "the customer paused the agent's intake" },
  AGENT_DRAINING: { status: 503, retry: "later", meaning: "the agent is stopping and takes no new commands" },
  AT_CAPACITY: { status: 429, retry: "later", meaning: "a ceiling of the agent's policy is reached" },
  HELD_ELSEWHERE: { status: 409, retry: "never", meaning: "another agent replica took the command over" },
  AUDIT_UNAVAILABLE: { status: 503, retry: "later", meaning: "the agent cannot write its audit log" },
  JOURNAL_UNAVAILABLE: { status: 503, retry: "later", meaning: "the agent cannot write its journal" },
  // stores
  STORE_UNKNOWN: { status: 404, retry: "never", meaning: "the agent has no store of that name" },
  PATH_INVALID: { status: 400, retry: "never", meaning: "the path has a segment that is not allowed" },
  ARTIFACT_NOT_FOUND: { status: 404, retry: "never", meaning: "nothing at that path of the store" },
  NOT_A_FILE: { status: 409, retry: "never", meaning: "the path names a tree where a file is wanted, or the reverse" },
  ARTIFACT_EXISTS: { status: 412, retry: "never", meaning: "the path is taken and the write was If-None-Match" },
  PRECONDITION_FAILED: { status: 412, retry: "never", meaning: "the version given is not the current one" },
  RANGE_INVALID: { status: 416, retry: "never", meaning: "the range lies beyond the end" },
  DIGEST_MISMATCH: { status: 422, retry: "never", meaning: "the bytes do not have the digest that was stated" },
  TOO_LARGE: { status: 413, retry: "never", meaning: "over a limit of the agent or the cloud" },
  STORE_DENIED: { status: 502, retry: "never", meaning: "the store refused the agent's credentials or rights" },
  STORE_TLS: { status: 502, retry: "never", meaning: "the store's certificate is not trusted by the agent" },
  STORE_UNREACHABLE: { status: 502, retry: "later", meaning: "no connection to the store" },
  STORE_FAILED: { status: 502, retry: "later", meaning: "the store answered with a failure of its own" },
  PREVIEW_UNSUPPORTED: { status: 415, retry: "never", meaning: "no preview is made of this type" },
  // secrets
  SECRET_UNKNOWN: { status: 422, retry: "never", meaning: "the reference names nothing in its secret provider" },
  SECRET_DENIED: { status: 502, retry: "never", meaning: "the secret provider refused the agent" },
  SECRET_UNREACHABLE: { status: 502, retry: "later", meaning: "no connection to the secret provider" },
  // pipelines
  PIPELINE_INVALID: { status: 422, retry: "never", meaning: "the pipeline has a cycle or names something it lacks" },
  PROGRAM_UNKNOWN: { status: 422, retry: "never", meaning: "the agent's configuration has no program of that name" },
  STEP_FAILED: { status: 422, retry: "never", meaning: "a step ended with a non-zero exit code or a signal" },
  STEP_TIMED_OUT: { status: 422, retry: "never", meaning: "a step ran longer than its limit and was stopped" },
  STEP_OUTPUT_MISSING: { status: 422, retry: "never", meaning: "a step ended without an output it declares" },
  RUN_UNKNOWN: { status: 404, retry: "never", meaning: "no run of that id on this agent" },
  LOGS_GONE: { status: 410, retry: "never", meaning: "the log was collected or never written" },
  ENGINE_UNKNOWN: { status: 422, retry: "never", meaning: "the agent's configuration has no engine of that name" },
  ENGINE_FAILED: { status: 502, retry: "later", meaning: "the engine could not start or find the work" },
  ENGINE_UNREACHABLE: { status: 502, retry: "later", meaning: "the engine does not answer; what runs in it goes on" },
  IMAGE_INVALID: { status: 422, retry: "never", meaning: "the image is not named by a digest" },
  IMAGE_MISSING: { status: 422, retry: "later", meaning: "the image is not in the engine and cannot be pulled" },
  IMAGE_DENIED: { status: 502, retry: "never", meaning: "the registry refuses the engine this image" },
  OUT_OF_MEMORY: { status: 422, retry: "never", meaning: "the work reached its memory limit and was ended" },
  // deployments
  DEPLOYMENT_UNKNOWN: { status: 404, retry: "never", meaning: "no deployment of that id on this agent" },
  DEPLOYMENT_INVALID: { status: 422, retry: "never", meaning: "the deployment asks for something that cannot be" },
  DEPLOYMENT_UNREADY: { status: 503, retry: "later", meaning: "no replica of the deployment is ready" },
  GENERATION_STALE: { status: 409, retry: "never", meaning: "the agent holds a newer generation of the deployment" },
  RUNTIME_MISSING: { status: 422, retry: "never", meaning: "the agent's configuration has nothing that serves models" },
  MODEL_REFUSED: { status: 422, retry: "never", meaning: "the runtime cannot load the model" },
  CRASH_LOOP: {
    status: 422,
    retry: "later",
    meaning: "a replica ends again and again; it is started with growing waits",
  },
  REPLICA_UNREADY: { status: 503, retry: "later", meaning: "a replica runs but does not say that it is ready" },
  PORT_TAKEN: { status: 502, retry: "later", meaning: "another program listens where the endpoints should" },
  // the API
  UNAUTHENTICATED: { status: 401, retry: "never", meaning: "no valid session or token" },
  FORBIDDEN: { status: 403, retry: "never", meaning: "the principal may not do this" },
  NOT_FOUND: { status: 404, retry: "never", meaning: "no such resource in this workspace" },
  CONFLICT: { status: 409, retry: "never", meaning: "the resource is in a state that does not allow this" },
  IDEMPOTENCY_MISMATCH: { status: 422, retry: "never", meaning: "the Idempotency-Key was used with another request" },
  RATE_LIMITED: { status: 429, retry: "later", meaning: "too many requests" },
  SECRET_IN_URL: {
    status: 400,
    retry: "never",
    meaning: "a token or secret is part of the URL, where logs and histories keep it",
  },
  ORIGIN_DENIED: { status: 403, retry: "never", meaning: "the request came from another origin" },
  MEDIA_TYPE_UNSUPPORTED: { status: 415, retry: "never", meaning: "the request's content type is not accepted here" },
  CONFIG_INVALID: { status: 500, retry: "never", meaning: "the program's own configuration is wrong" },
  STORAGE_FULL: { status: 507, retry: "later", meaning: "no space left on the disk that holds the state" },
  STORAGE_CORRUPT: { status: 500, retry: "never", meaning: "the program's own database is damaged or not its own" },
  DATABASE_UNAVAILABLE: { status: 503, retry: "later", meaning: "the control plane's database does not answer" },
  INTERNAL: { status: 500, retry: "later", meaning: "a fault of ours; the request id finds it in the log" },
} as const satisfies Record<string, CodeRow>;

export type ErrorCode = keyof typeof ERROR_CODES;

export const isErrorCode = (value: string): value is ErrorCode => Object.hasOwn(ERROR_CODES, value);

/** What crosses the link and what problem+json is made of. Text is safe to show: no secret, no stack. */
export interface ErrorBody {
  code: ErrorCode;
  /** A sentence: the thing, the cause. */
  message: string;
  /** What to do; absent when nothing can be done by the reader. */
  fix?: string;
  /** Rule, field paths, limits: plain JSON, safe to show. */
  details?: Record<string, unknown>;
}

export interface ConnectorErrorOptions {
  fix?: string;
  details?: Record<string, unknown>;
  /** For the local log only. Never sent. */
  cause?: unknown;
}

/** The one error of ours. `message` is shown to people; `cause` stays on the machine where it was caught. */
export class ConnectorError extends Error {
  readonly code: ErrorCode;
  readonly fix: string | undefined;
  readonly details: Record<string, unknown> | undefined;

  constructor(code: ErrorCode, message: string, options: ConnectorErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = "ConnectorError";
    this.code = code;
    this.fix = options.fix;
    this.details = options.details;
  }

  get retry(): Retry {
    return ERROR_CODES[this.code].retry;
  }

  get status(): number {
    return ERROR_CODES[this.code].status;
  }

  toBody(): ErrorBody {
    return {
      code: this.code,
      message: this.message,
      ...(this.fix === undefined ? {} : { fix: this.fix }),
      ...(this.details === undefined ? {} : { details: this.details }),
    };
  }

  /** From what a peer sent. An unknown code (a newer peer) becomes INTERNAL with the text kept. */
  static fromBody(body: {
    code: string;
    message: string;
    fix?: string | undefined;
    details?: Record<string, unknown> | undefined;
  }): ConnectorError {
    return new ConnectorError(isErrorCode(body.code) ? body.code : "INTERNAL", body.message, {
      ...(body.fix === undefined ? {} : { fix: body.fix }),
      ...(body.details === undefined ? {} : { details: body.details }),
    });
  }
}

/** The single entrance for caught values. The text of a foreign error is never shown: it may hold anything. */
export function toConnectorError(value: unknown): ConnectorError {
  if (value instanceof ConnectorError) return value;
  if (value instanceof Error) {
    if (value.name === "AbortError")
      return new ConnectorError("CANCELLED", "The work was cancelled.", { cause: value });
    const code = (value as NodeJS.ErrnoException).code;
    if (code === "ENOSPC" || code === "EDQUOT") {
      return new ConnectorError("STORAGE_FULL", "No space is left on the disk that holds the state.", {
        fix: "Free space on that disk; work goes on by itself.",
        cause: value,
      });
    }
  }
  return new ConnectorError("INTERNAL", "Something failed that was not expected.", {
    fix: "Look up the request id in the program's log.",
    cause: value,
  });
}
