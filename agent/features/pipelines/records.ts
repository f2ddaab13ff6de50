// Keeps what the journal remembers of runs within bounds: of those that are over the newest stay, whether or not their logs
// do, and a cancel that no run ever came for goes when none can come any more.
import type { RunId } from "@sallyport/protocol";
import type { PipelinesDeps } from "./deps.ts";
import { CANCELS, runKey, RUNS, type CancelRecord, type RunRecord } from "./run-record.ts";

/** Of runs that are over. */
export const MOST_RUNS = 10_000;
/** No intent lives longer than seven days; a day for clocks that disagree. */
export const CANCEL_KEPT_MS = 8 * 24 * 3600_000;

/** `unfinished`: which runs are under way, or were not taken up yet after a restart. */
export async function collectRecords(
  { journal, clock }: Pick<PipelinesDeps, "journal" | "clock">,
  unfinished: () => Promise<(run: string) => boolean>,
  most = MOST_RUNS,
): Promise<void> {
  const heads = new Map<string, RunRecord>();
  const keysOf = new Map<string, string[]>();
  for (const { key, value } of await journal.entries(RUNS)) {
    const run = key.split("/", 1)[0]!;
    keysOf.set(run, [...(keysOf.get(run) ?? []), key]);
    if (key === runKey(run as RunId)) heads.set(run, value as RunRecord);
  }
  const cancels = await journal.entries(CANCELS);
  // Asked after the records were read: what begins meanwhile is not among them.
  const goesOn = await unfinished();
  const over: { run: string; at: number }[] = [];
  for (const run of keysOf.keys()) {
    if (goesOn(run)) continue;
    const head = heads.get(run);
    // One that was let go of says "running" for ever: another agent has it.
    over.push({ run, at: head === undefined ? 0 : (head.endedAt ?? head.createdAt) });
  }
  const remove = over
    .toSorted((a, b) => b.at - a.at)
    .slice(most)
    .flatMap(({ run }) => [
      ...keysOf.get(run)!.map((key) => ({ namespace: RUNS, key })),
      { namespace: CANCELS, key: run },
    ]);
  for (const { key, value } of cancels)
    if (!goesOn(key) && !keysOf.has(key) && (value as CancelRecord).at < clock.now() - CANCEL_KEPT_MS)
      remove.push({ namespace: CANCELS, key });
  for (let at = 0; at < remove.length; at += 500) await journal.commit({ remove: remove.slice(at, at + 500) });
}
