// Which proxy, if any, stands before an address: by the configuration, else by HTTPS_PROXY and NO_PROXY. Pure: it opens
// nothing and resolves no secret.
import { BlockList, isIP } from "node:net";
import { ConnectorError } from "@sallyport/protocol";
import { hostOf, isLoopbackHost, portOf } from "./address.ts";

/** A proxy that is asked by CONNECT. */
export interface LinkProxy {
  /** http: or https:, without user and password. */
  readonly url: URL;
  /** Null: it is asked without. */
  readonly credentials: { readonly user: string; readonly password: string } | null;
  /** PEM of the only CA to trust for an https:// proxy; null = the machine's own list. */
  readonly ca: string | null;
}

/** For messages: never with credentials. */
export const proxyName = (proxy: LinkProxy): string => proxy.url.host;

type Environment = Readonly<Record<string, string | undefined>>;

const either = (environment: Environment, name: string): string | null =>
  environment[name] || environment[name.toLowerCase()] || null;

/** NO_PROXY, as its entries; null = not set. */
export const environmentNoProxy = (environment: Environment): string[] | null =>
  either(environment, "NO_PROXY")
    ?.split(/[\s,]+/)
    .filter((entry) => entry !== "") ?? null;

/** HTTPS_PROXY; null = not set. Throws CONFIG_INVALID, without the value, which may hold a password. */
export function environmentProxy(environment: Environment): LinkProxy | null {
  const text = either(environment, "HTTPS_PROXY");
  if (text === null) return null;
  const url = URL.parse(text.includes("://") ? text : `http://${text}`);
  if (url === null || !["http:", "https:"].includes(url.protocol) || url.hostname === "") {
    throw new ConnectorError(
      "CONFIG_INVALID",
      `HTTPS_PROXY of the environment is not an http:// or https:// address${url === null ? "" : ` but begins with ${url.protocol}//`}.`,
      { fix: "Correct it, or set link.proxy (or link.noProxy: ['*']) in the agent's configuration, which goes first." },
    );
  }
  const decode = (part: string): string => {
    try {
      return decodeURIComponent(part);
    } catch {
      return part; // a bare % in it
    }
  };
  const credentials =
    url.username === "" && url.password === "" ? null : { user: decode(url.username), password: decode(url.password) };
  return { url: bare(url), credentials, ca: null };
}

/** Scheme, host and port alone. */
export const bare = (url: URL): URL => new URL(`${url.protocol}//${url.host}`);

/** Whether an address is reached without a proxy by one of these entries, such as `*`, `.corp.example`, `host:8443`, `10.0.0.0/8`. */
export function bypasses(entries: readonly string[], url: URL): boolean {
  const host = hostOf(url).toLowerCase();
  const port = portOf(url);
  return entries.some((entry) => covers(entry.toLowerCase(), host, port));
}

function covers(entry: string, host: string, port: number): boolean {
  if (entry === "*") return true;
  if (entry.includes("/")) return inSubnet(entry, host);
  let name = entry;
  if (isIP(entry) !== 6) {
    const match = /^(.*?):(\d+)$/.exec(entry);
    if (match !== null) {
      if (Number(match[2]) !== port) return false;
      name = match[1]!;
    }
  }
  name = name.replace(/^\[|\]$/g, "");
  if (isIP(name) !== 0 || isIP(host) !== 0) return sameAddress(name, host);
  const domain = name.replace(/^\*?\./, "").replace(/\.$/, "");
  return domain !== "" && (host === domain || host.endsWith(`.${domain}`));
}

const family = (address: string): "ipv4" | "ipv6" => (isIP(address) === 6 ? "ipv6" : "ipv4");

function sameAddress(a: string, b: string): boolean {
  if (isIP(a) === 0 || isIP(a) !== isIP(b)) return false;
  const list = new BlockList();
  list.addAddress(a, family(a));
  return list.check(b, family(b));
}

function inSubnet(entry: string, host: string): boolean {
  const [network = "", bits = ""] = entry.split("/");
  if (isIP(network) === 0 || isIP(host) !== isIP(network)) return false;
  const prefix = Number(bits);
  if (!/^\d+$/.test(bits) || prefix > (isIP(network) === 6 ? 128 : 32)) return false;
  const list = new BlockList();
  list.addSubnet(network, prefix, family(network));
  return list.check(host, family(host));
}

/** The environment's proxy is for what lies elsewhere: as with other programs, this machine itself never needs it. */
export const environmentProxyApplies = (url: URL): boolean =>
  (url.protocol === "https:" || url.protocol === "wss:") && !isLoopbackHost(url.hostname);
