// Counts sign-in attempts by address and by name, and refuses the next when there were too many. In memory, bounded.
import { ConnectorError, type Clock } from "@sallyport/protocol";

const WINDOW_MS = 60_000;
const MAX_KEYS = 10_000;

export class Attempts {
  readonly #clock: Clock;
  readonly #limit: number;
  readonly #counts = new Map<string, { from: number; n: number }>();

  /** `limit`: attempts a key may make in a minute. */
  constructor(clock: Clock, limit = 10) {
    this.#clock = clock;
    this.#limit = limit;
  }

  /** Counts one attempt for each key. Throws RATE_LIMITED when one of them has had its share. */
  count(...keys: string[]): void {
    const now = this.#clock.monotonic();
    for (const key of keys) {
      let entry = this.#counts.get(key);
      if (entry === undefined || now - entry.from >= WINDOW_MS) {
        this.#counts.delete(key);
        if (this.#counts.size >= MAX_KEYS) this.#counts.delete(this.#counts.keys().next().value!);
        this.#counts.set(key, (entry = { from: now, n: 0 }));
      }
      if (++entry.n > this.#limit) {
        const retryAfterS = Math.ceil((entry.from + WINDOW_MS - now) / 1000);
        throw new ConnectorError("RATE_LIMITED", "Too many attempts to sign in.", {
          fix: `Try again in ${retryAfterS} s.`,
          details: { retryAfterS },
        });
      }
    }
  }

  forget(...keys: string[]): void {
    for (const key of keys) this.#counts.delete(key);
  }
}
