// Closer looks at what stands where the control plane should: the certificate that is shown, a plain HTTP answer. What is
// sent is at most a GET without any credential.
import { request } from "node:http";
import type { Duplex } from "node:stream";
import type { DetailedPeerCertificate } from "node:tls";
import { linkUrl, openWay, withDeadline, type DialTarget } from "../link/index.ts";

const MAX_BODY_BYTES = 8 * 1024;

export interface HttpAnswer {
  readonly status: number;
  /** Lower-case names. */
  readonly headers: Readonly<Record<string, string | undefined>>;
  /** Its beginning. */
  readonly body: string;
}

/**
 * A GET of `path` of the base URL, without an Upgrade; null when no HTTP comes back. `how`: over verified TLS as the link
 * goes, over TLS with whatever certificate is shown, or without TLS.
 */
export function getPlainly(
  target: DialTarget,
  path: "/link" | "/healthz",
  how: "verified" | "unverified" | "plain",
): Promise<HttpAnswer | null> {
  return withDeadline(target, async (signal, entered) => {
    const socket = await openWay(target, {
      signal,
      entered,
      verify: how !== "unverified",
      withoutTls: how === "plain",
    });
    try {
      return await get(socket, target, path, signal);
    } finally {
      socket.destroy();
    }
  }).catch(() => null);
}

function get(socket: Duplex, { cloudUrl }: DialTarget, path: string, signal: AbortSignal): Promise<HttpAnswer | null> {
  const { url } = linkUrl(cloudUrl);
  return new Promise((resolve) => {
    const asked = request({
      createConnection: () => socket as never,
      host: url.hostname,
      path: url.pathname.replace(/\/link$/, path),
      headers: { host: url.host, "user-agent": "sallyport-agent doctor", connection: "close" },
      signal,
    });
    asked.on("error", () => resolve(null));
    asked.on("response", (response) => {
      const chunks: Buffer[] = [];
      let size = 0;
      const end = () =>
        resolve({
          status: response.statusCode ?? 0,
          headers: Object.fromEntries(
            Object.entries(response.headers).map(([name, value]) => [name, Array.isArray(value) ? value[0] : value]),
          ),
          body: Buffer.concat(chunks).subarray(0, MAX_BODY_BYTES).toString(),
        });
      response.on("data", (chunk: Buffer) => {
        chunks.push(chunk);
        size += chunk.length;
        if (size >= MAX_BODY_BYTES) end();
      });
      response.on("end", end);
      response.on("error", end);
      response.on("close", end);
    });
    asked.end();
  });
}

/** As people know it: the organisation and the name. */
export const nameOf = (subject: { readonly O?: unknown; readonly CN?: unknown } | undefined): string =>
  [subject?.O, subject?.CN]
    .map((part) => String((Array.isArray(part) ? part[0] : part) ?? "").replace(/[^\P{C}]/gu, " "))
    .filter((part) => part !== "")
    .join(", ")
    .slice(0, 200) || "nobody";

/** Who signed the topmost certificate that is shown. */
export const issuerOf = (chain: readonly DetailedPeerCertificate[]): string => nameOf(chain.at(-1)?.issuer);

/** `<title>` of a page, for people to recognise it. */
export function titleOf(body: string): string | null {
  const title = /<title[^>]*>([^<]{1,200})/i.exec(body)?.[1]?.replace(/\s+/g, " ").trim();
  return title === undefined || title === "" ? null : title.slice(0, 80);
}

/** An answer of a control plane's own API. */
export const isOurs = (answer: HttpAnswer | null): boolean =>
  answer !== null &&
  ((answer.status === 200 && answer.body === "ok\n") ||
    answer.status === 426 ||
    (answer.headers["content-type"] ?? "").startsWith("application/problem+json"));
