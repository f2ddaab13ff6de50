// What to do after a link or an attempt ended, by the code of its reason.
import type { ErrorCode } from "@sallyport/protocol";

/** `retry`: dial by the backoff. `later`: the same, but never at once. `never`: only slowly, since a person must act first. */
export type RetryClass = "retry" | "later" | "never";

const TABLE: Partial<Record<ErrorCode, RetryClass>> = {
  LINK_LOST: "retry", // a cut; the network is usually back at once
  GOING_AWAY: "retry", // a restart of the cloud; another process may take over at once
  SESSION_SUPERSEDED: "later", // our own newer session, or another process with our identity: do not fight
  CLOUD_UNREACHABLE: "later", // refused, timed out, no name, or an answer that is not ours: 503, captive page
  HANDSHAKE_FAILED: "later", // slow or out of order: a busy or half-started cloud
  PROXY_UNREACHABLE: "later", // the proxy is down or restarts
  PROXY_REFUSED: "later", // it may be the proxy's own trouble with the way beyond it
  PROTOCOL_ERROR: "later", // a bug or tampering on this connection; the next one may be clean
  FRAME_TOO_LARGE: "later", // the same
  IDENTITY_CLONED: "later", // clears when the other one stops; the cloud says how long to wait
  RATE_LIMITED: "later",
  TIMED_OUT: "later",
  INTERNAL: "later", // a fault of the cloud; it logs it
  STORAGE_FULL: "later", // the cloud's disk, or ours for the identity
  PROTOCOL_VERSION: "never", // needs an update of one end
  CLOUD_UNTRUSTED: "never", // wrong CA, wrong key, wrong address: somebody must look
  PROXY_UNTRUSTED: "never", // wrong CA for the proxy
  PROXY_AUTH_REQUIRED: "never", // each wrong try may lock the account
  IDENTITY_UNKNOWN: "never", // deleted at the cloud
  IDENTITY_REVOKED: "never", // revoked at the cloud; it can be enrolled anew
  ENROLMENT_UNKNOWN: "never", // a new secret is needed for these four
  ENROLMENT_USED: "never",
  ENROLMENT_EXPIRED: "never",
  ENROLMENT_REVOKED: "never",
  ENROLMENT_MALFORMED: "never",
  CONFIG_INVALID: "never", // the address itself, or no identity and no secret
};

/** Codes that are not listed belong to commands and cannot end a link; should one do so, the cautious row is right. */
export const retryClass = (code: ErrorCode): RetryClass => TABLE[code] ?? "later";
