// Keeps the store bounded: now and then everything that is past its time goes, batch by batch, with room between for
// others. main's wiring starts and stops it.
import type { Clock, Timer } from "@sallyport/protocol";
import type { Logger } from "pino";
import type { CollectLimits, Store } from "../store/index.ts";

/** Between two rounds, and before the first. */
export const ROUND_MS = 10 * 60_000;
/** Between two batches of a round. */
const BREATH_MS = 50;

export function startRetention(deps: {
  store: Pick<Store, "collect">;
  clock: Clock;
  log: Pick<Logger, "info" | "warn">;
  limits: CollectLimits;
}): { stop(): Promise<void> } {
  const { store, clock, log, limits } = deps;
  let timer: Timer | null = null;
  let under: Promise<void> = Promise.resolve();
  let stopped = false;
  let rows = 0;
  let commands = 0;

  const arm = (delayMs: number): void => {
    if (stopped) return;
    timer = clock.after(delayMs, () => {
      under = batch();
    });
  };
  async function batch(): Promise<void> {
    try {
      const done = await store.collect(clock.now(), limits);
      rows += done.rows;
      commands += done.commands;
      if (done.more) return arm(BREATH_MS);
      if (rows > 0) log.info({ rows, commands }, "what was past its time was removed from the database");
    } catch (error) {
      log.warn({ err: error }, "removing what is past its time failed; the next round tries again");
    }
    rows = 0;
    commands = 0;
    arm(ROUND_MS);
  }
  arm(ROUND_MS);
  return {
    async stop() {
      stopped = true;
      timer?.cancel();
      await under;
    },
  };
}
