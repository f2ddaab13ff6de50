// The spellings in which a secret may turn up in composed text. Pure. Each spelling is given as bytes; the matcher does
// the rest. What is not listed here (gzip, encryption, case games, one character per line) is not found: the redactor is
// the last net, not the first.

/** Below this many bytes a spelling would mangle ordinary text, so it is not looked for. */
export const MIN_SPELLING_BYTES = 4;
/** Lines of a multi-line secret shorter than this are not looked for alone. */
export const MIN_LINE_CHARS = 8;
/** Further lines of one secret are found as part of the whole only. */
const MAX_LINES = 500;

const hexEscape = (upper: boolean) => (c: string) => {
  const hex = c.charCodeAt(0).toString(16).padStart(4, "0");
  return `\\u${upper ? hex.toUpperCase() : hex}`;
};
const json = (s: string): string => JSON.stringify(s).slice(1, -1);

/** The characters of base64 that depend on the secret alone when it begins `offset` bytes into a group of three. */
function base64At(bytes: Buffer, offset: number, encoding: "base64" | "base64url"): string {
  const padded = Buffer.concat([Buffer.alloc(offset), bytes])
    .toString(encoding)
    .replaceAll("=", "");
  const firstChar = Math.ceil((offset * 8) / 6);
  const endChar = Math.floor(((offset + bytes.length) * 8) / 6);
  return padded.slice(firstChar, endChar);
}

function textSpellings(s: string): string[] {
  const uri = (value: string): string => {
    try {
      return encodeURIComponent(value);
    } catch {
      return value; // a lone surrogate has no URL form
    }
  };
  const strict = uri(s).replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);
  const lower = (t: string): string => t.replace(/%[0-9A-F]{2}/g, (c) => c.toLowerCase());
  const everyByte = [...Buffer.from(s)].map((b) => `%${b.toString(16).padStart(2, "0")}`).join("");
  const plain = json(s);
  const ascii = (upper: boolean): string => plain.replace(/[^\x20-\x7e]/g, hexEscape(upper));
  const markup = s.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const quotes: [string, string][] = [
    ['"', "'"],
    ["&quot;", "'"],
    ["&quot;", "&#39;"],
    ["&quot;", "&#x27;"],
    ["&quot;", "&apos;"],
    ["&#34;", "&#39;"],
  ];
  return [
    s,
    // JSON: as JSON.stringify writes it, once and twice; with `/` escaped; with only ASCII left.
    plain,
    json(plain),
    plain.replaceAll("/", "\\/"),
    ascii(false),
    ascii(true),
    plain.replace(/[<>&']/g, hexEscape(false)),
    plain.replace(/[<>&']/g, hexEscape(true)),
    // URLs: JavaScript's, RFC 3986's, a form's, with small hex digits, with every byte escaped, encoded twice.
    uri(s),
    strict,
    strict.replaceAll("%20", "+"),
    lower(uri(s)),
    lower(strict),
    lower(strict).replaceAll("%20", "+"),
    everyByte,
    everyByte.toUpperCase(),
    strict.replaceAll("%", "%25"),
    // XML and HTML.
    ...quotes.map(([double, single]) => markup.replaceAll('"', double).replaceAll("'", single)),
    // Shells: within single quotes, within double quotes, bare with backslashes.
    s.replaceAll("'", "'\\''"),
    s.replaceAll("'", `'"'"'`),
    s.replace(/["$`\\!]/g, "\\$&").replaceAll("\\!", "!"),
    s.replace(/["$`\\!]/g, "\\$&"),
    s.replace(/[^A-Za-z0-9_@%+=:,./\n-]/g, "\\$&"),
  ];
}

function byteSpellings(bytes: Buffer): string[] {
  const hex = bytes.toString("hex");
  const spaced = (h: string, separator: string): string => (h.match(/../g) ?? []).join(separator);
  return [
    hex,
    hex.toUpperCase(),
    spaced(hex, ":"),
    spaced(hex.toUpperCase(), ":"),
    spaced(hex, " "),
    ...(["base64", "base64url"] as const).flatMap((encoding) => [
      bytes.toString(encoding),
      ...[0, 1, 2].map((offset) => base64At(bytes, offset, encoding)),
    ]),
  ];
}

function spellingsOfOne(s: string): string[] {
  return [...textSpellings(s), ...byteSpellings(Buffer.from(s))];
}

/** Every spelling of a secret and of each of its longer lines, without repeats. */
export function spellings(secret: string): Buffer[] {
  const found = new Set(spellingsOfOne(secret));
  const lines = secret.split(/\r\n|\n|\r/);
  if (lines.length > 1) {
    // A file's value may be written with the other line ending, or joined.
    for (const ending of ["\n", "\r\n", ""]) for (const s of spellingsOfOne(lines.join(ending))) found.add(s);
    for (const line of lines.slice(0, MAX_LINES)) {
      for (const piece of new Set([line, line.trim()])) {
        if (piece.length >= MIN_LINE_CHARS) for (const s of spellingsOfOne(piece)) found.add(s);
      }
    }
  }
  return [...found].map((s) => Buffer.from(s)).filter((b) => b.length >= MIN_SPELLING_BYTES);
}
