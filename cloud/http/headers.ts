// Security headers, for every answer. A route may set a stricter policy of its own before; it is then left alone.
import type { FastifyReply } from "fastify";

/** For answers that are data: even if a browser shows one as a page, nothing in it runs or loads. */
const DATA_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox";

/** For the page. `nonce` is what its own style elements carry, new for each response; null: a file that has none. */
export const pagePolicy = (nonce: string | null): string =>
  [
    "default-src 'none'",
    "script-src 'self'",
    `style-src 'self'${nonce === null ? "" : ` 'nonce-${nonce}'`}`,
    // data: and blob: are previews, which the page makes from JSON itself.
    "img-src 'self' data: blob:",
    "font-src 'self'",
    "connect-src 'self'",
    "manifest-src 'self'",
    "base-uri 'none'",
    "form-action 'self'",
    "frame-ancestors 'none'",
  ].join("; ");

export function secureHeaders(reply: FastifyReply, tls: boolean): void {
  if (!reply.hasHeader("content-security-policy")) void reply.header("content-security-policy", DATA_POLICY);
  if (!reply.hasHeader("cache-control")) void reply.header("cache-control", "no-store");
  void reply.headers({
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
  });
  if (tls) void reply.header("strict-transport-security", "max-age=31536000");
}
