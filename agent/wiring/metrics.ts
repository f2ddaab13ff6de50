// What the agent counts, and from where: the runner and the link tell, the rest is read when somebody scrapes. No path,
// no run and no person is a label.
import type { ErrorCode, LaneName, MuxFigures } from "@sallyport/protocol";
import type { EndedCommand } from "../commands/runner.ts";
import { LINK_STATES, type AgentSession, type LinkEvent } from "../link/index.ts";
import type { Figures, LoopDelay } from "../metrics/index.ts";
import type { WatchedLink } from "./link.ts";
import type { Parts } from "./parts.ts";
import type { OpenState } from "./state.ts";

const LANES: readonly LaneName[] = ["control", "interactive", "bulk"];
const DIRECTIONS = ["sent", "received"] as const;
const ROUND_TRIPS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5];
const COMMANDS = [0.005, 0.02, 0.1, 0.5, 2, 10, 60, 600, 3600];

export interface MetricsSources {
  figures: Figures;
  version: string;
  startedAt: number;
  state: OpenState;
  parts: Parts;
  watched: WatchedLink;
  loop: LoopDelay;
  /** Null: nothing is exported. */
  spans: { readonly exported: number; readonly dropped: number } | null;
}

/** Answers with what is to be told of each command that ended. */
export function countCommands(figures: Figures): (ended: EndedCommand) => void {
  const ended = figures.counter(
    "sallyport_agent_commands_total",
    "Commands that ended or were refused, by kind and outcome (succeeded or an error code)",
  );
  const seconds = figures.histogram(
    "sallyport_agent_command_seconds",
    "From a command's acceptance, or the start of a durable one, to its end",
    COMMANDS,
  );
  const bytes = figures.counter("sallyport_agent_content_bytes_total", "Bytes of answers, by kind of command");
  return ({ kind, outcome, tookMs, sentBytes }) => {
    const labels = { kind: kind ?? "unknown" };
    ended({ ...labels, outcome });
    seconds(tookMs / 1000, labels);
    if (sentBytes > 0) bytes(labels, sentBytes);
  };
}

export function watchMetrics({
  figures,
  version,
  startedAt,
  state,
  parts,
  watched,
  loop,
  spans,
}: MetricsSources): void {
  const { link } = watched;
  const { journal } = state;
  const { intake, runner, facts } = parts;
  const roundTrip = figures.histogram("sallyport_agent_link_round_trip_seconds", "Round trips of beats", ROUND_TRIPS);
  const sessions = figures.counter("sallyport_agent_sessions_total", "Sessions with the control plane that began", [
    {},
  ]);
  const reconnects = figures.counter(
    "sallyport_agent_reconnects_total",
    "Sessions after the first of this process, by the code that ended the one before",
  );
  const failures = figures.counter(
    "sallyport_agent_dial_failures_total",
    "Attempts to connect that came to nothing, by error code",
  );
  /** Usually one; two while a new one takes over and the last streams of the old one end. */
  const live = new Set<AgentSession>();
  const sum = (of: (figures: MuxFigures) => number): number =>
    [...live].reduce((total, session) => total + of(session.figures()), 0);
  let ended: ErrorCode | null = null;
  const past = new Map(DIRECTIONS.flatMap((way) => LANES.map((lane) => [`${way} ${lane}`, { frames: 0, bytes: 0 }])));
  const keep = (of: MuxFigures) => {
    for (const direction of DIRECTIONS)
      for (const lane of LANES) {
        const total = past.get(`${direction} ${lane}`)!;
        total.frames += of[direction][lane].frames;
        total.bytes += of[direction][lane].bytes;
      }
  };
  link.observe((event: LinkEvent) => {
    if (event.type === "state") {
      if (event.to === "offline" && (event.from === "dialling" || event.from === "greeting"))
        failures({ code: event.error?.code ?? "INTERNAL" });
      return;
    }
    if (event.type === "roundTrip") return roundTrip(event.ms / 1000);
    const { session } = event;
    live.add(session);
    sessions();
    if (ended !== null) reconnects({ reason: ended });
    void session.closed.then(({ code }) => {
      keep(session.figures());
      ended = code;
      live.delete(session);
    });
  });

  const perLane = (what: "frames" | "bytes") => () =>
    DIRECTIONS.flatMap((direction) =>
      LANES.map((lane) => ({
        labels: { lane, direction },
        value: past.get(`${direction} ${lane}`)![what] + sum((one) => one[direction][lane][what]),
      })),
    );
  figures.total("sallyport_agent_link_frames_total", "Frames of the link, by lane and direction", perLane("frames"));
  figures.total(
    "sallyport_agent_link_bytes_total",
    "Payload bytes of the link, by lane and direction",
    perLane("bytes"),
  );
  figures.gauge("sallyport_agent_link_in_flight_bytes", "Sent and not acknowledged yet", () =>
    sum((one) => one.inFlightBytes),
  );
  figures.gauge("sallyport_agent_link_queued_bytes", "Waiting to be sent, by lane", () =>
    (["interactive", "bulk"] as const).map((lane) => ({
      labels: { lane },
      value: sum((one) => one.queuedBytes[lane]),
    })),
  );
  figures.gauge("sallyport_agent_link_streams", "Streams that are open on the link", () => sum((one) => one.streams));
  figures.gauge("sallyport_agent_link_state", "1 for the state that the link is in", () =>
    LINK_STATES.map((one) => ({ labels: { state: one }, value: link.state === one ? 1 : 0 })),
  );
  figures.gauge(
    "sallyport_agent_clock_skew_seconds",
    "This machine's clock minus the control plane's; absent without a session",
    () => {
      const skewMs = watched.skewMs();
      return skewMs === null ? null : skewMs / 1000;
    },
  );
  figures.gauge("sallyport_agent_event_loop_delay_seconds", "How late the event loop was in the last 15 s", () =>
    loop.last === null
      ? null
      : (["p50", "p99", "max"] as const).map((quantile) => ({
          labels: { quantile },
          value: loop.last![quantile] / 1000,
        })),
  );
  figures.gauge("sallyport_agent_commands_running", "Commands under way, by whether they are durable or wait", () => {
    const all = runner.running();
    return (["running", "waiting"] as const).map((one) => ({
      labels: { state: one },
      value: all.filter((command) => command.state === one).length,
    }));
  });
  figures.gauge(
    "sallyport_agent_reports_unacknowledged",
    "Reports that the control plane has not acknowledged",
    () => journal.lastSequence - journal.acknowledgedThrough,
  );
  figures.gauge("sallyport_agent_paused", "1 while its owner lets it take nothing new", () =>
    intake.paused === null ? 0 : 1,
  );
  figures.gauge(
    "sallyport_agent_disk_free_bytes",
    "On the disk of the state directory",
    () => facts.sample.diskFreeBytes,
  );
  figures.gauge("sallyport_agent_info", "Always 1", () => [{ labels: { version }, value: 1 }]);
  figures.gauge("process_start_time_seconds", "Since the epoch", () => startedAt / 1000);
  figures.gauge("process_resident_memory_bytes", "Of this process", () => process.memoryUsage.rss());
  figures.total("process_cpu_seconds_total", "User and system time", () => {
    const { user, system } = process.cpuUsage();
    return (user + system) / 1e6;
  });
  if (spans !== null)
    figures.total("sallyport_agent_spans_total", "Spans by what became of them", () =>
      (["exported", "dropped"] as const).map((outcome) => ({ labels: { outcome }, value: spans[outcome] })),
    );
}
