// The last beats' round trips of one session: enough for a median and a 95th percentile, small enough for 10,000 sessions.

/** Beats come every 5 s: a little over five minutes. */
const KEPT = 64;

export interface RoundTrips {
  readonly p50Ms: number;
  readonly p95Ms: number;
  readonly samples: number;
}

export class RoundTripRing {
  /** Made with the first beat. */
  #values: Float32Array | null = null;
  #count = 0;

  add(ms: number): void {
    this.#values ??= new Float32Array(KEPT);
    this.#values[this.#count++ % KEPT] = ms;
  }

  /** Null before the first beat. */
  summary(): RoundTrips | null {
    if (this.#values === null) return null;
    const samples = Math.min(this.#count, KEPT);
    const sorted = this.#values.slice(0, samples).sort();
    const at = (share: number) => sorted[Math.min(samples - 1, Math.ceil(share * samples) - 1)]!;
    return { p50Ms: at(0.5), p95Ms: at(0.95), samples };
  }
}
