// Where the agent's spans go: to the collector that its own environment names, redacted, or nowhere. Never to the control
// plane, which cannot ask for them either.
import { exporterFromEnvironment, noSpans, SpanExporter, type SpanCounts, type Spans } from "@sallyport/protocol";
import type { EndedCommand } from "../commands/runner.ts";
import type { AgentContext } from "./context.ts";

const CLOSE_MS = 1_000;

export interface OpenSpans {
  ended(command: EndedCommand): void;
  /** Null: nothing is exported. */
  readonly counts: SpanCounts | null;
  close(): Promise<void>;
}

export function openSpans({ environment, version, clock, log, redactor }: AgentContext): OpenSpans {
  const wanted = exporterFromEnvironment(environment);
  let exporter: SpanExporter | null = null;
  if (wanted !== null) {
    for (const value of Object.values(wanted.headers)) if (value.length >= 8) redactor.add(value);
    exporter = new SpanExporter({
      url: wanted.url,
      headers: wanted.headers,
      service: wanted.service ?? "sallyport-agent",
      version,
      clock,
      onTrouble: (error) =>
        error === null
          ? log.info("the collector of traces takes spans again")
          : log.warn({ code: error.code }, error.message),
    });
  }
  const spans: Spans = exporter ?? noSpans;
  return {
    counts: exporter?.counts ?? null,
    ended({ command, kind, resource, durable, outcome, startedAt, tookMs, sentBytes, trace, parentSpanId }) {
      if (exporter === null) return;
      const span = {
        name: `command ${kind ?? "unknown"}`,
        kind: durable ? ("consumer" as const) : ("server" as const),
        startMs: startedAt,
        endMs: startedAt + tookMs,
        error: outcome === "succeeded" ? null : outcome,
        attributes: {
          "sallyport.kind": kind ?? "unknown",
          "sallyport.command": command,
          "sallyport.resource": resource,
          "sallyport.sent_bytes": sentBytes,
        },
      };
      // The ids are the trace's own: random digits, which a redactor need not and must not change.
      spans.record({ ...redactor.json(span), context: trace, parentSpanId });
    },
    close: async () => await exporter?.close(CLOSE_MS),
  };
}
