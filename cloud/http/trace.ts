// The trace that a request belongs to: the one that it names, or a new one. Known before the request's first log line.
import type { IncomingMessage } from "node:http";
import { childOf, formatTraceparent, parseTraceparent, type TraceContext } from "@sallyport/protocol";

export interface RequestTrace {
  /** The span of this request. */
  readonly context: TraceContext;
  /** As it is handed on. */
  readonly traceparent: string;
  /** The caller's span; null = the trace begins here. */
  readonly parentSpanId: string | null;
}

const TRACE = Symbol("trace");

export function traceOf(raw: IncomingMessage & { [TRACE]?: RequestTrace }): RequestTrace {
  if (raw[TRACE] !== undefined) return raw[TRACE];
  const parent = parseTraceparent(raw.headers["traceparent"]);
  const context = childOf(parent);
  return (raw[TRACE] = { context, traceparent: formatTraceparent(context), parentSpanId: parent?.spanId ?? null });
}
