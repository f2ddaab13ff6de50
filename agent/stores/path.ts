// The one gate for paths that come from outside. HTTP has decoded them once; whatever is still encoded, or would mean
// something else to a file system, a bucket or a reader, is refused before any I/O.
import { ConnectorError, MAX_PATH_BYTES } from "@sallyport/protocol";

/** One command asks several times about one path. */
let lastGood = "";

/** A path that passed: `/` between segments, "" is the root. */
export function parseArtifactPath(text: string): string {
  if (text === "" || text === lastGood) return text;
  if (Buffer.byteLength(text) > MAX_PATH_BYTES)
    throw invalid(text.slice(0, 40), `is part of a path longer than ${MAX_PATH_BYTES} bytes`);
  for (const segment of text.split("/")) {
    const problem = segmentProblem(segment);
    if (problem !== null) throw invalid(segment, problem);
  }
  lastGood = text;
  return text;
}

/** Null when a name found in a store may be shown and asked for again. */
export function segmentProblem(segment: string): string | null {
  if (segment === "") return "is empty: the path begins or ends with `/`, or has `//`";
  if (segment === "." || segment === "..") return "would step out of its place";
  // oxlint-disable-next-line no-control-regex
  if (/[\u0000-\u001f\u007f-\u009f]/.test(segment)) return "has a control character";
  if (segment.includes("\\")) return "has a backslash";
  if (!segment.isWellFormed() || segment.includes("\ufffd")) return "is not valid UTF-8";
  if (Buffer.byteLength(segment) > 255) return "is longer than 255 bytes";
  // Bidirectional and invisible marks make a name read as another.
  if (/[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/.test(segment)) return "has an invisible character";
  if (dangerous(segment)) return "would step out of its place";
  let decoded = segment;
  for (let i = 0; i < 4 && decoded.includes("%"); i++) {
    const next = decodeOnce(decoded);
    if (next === decoded) break;
    decoded = next;
    if (dangerous(decoded)) return "holds an encoded dot segment, slash, backslash or NUL";
  }
  return null;
}

/** What some reader down the line might take for a step up or a separator. */
function dangerous(text: string): boolean {
  const folded = text.normalize("NFKC").trim();
  return (
    /[/\\\0]/.test(text) ||
    /^\.{1,2}(?:;.*)?$/.test(folded) ||
    /^\.{1,2}$/.test(folded.replaceAll(/\s/g, "")) ||
    /(?:^|[/\\])\.\.(?:[/\\]|$)/.test(folded)
  );
}

/** Every %XX once; also the overlong and %u spellings that lenient decoders take. */
function decodeOnce(text: string): string {
  return text
    .replace(/%u([0-9a-f]{4})/gi, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)))
    .replace(
      /%(?:c0|e0%80|f0%80%80)%(ae|af|80|9c)/gi,
      (_, low: string) => ({ ae: ".", af: "/", "80": "\0", "9c": "\\" })[low.toLowerCase()]!,
    )
    .replace(/%c1%9c/gi, "\\")
    .replace(/%([0-9a-f]{2})/gi, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
}

function invalid(segment: string, problem: string): ConnectorError {
  const shown = JSON.stringify(segment.length > 80 ? `${segment.slice(0, 80)}…` : segment.toWellFormed());
  return new ConnectorError("PATH_INVALID", `The segment ${shown} of the path ${problem}.`, {
    fix: "Give a path relative to the store's root: names with a single `/` between them, decoded, without `.` and `..`.",
    details: { segment: segment.toWellFormed().slice(0, 200) },
  });
}

export const joinPath = (folder: string, name: string): string => (folder === "" ? name : `${folder}/${name}`);
export const baseName = (path: string): string => path.slice(path.lastIndexOf("/") + 1);
