// The way to one address, hop by hop: name, TCP, proxy, TLS. Every dial walks it anew, so changed DNS, certificates and
// proxies count at once. What it gives is a socket that nobody has spoken on; what it throws names hop and finding.
import { lookup as lookupName, type LookupAddress } from "node:dns";
import { connect as netConnect, isIP, type Socket } from "node:net";
import type { Duplex } from "node:stream";
import type { TLSSocket } from "node:tls";
import type { ErrorCode } from "@sallyport/protocol";
import { hostOf, linkUrl, portOf } from "./address.ts";
import { connectThrough } from "./connect-proxy.ts";
import { hopFailure, type Finding, type Hop } from "./hops.ts";
import type { LinkFailure } from "./link-failure.ts";
import type { LinkProxy } from "./proxy.ts";
import { reached } from "./reached.ts";
import { contextOf, explainTls, openProxyTls, openTls, type ClientCertificate } from "./tls.ts";

/** Of several records of a name each gets this long before the next one is begun: more than a round trip to anywhere. */
const ATTEMPT_MS = 1_000;
/** All attempts but the last together, so that the last one still has time within a dial. */
const ATTEMPTS_MS = 2_400;
/** The beats are for the link; this lets the kernel notice by itself, too. */
const KEEPALIVE_MS = 15_000;

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
      if (proxy.url.protocol === "https:") socket = await openProxyTls(socket, proxy, walk.signal);
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
