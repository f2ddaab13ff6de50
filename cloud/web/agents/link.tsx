// How an agent is connected: its link now, in figures, and what became of each connection before.
import { IconPlugConnectedX } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import type { ReactNode } from "react";
import { connectionsQuery } from "../api/queries.ts";
import type { Agent, Connection } from "../api/types.ts";
import { formatBytes, formatClock, formatDuration, formatTime, plural } from "../parts/format.ts";
import { Empty, ProblemNote } from "../parts/notes.tsx";
import { Ago, useNow } from "../parts/time.tsx";
import { isHere } from "../pages/agents.tsx";

const DAY_MS = 86_400_000;
const LANES = ["control", "interactive", "bulk"] as const;
const LANE_WORDS = { control: "Control", interactive: "Interactive", bulk: "Bulk" } as const;
/** Beyond this a clock is worth a person's look: expiries are judged by the control plane's, but logs are not. */
const SKEW_WARN_MS = 5_000;

const ms = (value: number): string => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;

export function LinkTab({ agent }: { agent: Agent }) {
  const query = useQuery(connectionsQuery(agent.id));
  return (
    <>
      <div className="two-cols">
        <Section title="Link now">
          <LinkNow agent={agent} />
        </Section>
        <Section
          title="Lanes"
          aside={agent.link && <span className="faint small">since this connection began</span>}
          flush={agent.link !== null}
        >
          <Lanes agent={agent} />
        </Section>
      </div>
      {query.data === undefined ? (
        query.isError && <ProblemNote error={query.error} />
      ) : (
        <History connections={query.data} />
      )}
    </>
  );
}

function Section({
  title,
  aside,
  flush = false,
  children,
}: {
  title: string;
  aside?: ReactNode;
  /** True: what is in it has its own edges. */
  flush?: boolean;
  children: ReactNode;
}) {
  return (
    <section className="card">
      <div className="card-head">
        <h2>{title}</h2>
        {aside && <span style={{ marginLeft: "auto" }}>{aside}</span>}
      </div>
      {flush ? children : <div className="card-body">{children}</div>}
    </section>
  );
}

function LinkNow({ agent }: { agent: Agent }) {
  const { link, status } = agent;
  const skewMs = link === null ? null : (status?.process?.clockSkewMs ?? null);
  const loop = link === null ? null : (status?.process?.loopDelayMs ?? null);
  const unknown = <span className="faint">not known now</span>;
  return (
    <dl className="facts">
      <dt>Round trip</dt>
      <dd className="num">
        {link === null || agent.rttMs === null ? (
          unknown
        ) : (
          <>
            {ms(agent.rttMs)}
            {link.roundTrip !== null && (
              <span className="dim">
                , median {ms(link.roundTrip.p50Ms)}, p95 {ms(link.roundTrip.p95Ms)} of{" "}
                {plural(link.roundTrip.samples, "beat")}
              </span>
            )}
          </>
        )}
      </dd>
      <dt>Clock</dt>
      <dd className="num">
        {skewMs === null ? (
          unknown
        ) : (
          <span className={Math.abs(skewMs) > SKEW_WARN_MS ? "tone-warn" : undefined}>
            {Math.abs(skewMs) < 1_000
              ? `within ${ms(Math.abs(skewMs))} of the control plane's`
              : `${formatDuration(Math.abs(skewMs))} ${skewMs < 0 ? "behind" : "ahead of"} the control plane's`}
          </span>
        )}
      </dd>
      <dt>Event loop</dt>
      <dd className="num">
        {loop === null ? (
          unknown
        ) : (
          <>
            late by {ms(loop.p99)} <span className="dim">(p99), {ms(loop.max)} at most</span>
          </>
        )}
      </dd>
      <dt>Streams</dt>
      <dd className="num">{link === null ? unknown : link.streams}</dd>
      <dt>Connected</dt>
      <dd className="num">{plural(agent.sessions, "time")} since it joined</dd>
      {agent.statusAt !== null && link !== null && (
        <>
          <dt>Said</dt>
          <dd>
            <Ago at={agent.statusAt} />
          </dd>
        </>
      )}
    </dl>
  );
}

function Lanes({ agent }: { agent: Agent }) {
  const { link } = agent;
  if (link === null)
    return (
      <span className="dim">
        {isHere(agent)
          ? "Another process of the control plane holds the link and has its figures."
          : "The agent is not connected: nothing moves."}
      </span>
    );
  return (
    <div className="scroll-x" tabIndex={0} role="region" aria-label="Lanes of the link">
      <table className="plain-table">
        <thead>
          <tr>
            <th>Lane</th>
            <th className="right">To the agent</th>
            <th className="right">From it</th>
            <th className="right">Queued</th>
          </tr>
        </thead>
        <tbody>
          {LANES.map((lane) => (
            <tr key={lane}>
              <td>{LANE_WORDS[lane]}</td>
              <td className="right num nowrap" title={plural(link.sent[lane].frames, "frame")}>
                {formatBytes(link.sent[lane].bytes)}
              </td>
              <td className="right num nowrap" title={plural(link.received[lane].frames, "frame")}>
                {formatBytes(link.received[lane].bytes)}
              </td>
              <td className="right num nowrap">
                {lane === "control" ? <span className="faint">–</span> : formatBytes(link.queuedBytes[lane])}
              </td>
            </tr>
          ))}
          <tr>
            <td className="dim">In flight</td>
            <td className="right num nowrap">{formatBytes(link.inFlightBytes)}</td>
            <td />
            <td />
          </tr>
        </tbody>
      </table>
    </div>
  );
}

function History({ connections }: { connections: Connection[] }) {
  const now = useNow();
  if (connections.length === 0)
    return (
      <section className="card">
        <Empty icon={IconPlugConnectedX} title="No connections yet">
          It has joined and has not connected since its connections are written down.
        </Empty>
      </section>
    );
  return (
    <Section
      title="Connections"
      aside={<span className="faint small">the newest {connections.length === 1 ? "one" : connections.length}</span>}
      flush
    >
      <Line connections={connections} now={now} />
      <div className="scroll-x" tabIndex={0} role="region" aria-label="Connections, newest first">
        <table className="plain-table conn-table">
          <thead>
            <tr>
              <th>Began</th>
              <th className="right">Lasted</th>
              <th>Why it ended</th>
              <th>From</th>
              <th>Version</th>
            </tr>
          </thead>
          <tbody>
            {connections.map((one) => (
              <tr key={one.no}>
                <td className="nowrap">
                  <Ago at={one.at} />
                </td>
                <td className="right num nowrap">
                  {one.session === null ? (
                    <span className="tag bad">refused{one.times > 1 ? ` ${one.times}×` : ""}</span>
                  ) : (
                    formatDuration((one.endedAt ?? now) - one.at)
                  )}
                </td>
                <td className="conn-why">
                  {one.code === null ? (
                    <span className="tone-ok">connected now</span>
                  ) : (
                    <>
                      {one.message} <span className="mono faint">{one.code}</span>
                    </>
                  )}
                </td>
                <td className="mono dim nowrap">{one.remoteAddress ?? "–"}</td>
                <td className="num dim nowrap">{one.version ?? "–"}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </Section>
  );
}

/** The last day, or as much of it as is known: connected, apart, refused. */
function Line({ connections, now }: { connections: Connection[]; now: number }) {
  const from = Math.max(now - DAY_MS, connections.at(-1)!.at);
  const span = Math.max(1, now - from);
  const shown = connections.filter((one) => (one.endedAt ?? now) >= from);
  const share = (at: number) => `${((Math.max(from, at) - from) / span) * 100}%`;
  const sessions = shown.filter((one) => one.session !== null);
  const connectedMs = sessions.reduce((sum, one) => sum + ((one.endedAt ?? now) - Math.max(from, one.at)), 0);
  const ends = sessions.filter((one) => one.endedAt !== null).length;
  const words = `${formatDuration(span)} up to now: connected for ${formatDuration(Math.min(span, connectedMs))}, ${plural(ends, "end")}`;
  return (
    <div className="conn-line">
      <div className="conn-track" role="img" aria-label={words}>
        {sessions.map((one) => (
          <i
            key={one.no}
            className={one.endedAt === null ? "now" : ""}
            style={{ left: share(one.at), right: `calc(100% - ${share(one.endedAt ?? now)})` }}
            title={`${formatTime(one.at)}, ${formatDuration((one.endedAt ?? now) - one.at)}${one.code === null ? "" : `: ${one.message}`}`}
          />
        ))}
        {shown
          .filter((one) => one.session === null)
          .map((one) => (
            <b key={one.no} style={{ left: share(one.endedAt ?? one.at) }} title={one.message ?? ""} />
          ))}
      </div>
      <div className="row small faint num nowrap" style={{ justifyContent: "space-between" }}>
        <span>{formatClock(from)}</span>
        <span>now</span>
      </div>
      <div className="small dim num">{words}</div>
    </div>
  );
}
