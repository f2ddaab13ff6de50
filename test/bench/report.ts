// What a bench gives back, and the figures that several need.
export interface Row {
  readonly what: string;
  readonly value: string;
  readonly unit: string;
}

export interface BarResult {
  readonly bar: string;
  /** NaN: it could not be measured, which is a miss. */
  readonly value: number;
  readonly unit: string;
  /** As a reader reads it: "<= 3". */
  readonly limit: string;
  readonly met: boolean;
}

export interface BenchResult {
  readonly rows: Row[];
  readonly bars: BarResult[];
  /** Of the peers that took part. */
  readonly versions?: Readonly<Record<string, string>>;
  /** Peers that are not on this machine, each with what brings it. */
  readonly missing?: readonly string[];
}

export const atMost = (bar: string, value: number, limit: number, unit: string): BarResult => ({
  bar,
  value: round(value),
  unit,
  limit: `<= ${round(limit)}`,
  met: value <= limit,
});
export const atLeast = (bar: string, value: number, limit: number, unit: string): BarResult => ({
  bar,
  value: round(value),
  unit,
  limit: `>= ${round(limit)}`,
  met: value >= limit,
});
export const row = (what: string, value: number, unit: string): Row => ({
  what,
  value: Number.isFinite(value) ? value.toFixed(Math.abs(value) < 10 ? 2 : Math.abs(value) < 100 ? 1 : 0) : "none",
  unit,
});
export const median = (values: readonly number[]): number => quantile(values, 0.5);
export const quantile = (values: readonly number[], q: number): number =>
  values.toSorted((a, b) => a - b)[Math.min(values.length - 1, Math.floor(values.length * q))] ?? Number.NaN;
/** Of two series that were taken in turns: what else the machine does moves both alike. */
export const ratios = (ours: readonly number[], theirs: readonly number[]): number[] =>
  ours.map((value, i) => value / (theirs[i] ?? Number.NaN));
const round = (value: number): number => Math.round(value * 1000) / 1000;
