// Range, ETag and digest headers (RFC 9110, RFC 9530) as data. Pure.
import { ConnectorError } from "@sallyport/protocol";

export type Range = { start: number; end?: number } | { suffixBytes: number };

/**
 * One range. Null = none, more than one, or not understood: such a header is ignored and the whole is sent.
 * A range that can never be satisfied (`bytes=-0`, a start beyond any file) comes back as a start beyond any file.
 */
export function parseRange(header: string | undefined): Range | null {
  const match = header === undefined ? null : /^bytes=\s*(\d*)-(\d*)\s*$/i.exec(header);
  if (match === null) return null;
  const [, first = "", last = ""] = match;
  if (first === "") {
    if (last === "") return null;
    const suffixBytes = Math.min(Number(last), Number.MAX_SAFE_INTEGER);
    return suffixBytes === 0 ? { start: Number.MAX_SAFE_INTEGER } : { suffixBytes };
  }
  const start = Math.min(Number(first), Number.MAX_SAFE_INTEGER);
  if (last === "") return { start };
  const end = Math.min(Number(last), Number.MAX_SAFE_INTEGER);
  return end < start ? null : { start, end };
}

/** A version is opaque text of a store; what an ETag cannot hold is percent-encoded. */
export const etagOfVersion = (version: string): string =>
  `"${[...version].map((c) => (/^[!#$&-~]$/.test(c) ? c : [...Buffer.from(c)].map((byte) => `%${byte.toString(16).toUpperCase().padStart(2, "0")}`).join(""))).join("")}"`;

export type Tags = "*" | { strong: string[]; weak: string[] };

/** The list of an If-Match or If-None-Match header; null when absent. */
export function parseTags(header: string | undefined): Tags | null {
  if (header === undefined) return null;
  if (header.trim() === "*") return "*";
  const tags = { strong: [] as string[], weak: [] as string[] };
  for (const [, weak, tag = ""] of header.matchAll(/(W\/)?("[^"]*")/g))
    (weak === undefined ? tags.strong : tags.weak).push(tag);
  if (tags.strong.length === 0 && tags.weak.length === 0) {
    throw new ConnectorError("INPUT_INVALID", "The precondition header holds no entity tag.", {
      fix: 'Send the ETag as it came, in double quotes, or "*".',
    });
  }
  return tags;
}

export const tagMatches = (tags: Tags, etag: string, compare: "strong" | "weak"): boolean =>
  tags === "*" || tags.strong.includes(etag) || (compare === "weak" && tags.weak.includes(etag));

/** `Repr-Digest: sha-256=:base64:` as the digest we write everywhere; undefined when it names no sha-256. */
export function reprDigest(header: string | undefined): string | undefined {
  if (header === undefined) return undefined;
  const match = /(?:^|,)\s*sha-256=:([A-Za-z0-9+/=]+):/.exec(header);
  const bytes = match === null ? null : Buffer.from(match[1]!, "base64");
  if (bytes?.length !== 32) {
    throw new ConnectorError("INPUT_INVALID", "The Repr-Digest header holds no sha-256 digest.", {
      fix: "Write it as: Repr-Digest: sha-256=:<base64 of the 32 bytes>:",
    });
  }
  return `sha256:${bytes.toString("hex")}`;
}
