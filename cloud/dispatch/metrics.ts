// Figures of the dispatcher. No id of a run, path or person is a label.
import { Counter, Gauge, Histogram, type Registry } from "prom-client";

export interface DispatchMetrics {
  interactive(kind: string, outcome: string, ms: number, bytes: number): void;
  offer(kind: string, outcome: string): void;
  reports(count: number): void;
  resumed(what: "download" | "upload" | "logs"): void;
  inFlight(delta: 1 | -1): void;
}

export function dispatchMetrics(registry: Registry): DispatchMetrics {
  const registers = [registry];
  const requests = new Counter({
    name: "sallyport_cloud_interactive_commands_total",
    help: "Interactive commands by kind and outcome (ok or an error code)",
    labelNames: ["kind", "outcome"],
    registers,
  });
  const seconds = new Histogram({
    name: "sallyport_cloud_interactive_command_seconds",
    help: "From the request to the end of the answer",
    labelNames: ["kind"],
    buckets: [0.005, 0.02, 0.1, 0.5, 2, 10, 60, 600],
    registers,
  });
  const bytes = new Counter({
    name: "sallyport_cloud_content_bytes_total",
    help: "Content that passed through memory",
    labelNames: ["kind"],
    registers,
  });
  const offers = new Counter({
    name: "sallyport_cloud_offers_total",
    help: "Offers of durable commands by kind and outcome (accepted or an error code)",
    labelNames: ["kind", "outcome"],
    registers,
  });
  const reports = new Counter({
    name: "sallyport_cloud_reports_total",
    help: "Reports of agents that were committed",
    registers,
  });
  const resumed = new Counter({
    name: "sallyport_cloud_resumed_total",
    help: "Answers that went on over a new link after the old one broke",
    labelNames: ["what"],
    registers,
  });
  const open = new Gauge({
    name: "sallyport_cloud_interactive_commands_open",
    help: "Interactive commands that have not ended",
    registers,
  });
  return {
    interactive(kind, outcome, ms, count) {
      requests.inc({ kind, outcome });
      seconds.observe({ kind }, ms / 1000);
      if (count > 0) bytes.inc({ kind }, count);
    },
    offer: (kind, outcome) => offers.inc({ kind, outcome }),
    reports: (count) => reports.inc(count),
    resumed: (what) => resumed.inc({ what }),
    inFlight: (delta) => open.inc(delta),
  };
}

export const noMetrics: DispatchMetrics = { interactive() {}, offer() {}, reports() {}, resumed() {}, inFlight() {} };
