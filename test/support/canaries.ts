// Looks for planted secrets in bytes, files and folders: as they are and in the encodings in which programs like to
// leak them, at any offset and over any split into chunks. A hit means that a secret left its place.
import { randomBytes } from "node:crypto";
import { closeSync, openSync, readSync, readdirSync } from "node:fs";
import { join } from "node:path";

export interface Canary {
  /** What it stands for, such as "s3 secret key". */
  readonly name: string;
  /** The secret. At least 8 characters: shorter ones turn up by chance. */
  readonly value: string;
}

export interface Hit {
  readonly canary: string;
  readonly encoding: string;
  /** The file, stream or table where it was found. */
  readonly where: string;
  /** Byte offset there; for `joined` encodings, the offset after line ends were taken out. */
  readonly offset: number;
}

/** A secret that no machine has by chance, with characters that encodings must treat specially unless `plain`. */
export function makeCanary(name: string, { plain = true }: { plain?: boolean } = {}): Canary {
  const random = randomBytes(15).toString("hex");
  return { name, value: plain ? `canary${random}` : `canary/+"&<\\%é ${random}` };
}

const percent = (bytes: Buffer, digits: (byte: number) => string) =>
  [...bytes].map((byte) => `%${digits(byte)}`).join("");
const lower = (byte: number) => byte.toString(16).padStart(2, "0");
const upper = (byte: number) => lower(byte).toUpperCase();

/**
 * Base64 works on groups of three bytes, so a secret inside a longer text has three possible forms. Returns the
 * characters that depend on the secret alone when `before` bytes of its group precede it.
 */
function base64At(bytes: Buffer, before: number, alphabet: "base64" | "base64url"): string {
  const encoded = Buffer.concat([Buffer.alloc(before), bytes]).toString(alphabet);
  return encoded.slice(Math.ceil((before * 8) / 6), Math.floor(((before + bytes.length) * 8) / 6));
}

function quotedPrintable(bytes: Buffer): string {
  return [...bytes]
    .map((byte) => (byte === 61 || byte < 32 || byte > 126 ? `=${upper(byte)}` : String.fromCharCode(byte)))
    .join("");
}

/** Every spelling that is looked for, by the encoding's name. Equal spellings are kept once, under the first name. */
export function spellings(value: string): Map<string, string[]> {
  const bytes = Buffer.from(value);
  const json = JSON.stringify(value).slice(1, -1);
  const all: Record<string, string[]> = {
    raw: [bytes.toString("latin1")],
    "base64 at offset 0": [base64At(bytes, 0, "base64")],
    "base64 at offset 1": [base64At(bytes, 1, "base64")],
    "base64 at offset 2": [base64At(bytes, 2, "base64")],
    base64url: [0, 1, 2].map((before) => base64At(bytes, before, "base64url")),
    "hex, lower case": [bytes.toString("hex")],
    "hex, upper case": [bytes.toString("hex").toUpperCase()],
    "URL-encoded": [
      encodeURIComponent(value),
      encodeURIComponent(value).replace(/%[0-9A-F]{2}/g, (code) => code.toLowerCase()),
      encodeURIComponent(value).replaceAll("%20", "+"),
      encodeURI(value),
      percent(bytes, upper),
      percent(bytes, lower),
    ],
    "JSON-escaped": [
      Buffer.from(json).toString("latin1"),
      Buffer.from(json.replaceAll("/", "\\/")).toString("latin1"),
      json.replace(/[^\x20-\x7e]/g, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`),
      value
        .split("")
        .map((char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`)
        .join(""),
      Buffer.from(JSON.stringify(json).slice(1, -1)).toString("latin1"), // JSON inside JSON
    ],
    "XML-escaped": [
      Buffer.from(value.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;")).toString("latin1"),
      Buffer.from(
        value.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;"),
      ).toString("latin1"),
    ],
    "UTF-16": [
      Buffer.from(value, "utf16le").toString("latin1"),
      Buffer.from(value, "utf16le").swap16().toString("latin1"),
    ],
    "quoted-printable": [quotedPrintable(bytes)],
  };
  const seen = new Set<string>();
  const result = new Map<string, string[]>();
  for (const [encoding, forms] of Object.entries(all)) {
    const fresh = [...new Set(forms)].filter((form) => form.length >= 8 && !seen.has(form));
    for (const form of fresh) seen.add(form);
    if (fresh.length > 0) result.set(encoding, fresh);
  }
  return result;
}

interface Needle {
  readonly canary: string;
  readonly encoding: string;
  readonly bytes: Buffer;
}

/** A multiplicative hash of four bytes to 16 bits, for the table that most bytes are dismissed by. */
const slot = (word: number) => Math.imul(word, 0x9e3779b1) >>> 16;

/** Finds many needles in one pass over a stream: the cost does not grow with their number. */
class Search {
  readonly #table = new Uint8Array(1 << 16);
  readonly #byPrefix = new Map<number, Needle[]>();
  readonly #longest: number;
  #tail: Buffer = Buffer.alloc(0);
  /** Bytes of the stream before the tail. */
  #passed = 0;

  constructor(needles: readonly Needle[]) {
    for (const needle of needles) {
      const prefix = needle.bytes.readUInt32BE(0);
      this.#table[slot(prefix)] = 1;
      this.#byPrefix.set(prefix, [...(this.#byPrefix.get(prefix) ?? []), needle]);
    }
    this.#longest = Math.max(4, ...needles.map(({ bytes }) => bytes.length));
  }

  write(chunk: Uint8Array, found: (needle: Needle, offset: number) => void): void {
    const bytes =
      this.#tail.length > 0
        ? Buffer.concat([this.#tail, chunk])
        : Buffer.from(chunk.buffer, chunk.byteOffset, chunk.length);
    const oldTail = this.#tail.length;
    const table = this.#table;
    let word = 0;
    for (let at = 0; at < bytes.length; at += 1) {
      word = ((word << 8) | (bytes[at] as number)) >>> 0;
      if (at < 3 || table[slot(word)] === 0) continue;
      for (const needle of this.#byPrefix.get(word) ?? []) {
        const start = at - 3;
        const end = start + needle.bytes.length;
        // What ended within the old tail was found with it.
        if (end > bytes.length || end <= oldTail) continue;
        if (bytes.compare(needle.bytes, 0, needle.bytes.length, start, end) === 0) found(needle, this.#passed + start);
      }
    }
    const keep = Math.min(bytes.length, this.#longest - 1);
    this.#passed += bytes.length - keep;
    this.#tail = Buffer.from(bytes.subarray(bytes.length - keep));
  }
}

function needlesOf(canaries: readonly Canary[]): Needle[] {
  return canaries.flatMap(({ name, value }) => {
    if (value.length < 8) throw new Error(`the canary ${name} has fewer than 8 characters`);
    // Programs print a key of many lines line by line.
    const lines = value.split(/\r?\n/).filter((line) => line.length >= 16);
    const pieces = lines.length > 1 ? [value, ...lines] : [value];
    return pieces.flatMap((piece) =>
      [...spellings(piece)].flatMap(([encoding, forms]) =>
        forms.map((form) => ({ canary: name, encoding, bytes: Buffer.from(form, "latin1") })),
      ),
    );
  });
}

/** Scans one stream, chunk by chunk. */
export class CanaryScanner {
  readonly hits: Hit[] = [];
  readonly #where: string;
  readonly #direct: Search;
  /** Encoders wrap their lines: a second pass sees the stream without line ends, real ones and those of JSON. */
  readonly #joined: Search;
  /** A backslash or equals sign whose next byte decides whether it belongs to a line end; 0 when none. */
  #held = 0;

  constructor(canaries: readonly Canary[], where: string) {
    const needles = needlesOf(canaries);
    this.#where = where;
    this.#direct = new Search(needles);
    this.#joined = new Search(needles.filter(({ encoding }) => /^(raw|base64|hex|quoted)/.test(encoding)));
  }

  write(chunk: Uint8Array): void {
    this.#direct.write(chunk, (needle, offset) => this.#hit(needle.canary, needle.encoding, offset));
    this.#joined.write(this.#withoutLineEnds(chunk), (needle, offset) =>
      this.#hit(needle.canary, `${needle.encoding}, joined`, offset),
    );
  }

  #hit(canary: string, encoding: string, offset: number): void {
    // The joined pass finds again what the direct one found.
    const direct = encoding.replace(/, joined$/, "");
    if (direct !== encoding && this.hits.some((hit) => hit.canary === canary && hit.encoding === direct)) return;
    this.hits.push({ canary, encoding, where: this.#where, offset });
  }

  /** Drops CR, LF, the JSON escapes \n and \r, and the soft line break of quoted-printable (= before a line end). */
  #withoutLineEnds(chunk: Uint8Array): Uint8Array {
    const out = new Uint8Array(chunk.length + 1);
    let length = 0;
    for (const byte of chunk) {
      const isLineEnd = byte === 0x0a || byte === 0x0d;
      const held = this.#held;
      this.#held = 0;
      if (held === 0x5c && (byte === 0x6e || byte === 0x72)) continue;
      if (held !== 0 && !(held === 0x3d && isLineEnd)) out[length++] = held;
      if (byte === 0x5c || byte === 0x3d) this.#held = byte;
      else if (!isLineEnd) out[length++] = byte;
    }
    return out.subarray(0, length);
  }
}

export function scanBytes(bytes: Uint8Array | string, canaries: readonly Canary[], where: string): Hit[] {
  const scanner = new CanaryScanner(canaries, where);
  scanner.write(typeof bytes === "string" ? Buffer.from(bytes) : bytes);
  return scanner.hits;
}

export function scanFile(file: string, canaries: readonly Canary[]): Hit[] {
  const scanner = new CanaryScanner(canaries, file);
  const buffer = Buffer.alloc(1 << 20);
  const handle = openSync(file, "r");
  try {
    for (let length = readSync(handle, buffer); length > 0; length = readSync(handle, buffer)) {
      scanner.write(buffer.subarray(0, length));
    }
  } finally {
    closeSync(handle);
  }
  return scanner.hits;
}

/** Every regular file below, and the names of all entries. Links are not followed. */
export function scanDirectory(dir: string, canaries: readonly Canary[]): Hit[] {
  return readdirSync(dir, { withFileTypes: true }).flatMap((entry) => {
    const path = join(dir, entry.name);
    const hits = scanBytes(entry.name, canaries, `the name of ${path}`);
    if (entry.isDirectory()) hits.push(...scanDirectory(path, canaries));
    else if (entry.isFile()) hits.push(...scanFile(path, canaries));
    return hits;
  });
}
