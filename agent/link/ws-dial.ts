// Dials the control plane: one WebSocket, with every cap set, over TLS unless the other end is on loopback.
import { createHash } from "node:crypto";
import type { IncomingMessage } from "node:http";
import { isIP } from "node:net";
import { connect as tlsConnect, type DetailedPeerCertificate } from "node:tls";
import { WebSocket, type ClientOptions } from "ws";
import {
  ConnectorError,
  MAX_MESSAGE_BYTES,
  webSocketTransport,
  type Clock,
  type SocketLike,
  type Transport,
} from "@sallyport/protocol";
import { LinkFailure } from "./link-failure.ts";

/** From the first packet to the answer of the upgrade. */
export const DIAL_MS = 4_000;
/** Longest retry-after that is believed. */
const MAX_RETRY_AFTER_MS = 15 * 60_000;

export interface DialTarget {
  /** The control plane's base URL: https, or http on loopback. */
  readonly cloudUrl: string;
  /** PEM of the only CA to trust; null = the machine's own list. */
  readonly ca: string | null;
  readonly clock: Clock;
  readonly signal: AbortSignal;
}

const isLoopbackHost = (host: string): boolean =>
  host === "localhost" || host === "::1" || host === "[::1]" || (isIP(host) === 4 && host.startsWith("127."));

/** `…/link` of a base URL. Throws CONFIG_INVALID, and CLOUD_UNTRUSTED for plain HTTP to another machine. */
export function linkUrl(cloudUrl: string): { url: URL; secure: boolean; loopback: boolean } {
  let url: URL;
  try {
    url = new URL(cloudUrl);
  } catch (cause) {
    throw new ConnectorError("CONFIG_INVALID", "The control plane's address is not a URL.", {
      fix: "Give it as https://host[:port].",
      cause,
    });
  }
  const secure = url.protocol === "https:" || url.protocol === "wss:";
  if (!secure && url.protocol !== "http:" && url.protocol !== "ws:") {
    throw new ConnectorError(
      "CONFIG_INVALID",
      `The control plane's address begins with ${url.protocol}, which is not a way to reach one.`,
      {
        fix: "Give it as https://host[:port].",
      },
    );
  }
  const loopback = isLoopbackHost(url.hostname);
  if (!secure && !loopback) {
    throw new ConnectorError(
      "CLOUD_UNTRUSTED",
      `The control plane's address ${url.host} is not on this machine and has no TLS.`,
      {
        fix: "Use https://; plain http:// is for loopback only.",
      },
    );
  }
  url.protocol = secure ? "wss:" : "ws:";
  url.pathname = `${url.pathname.replace(/\/+$/, "")}/link`;
  url.search = "";
  url.hash = "";
  url.username = "";
  url.password = "";
  return { url, secure, loopback };
}

/** Opens the WebSocket. Rejects with a LinkFailure. */
export function dial(target: DialTarget): Promise<Transport> {
  const { url } = linkUrl(target.cloudUrl);
  return new Promise((resolve, reject) => {
    const options: ClientOptions & { maxFragments: number; maxBufferedChunks: number; closeTimeout: number } = {
      perMessageDeflate: false,
      followRedirects: false,
      maxPayload: MAX_MESSAGE_BYTES,
      maxFragments: 1024,
      maxBufferedChunks: 16 * 1024,
      skipUTF8Validation: true,
      closeTimeout: 2_000,
      ...(target.ca === null ? {} : { ca: [target.ca] }),
      // Ours alone: nobody else may lengthen the wait or add headers.
      headers: { "user-agent": "sallyport-agent" },
    };
    const webSocket = new WebSocket(url, options);
    let transport: Transport | null = null;
    const fail = (failure: LinkFailure) => {
      settle();
      reject(failure);
      webSocket.terminate();
    };
    const timer = target.clock.after(
      DIAL_MS,
      () =>
        fail(
          new LinkFailure(
            new ConnectorError("CLOUD_UNREACHABLE", `No answer from ${url.host} within ${DIAL_MS / 1000} s.`, {
              fix: "Check the address and that this host may open connections to it.",
            }),
          ),
        ),
      { keepAlive: true },
    );
    const onAbort = () => fail(new LinkFailure(new ConnectorError("CANCELLED", "The dial was given up.")));
    const settle = () => {
      timer.cancel();
      target.signal.removeEventListener("abort", onAbort);
    };
    target.signal.addEventListener("abort", onAbort, { once: true });
    // Stays for good: an error after the dial must not be without a listener.
    webSocket.on("error", (error) => {
      if (transport === null) fail(new LinkFailure(dialError(error, url)));
    });
    webSocket.on("unexpected-response", (request, response) => {
      request.destroy();
      fail(httpFailure(response, url));
    });
    webSocket.on("upgrade", (response: IncomingMessage) => {
      // Listeners are set before the first message can come.
      transport = webSocketTransport(webSocket, response.socket as unknown as SocketLike);
      response.socket.setNoDelay(true);
    });
    webSocket.on("open", () => {
      settle();
      resolve(transport!);
    });
  });
}

/** An answer that is not a WebSocket's. */
function httpFailure(response: IncomingMessage, url: URL): LinkFailure {
  const status = response.statusCode ?? 0;
  const details = { status };
  const retryAfterMs = retryAfter(response.headers["retry-after"]);
  const refuse = (message: string, fix: string) =>
    new LinkFailure(new ConnectorError("CLOUD_UNREACHABLE", message, { fix, details }), retryAfterMs);
  if (status >= 300 && status < 400) {
    return refuse(
      `${url.host} answered with a redirect (${status}), which the link does not follow.`,
      "Give the control plane's final address; a captive page may be in between.",
    );
  }
  if (status === 401 || status === 403 || status === 407) {
    return refuse(
      `${url.host} refused the connection (${status}).`,
      "A gateway in front of the control plane asks for credentials: let /link pass.",
    );
  }
  if (status === 404)
    return refuse(`${url.host} has no /link (404).`, "Check that the address is the control plane's.");
  if (status === 429 || status === 503)
    return refuse(`${url.host} is busy or starting (${status}).`, "Nothing to do: the agent tries again by itself.");
  if (status >= 200 && status < 300) {
    return refuse(
      `${url.host} answered with a page (${status}) where a WebSocket was asked for.`,
      "A captive page or a proxy without WebSocket support is in between.",
    );
  }
  return refuse(
    `${url.host} answered ${status}.`,
    "Look at the control plane's log, or at the gateway in front of it.",
  );
}

function retryAfter(header: string | undefined): number | null {
  if (header === undefined) return null;
  const seconds = Number(header);
  const ms = Number.isFinite(seconds) ? seconds * 1000 : Date.parse(header) - Date.now();
  return Number.isFinite(ms) && ms > 0 ? Math.min(ms, MAX_RETRY_AFTER_MS) : null;
}

/** Certificate failures by their codes: OpenSSL's names as Node gives them. */
const TLS_CODES = new Set([
  "DEPTH_ZERO_SELF_SIGNED_CERT",
  "SELF_SIGNED_CERT_IN_CHAIN",
  "UNABLE_TO_GET_ISSUER_CERT",
  "UNABLE_TO_GET_ISSUER_CERT_LOCALLY",
  "UNABLE_TO_VERIFY_LEAF_SIGNATURE",
  "CERT_HAS_EXPIRED",
  "CERT_NOT_YET_VALID",
  "CERT_UNTRUSTED",
  "CERT_REVOKED",
  "CERT_SIGNATURE_FAILURE",
  "INVALID_CA",
  "ERR_TLS_CERT_ALTNAME_INVALID",
  "HOSTNAME_MISMATCH",
]);

function dialError(error: Error, url: URL): ConnectorError {
  const code = (error as NodeJS.ErrnoException).code ?? "";
  if (TLS_CODES.has(code)) {
    return new ConnectorError(
      "CLOUD_UNTRUSTED",
      `The certificate of ${url.host} is not trusted by this agent (${code}).`,
      {
        fix: "Set cloud.ca in the agent's configuration to the CA that signed it, or enrol with a secret of this control plane, which names its CA.",
        cause: error,
      },
    );
  }
  const words: Record<string, string> = {
    ECONNREFUSED: "nothing listens there",
    ENOTFOUND: "the name does not resolve",
    EAI_AGAIN: "the name service does not answer",
    ETIMEDOUT: "the connection timed out",
    EHOSTUNREACH: "there is no route",
    ENETUNREACH: "there is no network",
    ECONNRESET: "the connection was reset",
  };
  return new ConnectorError(
    "CLOUD_UNREACHABLE",
    `No connection to ${url.host}: ${words[code] ?? (code === "" ? "the connection failed" : code)}.`,
    {
      fix: "Nothing to do when the control plane is down: the agent tries again by itself. Otherwise check the address and the way there.",
      cause: error,
    },
  );
}

/**
 * The certificate with this fingerprint (base64url sha-256 of its DER) out of the chain that the server shows, as PEM.
 * Verification is off while looking, so nothing at all is sent; the proper dial comes after, with this CA alone.
 */
export function findPinnedCa(target: DialTarget, fingerprint: string): Promise<string> {
  const { url } = linkUrl(target.cloudUrl);
  const host = url.hostname.replace(/^\[|\]$/g, "");
  return new Promise((resolve, reject) => {
    const socket = tlsConnect({
      host,
      port: url.port === "" ? 443 : Number(url.port),
      rejectUnauthorized: false,
      ...(isIP(host) === 0 ? { servername: host } : {}),
    });
    const settle = () => {
      timer.cancel();
      target.signal.removeEventListener("abort", onAbort);
      socket.destroy();
    };
    const fail = (error: ConnectorError) => {
      settle();
      reject(new LinkFailure(error));
    };
    const timer = target.clock.after(
      DIAL_MS,
      () => fail(new ConnectorError("CLOUD_UNREACHABLE", `No answer from ${url.host} within ${DIAL_MS / 1000} s.`)),
      { keepAlive: true },
    );
    const onAbort = () => fail(new ConnectorError("CANCELLED", "The dial was given up."));
    target.signal.addEventListener("abort", onAbort, { once: true });
    socket.on("error", (error) => fail(dialError(error, url)));
    socket.on("secureConnect", () => {
      let certificate: DetailedPeerCertificate | undefined = socket.getPeerCertificate(true);
      const seen = new Set<string>();
      while (certificate?.raw !== undefined && !seen.has(certificate.fingerprint256)) {
        if (createHash("sha256").update(certificate.raw).digest("base64url") === fingerprint) {
          settle();
          return resolve(pem(certificate.raw));
        }
        seen.add(certificate.fingerprint256);
        certificate = certificate.issuerCertificate as DetailedPeerCertificate | undefined;
      }
      fail(
        new ConnectorError("CLOUD_UNTRUSTED", `${url.host} does not show the CA that the enrolment secret names.`, {
          fix: "Check the address. If a TLS-inspecting proxy is in between, set cloud.ca in the agent's configuration to its CA.",
        }),
      );
    });
  });
}

const pem = (der: Buffer): string =>
  `-----BEGIN CERTIFICATE-----\n${der
    .toString("base64")
    .replace(/(.{64})/g, "$1\n")
    .trimEnd()}\n-----END CERTIFICATE-----\n`;
