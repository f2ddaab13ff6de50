// The address of a control plane: what may be dialled, and by which host and port.
import { isIP } from "node:net";
import { ConnectorError } from "@sallyport/protocol";

export const isLoopbackHost = (host: string): boolean =>
  host === "localhost" || host === "::1" || host === "[::1]" || (isIP(host) === 4 && host.startsWith("127."));

/** Without the brackets of an IPv6 address. */
export const hostOf = (url: URL): string => url.hostname.replace(/^\[|\]$/g, "");

const DEFAULT_PORTS: Readonly<Record<string, number>> = { "http:": 80, "ws:": 80, "https:": 443, "wss:": 443 };
export const portOf = (url: URL): number => (url.port === "" ? (DEFAULT_PORTS[url.protocol] ?? 443) : Number(url.port));

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
      { fix: "Give it as https://host[:port]." },
    );
  }
  const loopback = isLoopbackHost(url.hostname);
  if (!secure && !loopback) {
    throw new ConnectorError(
      "CLOUD_UNTRUSTED",
      `The control plane's address ${url.host} is not on this machine and has no TLS.`,
      { fix: "Use https://; plain http:// is for loopback only." },
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
