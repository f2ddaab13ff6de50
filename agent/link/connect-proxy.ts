// One CONNECT: asks a proxy for a connection to host and port, and says precisely why there is none.
import type { Duplex } from "node:stream";
import { hopFailure, type Finding } from "./hops.ts";
import type { LinkFailure } from "./link-failure.ts";
import { proxyName, type LinkProxy } from "./proxy.ts";

/** More than this is no answer to a CONNECT. */
const MAX_HEAD_BYTES = 16 * 1024;

/** `socket`: connected to the proxy. Afterwards its bytes are the target's. Rejects with a LinkFailure; `signal` ends it. */
export function connectThrough(socket: Duplex, proxy: LinkProxy, target: string, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    let head = Buffer.alloc(0);
    const settle = () => {
      socket.removeListener("readable", onReadable);
      socket.removeListener("error", onError);
      socket.removeListener("end", onEnd);
      signal.removeEventListener("abort", onAbort);
    };
    const fail = (failure: unknown) => {
      settle();
      reject(failure);
    };
    const onAbort = () => fail(signal.reason);
    const onError = (cause: Error) =>
      fail(
        hopFailure(
          "PROXY_UNREACHABLE",
          "proxy",
          "reset",
          `The proxy ${proxyName(proxy)} cut the connection when it was asked for ${target}.`,
          { fix: "Check that link.proxy (or HTTPS_PROXY) names a proxy, and look at the proxy's log.", cause },
        ),
      );
    const onEnd = () => onError(new Error("ended"));
    const onReadable = () => {
      for (let chunk: Buffer | null; (chunk = socket.read() as Buffer | null) !== null;) {
        head = Buffer.concat([head, chunk]);
        const end = head.indexOf("\r\n\r\n");
        if (end === -1) {
          if (head.length <= MAX_HEAD_BYTES && /^(?:H|HT|HTTP.*)?$/s.test(head.subarray(0, 5).toString("latin1")))
            continue;
          return fail(notAProxy(proxy));
        }
        const rest = head.subarray(end + 4);
        const failure = judge(head.subarray(0, end).toString("latin1"), proxy, target);
        if (failure !== null) return fail(failure);
        settle();
        if (rest.length > 0) socket.unshift(rest);
        return resolve();
      }
    };
    signal.addEventListener("abort", onAbort, { once: true });
    if (signal.aborted) return onAbort();
    socket.on("readable", onReadable);
    socket.on("error", onError);
    socket.on("end", onEnd);
    const { credentials } = proxy;
    const authorization =
      credentials === null
        ? ""
        : `Proxy-Authorization: Basic ${Buffer.from(`${credentials.user}:${credentials.password}`).toString("base64")}\r\n`;
    socket.write(
      `CONNECT ${target} HTTP/1.1\r\nHost: ${target}\r\nUser-Agent: sallyport-agent\r\n${authorization}\r\n`,
    );
  });
}

const notAProxy = (proxy: LinkProxy): LinkFailure =>
  hopFailure("PROXY_REFUSED", "proxy", "not-a-proxy", `What answers at ${proxyName(proxy)} is not an HTTP proxy.`, {
    fix: "Check address and port of link.proxy (or HTTPS_PROXY); of an https:// proxy, that it is written with https://.",
  });

/** Null: connected. */
function judge(head: string, proxy: LinkProxy, target: string): LinkFailure | null {
  const [first = "", ...lines] = head.split("\r\n");
  const status = Number(/^HTTP\/1\.[01] (\d{3})/.exec(first)?.[1] ?? Number.NaN);
  if (Number.isNaN(status)) return notAProxy(proxy);
  if (status >= 200 && status < 300) return null;
  const headers = lines.map((line) => /^([^:\s]+):\s*(.*)$/.exec(line)).filter((match) => match !== null);
  const all = (name: string) => headers.filter(([, key]) => key!.toLowerCase() === name).map(([, , value]) => value!);
  const name = proxyName(proxy);
  const more = { status, target };
  if (status === 407) return authenticate(proxy, all("proxy-authenticate"), more);
  const refuse = (finding: Finding, message: string, fix: string) =>
    hopFailure("PROXY_REFUSED", "proxy", finding, message, { fix, more });
  if (status >= 300 && status < 400)
    return refuse(
      "redirect",
      `The proxy ${name} answered with a redirect (${status}) where a connection to ${target} was asked for.`,
      "It wants a sign-in by a browser, which no program can do: ask for a rule that lets this machine pass.",
    );
  if (status === 403 || status === 401)
    return refuse(
      "proxy-refused",
      `The proxy ${name} does not allow connections to ${target} (${status}).`,
      `Ask whoever runs the proxy to allow CONNECT to ${target} from this machine.`,
    );
  if (status === 400 || status === 404 || status === 405 || status === 501)
    return refuse(
      "not-a-proxy",
      `What answers at ${name} does not do CONNECT (${status}).`,
      "Check address and port of link.proxy (or HTTPS_PROXY): it must be a forward proxy.",
    );
  // Such as ERR_DNS_FAIL of squid: a word, nothing else.
  const word = /^[A-Z][A-Z_]{2,40}/.exec(all("x-squid-error")[0] ?? "")?.[0];
  return refuse(
    "proxy-refused",
    `The proxy ${name} could not connect to ${target} (${status}${word === undefined ? "" : `, ${word}`}).`,
    "The proxy was reached; the way from it to the control plane was not open. Look at the proxy's log; the agent tries again by itself.",
  );
}

function authenticate(proxy: LinkProxy, challenges: readonly string[], more: Record<string, unknown>): LinkFailure {
  const name = proxyName(proxy);
  const schemes = challenges.map((challenge) => /^[A-Za-z-]+/.exec(challenge)?.[0] ?? "").filter((text) => text !== "");
  const fail = (message: string, fix: string) =>
    hopFailure("PROXY_AUTH_REQUIRED", "proxy", "proxy-auth", message, { fix, more: { ...more, schemes } });
  if (schemes.length > 0 && !schemes.some((scheme) => scheme.toLowerCase() === "basic"))
    return fail(
      `The proxy ${name} takes ${schemes.join(" or ")} only (407); the agent can do Basic.`,
      "Ask whoever runs the proxy for Basic, or for a rule that lets this machine pass without.",
    );
  if (proxy.credentials === null)
    return fail(
      `The proxy ${name} asks for a user and password (407), and none are configured.`,
      "Set link.proxy.user, and link.proxy.password by a reference such as ${file:/run/secrets/proxy-password}.",
    );
  return fail(
    `The proxy ${name} refuses the user ${proxy.credentials.user} with this password (407).`,
    "Correct link.proxy.user and link.proxy.password (or HTTPS_PROXY); the account may also be locked.",
  );
}
