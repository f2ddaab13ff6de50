// The redactor itself. A byte is hidden when it belongs to any occurrence of any spelling; each run of hidden bytes
// becomes one mark. So the outcome depends on the bytes alone, never on how they were cut into chunks.
import { MIN_SPELLING_BYTES, spellings } from "./encodings.ts";
import { Matcher } from "./matcher.ts";
import type { RedactionStream, Redactor } from "./redactor.ts";

export const MARK = "[redacted]";
const MARK_BYTES = Buffer.from(MARK);
const EMPTY = Buffer.alloc(0);
/** For texts of a usual length, so that none needs a buffer of its own. */
const scratch = Buffer.alloc(4096);
/** Deeper values are cut: nothing of ours is so deep, and a cycle must end. */
const MAX_DEPTH = 64;

export function createRedactor(): Redactor {
  return new SecretRedactor();
}

class SecretRedactor implements Redactor {
  readonly #secrets = new Set<string>();
  readonly #patterns = new Map<string, Buffer>();
  /** Null = no secret is known, or one was added since it was built. */
  #built: Matcher | null = null;

  add(secret: string): void {
    if (this.#secrets.has(secret) || Buffer.byteLength(secret) < MIN_SPELLING_BYTES) return;
    this.#secrets.add(secret);
    for (const bytes of spellings(secret)) this.#patterns.set(bytes.toString("latin1"), bytes);
    this.#built = null;
  }

  #matcher(): Matcher | null {
    if (this.#built === null && this.#patterns.size > 0) this.#built = new Matcher([...this.#patterns.values()]);
    return this.#built;
  }

  text(value: string): string {
    const matcher = this.#matcher();
    if (matcher === null || value.length < MIN_SPELLING_BYTES) return value;
    // Three bytes at most for each of JavaScript's characters. What is looked at here is not kept.
    const bytes = value.length * 3 <= scratch.length ? scratch.subarray(0, scratch.write(value)) : Buffer.from(value);
    const cover = new Cover();
    matcher.scan(bytes, cover.add);
    if (cover.spans.length === 0) return value;
    const out: Buffer[] = [];
    cover.write(bytes, bytes.length, false, out);
    return Buffer.concat(out).toString();
  }

  json<T>(value: T): T {
    return this.#json(value, 0) as T;
  }

  #json(value: unknown, depth: number): unknown {
    if (typeof value === "string") return this.text(value);
    if (typeof value === "number" || typeof value === "bigint") {
      const text = String(value);
      return this.text(text) === text ? value : MARK;
    }
    if (typeof value !== "object" || value === null) return value;
    if (depth >= MAX_DEPTH) return "[too deep]";
    if ("toJSON" in value && typeof value.toJSON === "function") {
      return this.#json((value.toJSON as () => unknown)(), depth + 1);
    }
    if (Array.isArray(value)) return value.map((item) => this.#json(item, depth + 1));
    // fromEntries defines own properties, so a key such as __proto__ stays data.
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [this.text(k), this.#json(v, depth + 1)]));
  }

  stream(): RedactionStream {
    return new Stream(() => this.#matcher());
  }
}

/** Runs of hidden bytes, merged where they touch. */
class Cover {
  readonly spans: { start: number; end: number }[] = [];

  readonly add = (start: number, end: number): void => {
    const last = this.spans.at(-1);
    if (last !== undefined && start <= last.end) last.end = Math.max(last.end, end);
    else this.spans.push({ start, end });
  };

  /**
   * Puts the first `until` bytes into `out`. `marked`: the byte before the first was hidden and its mark written.
   * Returns the same for the byte after.
   */
  write(bytes: Buffer, until: number, marked: boolean, out: Buffer[]): boolean {
    let at = 0;
    let after = marked;
    for (const { start, end } of this.spans) {
      if (start >= until) break;
      if (start > at) {
        out.push(bytes.subarray(at, start));
        after = false;
      }
      if (!after) out.push(MARK_BYTES);
      after = true;
      at = Math.min(end, until);
    }
    if (at < until) {
      out.push(bytes.subarray(at, until));
      after = false;
    }
    return after;
  }
}

class Stream implements RedactionStream {
  readonly #matcher: () => Matcher | null;
  /** Bytes not yet let out: the beginning of what may become an occurrence. Shorter than the longest spelling. */
  #held: Buffer = EMPTY;
  /** So many bytes of `held` belong to an occurrence that was complete already. */
  #heldHidden = 0;
  #marked = false;

  constructor(matcher: () => Matcher | null) {
    this.#matcher = matcher;
  }

  get heldBytes(): number {
    return this.#held.length;
  }

  push(chunk: Uint8Array): Buffer {
    return this.#advance(chunk, false);
  }

  flush(): Buffer {
    return this.#advance(EMPTY, true);
  }

  #advance(chunk: Uint8Array, last: boolean): Buffer {
    const given = Buffer.isBuffer(chunk) ? chunk : Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength);
    const bytes = this.#held.length === 0 ? given : Buffer.concat([this.#held, given]);
    const matcher = this.#matcher();
    const cover = new Cover();
    if (this.#heldHidden > 0) cover.add(0, this.#heldHidden);
    matcher?.scan(bytes, cover.add);
    const until = last || matcher === null ? bytes.length : matcher.openFrom(bytes);
    const out: Buffer[] = [];
    this.#marked = cover.write(bytes, until, this.#marked, out);
    // A copy: the caller may use its buffer again.
    this.#held = until === bytes.length ? EMPTY : Buffer.from(bytes.subarray(until));
    this.#heldHidden = Math.max(0, (cover.spans.findLast((s) => s.start <= until)?.end ?? 0) - until);
    if (out.length === 1) return out[0]!;
    return Buffer.concat(out);
  }
}
