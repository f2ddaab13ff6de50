// Which bytes a read wants, once the size is known.
import { rangeInvalid } from "./store-errors.ts";
import type { ReadRange } from "./store.ts";

export function spanOf(
  store: string,
  path: string,
  totalBytes: number,
  range?: ReadRange,
  suffixBytes?: number,
): { start: number; lengthBytes: number } {
  if (suffixBytes !== undefined) {
    const lengthBytes = Math.min(suffixBytes, totalBytes);
    return { start: totalBytes - lengthBytes, lengthBytes };
  }
  const start = range?.start ?? 0;
  const end = Math.min(range?.end ?? totalBytes - 1, totalBytes - 1);
  if (start > totalBytes || (range?.end !== undefined && range.end < start))
    throw rangeInvalid(store, path, totalBytes);
  return { start, lengthBytes: Math.max(0, end - start + 1) };
}
