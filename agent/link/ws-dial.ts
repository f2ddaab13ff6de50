// Dials the control plane: one WebSocket, with every cap set, at the end of the way that way.ts opens.
import { createHash } from "node:crypto";
import type { IncomingMessage } from "node:http";
import type { Duplex } from "node:stream";
import { TLSSocket, type DetailedPeerCertificate } from "node:tls";
import { WebSocket, type ClientOptions } from "ws";
import {
  ConnectorError,
  MAX_MESSAGE_BYTES,
  webSocketTransport,
  type Clock,
  type SocketLike,
  type Transport,
} from "@sallyport/protocol";
import { linkUrl } from "./address.ts";
import { hopFailure, type Finding, type Hop } from "./hops.ts";
import { LinkFailure } from "./link-failure.ts";
import { proxyName } from "./proxy.ts";
import { explainTls, isTlsFailure } from "./tls.ts";
import { openWay, type HopFacts, type Way } from "./way.ts";

/** From the first packet to the answer of the upgrade. */
export const DIAL_MS = 4_000;
/** Longest retry-after that is believed. */
const MAX_RETRY_AFTER_MS = 15 * 60_000;

export interface DialTarget extends Way {
  readonly clock: Clock;
  readonly signal: AbortSignal;
  /** Told of each hop that is passed. */
  readonly passed?: (hop: Hop, facts: HopFacts) => void;
}

/** Opens the WebSocket. Rejects with a LinkFailure. */
export function dial(target: DialTarget): Promise<Transport> {
  const { url } = linkUrl(target.cloudUrl);
  return withDeadline(target, async (signal, entered) => {
    const passed = target.passed ?? (() => {});
    const socket = await openWay(target, { signal, entered, passed });
    entered("upgrade");
    const transport = await upgrade(url, socket, signal);
    passed("upgrade", {});
    return transport;
  });
}

/** Runs one dial under its deadline and the caller's signal; a deadline says at which hop it was silent. */
export async function withDeadline<T>(
  target: DialTarget,
  run: (signal: AbortSignal, entered: (hop: Hop) => void) => Promise<T>,
): Promise<T> {
  const ended = new AbortController();
  let hop: Hop = "dns";
  const timer = target.clock.after(DIAL_MS, () => ended.abort(silence(target, hop)), { keepAlive: true });
  const onAbort = () => ended.abort(new LinkFailure(new ConnectorError("CANCELLED", "The dial was given up.")));
  target.signal.addEventListener("abort", onAbort, { once: true });
  if (target.signal.aborted) onAbort();
  try {
    return await run(ended.signal, (next) => (hop = next));
  } finally {
    timer.cancel();
    target.signal.removeEventListener("abort", onAbort);
  }
}

function silence({ cloudUrl, proxy = null }: DialTarget, hop: Hop): LinkFailure {
  const { url } = linkUrl(cloudUrl);
  const toProxy = proxy !== null && ["dns", "tcp", "proxy"].includes(hop);
  const who = toProxy ? `the proxy ${proxyName(proxy)}` : url.host;
  const at: Partial<Record<Hop, string>> = {
    dns: "the name service is silent",
    tcp: "no connection came about",
    proxy: "it does not answer the CONNECT",
    tls: "the TLS handshake got no answer",
    upgrade: "the WebSocket's request got no answer",
  };
  return hopFailure(
    toProxy ? "PROXY_UNREACHABLE" : "CLOUD_UNREACHABLE",
    hop,
    hop === "dns" ? "name-service-silent" : "silent",
    `No answer from ${who} within ${DIAL_MS / 1000} s: ${at[hop] ?? "it is silent"}.`,
    {
      fix:
        hop === "dns"
          ? "Check the name servers of this machine (/etc/resolv.conf), and that it may ask them."
          : "Check the address and that this host may open connections to it: a firewall on the way may drop them without a word.",
    },
  );
}

/** The WebSocket on a socket that nobody has spoken on yet. */
function upgrade(url: URL, socket: Duplex, signal: AbortSignal): Promise<Transport> {
  return new Promise((resolve, reject) => {
    const options: ClientOptions & { maxFragments: number; maxBufferedChunks: number; closeTimeout: number } = {
      perMessageDeflate: false,
      followRedirects: false,
      maxPayload: MAX_MESSAGE_BYTES,
      maxFragments: 1024,
      maxBufferedChunks: 16 * 1024,
      skipUTF8Validation: true,
      closeTimeout: 2_000,
      createConnection: () => socket as never,
      // Ours alone: nobody else may lengthen the wait or add headers.
      headers: { "user-agent": "sallyport-agent" },
    };
    const webSocket = new WebSocket(url, options);
    let transport: Transport | null = null;
    const fail = (failure: unknown) => {
      settle();
      reject(failure);
      webSocket.terminate();
      socket.destroy();
    };
    const onAbort = () => fail(signal.reason);
    const settle = () => signal.removeEventListener("abort", onAbort);
    signal.addEventListener("abort", onAbort, { once: true });
    // Stays for good: an error after the dial must not be without a listener.
    webSocket.on("error", (error) => {
      if (transport === null) fail(upgradeError(error, url));
    });
    webSocket.on("unexpected-response", (request, response) => {
      request.destroy();
      fail(httpFailure(response, url));
    });
    webSocket.on("upgrade", (response: IncomingMessage) => {
      // Listeners are set before the first message can come.
      transport = webSocketTransport(webSocket, response.socket as unknown as SocketLike);
    });
    webSocket.on("open", () => {
      settle();
      resolve(transport!);
    });
    if (signal.aborted) onAbort();
  });
}

/** An answer that is not a WebSocket's. */
function httpFailure(response: IncomingMessage, url: URL): LinkFailure {
  const status = response.statusCode ?? 0;
  const refuse = (finding: Finding, message: string, fix: string) =>
    hopFailure("CLOUD_UNREACHABLE", "upgrade", finding, message, {
      fix,
      retryAfterMs: retryAfter(response.headers["retry-after"]),
      more: { status },
    });
  if (status >= 300 && status < 400)
    return refuse(
      "redirect",
      `${url.host} answered with a redirect (${status}), which the link does not follow.`,
      "Give the control plane's final address; a captive page may be in between.",
    );
  if (status === 426)
    return refuse(
      "upgrade-stripped",
      `${url.host} is a control plane, but the request that reached it had no Upgrade header (426).`,
      "Something on the way removes it: let it pass WebSockets (a TLS-inspecting proxy: exempt this host; nginx: proxy_http_version 1.1 and the Upgrade and Connection headers).",
    );
  if (status === 401 || status === 403 || status === 407)
    return refuse(
      "credentials",
      `${url.host} refused the connection (${status}).`,
      "A gateway in front of the control plane asks for credentials: let /link pass.",
    );
  if (status === 404)
    return refuse("not-found", `${url.host} has no /link (404).`, "Check that the address is the control plane's.");
  if (status === 429 || status === 503)
    return refuse(
      "busy",
      `${url.host} is busy or starting (${status}).`,
      "Nothing to do: the agent tries again by itself.",
    );
  if (status >= 200 && status < 300)
    return refuse(
      "page",
      `${url.host} answered with a page (${status}) where a WebSocket was asked for.`,
      "A captive page or a proxy without WebSocket support is in between.",
    );
  return refuse(
    "status",
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

function upgradeError(error: Error, url: URL): LinkFailure {
  if (isTlsFailure(error)) return explainTls(error, url.host);
  const code = (error as NodeJS.ErrnoException).code ?? "";
  const cut = code === "ECONNRESET" || code === "EPIPE" || code === "";
  const notHttp = code.startsWith("HPE_");
  return hopFailure(
    "CLOUD_UNREACHABLE",
    "upgrade",
    cut ? "reset" : "other",
    `No connection to ${url.host}: ${cut ? "it was cut when the WebSocket was asked for" : notHttp ? "what answers there is not HTTP" : code}.`,
    {
      fix: notHttp
        ? "Check scheme and port of the control plane's address; the port may be one for https."
        : "Nothing to do when the control plane is down: the agent tries again by itself. Otherwise something on the way does not let WebSockets through.",
      cause: error,
    },
  );
}

/**
 * The certificate with this fingerprint (base64url sha-256 of its DER) out of the chain that the server shows, as PEM.
 * Verification is off while looking, so nothing at all is sent; the proper dial comes after, with this CA alone.
 */
export async function findPinnedCa(target: DialTarget, fingerprint: string): Promise<string> {
  const chain = await shownChain(target);
  const found = chain.find(({ raw }) => createHash("sha256").update(raw).digest("base64url") === fingerprint);
  if (found !== undefined) return pem(found.raw);
  const { url } = linkUrl(target.cloudUrl);
  throw hopFailure(
    "CLOUD_UNTRUSTED",
    "tls",
    "certificate-untrusted",
    `${url.host} does not show the CA that the enrolment secret names.`,
    {
      fix: "Check the address. If a TLS-inspecting proxy is in between, set cloud.ca in the agent's configuration to its CA.",
    },
  );
}

/** The certificates that the server shows, its own first. Nothing is sent to it beyond the TLS handshake. */
export function shownChain(target: DialTarget): Promise<DetailedPeerCertificate[]> {
  return withDeadline(target, async (signal, entered) => {
    const { passed = () => {} } = target;
    const socket = await openWay(target, { signal, entered, passed, verify: false });
    const chain: DetailedPeerCertificate[] = [];
    try {
      if (!(socket instanceof TLSSocket)) return chain;
      let certificate: DetailedPeerCertificate | undefined = socket.getPeerCertificate(true);
      const seen = new Set<string>();
      while (certificate?.raw !== undefined && !seen.has(certificate.fingerprint256)) {
        seen.add(certificate.fingerprint256);
        chain.push(certificate);
        certificate = certificate.issuerCertificate as DetailedPeerCertificate | undefined;
      }
      return chain;
    } finally {
      socket.destroy();
    }
  });
}

const pem = (der: Buffer): string =>
  `-----BEGIN CERTIFICATE-----\n${der
    .toString("base64")
    .replace(/(.{64})/g, "$1\n")
    .trimEnd()}\n-----END CERTIFICATE-----\n`;
