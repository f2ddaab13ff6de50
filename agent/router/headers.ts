// Which headers go through. Those of the connection end here, in both directions, and so does the client's key.
import { randomUUID } from "node:crypto";

const OF_THE_CONNECTION = [
  "connection",
  "keep-alive",
  "proxy-connection",
  "proxy-authenticate",
  "proxy-authorization",
  "te",
  "trailer",
  "transfer-encoding",
  "upgrade",
  "http2-settings",
];
/** Host and length are written anew towards the replica, and an expectation was met here. */
const NOT_FORWARDED = new Set([...OF_THE_CONNECTION, "authorization", "host", "content-length", "expect"]);
const NOT_ANSWERED = new Set(OF_THE_CONNECTION);
const REQUEST_ID = /^[\w.:-]{1,128}$/;

export interface ForwardedHead {
  /** Name, value, name, value, ... */
  headers: string[];
  requestId: string;
}

/** From a client's headers as they came to those that a replica gets, but for its token and the body's length. */
export function forwardedHeaders(raw: readonly string[]): ForwardedHead {
  const headers: string[] = [];
  let requestId: string | null = null;
  let named: Set<string> | null = null;
  for (let i = 0; i < raw.length; i += 2) {
    const name = raw[i]!.toLowerCase();
    const value = raw[i + 1]!;
    if (name === "connection") named = namedByConnection(value, named);
    if (NOT_FORWARDED.has(name)) continue;
    if (name === "x-request-id") {
      if (requestId === null && REQUEST_ID.test(value)) requestId = value;
      continue;
    }
    headers.push(name, value);
  }
  requestId ??= randomUUID();
  headers.push("x-request-id", requestId);
  return { headers: named === null ? headers : without(headers, named), requestId };
}

/** From a replica's headers, names in small letters, to those that the client gets. */
export function answeredHeaders(raw: readonly string[], requestId: string): string[] {
  const headers: string[] = [];
  let hasId = false;
  let named: Set<string> | null = null;
  for (let i = 0; i < raw.length; i += 2) {
    const name = raw[i]!;
    if (NOT_ANSWERED.has(name)) {
      if (name === "connection") named = namedByConnection(raw[i + 1]!, named);
      continue;
    }
    if (name === "x-request-id") hasId = true;
    headers.push(name, raw[i + 1]!);
  }
  if (!hasId) headers.push("x-request-id", requestId);
  return named === null ? headers : without(headers, named);
}

export function headerOf(headers: readonly string[], name: string): string | undefined {
  for (let i = 0; i < headers.length; i += 2) if (headers[i] === name) return headers[i + 1];
  return undefined;
}

/** Further headers that are the connection's own, by its word. */
function namedByConnection(value: string, before: Set<string> | null): Set<string> | null {
  const lower = value.toLowerCase();
  if (lower === "keep-alive" || lower === "close") return before;
  const named = before ?? new Set<string>();
  for (const token of lower.split(",")) named.add(token.trim());
  return named;
}

function without(headers: string[], names: Set<string>): string[] {
  const kept: string[] = [];
  for (let i = 0; i < headers.length; i += 2) {
    // What frames the body is not for a peer to take away.
    if (names.has(headers[i]!) && headers[i] !== "content-length" && headers[i] !== "x-request-id") continue;
    kept.push(headers[i]!, headers[i + 1]!);
  }
  return kept;
}
