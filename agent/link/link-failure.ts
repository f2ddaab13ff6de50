// Why an attempt or a link ended, and what the server asked for.
import { ConnectorError, HandshakeRefused, toConnectorError } from "@sallyport/protocol";

export class LinkFailure extends Error {
  readonly reason: ConnectorError;
  /** Ms; null when the server asked for nothing. */
  readonly retryAfterMs: number | null;

  constructor(reason: ConnectorError, retryAfterMs: number | null = null) {
    super(reason.message, { cause: reason });
    this.name = "LinkFailure";
    this.reason = reason;
    this.retryAfterMs = retryAfterMs;
  }
}

/** The single entrance for what dialling and greeting throw. */
export function toLinkFailure(caught: unknown): LinkFailure {
  if (caught instanceof LinkFailure) return caught;
  if (caught instanceof HandshakeRefused) {
    const { reason, retryAfterMs, proven } = caught;
    // Before the cloud has proved itself anybody could say these words: do not let them slow the agent down for good.
    if (!proven && reason.retry === "never" && reason.code !== "PROTOCOL_VERSION") {
      return new LinkFailure(
        new ConnectorError(
          "HANDSHAKE_FAILED",
          `Refused by somebody who did not prove to be the control plane: ${reason.message}`,
        ),
        retryAfterMs,
      );
    }
    return new LinkFailure(reason, retryAfterMs);
  }
  return new LinkFailure(toConnectorError(caught));
}
