// W3C trace context: random ids that tie together what one request caused at both ends. Ids alone; no content.
import { randomName } from "./random.ts";

export interface TraceContext {
  /** 32 hex digits, not all zero. */
  readonly traceId: string;
  /** 16 hex digits: the span that this is about. */
  readonly spanId: string;
  /** False: whoever began the trace wants no spans of it exported. */
  readonly sampled: boolean;
}

const HEADER = /^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$/;

/** Null for what is no context: a new trace begins then. A later version may have more fields behind those known. */
export function parseTraceparent(text: unknown): TraceContext | null {
  if (typeof text !== "string" || text.length > 256) return null;
  const [, version, traceId, spanId, flags, rest] = HEADER.exec(text) ?? [];
  if (version === undefined || version === "ff" || (version === "00" && rest !== undefined)) return null;
  if (/^0+$/.test(traceId!) || /^0+$/.test(spanId!)) return null;
  return { traceId: traceId!, spanId: spanId!, sampled: (Number.parseInt(flags!, 16) & 1) === 1 };
}

export const formatTraceparent = ({ traceId, spanId, sampled }: TraceContext): string =>
  `00-${traceId}-${spanId}-${sampled ? "01" : "00"}`;

function randomHex(bytes: number): string {
  const text = randomName(bytes).toString("hex");
  // All zero means "none".
  return /^0+$/.test(text) ? randomHex(bytes) : text;
}

/** A span of the same trace below `parent`, or the first of a new one. */
export const childOf = (parent: TraceContext | null): TraceContext => ({
  traceId: parent?.traceId ?? randomHex(16),
  spanId: randomHex(8),
  sampled: parent?.sampled ?? true,
});
