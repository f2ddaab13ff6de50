// Where the control plane's spans go: to the collector that its environment names, or nowhere.
import { exporterFromEnvironment, noSpans, SpanExporter, type Clock, type Spans } from "@sallyport/protocol";
import type { Logger } from "pino";
import { Counter, type Registry } from "prom-client";

const CLOSE_MS = 2_000;

export interface OpenSpans {
  readonly spans: Spans;
  close(): Promise<void>;
}

export function openSpans(
  environment: NodeJS.ProcessEnv,
  { version, clock, log, registry }: { version: string; clock: Clock; log: Logger; registry: Registry },
): OpenSpans {
  const wanted = exporterFromEnvironment(environment);
  if (wanted === null) return { spans: noSpans, close: async () => {} };
  const exporter = new SpanExporter({
    url: wanted.url,
    headers: wanted.headers,
    service: wanted.service ?? "sallyport-cloud",
    version,
    clock,
    onTrouble: (error) =>
      error === null ? log.info("the collector of traces takes spans again") : log.warn({ err: error }, error.message),
  });
  new Counter({
    name: "sallyport_cloud_spans_total",
    help: "Spans by what became of them",
    labelNames: ["outcome"],
    registers: [registry],
    collect() {
      this.reset();
      this.inc({ outcome: "exported" }, exporter.counts.exported);
      this.inc({ outcome: "dropped" }, exporter.counts.dropped);
    },
  });
  return { spans: exporter, close: () => exporter.close(CLOSE_MS) };
}
