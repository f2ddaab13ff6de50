// What holds a queued run back although an agent could take it: the limits that people set on a pool and on a pipeline.
// For showing; the store keeps them where it counts the offer.
import type { CommandRow, PoolQueue, RunHolder } from "../store/store.ts";

export interface LimitReached {
  limit: number;
  /** Of the pool itself, or of runs of one pipeline in it. */
  of: "pool" | "pipeline";
  holders: RunHolder[];
}

/** Null: no limit keeps it back. Of two the pipeline's is named: it is the narrower one. */
export function limitReached(command: CommandRow, queue: PoolQueue): LimitReached | null {
  if (command.pipeline === null || (command.offeredTo ?? null) !== null) return null;
  const own = queue.heldOf[command.pipeline] ?? 0;
  if (command.concurrency !== null && own >= command.concurrency) {
    return {
      limit: command.concurrency,
      of: "pipeline",
      holders: queue.holders.filter((holder) => holder.pipeline === command.pipeline),
    };
  }
  if (queue.maxRuns !== null && queue.held >= queue.maxRuns)
    return { limit: queue.maxRuns, of: "pool", holders: queue.holders };
  const standing = queue.items.find((item) => item.id === command.id);
  if (standing === undefined || standing.mayGo || standing.behind !== null) return null;
  // Slots are free, but for those that stand before it.
  if (command.concurrency !== null && own > 0)
    return { limit: command.concurrency, of: "pipeline", holders: queue.holders };
  if (queue.maxRuns !== null) return { limit: queue.maxRuns, of: "pool", holders: queue.holders };
  return command.concurrency === null ? null : { limit: command.concurrency, of: "pipeline", holders: queue.holders };
}
