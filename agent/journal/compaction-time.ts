// By which time the journal may forget. The cloud's clock alone says when an intent can no longer be offered, but it may
// have been set wrongly and be set right again: what it calls expired must be so by our own clock too.

/** No intent lives longer. A clock of ours that is further behind was never set: then the cloud's has to do. */
const LONGEST_INTENT_MS = 7 * 24 * 3600_000;

export const compactionTime = (cloudNow: number, ownNow: number): number =>
  cloudNow - ownNow > LONGEST_INTENT_MS ? cloudNow : Math.min(cloudNow, ownNow);
