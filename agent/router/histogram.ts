// Counts of times in log-linear buckets: 32 to each doubling, so a percentile is at most 1.6 % off, in a fixed 4 KiB.

const SUB_BITS = 5;
const SUB = 1 << SUB_BITS;
/** Microseconds up to 2^32 (71 minutes); longer times count as that. */
const BUCKETS = (32 - SUB_BITS + 1) * SUB;
const MAX_US = 2 ** 32 - 1;

export class Histogram {
  readonly #counts = new Uint32Array(BUCKETS);
  #total = 0;

  get count(): number {
    return this.#total;
  }

  record(ms: number): void {
    const us = Math.min(MAX_US, Math.max(0, Math.round(ms * 1000)));
    const shift = us < SUB ? 0 : 31 - Math.clz32(us) - SUB_BITS;
    // Within a doubling `us >>> shift` runs from 32 to 63: the buckets of two doublings never meet.
    this.#counts[shift * SUB + (us >>> shift)]! += 1;
    this.#total += 1;
  }

  /** The time that a share `p` of all was not above, in ms; null when there are none. */
  percentile(p: number): number | null {
    if (this.#total === 0) return null;
    let left = Math.max(1, Math.ceil(p * this.#total));
    let index = 0;
    while ((left -= this.#counts[index]!) > 0) index += 1;
    return middleUs(index) / 1000;
  }

  clear(): void {
    this.#counts.fill(0);
    this.#total = 0;
  }
}

function middleUs(index: number): number {
  if (index < 2 * SUB) return index;
  const shift = (index >>> SUB_BITS) - 1;
  return (SUB + (index & (SUB - 1))) * 2 ** shift + (2 ** shift - 1) / 2;
}
