// The figures of one deployment, minute by minute of the wall clock.
import type { Rollup } from "@sallyport/protocol";
import { Histogram } from "./histogram.ts";

export const MINUTE_MS = 60_000;

export class MinuteFigures {
  #requests = 0;
  #errors = 0;
  #retries = 0;
  readonly #times = new Histogram();
  #last: Rollup | null = null;

  get last(): Rollup | null {
    return this.#last;
  }

  /** `tookMs` null: it has no time of its own, because its client went away first. */
  ended(tookMs: number | null, failed: boolean): void {
    this.#requests += 1;
    if (failed) this.#errors += 1;
    if (tookMs !== null) this.#times.record(tookMs);
  }

  retried(): void {
    this.#retries += 1;
  }

  /** The minute that ends at `at` is over; counting begins anew. */
  close(at: number): void {
    this.#last = {
      at,
      requests: this.#requests,
      errors: this.#errors,
      retries: this.#retries,
      p50Ms: this.#times.percentile(0.5),
      p95Ms: this.#times.percentile(0.95),
      p99Ms: this.#times.percentile(0.99),
    };
    this.#requests = this.#errors = this.#retries = 0;
    this.#times.clear();
  }
}
