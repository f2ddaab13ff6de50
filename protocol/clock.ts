// Time as a value that programs are given, so that tests can hold it still. Production passes `systemClock`.

export interface Timer {
  cancel(): void;
}

export interface Clock {
  /** Wall clock, ms since the epoch. For showing and for signed expiry only: it may jump. */
  now(): number;
  /** Monotonic ms since an arbitrary start. For every duration. */
  monotonic(): number;
  /** Runs `fn` once after `delayMs`. An armed timer does not keep the process alive unless `keepAlive` is set. */
  after(delayMs: number, fn: () => void, options?: { keepAlive?: boolean }): Timer;
}

export const systemClock: Clock = {
  now: () => Date.now(),
  monotonic: () => performance.now(),
  after(delayMs, fn, options) {
    return new SystemTimer(fn, delayMs, options?.keepAlive === true);
  },
};

/** A class for its memory: each idle link holds some. */
class SystemTimer implements Timer {
  readonly #timeout: NodeJS.Timeout;
  constructor(fn: () => void, delayMs: number, keepAlive: boolean) {
    this.#timeout = setTimeout(fn, delayMs);
    if (!keepAlive) this.#timeout.unref();
  }
  cancel(): void {
    clearTimeout(this.#timeout);
  }
}

/** Resolves after `delayMs` of `clock`; rejects with the signal's reason when it aborts first. */
export function wait(clock: Clock, delayMs: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason as Error);
    const onAbort = () => {
      timer.cancel();
      reject(signal?.reason as Error);
    };
    const timer = clock.after(
      delayMs,
      () => {
        signal?.removeEventListener("abort", onAbort);
        resolve();
      },
      { keepAlive: true },
    );
    signal?.addEventListener("abort", onAbort, { once: true });
  });
}
