// What the configuration says of the NATS network, asked anew at each dial: CA, name, the login with its secret resolved.
import type { NatsRoute } from "./nats-dial.ts";
import { readPem, type LinkNetwork } from "./network.ts";

export interface NatsRouteOptions {
  readonly url: string;
  /** As the configuration has it: `ca` a path, the four last text with references, one of them at most. */
  readonly nats: {
    readonly name: string | null;
    readonly prefix: string | null;
    readonly ca: string | null;
    readonly user: string | null;
    readonly password: string | null;
    readonly token: string | null;
    readonly nkey: string | null;
    readonly creds: string | null;
  };
  readonly network: LinkNetwork;
  readonly resolveSecret: (text: string, signal: AbortSignal) => Promise<string>;
  /** Told of what must never be printed, though no reference gave just that. */
  readonly hide: (secret: string) => void;
}

export function makeNatsRoute({ url, nats, network, resolveSecret, hide }: NatsRouteOptions): NatsRoute {
  const { name, prefix, ca, user, password, token, nkey, creds } = nats;
  return {
    url,
    ca: () => (ca === null ? null : readPem(ca, "link.nats.ca")),
    prefix,
    name,
    network,
    async login(signal) {
      if (user !== null && password !== null)
        return { kind: "password", user, password: await resolveSecret(password, signal) };
      if (token !== null) return { kind: "token", token: await resolveSecret(token, signal) };
      if (nkey !== null) return { kind: "nkey", seed: await resolveSecret(nkey, signal) };
      if (creds === null) return { kind: "none" };
      const text = await resolveSecret(creds, signal);
      // Its lines are secrets by themselves, not only all of them together.
      for (const line of text.split("\n")) if (/^[A-Za-z0-9._-]{40,}$/.test(line.trim())) hide(line.trim());
      return { kind: "creds", creds: text };
    },
  };
}
