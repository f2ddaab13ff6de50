// What the configuration and the environment say about the network between the agent and its control plane, asked anew
// at each dial: proxy (with its password resolved), client certificate, more addresses.
import { readFileSync } from "node:fs";
import { ConnectorError } from "@sallyport/protocol";
import { linkUrl } from "./address.ts";
import {
  bare,
  bypasses,
  environmentNoProxy,
  environmentProxy,
  environmentProxyApplies,
  type LinkProxy,
} from "./proxy.ts";
import type { Way } from "./way.ts";

export interface LinkNetwork {
  /** More base URLs of the same control plane, tried in turn after the first. */
  readonly addresses: readonly string[];
  wayTo(cloudUrl: string, signal: AbortSignal): Promise<Pick<Way, "proxy" | "clientCertificate">>;
}

export const STRAIGHT: LinkNetwork = { addresses: [], wayTo: async () => ({}) };

export interface NetworkOptions {
  readonly addresses: readonly string[];
  /** Null: HTTPS_PROXY of the environment, which loopback never goes through. Password: text with references. */
  readonly proxy: { url: string; user: string | null; password: string | null; ca: string | null } | null;
  /** Null: NO_PROXY of the environment. */
  readonly noProxy: readonly string[] | null;
  /** Paths of PEM files. */
  readonly clientCertificate: { cert: string; key: string } | null;
  readonly environment: Readonly<Record<string, string | undefined>>;
  readonly resolveSecret: (text: string, signal: AbortSignal) => Promise<string>;
  /** Told of a password that no reference gave, so that it is never printed. */
  readonly hide: (secret: string) => void;
}

/** Throws CONFIG_INVALID for an environment that cannot be used. */
export function makeNetwork(options: NetworkOptions): LinkNetwork {
  const { proxy, clientCertificate, environment } = options;
  const inherited = proxy === null ? environmentProxy(environment) : null;
  if (inherited?.credentials != null) options.hide(inherited.credentials.password);
  const noProxy = options.noProxy ?? environmentNoProxy(environment) ?? [];
  const proxyTo = async (url: URL, signal: AbortSignal): Promise<LinkProxy | null> => {
    // Without TLS it is this very machine: a proxy would look for it at its own, and read all of it on the way.
    if (url.protocol === "ws:" || bypasses(noProxy, url)) return null;
    if (proxy === null) return inherited !== null && environmentProxyApplies(url) ? inherited : null;
    const { user, password } = proxy;
    return {
      url: bare(new URL(proxy.url)),
      credentials:
        user === null
          ? null
          : { user, password: password === null ? "" : await options.resolveSecret(password, signal) },
      ca: proxy.ca === null ? null : readPem(proxy.ca, "link.proxy.ca"),
    };
  };
  return {
    addresses: options.addresses,
    async wayTo(cloudUrl, signal) {
      return {
        proxy: await proxyTo(linkUrl(cloudUrl).url, signal),
        clientCertificate:
          clientCertificate === null
            ? null
            : {
                cert: readPem(clientCertificate.cert, "link.clientCertificate.cert"),
                key: readPem(clientCertificate.key, "link.clientCertificate.key"),
              },
      };
    },
  };
}

/** Text of a PEM file that `field` of the configuration names. Throws CONFIG_INVALID. */
export function readPem(path: string, field: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (cause) {
    throw new ConnectorError(
      "CONFIG_INVALID",
      `${field}: the file ${path} cannot be read (${(cause as NodeJS.ErrnoException).code}).`,
      { fix: "Name a PEM file that the agent's user can read.", cause },
    );
  }
}
