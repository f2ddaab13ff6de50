// What a bench gives back.
export interface Row {
  readonly what: string;
  readonly value: string;
  readonly unit: string;
}

export interface BarResult {
  readonly bar: string;
  readonly value: number;
  readonly unit: string;
  /** As a reader reads it: "<= 3". */
  readonly limit: string;
  readonly met: boolean;
}

export const atMost = (bar: string, value: number, limit: number, unit: string): BarResult => ({
  bar,
  value: round(value),
  unit,
  limit: `<= ${limit}`,
  met: value <= limit,
});
export const atLeast = (bar: string, value: number, limit: number, unit: string): BarResult => ({
  bar,
  value: round(value),
  unit,
  limit: `>= ${limit}`,
  met: value >= limit,
});
export const median = (values: readonly number[]): number =>
  [...values].sort((a, b) => a - b)[values.length >> 1] ?? Number.NaN;
const round = (value: number): number => Math.round(value * 1000) / 1000;
