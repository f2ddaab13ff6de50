// Figures of the links that this process holds, made of what the gateway tells and, when somebody scrapes, of the sessions
// themselves. No agent is a label.
import type { ErrorCode, LaneName, MuxFigures, ReplicaId } from "@sallyport/protocol";
import { Counter, Gauge, Histogram, type Registry } from "prom-client";
import type { CloudSession, GatewayEvent } from "../link/index.ts";

const LANES: readonly LaneName[] = ["control", "interactive", "bulk"];
const DIRECTIONS = ["sent", "received"] as const;
/** Replicas whose last end is remembered, for when they come back. */
const REMEMBERED = 20_000;

export interface LinkMetrics {
  note(event: GatewayEvent): void;
}

export function linkMetrics(registry: Registry): LinkMetrics {
  const registers = [registry];
  /** Also those whose agent has its next one already: what they count must not vanish before they end. */
  const sessions = new Set<CloudSession>();
  const live = (): MuxFigures[] =>
    [...sessions].flatMap((session) => {
      const figures = session.figures?.();
      return figures === undefined ? [] : [figures];
    });

  const handshakes = new Counter({
    name: "sallyport_cloud_handshakes_total",
    help: "Handshakes of agents that came to an end, by outcome",
    labelNames: ["outcome"],
    registers,
  });
  const refusals = new Counter({
    name: "sallyport_cloud_handshake_refusals_total",
    help: "Handshakes that were refused or broke off, by error code",
    labelNames: ["code"],
    registers,
  });
  const enrolments = new Counter({
    name: "sallyport_cloud_enrolments_total",
    help: "Agents that joined, or joined again because their first answer was lost",
    registers,
  });
  const ends = new Counter({
    name: "sallyport_cloud_session_ends_total",
    help: "Sessions that ended, by error code",
    labelNames: ["code"],
    registers,
  });
  const reconnects = new Counter({
    name: "sallyport_cloud_reconnects_total",
    help: "Sessions of agents that had one before in this process, by the code that ended that one",
    labelNames: ["reason"],
    registers,
  });
  const roundTrip = new Histogram({
    name: "sallyport_cloud_link_round_trip_seconds",
    help: "Round trips of beats",
    buckets: [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5],
    registers,
  });
  for (const outcome of ["accepted", "refused"]) handshakes.inc({ outcome }, 0);

  new Gauge({
    name: "sallyport_cloud_sessions",
    help: "Live sessions of agents",
    registers,
    collect() {
      this.set(sessions.size);
    },
  });
  new Gauge({
    name: "sallyport_cloud_clock_skew_seconds",
    help: "Largest distance of a connected agent's clock from this one's, either way",
    registers,
    collect() {
      let most = 0;
      for (const session of sessions) most = Math.max(most, Math.abs(session.clockSkewMs?.() ?? 0));
      this.set(most / 1000);
    },
  });

  /** Of sessions that are over. */
  const past = new Map(DIRECTIONS.flatMap((way) => LANES.map((lane) => [`${way} ${lane}`, { frames: 0, bytes: 0 }])));
  const total = (what: "frames" | "bytes") => (counter: Counter<"lane" | "direction">) => {
    const figures = live();
    counter.reset();
    for (const direction of DIRECTIONS)
      for (const lane of LANES)
        counter.inc(
          { lane, direction },
          figures.reduce((sum, one) => sum + one[direction][lane][what], past.get(`${direction} ${lane}`)![what]),
        );
  };
  const perLane = ["lane", "direction"] as const;
  new Counter({
    name: "sallyport_cloud_link_frames_total",
    help: "Frames of all links, by lane and direction",
    labelNames: perLane,
    registers,
    collect() {
      total("frames")(this);
    },
  });
  new Counter({
    name: "sallyport_cloud_link_bytes_total",
    help: "Payload bytes of all links, by lane and direction",
    labelNames: perLane,
    registers,
    collect() {
      total("bytes")(this);
    },
  });
  new Gauge({
    name: "sallyport_cloud_link_in_flight_bytes",
    help: "Sent on all links and not acknowledged yet",
    registers,
    collect() {
      this.set(live().reduce((sum, one) => sum + one.inFlightBytes, 0));
    },
  });
  new Gauge({
    name: "sallyport_cloud_link_queued_bytes",
    help: "Waiting to be sent on all links, by lane",
    labelNames: ["lane"],
    registers,
    collect() {
      const figures = live();
      for (const lane of ["interactive", "bulk"] as const)
        this.set(
          { lane },
          figures.reduce((sum, one) => sum + one.queuedBytes[lane], 0),
        );
    },
  });
  new Gauge({
    name: "sallyport_cloud_link_streams",
    help: "Streams that are open on all links",
    registers,
    collect() {
      this.set(live().reduce((sum, one) => sum + one.streams, 0));
    },
  });

  const lastEnds = new Map<ReplicaId, ErrorCode>();
  return {
    note(event) {
      switch (event.type) {
        case "refused":
          handshakes.inc({ outcome: "refused" });
          refusals.inc({ code: event.error.code });
          return;
        case "enrolled":
          enrolments.inc();
          return;
        case "online": {
          handshakes.inc({ outcome: "accepted" });
          sessions.add(event.session);
          const reason = lastEnds.get(event.session.replica);
          if (reason === undefined) return;
          lastEnds.delete(event.session.replica);
          reconnects.inc({ reason });
          return;
        }
        case "offline": {
          ends.inc({ code: event.reason.code });
          sessions.delete(event.session);
          lastEnds.delete(event.session.replica);
          lastEnds.set(event.session.replica, event.reason.code);
          if (lastEnds.size > REMEMBERED) lastEnds.delete(lastEnds.keys().next().value!);
          const figures = event.session.figures?.();
          if (figures === undefined) return;
          for (const direction of DIRECTIONS)
            for (const lane of LANES) {
              const sum = past.get(`${direction} ${lane}`)!;
              sum.frames += figures[direction][lane].frames;
              sum.bytes += figures[direction][lane].bytes;
            }
          return;
        }
        case "roundTrip":
          return roundTrip.observe(event.ms / 1000);
        case "failed":
          return;
      }
    },
  };
}
