// TLS on the way: to the control plane and to an https:// proxy, with every failure named.
import { isIP, type Socket } from "node:net";
import type { Duplex } from "node:stream";
import {
  connect as tlsConnect,
  createSecureContext,
  getCACertificates,
  type SecureContext,
  type TLSSocket,
} from "node:tls";
import type { ErrorCode } from "@sallyport/protocol";
import { hostOf } from "./address.ts";
import { hopFailure, type Finding } from "./hops.ts";
import type { LinkFailure } from "./link-failure.ts";
import { proxyName, type LinkProxy } from "./proxy.ts";
import { reached } from "./reached.ts";

export interface ClientCertificate {
  /** PEM. */
  readonly cert: string;
  readonly key: string;
}

interface TlsOptions {
  readonly host: string;
  readonly context: SecureContext;
  readonly verify: boolean;
  readonly explain: (error: Error) => LinkFailure;
}

export async function openTls(under: Duplex, options: TlsOptions, signal: AbortSignal): Promise<TLSSocket> {
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

export async function openProxyTls(under: Duplex, proxy: LinkProxy, signal: AbortSignal): Promise<TLSSocket> {
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
    signal,
  );
}

let machineAuthorities: string[] | null = null;
/** The well-known ones and those that this machine's owner added, such as a company's own. */
const authoritiesOfMachine = (): string[] =>
  (machineAuthorities ??= [...new Set([...getCACertificates("default"), ...getCACertificates("system")])]);

const contexts: { ca: string | null; cert: string | undefined; key: string | undefined; context: SecureContext }[] = [];
/** Kept while nothing changes: reading a machine's authorities takes 100 ms and more. */
export function contextOf(ca: string | null, certificate: ClientCertificate | null): SecureContext {
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
