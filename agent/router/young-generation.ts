// How V8 collects in an agent that serves: told with the first replica, taken back after the last. The start scripts keep
// the young generation at its first size of 1 MB for the sake of bulk; requests under way outlive that, grow old, and
// have to be looked for by full collections, each a standstill of 10 to 20 ms on two cores (docs/decisions/0094).
import { getHeapSpaceStatistics, setFlagsFromString } from "node:v8";
import type { Clock, Timer } from "@sallyport/protocol";

/** Both halves of it. */
const ENOUGH_BYTES = 8 * 2 ** 20;
/** It grows when V8 finds a reason to, and is given back on idle; V8 has no upper bound that can be set now. */
const LOOK_MS = { growing: 500, grown: 5000 };

let serving = 0;
let timer: Timer | null = null;

export function startServing(clock: Clock): void {
  serving += 1;
  if (serving > 1) return;
  // So little is left of it that a second thread costs more than it does, and may be waited for.
  setFlagsFromString("--no-parallel-scavenge");
  look(clock);
}

export function stopServing(): void {
  serving -= 1;
  if (serving > 0) return;
  timer?.cancel();
  timer = null;
  setFlagsFromString("--parallel-scavenge");
  setFlagsFromString("--semi-space-growth-factor=1");
}

function look(clock: Clock): void {
  const young = getHeapSpaceStatistics().find((space) => space.space_name === "new_space");
  const growing = young !== undefined && young.space_size < ENOUGH_BYTES;
  setFlagsFromString(`--semi-space-growth-factor=${growing ? 2 : 1}`);
  timer = clock.after(growing ? LOOK_MS.growing : LOOK_MS.grown, () => look(clock));
}
