// Searching and judging lines of text. Pure functions, shared by the viewer of files and the live log.

export type Level = "error" | "warn" | "debug" | null;
const ERROR =
  /\b(?:ERROR|FATAL|CRITICAL|PANIC|Traceback|Exception|[A-Z]\w*Error)\b|"level":"(?:error|fatal)"|\blevel=(?:error|fatal)\b|^E\d{4}/;
const WARN = /\b(?:WARN|WARNING)\b|"level":"warn(?:ing)?"|\blevel=warn(?:ing)?\b|^W\d{4}/;
const DEBUG = /\b(?:DEBUG|TRACE)\b|"level":"(?:debug|trace)"|\blevel=(?:debug|trace)\b/;
/** By what the line says of itself near its beginning; deep in a sentence the word means something else. */
export function levelOf(line: string): Level {
  const head = line.slice(0, 96);
  return ERROR.test(head) ? "error" : WARN.test(head) ? "warn" : DEBUG.test(head) ? "debug" : null;
}

/** Indexes of the lines that hold `needle`, without regard to case. Empty needle: none. */
export function findLines(lines: readonly { text: string }[], needle: string): number[] {
  const wanted = needle.toLowerCase();
  if (wanted === "") return [];
  const found: number[] = [];
  for (let n = 0; n < lines.length; n++) if (lines[n]!.text.toLowerCase().includes(wanted)) found.push(n);
  return found;
}

/** The text cut at each occurrence of `needle`: plain, match, plain, … */
export function cutAt(text: string, needle: string): string[] {
  if (needle === "") return [text];
  const parts: string[] = [];
  const lower = text.toLowerCase();
  const wanted = needle.toLowerCase();
  // Lower-casing may change lengths in a few scripts; then the cuts would be wrong, so show the line whole.
  if (lower.length !== text.length) return [text];
  let from = 0;
  for (let at = lower.indexOf(wanted); at !== -1; at = lower.indexOf(wanted, from)) {
    parts.push(text.slice(from, at), text.slice(at, at + wanted.length));
    from = at + wanted.length;
  }
  parts.push(text.slice(from));
  return parts;
}
