// Headers under which a stranger's bytes are safe to serve from our own origin: always a download, never a type that
// a browser could run. Pure.

/** Types that no browser executes, whatever their bytes. Everything else, unknown types included, is plain bytes. */
const PASSIVE = new Set([
  "application/gzip",
  "application/json",
  "application/octet-stream",
  "application/vnd.apache.arrow.file",
  "application/vnd.apache.parquet",
  "application/x-ndjson",
  "application/x-tar",
  "application/zip",
  "audio/mpeg",
  "audio/ogg",
  "audio/wav",
  "image/avif",
  "image/bmp",
  "image/gif",
  "image/jpeg",
  "image/png",
  "image/tiff",
  "image/webp",
  "text/csv",
  "text/markdown",
  "text/plain",
  "text/tab-separated-values",
  "video/mp4",
  "video/webm",
]);

export function safeMediaType(mediaType: string | null): string {
  const bare = (mediaType ?? "").split(";")[0]!.trim().toLowerCase();
  if (!PASSIVE.has(bare)) return "application/octet-stream";
  return bare.startsWith("text/") ? `${bare}; charset=utf-8` : bare;
}

/** Always an attachment. Control and direction characters, quotes and separators of the name are replaced. */
export function contentDisposition(path: string): string {
  const name =
    (path.split("/").at(-1) ?? "")
      .toWellFormed()
      .replace(/[\p{Cc}\p{Cf}\u2028\u2029"\\/]/gu, "_")
      .slice(0, 200) || "artifact";
  const ascii = name.replace(/[^ -~]|[%;]/gu, "_");
  const encoded = encodeURIComponent(name.toWellFormed()).replace(
    /['()*]/g,
    (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`,
  );
  return `attachment; filename="${ascii}"; filename*=UTF-8''${encoded}`;
}
