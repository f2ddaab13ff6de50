// The way to one address, hop by hop: name, TCP, proxy, TLS. Every dial walks it anew, so changed DNS, certificates and
// proxies count at once. What it gives is a socket that nobody has spoken on; what it throws names hop and finding.
import { lookup as lookupName, type LookupAddress } from "node:dns";
import { connect as netConnect, isIP, type Socket } from "node:net";
import type { Duplex } from "node:stream";
import {
  connect as tlsConnect,
  createSecureContext,
  getCACertificates,
  type SecureContext,
  type TLSSocket,
} from "node:tls";
import type { ErrorCode } from "@sallyport/protocol";
import { hostOf, linkUrl, portOf } from "./address.ts";
import { connectThrough } from "./connect-proxy.ts";
import { hopFailure, type Finding, type Hop } from "./hops.ts";
import type { LinkFailure } from "./link-failure.ts";
import { proxyName, type LinkProxy } from "./proxy.ts";

/** Of several records of a name each gets this long before the next one is begun: more than a round trip to anywhere. */
const ATTEMPT_MS = 1_000;
/** All attempts but the last together, so that the last one still has time within a dial. */
const ATTEMPTS_MS = 2_400;
/** The beats are for the link; this lets the kernel notice by itself, too. */
const KEEPALIVE_MS = 15_000;

export interface ClientCertificate {
  /** PEM. */
  readonly cert: string;
  readonly key: string;
}

export interface Way {
  /** The control plane's base URL: https, or http on loopback. */
  readonly cloudUrl: string;
  /** PEM of the only CA to trust; null = the machine's own list. */
  readonly ca: string | null;
  /** Absent or null: straight. */
  readonly proxy?: LinkProxy | null;
  /** Shown to a server that asks for one. */
  readonly clientCertificate?: ClientCertificate | null;
}

/** What was learned where a hop was passed. */
export interface HopFacts {
  /** dns: the addresses found. */
  readonly addresses?: readonly string[];
  /** tcp: the one that answered. */
  readonly remote?: string;
  /** tls */
  readonly socket?: TLSSocket;
}

export interface Walk {
  readonly signal: AbortSignal;
  readonly entered?: (hop: Hop) => void;
  readonly passed?: (hop: Hop, facts: HopFacts) => void;
  /** False only for looking at a certificate: then nothing at all may be sent on what comes out. */
  readonly verify?: boolean;
  /** Stop before TLS, also where the address is https. */
  readonly withoutTls?: boolean;
}

/** Rejects with a LinkFailure, or with the signal's reason. */
export async function openWay(way: Way, walk: Walk): Promise<Duplex> {
  const { url, secure } = linkUrl(way.cloudUrl);
  const { proxy = null } = way;
  let socket: Duplex = await openTcp(proxy === null ? url : proxy.url, proxy, walk);
  const target = `${url.hostname}:${portOf(url)}`;
  try {
    if (proxy !== null) {
      walk.entered?.("proxy");
      if (proxy.url.protocol === "https:") socket = await openProxyTls(socket, proxy, walk);
      await connectThrough(socket, proxy, target, walk.signal);
      walk.passed?.("proxy", {});
    }
    if (!secure || walk.withoutTls === true) return socket;
    walk.entered?.("tls");
    const tls = await openTls(
      socket,
      {
        host: hostOf(url),
        context: contextOf(way.ca, way.clientCertificate ?? null),
        verify: walk.verify ?? true,
        explain: (error) => explainTls(error, url.host),
      },
      walk.signal,
    );
    walk.passed?.("tls", { socket: tls });
    return tls;
  } catch (error) {
    socket.destroy();
    throw error;
  }
}

// Name and TCP

async function openTcp(url: URL, proxy: LinkProxy | null, walk: Walk): Promise<Socket> {
  const host = hostOf(url);
  const code: ErrorCode = proxy === null ? "CLOUD_UNREACHABLE" : "PROXY_UNREACHABLE";
  const who = proxy === null ? url.host : `the proxy ${url.host}`;
  walk.entered?.("dns");
  const records = await resolveName(host, who, code, walk.signal);
  walk.passed?.("dns", { addresses: records.map(({ address }) => address) });
  walk.entered?.("tcp");
  const attempts = Math.max(1, records.length - 1);
  const socket = netConnect({
    host,
    port: portOf(url),
    noDelay: true,
    keepAlive: true,
    keepAliveInitialDelay: KEEPALIVE_MS,
    autoSelectFamily: true,
    autoSelectFamilyAttemptTimeout: Math.max(250, Math.min(ATTEMPT_MS, Math.floor(ATTEMPTS_MS / attempts))),
    // Resolved above, once: what was found there is what is tried.
    lookup: (_host, _options, done) => done(null, records),
  });
  await reached(socket, "connect", walk.signal, (error) => explainTcp(error, who, code));
  walk.passed?.("tcp", { remote: socket.remoteAddress ?? "" });
  return socket;
}

function resolveName(host: string, who: string, code: ErrorCode, signal: AbortSignal): Promise<LookupAddress[]> {
  const family = isIP(host);
  if (family !== 0) return Promise.resolve([{ address: host, family }]);
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(signal.reason as Error);
    signal.addEventListener("abort", onAbort, { once: true });
    if (signal.aborted) return onAbort();
    lookupName(host, { all: true, order: "verbatim" }, (error, records) => {
      signal.removeEventListener("abort", onAbort);
      if (error === null && records.length > 0) return resolve(records);
      const silent = error?.code === "EAI_AGAIN";
      reject(
        hopFailure(
          code,
          "dns",
          silent ? "name-service-silent" : "name-unknown",
          `No connection to ${who}: ${silent ? "the name service does not answer" : "the name does not resolve"}.`,
          {
            fix: silent
              ? "Check the name servers of this machine (/etc/resolv.conf), and that it may ask them."
              : `Check the spelling of ${host}, and that this machine's name servers know it.`,
            cause: error,
          },
        ),
      );
    });
  });
}

const TCP_WORDS: Readonly<Record<string, readonly [Finding, string, string]>> = {
  ECONNREFUSED: ["refused", "nothing listens there", "Check address and port, and that the program there runs."],
  ETIMEDOUT: [
    "silent",
    "nothing answered in time",
    "A firewall on the way drops it: ask for leave to open connections to this host and port.",
  ],
  EHOSTUNREACH: ["no-route", "there is no route", "Check the network of this machine."],
  ENETUNREACH: ["no-route", "there is no network", "Check the network of this machine."],
  EACCES: ["no-route", "this machine does not allow it", "Look at the firewall of this machine."],
  EPERM: ["no-route", "this machine does not allow it", "Look at the firewall of this machine."],
  ECONNRESET: [
    "reset",
    "the connection was reset",
    "A firewall on the way may cut it: ask for leave to open connections to this host and port.",
  ],
};

function explainTcp(error: Error, who: string, code: ErrorCode): LinkFailure {
  const errno = (error as NodeJS.ErrnoException).code ?? "";
  const [finding, words, fix] = TCP_WORDS[errno] ?? [
    "other",
    errno === "" ? "the connection failed" : errno,
    "Check the address and the way there.",
  ];
  return hopFailure(code, "tcp", finding, `No connection to ${who}: ${words}.`, {
    fix: `${fix} When it is down, there is nothing to do: the agent tries again by itself.`,
    cause: error,
  });
}

/** Until `event`; an error or an end before it is explained, the signal ends it. The socket is destroyed on failure. */
function reached(
  socket: Socket,
  event: "connect" | "secureConnect",
  signal: AbortSignal,
  explain: (error: Error) => LinkFailure,
): Promise<void> {
  return new Promise((resolve, reject) => {
    const settle = () => {
      socket.removeListener(event, onReached);
      socket.removeListener("error", onError);
      socket.removeListener("close", onClose);
      signal.removeEventListener("abort", onAbort);
    };
    const fail = (reason: unknown) => {
      settle();
      reject(reason);
      socket.destroy();
    };
    const onReached = () => {
      settle();
      resolve();
    };
    const onError = (error: Error) => fail(explain(error));
    const onClose = () => onError(Object.assign(new Error("closed"), { code: "ECONNRESET" }));
    const onAbort = () => fail(signal.reason);
    // Stays for good: an error that comes later must not be without a listener.
    socket.on("error", () => {});
    socket.once(event, onReached);
    socket.once("error", onError);
    socket.once("close", onClose);
    signal.addEventListener("abort", onAbort, { once: true });
    if (signal.aborted) onAbort();
  });
}

// TLS

interface TlsOptions {
  readonly host: string;
  readonly context: SecureContext;
  readonly verify: boolean;
  readonly explain: (error: Error) => LinkFailure;
}

async function openTls(under: Duplex, options: TlsOptions, signal: AbortSignal): Promise<TLSSocket> {
  const { host, context, verify, explain } = options;
  const socket = tlsConnect({
    socket: under as Socket,
    secureContext: context,
    rejectUnauthorized: verify,
    ALPNProtocols: ["http/1.1"],
    // Names are checked against this, addresses against `host`.
    ...(isIP(host) === 0 ? { servername: host } : { host }),
  });
  socket.once("close", () => under.destroy());
  await reached(socket, "secureConnect", signal, explain);
  return socket;
}

async function openProxyTls(under: Duplex, proxy: LinkProxy, walk: Walk): Promise<TLSSocket> {
  const name = proxyName(proxy);
  return await openTls(
    under,
    {
      host: hostOf(proxy.url),
      context: contextOf(proxy.ca, null),
      verify: true,
      explain: (cause) => {
        const code = (cause as NodeJS.ErrnoException).code ?? "";
        const finding = TLS_FINDINGS[code];
        return finding === undefined
          ? hopFailure("PROXY_UNREACHABLE", "proxy", "not-tls", `The proxy ${name} does not speak TLS (${code}).`, {
              fix: "Write link.proxy.url (or HTTPS_PROXY) with http:// if it is a plain one.",
              cause,
            })
          : hopFailure(
              "PROXY_UNTRUSTED",
              "proxy",
              finding,
              `The certificate of the proxy ${name} is not trusted by this agent (${code}).`,
              { fix: "Set link.proxy.ca in the agent's configuration to the CA that signed it.", cause },
            );
      },
    },
    walk.signal,
  );
}

let machineAuthorities: string[] | null = null;
/** The well-known ones and those that this machine's owner added, such as a company's own. */
const authoritiesOfMachine = (): string[] =>
  (machineAuthorities ??= [...new Set([...getCACertificates("default"), ...getCACertificates("system")])]);

const contexts: { ca: string | null; cert: string | undefined; key: string | undefined; context: SecureContext }[] = [];
/** Kept while nothing changes: reading a machine's authorities takes some 50 ms. */
function contextOf(ca: string | null, certificate: ClientCertificate | null): SecureContext {
  const cert = certificate?.cert;
  const key = certificate?.key;
  const known = contexts.find((one) => one.ca === ca && one.cert === cert && one.key === key);
  if (known !== undefined) return known.context;
  let context: SecureContext;
  try {
    context = createSecureContext({
      ca: ca === null ? authoritiesOfMachine() : [ca],
      ...(cert === undefined || key === undefined ? {} : { cert, key }),
    });
  } catch (cause) {
    const what = certificate === null ? "The CA" : "The client certificate, its key or the CA";
    throw hopFailure("CONFIG_INVALID", "config", "other", `${what} in the agent's configuration is not usable PEM.`, {
      fix: "Check link.clientCertificate (cert and key belong together, the key has no passphrase) and cloud.ca.",
      cause,
    });
  }
  contexts.unshift({ ca, cert, key, context });
  contexts.length = Math.min(contexts.length, 4);
  return context;
}

/** Certificate failures by their codes: OpenSSL's names as Node gives them. */
const TLS_FINDINGS: Readonly<Record<string, Finding>> = {
  DEPTH_ZERO_SELF_SIGNED_CERT: "certificate-untrusted",
  SELF_SIGNED_CERT_IN_CHAIN: "certificate-untrusted",
  UNABLE_TO_GET_ISSUER_CERT: "certificate-untrusted",
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: "certificate-untrusted",
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: "certificate-untrusted",
  CERT_UNTRUSTED: "certificate-untrusted",
  CERT_REVOKED: "certificate-untrusted",
  CERT_SIGNATURE_FAILURE: "certificate-untrusted",
  INVALID_CA: "certificate-untrusted",
  CERT_HAS_EXPIRED: "certificate-expired",
  CERT_NOT_YET_VALID: "certificate-early",
  ERR_TLS_CERT_ALTNAME_INVALID: "certificate-name",
  HOSTNAME_MISMATCH: "certificate-name",
};

/** Also of what a server says after the handshake: in TLS 1.3 a missing client certificate is told only then. */
export const isTlsFailure = (error: Error): boolean => {
  const code = (error as NodeJS.ErrnoException).code ?? "";
  return code in TLS_FINDINGS || code.startsWith("ERR_SSL_") || code === "EPROTO";
};

export function explainTls(cause: Error, host: string): LinkFailure {
  const code = (cause as NodeJS.ErrnoException).code ?? "";
  const fail = (error: ErrorCode, finding: Finding, message: string, fix: string) =>
    hopFailure(error, "tls", finding, message, { fix, cause, more: { code } });
  switch (TLS_FINDINGS[code]) {
    case "certificate-expired":
    case "certificate-early":
      return fail(
        "CLOUD_UNTRUSTED",
        TLS_FINDINGS[code],
        `The certificate of ${host} is ${code === "CERT_HAS_EXPIRED" ? "expired" : "not valid yet"} by this machine's clock.`,
        "Check this machine's clock; if it is right, the certificate must be renewed there.",
      );
    case "certificate-name":
      return fail(
        "CLOUD_UNTRUSTED",
        "certificate-name",
        `The certificate of ${host} is for another name (${code}).`,
        "Use the name that the certificate is for as the control plane's address.",
      );
    case undefined:
      break;
    default:
      return fail(
        "CLOUD_UNTRUSTED",
        "certificate-untrusted",
        `The certificate of ${host} is not trusted by this agent (${code}).`,
        "Set cloud.ca in the agent's configuration to the CA that signed it, or enrol with a secret of this control plane, which names its CA. `sallyport-agent doctor` says who signed it.",
      );
  }
  if (/ALERT_(?:CERTIFICATE_REQUIRED|BAD_CERTIFICATE|UNKNOWN_CA|CERTIFICATE_UNKNOWN)/.test(code))
    return fail(
      "CLOUD_UNTRUSTED",
      "client-certificate",
      `${host} wants a client certificate that it accepts (${code}).`,
      "Set link.clientCertificate in the agent's configuration to the certificate and key that were issued for this agent.",
    );
  if (code === "ECONNRESET")
    return fail(
      "CLOUD_UNREACHABLE",
      "reset",
      `No connection to ${host}: it was cut during the TLS handshake.`,
      "A firewall may cut TLS to this host, or what listens there is not ready: the agent tries again by itself.",
    );
  return fail(
    "CLOUD_UNREACHABLE",
    "not-tls",
    `No TLS with ${host} (${code === "" ? "the connection failed" : code}).`,
    "Check that the port is one for https; what listens there may be a plain HTTP port.",
  );
}
