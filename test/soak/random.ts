// Chance that can be repeated: the same words give the same choices. Not for secrets.
import { createHash } from "node:crypto";

export class Chance {
  #state: number;

  /** What it is for, e.g. a seed and a case: nothing else influences the choices. */
  constructor(...words: readonly (string | number)[]) {
    this.#state = createHash("sha256").update(words.join("\0")).digest().readUInt32LE();
  }

  /** In [0, 1): mulberry32. */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    let n = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state);
    n = (n + Math.imul(n ^ (n >>> 7), 61 | n)) ^ n;
    return ((n ^ (n >>> 14)) >>> 0) / 2 ** 32;
  }

  /** In [0, below). */
  int(below: number): number {
    return Math.floor(this.next() * below);
  }

  true(probability: number): boolean {
    return this.next() < probability;
  }

  of<T>(items: readonly T[]): T {
    return items[this.int(items.length)]!;
  }
}
