// A clock that stands still until a test moves it. Implements the Clock that every program takes.
import type { Clock, Timer } from "@sallyport/protocol";

interface Armed {
  readonly at: number;
  readonly sequence: number;
  readonly fn: () => void;
}

export class ManualClock implements Clock {
  #elapsedMs = 0;
  #wallOffsetMs: number;
  #sequence = 0;
  readonly #armed = new Set<Armed>();

  /** `startMs`: the wall clock at the start, ms since the epoch. */
  constructor(startMs = Date.UTC(2026, 0, 1)) {
    this.#wallOffsetMs = startMs;
  }

  now(): number {
    return this.#wallOffsetMs + this.#elapsedMs;
  }

  monotonic(): number {
    return this.#elapsedMs;
  }

  after(delayMs: number, fn: () => void): Timer {
    const armed: Armed = { at: this.#elapsedMs + Math.max(0, delayMs), sequence: this.#sequence++, fn };
    this.#armed.add(armed);
    return { cancel: () => void this.#armed.delete(armed) };
  }

  /** Timers that are armed now. Zero at the end of a test means that nothing was left behind. */
  get pending(): number {
    return this.#armed.size;
  }

  /** Ms until the next timer fires; undefined when none is armed. */
  get nextInMs(): number | undefined {
    const next = this.#next();
    return next && next.at - this.#elapsedMs;
  }

  /**
   * Moves time on by `byMs` and fires what is due, in order, each at its own time. Between two timers it lets promise
   * callbacks run, so a timer that is armed by the answer to another one fires in the same call.
   */
  async advance(byMs: number): Promise<void> {
    const until = this.#elapsedMs + byMs;
    await settle();
    for (let next = this.#next(); next && next.at <= until; next = this.#next()) {
      this.#armed.delete(next);
      this.#elapsedMs = Math.max(this.#elapsedMs, next.at);
      next.fn();
      await settle();
    }
    this.#elapsedMs = until;
  }

  /** The wall clock jumps (a person or NTP sets it); durations are untouched. */
  jumpWall(byMs: number): void {
    this.#wallOffsetMs += byMs;
  }

  #next(): Armed | undefined {
    let first: Armed | undefined;
    for (const armed of this.#armed) {
      if (!first || armed.at < first.at || (armed.at === first.at && armed.sequence < first.sequence)) first = armed;
    }
    return first;
  }
}

/** Lets promise callbacks that are ready, and those they make ready, run. */
function settle(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
