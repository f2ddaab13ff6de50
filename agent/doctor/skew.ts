// How far apart two clocks may be, and how that is said.

/** Beyond this somebody should look. */
export const SKEW_NOTE_MS = 10_000;
/** Beyond this certificates and tokens begin to fail. */
export const SKEW_FAIL_MS = 5 * 60_000;

/** `aheadMs`: how far the other's clock is ahead of ours. */
export const skewSentence = (aheadMs: number, other: string): string =>
  `This machine's clock is ${span(Math.abs(aheadMs))} ${aheadMs > 0 ? "behind" : "ahead of"} ${other}`;

export const span = (ms: number): string =>
  ms < 1000
    ? `${Math.round(ms)} ms`
    : ms < 120_000
      ? `${Math.round(ms / 1000)} s`
      : ms < 7_200_000
        ? `${Math.round(ms / 60_000)} min`
        : ms < 172_800_000
          ? `${Math.round(ms / 3_600_000)} h`
          : `${Math.round(ms / 86_400_000)} days`;
