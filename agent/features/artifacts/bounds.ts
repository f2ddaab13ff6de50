// What a preview may hold at most: as many rows, lines or entries as the policy says, whatever the file is called, and
// as many bytes as one frame of the link takes. Pure.
import type { Preview } from "@sallyport/protocol";

/** A frame takes 512 KiB; redaction may lengthen what it hides by a quarter. */
const MAX_BYTES = 400 * 1024;
const MAX_LINE = 4000;
/** Deeper values are cut: the redactor does not go deeper either. */
const MAX_DEPTH = 48;

export function boundPreview(preview: Preview, maxRows: number): Preview {
  let bounded = boundRows(preview, Math.max(1, maxRows));
  while (bounded.type !== "none" && bounded.type !== "image" && Buffer.byteLength(JSON.stringify(bounded)) > MAX_BYTES)
    bounded = halve(bounded);
  return bounded;
}

function boundRows(preview: Preview, maxRows: number): Preview {
  switch (preview.type) {
    case "text":
    case "markdown": {
      const text = boundLines(preview.text, maxRows);
      return text === preview.text ? preview : { ...preview, text, truncated: true };
    }
    case "json": {
      const cut = { any: false };
      const value = boundValue(preview.value, maxRows, 0, cut);
      return cut.any ? { ...preview, value, text: JSON.stringify(value, null, 2), truncated: true } : preview;
    }
    case "log":
      return preview.lines.length > maxRows
        ? { ...preview, lines: preview.lines.slice(0, maxRows), truncated: true }
        : preview;
    case "table":
      return preview.rows.length > maxRows
        ? { ...preview, rows: preview.rows.slice(0, maxRows), truncated: true }
        : preview;
    case "image":
    case "none":
      return preview;
  }
}

function boundLines(text: string, maxRows: number): string {
  const lines = text.split("\n");
  // The newline that ends the last line begins no further one.
  const fits = lines.length <= maxRows || (lines.length === maxRows + 1 && lines[maxRows] === "");
  if (fits && lines.every((line) => line.length <= MAX_LINE)) return text;
  return lines
    .slice(0, fits ? lines.length : maxRows)
    .map((line) => (line.length > MAX_LINE ? `${line.slice(0, MAX_LINE).toWellFormed()}…` : line))
    .join("\n");
}

function boundValue(value: unknown, maxRows: number, depth: number, cut: { any: boolean }): unknown {
  if (typeof value !== "object" || value === null) return value;
  const entries = Array.isArray(value) ? value : Object.entries(value as Record<string, unknown>);
  if (depth >= MAX_DEPTH && entries.length > 0) {
    cut.any = true;
    return "…";
  }
  if (entries.length > maxRows) cut.any = true;
  if (Array.isArray(value)) return value.slice(0, maxRows).map((item) => boundValue(item, maxRows, depth + 1, cut));
  // fromEntries defines own properties, so a key such as __proto__ stays data.
  return Object.fromEntries(
    (entries as [string, unknown][])
      .slice(0, maxRows)
      .map(([key, item]) => [key, boundValue(item, maxRows, depth + 1, cut)]),
  );
}

const half = (text: string): string => text.slice(0, Math.floor(text.length / 2)).toWellFormed();

function halve(preview: Exclude<Preview, { type: "none" | "image" }>): Preview {
  switch (preview.type) {
    case "text":
    case "markdown":
      return { ...preview, text: half(preview.text), truncated: true };
    case "json":
      // Its text alone may fit; half a value would not be one.
      return { type: "text", language: "json", text: preview.text, truncated: true };
    case "log":
      return preview.lines.length > 1
        ? { ...preview, lines: preview.lines.slice(0, Math.floor(preview.lines.length / 2)), truncated: true }
        : { ...preview, lines: preview.lines.map(({ n, text }) => ({ n, text: half(text) })), truncated: true };
    case "table":
      return preview.rows.length > 1
        ? { ...preview, rows: preview.rows.slice(0, Math.floor(preview.rows.length / 2)), truncated: true }
        : {
            ...preview,
            columns: preview.columns.slice(0, Math.floor(preview.columns.length / 2)),
            rows: preview.rows.map((row) => row.slice(0, Math.floor(preview.columns.length / 2))),
            truncated: true,
          };
  }
}
