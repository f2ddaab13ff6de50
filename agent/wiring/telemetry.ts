// What of this agent can be watched from outside: figures, the event loop's lateness, spans. Made with the parts; who may
// read the figures is decided where they are served.
import type { EndedCommand } from "../commands/runner.ts";
import { Figures, LoopDelay, MetricsListener } from "../metrics/index.ts";
import type { AgentContext } from "./context.ts";
import type { WatchedLink } from "./link.ts";
import { countCommands } from "./metrics.ts";
import type { Parts } from "./parts.ts";
import { openSpans, type OpenSpans } from "./spans.ts";

export interface Telemetry {
  readonly figures: Figures;
  readonly loop: LoopDelay;
  readonly spans: OpenSpans;
  /** ms since the epoch. */
  readonly startedAt: number;
  ended(command: EndedCommand): void;
}

export function openTelemetry(context: AgentContext): Telemetry {
  const figures = new Figures();
  const count = countCommands(figures);
  const spans = openSpans(context);
  return {
    figures,
    loop: new LoopDelay(context.clock),
    spans,
    startedAt: context.clock.now(),
    ended(command) {
      count(command);
      spans.ended(command);
    },
  };
}

/** Null: no address is configured; the control socket serves them all the same. Not listening yet. */
export function makeMetricsListener(
  { compiled, log }: AgentContext,
  { connections, intake, telemetry }: Parts,
  { link }: WatchedLink,
): MetricsListener | null {
  const { metrics } = compiled.config;
  if (metrics === null) return null;
  return new MetricsListener({
    listen: metrics.listen,
    token: async () => (await connections.secrets.resolve(metrics.token)).reveal(),
    figures: telemetry.figures,
    ready: () => link.state === "online" && !intake.draining,
    log,
  });
}
