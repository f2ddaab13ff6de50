// Finds any of many byte patterns in a buffer: Wu-Manber's search with blocks of three bytes. It looks at every sixth
// byte or so and needs 0.5 MiB of tables whatever the patterns' length; an Aho-Corasick table would need 1 KiB for every
// byte of every spelling, 60 MiB for forty keys.

const BLOCK = 3;
const HASH_BITS = 17;
const HASH_SIZE = 1 << HASH_BITS;
const hash = (a: number, b: number, c: number): number => ((a * 0x9e5f) ^ (b * 0x1f3b) ^ (c * 0x2c1)) & (HASH_SIZE - 1);

export class Matcher {
  /** Of the longest pattern. */
  readonly maxBytes: number;
  readonly #windowBytes: number;
  /** By the hash of the window's last block: how far the window may move. 0 = a pattern may begin here. */
  readonly #shift: Uint8Array;
  /** Patterns by the hash of the last block of their first `windowBytes`; the longest first. */
  readonly #byWindow = new Map<number, Uint8Array[]>();
  /** Patterns by the hash of their first block. */
  readonly #byStart = new Map<number, Uint8Array[]>();
  readonly #startsWith1 = new Uint8Array(256);
  readonly #startsWith2 = new Set<number>();

  /** Patterns have at least three bytes. */
  constructor(patterns: readonly Uint8Array[]) {
    this.maxBytes = patterns.reduce((max, p) => Math.max(max, p.length), 0);
    this.#windowBytes = Math.min(
      255,
      patterns.reduce((min, p) => Math.min(min, p.length), Number.POSITIVE_INFINITY),
    );
    const window = this.#windowBytes;
    this.#shift = new Uint8Array(HASH_SIZE).fill(Math.max(1, window - BLOCK + 1));
    for (const pattern of [...patterns].sort((x, y) => y.length - x.length)) {
      for (let end = BLOCK; end <= window; end++) {
        const h = hash(pattern[end - 3]!, pattern[end - 2]!, pattern[end - 1]!);
        this.#shift[h] = Math.min(this.#shift[h]!, window - end);
        if (end === window) append(this.#byWindow, h, pattern);
      }
      append(this.#byStart, hash(pattern[0]!, pattern[1]!, pattern[2]!), pattern);
      this.#startsWith1[pattern[0]!] = 1;
      this.#startsWith2.add((pattern[0]! << 8) | pattern[1]!);
    }
  }

  /** Calls `found` for occurrences, by rising start; of those that begin at one place, for the longest only. */
  scan(bytes: Uint8Array, found: (start: number, end: number) => void): void {
    const window = this.#windowBytes;
    const shift = this.#shift;
    const length = bytes.length;
    let end = window;
    while (end <= length) {
      const h = hash(bytes[end - 3]!, bytes[end - 2]!, bytes[end - 1]!);
      const step = shift[h]!;
      if (step > 0) {
        end += step;
        continue;
      }
      const start = end - window;
      for (const pattern of this.#byWindow.get(h)!) {
        if (start + pattern.length <= length && samePrefix(bytes, start, pattern, pattern.length)) {
          found(start, start + pattern.length);
          break;
        }
      }
      end++;
    }
  }

  /** The first place from which the rest of `bytes` is the beginning of a pattern, but not all of it; or the length. */
  openFrom(bytes: Uint8Array): number {
    const length = bytes.length;
    for (let start = Math.max(0, length - this.maxBytes + 1); start < length; start++) {
      const rest = length - start;
      if (rest === 1) return this.#startsWith1[bytes[start]!] === 1 ? start : length;
      if (rest === 2) {
        if (this.#startsWith2.has((bytes[start]! << 8) | bytes[start + 1]!)) return start;
        continue;
      }
      if (this.#startsWith1[bytes[start]!] === 0) continue;
      const candidates = this.#byStart.get(hash(bytes[start]!, bytes[start + 1]!, bytes[start + 2]!));
      if (candidates?.some((p) => p.length > rest && samePrefix(bytes, start, p, rest)) === true) return start;
    }
    return length;
  }
}

function append(map: Map<number, Uint8Array[]>, key: number, value: Uint8Array): void {
  const list = map.get(key);
  if (list === undefined) map.set(key, [value]);
  else list.push(value);
}

function samePrefix(bytes: Uint8Array, start: number, pattern: Uint8Array, count: number): boolean {
  for (let i = 0; i < count; i++) if (bytes[start + i] !== pattern[i]) return false;
  return true;
}
