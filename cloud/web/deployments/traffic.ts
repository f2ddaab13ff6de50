// The last hour at an endpoint as figures to draw: one place for each minute, a hole where nothing is known. Pure.
import type { Rollup } from "../api/types.ts";

export const MINUTE_MS = 60_000;
export const MINUTES = 60;

/** Oldest first; the last is the newest whole minute. Null = no report of that minute. */
export function lastHour(rollups: readonly Rollup[], nowMs: number): { at: number; rollup: Rollup | null }[] {
  const end = Math.floor(nowMs / MINUTE_MS) * MINUTE_MS;
  const known = new Map(rollups.map((each) => [each.at, each]));
  return Array.from({ length: MINUTES }, (_, n) => {
    const at = end - (MINUTES - 1 - n) * MINUTE_MS;
    return { at, rollup: known.get(at) ?? null };
  });
}

/** A round number at or above, to end a scale with: 1, 2, 5, 10, 20, 50, ... */
export function niceTop(value: number): number {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  for (const step of [1, 2, 5, 10]) if (value <= step * power * (1 + 1e-9)) return step * power;
  return 10 * power;
}

/** SVG path data of a line with holes; a single known minute between two holes is drawn as a dash. */
export function linePath(
  values: readonly (number | null)[],
  x: (at: number) => number,
  y: (value: number) => number,
): string {
  let path = "";
  values.forEach((value, at) => {
    if (value === null) return;
    const alone = (values[at - 1] ?? null) === null && (values[at + 1] ?? null) === null;
    const point = `${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
    if (alone) path += `M${(x(at) - 1.5).toFixed(1)} ${y(value).toFixed(1)}h3`;
    else path += `${(values[at - 1] ?? null) === null ? "M" : "L"}${point}`;
  });
  return path;
}

export interface TrafficSum {
  requests: number;
  errors: number;
  retries: number;
  minutes: number;
}
export const sumOf = (rollups: readonly Rollup[]): TrafficSum =>
  rollups.reduce(
    (sum, each) => ({
      requests: sum.requests + each.requests,
      errors: sum.errors + each.errors,
      retries: sum.retries + each.retries,
      minutes: sum.minutes + 1,
    }),
    { requests: 0, errors: 0, retries: 0, minutes: 0 },
  );
