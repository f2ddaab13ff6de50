// The hops between an agent and its control plane, and what may be found at each. A failure of the dial names both in
// its details, so that nobody has to read sentences to know where it went wrong.
import { ConnectorError, type ErrorCode } from "@sallyport/protocol";
import { LinkFailure } from "./link-failure.ts";

/** In the order in which they are passed. `dns` and `tcp` are those of the proxy where there is one. */
export type Hop = "config" | "dns" | "tcp" | "proxy" | "tls" | "upgrade" | "handshake" | "clock";

/** What was found where a hop failed. */
export type Finding =
  | "name-unknown"
  | "name-service-silent"
  | "refused"
  | "no-route"
  | "reset"
  | "silent"
  | "proxy-auth"
  | "proxy-refused"
  | "not-a-proxy"
  | "certificate-untrusted"
  | "certificate-name"
  | "certificate-expired"
  | "certificate-early"
  | "client-certificate"
  | "not-tls"
  | "redirect"
  | "page"
  | "upgrade-stripped"
  | "not-found"
  | "credentials"
  | "busy"
  | "status"
  | "other";

export interface HopDetails {
  readonly hop: Hop;
  readonly finding: Finding;
  readonly [more: string]: unknown;
}

export interface HopFailureOptions {
  readonly fix: string;
  readonly cause?: unknown;
  readonly retryAfterMs?: number | null;
  /** Plain facts beside hop and finding. */
  readonly more?: Record<string, unknown>;
}

export function hopFailure(
  code: ErrorCode,
  hop: Hop,
  finding: Finding,
  message: string,
  { fix, cause, retryAfterMs = null, more = {} }: HopFailureOptions,
): LinkFailure {
  const details: HopDetails = { ...more, hop, finding };
  return new LinkFailure(new ConnectorError(code, message, { fix, cause, details }), retryAfterMs);
}
