// Stretches of time with a speed each, as fast-time.ts writes them and fast-clock.ts reads them.
export interface TimePlan {
  /** The wall clock at the origin, ms since the epoch. */
  wallMs: number;
  /** In order. `atMs`: the machine's monotonic clock; `fakeMs`: what has passed since the origin until then. */
  segments: { atMs: number; fakeMs: number; speed: number }[];
}

export const parsePlan = (text: string): TimePlan => JSON.parse(text) as TimePlan;

/** Ms since the origin at a moment of the machine's monotonic clock. */
export function fakeAt(plan: TimePlan, realMs: number): number {
  const now = plan.segments.findLast((one) => one.atMs <= realMs) ?? plan.segments[0]!;
  return now.fakeMs + (realMs - now.atMs) * now.speed;
}
