// Answers of the database that nearly every request asks for again, kept for a moment. Not for what may be stale: whoever
// keeps an answer here forgets it when a change says so; the moment bounds what another process has changed.
const KEPT_MS = 1_000;
const MOST = 1_000;

export class Recent<T extends object> {
  readonly #kept = new Map<string, { value: T; atMs: number }>();
  #changes = 0;

  /** What is not there (null) is asked for each time. `nowMs`: of any one clock. */
  async get(key: string, nowMs: number, load: () => Promise<T | null>): Promise<T | null> {
    const known = this.#kept.get(key);
    if (known !== undefined && nowMs >= known.atMs && nowMs - known.atMs < KEPT_MS) return known.value;
    const changes = this.#changes;
    const value = await load();
    // A change that came meanwhile may not be in the answer yet.
    if (value === null || changes !== this.#changes) return value;
    if (this.#kept.size >= MOST) this.#kept.clear();
    this.#kept.set(key, { value, atMs: nowMs });
    return value;
  }

  forget(): void {
    this.#changes++;
    this.#kept.clear();
  }
}
