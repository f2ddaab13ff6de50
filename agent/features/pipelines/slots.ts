// Steps at a time, over all runs. What is running already when the agent starts takes its slot without asking.
export class Slots {
  readonly #limit: () => number;
  #taken = 0;
  readonly #waiting = new Set<() => void>();

  /** `limit` is asked at each decision: the policy may change. 0 starts nothing. */
  constructor(limit: () => number) {
    this.#limit = limit;
  }

  /** First come, first served. Rejects with the signal's reason. The answer gives the slot back, once. */
  async acquire(signal: AbortSignal): Promise<() => void> {
    while (this.#taken >= this.#limit()) {
      signal.throwIfAborted();
      await new Promise<void>((resolve) => {
        const done = (): void => {
          this.#waiting.delete(done);
          signal.removeEventListener("abort", done);
          resolve();
        };
        this.#waiting.add(done);
        signal.addEventListener("abort", done, { once: true });
      });
    }
    signal.throwIfAborted();
    return this.take();
  }

  take(): () => void {
    this.#taken++;
    let held = true;
    return () => {
      if (!held) return;
      held = false;
      this.#taken--;
      this.wake();
    };
  }

  /** The limit may have risen: those that wait look again. */
  wake(): void {
    for (const wake of [...this.#waiting]) wake();
  }
}
