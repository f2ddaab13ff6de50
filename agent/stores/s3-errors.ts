// What the S3 SDK throws, in our codes: the one table. By the service's error name first, then by status (a HEAD answer
// has no body and so no name), then by Node's code for the connection. The SDK's own text is never passed on: it may
// quote headers.
import { ConnectorError, type ErrorCode } from "@sallyport/protocol";
import { isTlsError } from "../secrets/tls-errors.ts";
import { exists, notFound, preconditionFailed } from "./store-errors.ts";

export interface S3Target {
  store: string;
  path: string;
  endpoint: string;
  bucket: string;
  ca: string | null;
  /** The write was If-None-Match. */
  create?: boolean;
}

interface Row {
  code: ErrorCode;
  says: (t: S3Target) => string;
  fix: string;
}
const credentials =
  "Check accessKeyId and secretAccessKey of the store in the agent's configuration, and the rights that go with them.";
const ROWS: Record<string, Row> = {
  AccessDenied: { code: "STORE_DENIED", says: () => "the credentials do not have the right", fix: credentials },
  AllAccessDisabled: { code: "STORE_DENIED", says: () => "access is disabled", fix: credentials },
  SignatureDoesNotMatch: { code: "STORE_DENIED", says: () => "the secret access key is wrong", fix: credentials },
  InvalidAccessKeyId: { code: "STORE_DENIED", says: () => "the access key is unknown", fix: credentials },
  InvalidToken: { code: "STORE_DENIED", says: () => "the session token is not valid", fix: credentials },
  ExpiredToken: { code: "STORE_DENIED", says: () => "the session token has expired", fix: credentials },
  RequestTimeTooSkewed: {
    code: "STORE_DENIED",
    says: () => "the agent's clock differs too much from the store's",
    fix: "Set the clock of the agent's machine.",
  },
  NoSuchBucket: {
    code: "STORE_FAILED",
    says: (t) => `there is no bucket ${t.bucket}`,
    fix: "Correct the store's bucket in the agent's configuration, or make it.",
  },
  PermanentRedirect: {
    code: "STORE_FAILED",
    says: () => "the bucket is in another region",
    fix: "Correct the store's region and endpoint in the agent's configuration.",
  },
  AuthorizationHeaderMalformed: {
    code: "STORE_FAILED",
    says: () => "the region is not the bucket's",
    fix: "Correct the store's region in the agent's configuration.",
  },
  ObjectParentIsFile: {
    code: "NOT_A_FILE",
    says: () => "a folder on the way is a file",
    fix: "Choose a path whose folders are folders.",
  },
  EntityTooLarge: { code: "TOO_LARGE", says: () => "the object is larger than the store allows", fix: "Split it." },
  QuotaExceeded: { code: "STORAGE_FULL", says: () => "its quota is used up", fix: "Free space in the store." },
  XMinioStorageFull: { code: "STORAGE_FULL", says: () => "it is full", fix: "Free space in the store." },
  BadDigest: { code: "DIGEST_MISMATCH", says: () => "the bytes changed on their way", fix: "Try again." },
  XAmzContentChecksumMismatch: {
    code: "DIGEST_MISMATCH",
    says: () => "the bytes changed on their way",
    fix: "Try again.",
  },
};
const UNREACHABLE = new Set([
  "ECONNREFUSED",
  "ECONNRESET",
  "ENOTFOUND",
  "EAI_AGAIN",
  "ETIMEDOUT",
  "EHOSTUNREACH",
  "ENETUNREACH",
  "EPIPE",
  "ECONNABORTED",
  "TimeoutError",
  "EADDRNOTAVAIL",
]);

interface SdkError {
  name?: string;
  code?: string;
  Code?: string;
  $metadata?: { httpStatusCode?: number };
  cause?: { code?: string };
}

export function s3Error(error: unknown, target: S3Target): Error {
  if (error instanceof ConnectorError) return error;
  const { name = "", code, Code, $metadata, cause } = error as SdkError;
  if (name === "AbortError") return new ConnectorError("CANCELLED", "The work was cancelled.", { cause: error });
  const what = Code ?? name;
  const status = $metadata?.httpStatusCode;
  const { store, path } = target;
  const where = `Store ${store} (${target.endpoint})`;
  const row = Object.hasOwn(ROWS, what) ? ROWS[what] : undefined;
  if (row !== undefined)
    return new ConnectorError(row.code, `${where} refused: ${row.says(target)}.`, { fix: row.fix, cause: error });
  if (what === "NoSuchKey" || what === "NotFound")
    return target.create === undefined ? notFound(store, path, error) : preconditionFailed(store, path, null, error);
  if (status === 412 || what === "PreconditionFailed" || what === "ConditionalRequestConflict") {
    return target.create === true ? exists(store, path, error) : preconditionFailed(store, path, null, error);
  }
  if (status === 401 || status === 403)
    return new ConnectorError("STORE_DENIED", `${where} refused the agent's credentials or their rights.`, {
      fix: credentials,
      cause: error,
    });
  if (status === 404) return notFound(store, path, error);
  const network = code ?? cause?.code ?? name;
  if (isTlsError(network)) {
    return new ConnectorError(
      "STORE_TLS",
      `The certificate of store ${store} (${target.endpoint}) is not trusted (${network}).`,
      {
        fix:
          target.ca === null
            ? "Set `ca` of the store in the agent's configuration to the PEM file of the CA that signed it."
            : `Check that ${target.ca} (\`ca\` of the store in the agent's configuration) holds the CA that signed it, and that the endpoint's name is in the certificate.`,
        cause: error,
      },
    );
  }
  if (UNREACHABLE.has(network)) {
    return new ConnectorError(
      "STORE_UNREACHABLE",
      `No connection to store ${store} at ${target.endpoint} (${network}).`,
      {
        fix: "Check the store's endpoint in the agent's configuration, the network, and that the store runs.",
        cause: error,
      },
    );
  }
  if (status === 503 || status === 429)
    return new ConnectorError("STORE_FAILED", `${where} is busy (status ${status}).`, {
      fix: "Try again later.",
      cause: error,
    });
  if (status !== undefined)
    return new ConnectorError(
      "STORE_FAILED",
      `${where} answered with status ${status}${/^[A-Za-z]{3,40}$/.test(what) ? ` (${what})` : ""}.`,
      { fix: "Look into the store's own log.", cause: error },
    );
  return new ConnectorError("STORE_FAILED", `${where} could not be used.`, {
    fix: "Look into the agent's log for the cause.",
    cause: error,
  });
}
