// The control plane's time, as far as the page can tell: a computer's clock may be wrong, and "3 s ago" must not be.

/** Smaller differences are the header's whole seconds and the way of the answer. */
const TOLERATED_MS = 5_000;
let aheadMs = 0;

/** `date`: the header of an answer that has just come. */
export function learnTime(date: string | null): void {
  const theirs = date === null ? Number.NaN : Date.parse(date);
  if (Number.isNaN(theirs)) return;
  const difference = theirs - Date.now();
  aheadMs = Math.abs(difference) > TOLERATED_MS ? difference : 0;
}

export const nowMs = (): number => Date.now() + aheadMs;
