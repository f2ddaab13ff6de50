// What must be done in the end, though a disk, a journal or an engine fails for now.
import { toConnectorError, wait, type ConnectorError } from "@sallyport/protocol";
import type { Deps } from "./deps.ts";

/** Tries until it succeeds or the signal aborts, then rejects with its reason. `failed` is told each time. */
export async function insist<T>(
  deps: Deps,
  what: string,
  signal: AbortSignal,
  work: () => Promise<T>,
  failed?: (error: ConnectorError) => void,
): Promise<T> {
  for (let tries = 0; ; tries++) {
    signal.throwIfAborted();
    try {
      return await work();
    } catch (caught) {
      signal.throwIfAborted();
      const error = toConnectorError(caught);
      failed?.(error);
      if (tries === 0) deps.log.warn({ err: caught, what }, "fails for now, tried again until it succeeds");
      await wait(deps.clock, Math.min(deps.timings.retryMs * 2 ** Math.min(tries, 4), 30_000), signal);
    }
  }
}

/** Resolves when either the time is over or somebody calls `poke`; rejects when the signal aborts. */
export class Pause {
  #poke: (() => void) | null = null;
  #poked = false;

  poke(): void {
    this.#poked = true;
    this.#poke?.();
  }

  async of(deps: Pick<Deps, "clock">, ms: number, signal: AbortSignal): Promise<void> {
    if (!this.#poked) {
      const over = new AbortController();
      const poked = new Promise<void>((resolve) => (this.#poke = resolve));
      const timed = wait(deps.clock, ms, AbortSignal.any([signal, over.signal]));
      timed.catch(() => undefined);
      try {
        await Promise.race([timed, poked]);
      } finally {
        this.#poke = null;
        over.abort();
      }
    }
    this.#poked = false;
    signal.throwIfAborted();
  }
}

/** Leaves work that goes on, when the signal aborts: the next start takes it up. */
export function orAborted<T>(signal: AbortSignal, work: Promise<T>): Promise<T> {
  work.catch(() => undefined);
  return new Promise((resolve, reject) => {
    const onAbort = (): void => reject(signal.reason as Error);
    if (signal.aborted) return onAbort();
    signal.addEventListener("abort", onAbort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener("abort", onAbort));
  });
}
