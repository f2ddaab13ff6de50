// When to dial again. A link that was stable comes back at once (and all its neighbours do not, thanks to the spread);
// anything else waits longer and longer, at random within a doubling window.
import type { RetryClass } from "./retry-table.ts";

/** A link that lived so long was good: the next dial is quick, once. The configuration may say another time. */
export const STABLE_MS = 60_000;
const QUICK_MS = 200;
const FIRST_WINDOW_MS = 1_000;
const LAST_WINDOW_MS = 60_000;
/** An attempt that took so long before it failed met silence, not a refusal. */
const SILENCE_MS = 1_000;
/** Most outages are over by then: until so much silence was waited through, attempts follow one another. */
const PATIENT_MS = 60_000;
/** And the window stays at about what such an attempt takes. */
const PATIENT_WINDOW_MS = 4_000;

export class Backoff {
  readonly #random: () => number;
  readonly #stableMs: number;
  #windowMs = FIRST_WINDOW_MS;
  /** Spent on attempts that met silence, since there was a link. */
  #silentMs = 0;

  /** `random`: uniform in [0, 1). */
  constructor(random: () => number, stableMs: number = STABLE_MS) {
    this.#random = random;
    this.#stableMs = stableMs;
  }

  /**
   * Ms until the next dial. `onlineMs`: how long the link that ended was online; 0 when the attempt never got there.
   * `retryAfterMs`: what the server asked for; null when nothing. `triedMs`: how long the attempt took: an attempt that
   * met silence has waited already, and the path may be back. Absent: 0.
   */
  next(ended: { onlineMs: number; retry: RetryClass; retryAfterMs: number | null; triedMs?: number }): number {
    const triedMs = ended.triedMs ?? 0;
    if (ended.onlineMs > 0) this.#silentMs = 0;
    if (ended.retry === "never") {
      // Slowly, for ever: an operator may put it right at the other end, and the agent must not need a restart then.
      this.#windowMs = LAST_WINDOW_MS;
      return Math.max(ended.retryAfterMs ?? 0, LAST_WINDOW_MS / 2 + this.#random() * (LAST_WINDOW_MS / 2));
    }
    if (ended.onlineMs >= this.#stableMs) {
      this.#windowMs = FIRST_WINDOW_MS;
      if (ended.retryAfterMs === null && ended.retry === "retry") return this.#random() * QUICK_MS;
    }
    const windowMs = this.#windowMs;
    // A server that asks for a longer wait than ours is alive and knows when it has room: no need to grow on top of it.
    // And of a path that is silent for a moment nobody is relieved by longer pauses.
    if (triedMs >= SILENCE_MS) this.#silentMs += triedMs;
    const patient = triedMs >= SILENCE_MS && this.#silentMs < PATIENT_MS && windowMs >= PATIENT_WINDOW_MS;
    if (!patient && (ended.retryAfterMs ?? 0) < windowMs) this.#windowMs = Math.min(LAST_WINDOW_MS, windowMs * 2);
    // On top of the server's wish, so that those it asked together do not come back together.
    const waitMs = this.#random() * windowMs;
    if (ended.retryAfterMs !== null) return ended.retryAfterMs + waitMs;
    // Never at once, so that those who met the same silence do not dial as one.
    return Math.max(waitMs - triedMs, Math.min(waitMs, this.#random() * QUICK_MS));
  }
}
