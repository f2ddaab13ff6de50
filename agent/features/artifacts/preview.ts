// Makes a preview out of the first bytes of a file: bounded, typed, never executed. Pure: bytes in, preview out.
import type { Preview } from "@sallyport/protocol";
import { parseTable } from "./table.ts";
import { imageSize, sniffImage } from "./image.ts";

export type PreviewType = "text" | "markdown" | "json" | "table" | "image" | "log" | "none";

const KIB = 1024;
/**
 * Bytes read for each type. What is composed of them must fit one frame of the link, so text-like previews stay well
 * below; an image travels as stream bytes and may be larger. Parsing this much takes milliseconds: no worker is needed.
 */
const READ_BYTES: Record<PreviewType, number> = {
  text: 256 * KIB,
  markdown: 256 * KIB,
  json: 256 * KIB,
  table: 512 * KIB,
  log: 256 * KIB,
  image: 4096 * KIB,
  none: 4 * KIB,
};
/** Characters that all cells of a table preview may have together. */
const TABLE_BUDGET = 300_000;

const TEXT_LANGUAGES: Record<string, string> = {
  py: "python",
  ts: "typescript",
  tsx: "typescript",
  js: "javascript",
  mjs: "javascript",
  cjs: "javascript",
  sh: "shell",
  bash: "shell",
  yaml: "yaml",
  yml: "yaml",
  toml: "toml",
  ini: "ini",
  cfg: "ini",
  sql: "sql",
  go: "go",
  rs: "rust",
  java: "java",
  c: "c",
  h: "c",
  cc: "cpp",
  cpp: "cpp",
  hpp: "cpp",
  html: "html",
  htm: "html",
  xml: "xml",
  css: "css",
  r: "r",
  jl: "julia",
  scala: "scala",
  kt: "kotlin",
  dockerfile: "dockerfile",
  makefile: "makefile",
  tex: "latex",
  ipynb: "json",
  jsonl: "json",
  ndjson: "json",
  txt: "text",
  text: "text",
  env: "text",
  properties: "text",
  gitignore: "text",
  lock: "text",
  diff: "diff",
  patch: "diff",
};

const extension = (path: string): string => {
  const name = path.slice(path.lastIndexOf("/") + 1).toLowerCase();
  const dot = name.lastIndexOf(".");
  return dot === -1 ? name : name.slice(dot + 1);
};

/** By the name, then by the store's media type. What the bytes are is looked at when they are here. */
export function previewType(path: string, mediaType: string | null): PreviewType {
  const ending = extension(path);
  if (["md", "markdown"].includes(ending)) return "markdown";
  if (["json", "geojson", "webmanifest"].includes(ending)) return "json";
  if (["csv", "tsv"].includes(ending)) return "table";
  if (["png", "jpg", "jpeg", "gif", "webp", "svg"].includes(ending)) return "image";
  if (["log", "out", "err"].includes(ending)) return "log";
  if (Object.hasOwn(TEXT_LANGUAGES, ending)) return "text";
  if (mediaType === null) return "none";
  if (mediaType.startsWith("image/")) return "image";
  if (/[/+]json$/.test(mediaType)) return "json";
  if (mediaType === "text/csv" || mediaType === "text/tab-separated-values") return "table";
  if (mediaType === "text/markdown") return "markdown";
  return mediaType.startsWith("text/") ? "text" : "none";
}

/** How much of the file to read. An image that is too large to show is read for its size in pixels only. */
export function previewReadBytes(type: PreviewType, sizeBytes: number): number {
  return type === "image" && sizeBytes > READ_BYTES.image ? READ_BYTES.none : READ_BYTES[type];
}

export interface PreviewSource {
  path: string;
  type: PreviewType;
  /** The first bytes. */
  head: Buffer;
  sizeBytes: number;
  mediaType: string | null;
  /** Rows, lines or entries that may be shown at most. */
  rows: number;
}

export interface MadePreview {
  preview: Preview;
  mediaType: string;
  /** Bytes of an image, which follow the result; null for everything else. */
  content: Buffer | null;
}

export function makePreview(source: PreviewSource): MadePreview {
  const { head, sizeBytes } = source;
  const complete = head.length >= sizeBytes;
  const plain = (preview: Preview, mediaType: string): MadePreview => ({
    preview,
    mediaType: source.mediaType ?? mediaType,
    content: null,
  });
  const nothing = (reason: string): MadePreview => plain({ type: "none", reason }, "application/octet-stream");

  if (source.type === "image") return makeImage(source, nothing);
  if (sizeBytes === 0) return plain({ type: "text", language: null, text: "", truncated: false }, "text/plain");
  const text = decodeText(head, complete);
  if (text === null) {
    return nothing(
      source.type === "none"
        ? "It is binary, and no viewer knows this type."
        : `It is named like ${source.type} and holds bytes that are no UTF-8 text.`,
    );
  }
  switch (source.type) {
    case "json":
      return plain(makeJson(text, complete), "application/json");
    case "markdown":
      return plain({ type: "markdown", text, truncated: !complete }, "text/markdown");
    case "table": {
      const table = parseTable(text, {
        separator: extension(source.path) === "tsv" ? "\t" : null,
        complete,
        rows: source.rows,
        budget: TABLE_BUDGET,
      });
      return table === null
        ? plain({ type: "text", language: null, text, truncated: !complete }, "text/csv")
        : plain({ type: "table", ...table }, "text/csv");
    }
    case "log":
      return plain(makeLog(text, complete, source.rows), "text/plain");
    default: {
      const language = TEXT_LANGUAGES[extension(source.path)] ?? null;
      return plain(
        { type: "text", language: language === "text" ? null : language, text, truncated: !complete },
        "text/plain",
      );
    }
  }
}

function makeImage({ head, sizeBytes, path }: PreviewSource, nothing: (reason: string) => MadePreview): MadePreview {
  const mediaType = extension(path) === "svg" ? (looksLikeSvg(head) ? "image/svg+xml" : null) : sniffImage(head);
  if (mediaType === null)
    return nothing("It is named like an image and is not one that a browser shows (PNG, JPEG, GIF, WebP, SVG).");
  const size = imageSize(head, mediaType);
  if (head.length < sizeBytes) {
    const pixels = size === null ? "" : ` of ${size.width} x ${size.height} pixels`;
    return {
      ...nothing(
        `It is an image${pixels} of ${(sizeBytes / 1024 ** 2).toFixed(1)} MiB; previews end at ${READ_BYTES.image / 1024 ** 2} MiB. Download it to see it.`,
      ),
      mediaType,
    };
  }
  return {
    preview: { type: "image", mediaType, width: size?.width ?? null, height: size?.height ?? null, data: "" },
    mediaType,
    content: head,
  };
}

const looksLikeSvg = (head: Buffer): boolean =>
  /^\uFEFF?\s*(<\?xml[^>]*>\s*)?(<!--[\s\S]*?-->\s*)*(<!DOCTYPE svg[^>]*>\s*)?<svg[\s>]/i.test(
    head.subarray(0, 4096).toString("utf8"),
  );

/** Null when the bytes are no text: invalid UTF-8 or control bytes. A character cut at the end is left out. */
function decodeText(head: Buffer, complete: boolean): string | null {
  if (head.includes(0)) return null;
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(head, { stream: !complete });
  } catch {
    return null;
  }
}

function makeJson(text: string, complete: boolean): Preview {
  if (!complete) return { type: "text", language: "json", text, truncated: true };
  try {
    return { type: "json", value: JSON.parse(text) as unknown, text, truncated: false };
  } catch {
    // named .json and is none: shown as it is
    return { type: "text", language: "json", text, truncated: false };
  }
}

/** Colour codes and other escape sequences of terminals (CSI, OSC, single ones), and control characters but tab. */
const ESCAPES =
  // oxlint-disable-next-line no-control-regex -- they are what is looked for
  /\u001B(?:\[[0-?]*[ -/]*[@-~]|\][^\u0007\u001B]*(?:\u0007|\u001B\\)?|[@-_])|[\u0000-\u0008\u000B-\u001F\u007F]/g;

function makeLog(text: string, complete: boolean, rows: number): Preview {
  const all = text.split("\n");
  if (complete ? all.at(-1) === "" : all.length > 1) all.pop(); // an end of line ends a line; a cut one is not shown
  const shown = all.slice(0, Math.max(rows, 1) * 10);
  return {
    type: "log",
    lines: shown.map((line, index) => ({ n: index + 1, text: line.replace(ESCAPES, "").slice(0, 4000) })),
    totalLines: complete ? all.length : null,
    truncated: !complete || shown.length < all.length,
  };
}
