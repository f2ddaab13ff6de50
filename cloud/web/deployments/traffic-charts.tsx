// The last hour at an endpoint: three small charts drawn by hand, and the same figures as a table. Minutes of which
// nothing was reported are holes, never zeros.
import { Button } from "@mantine/core";
import { IconChartLine, IconTable } from "@tabler/icons-react";
import { useElementSize } from "@mantine/hooks";
import { useState } from "react";
import type { Rollup } from "../api/types.ts";
import { formatClock, formatCount, formatLatency, formatRate, plural } from "../parts/format.ts";
import { useNow } from "../parts/time.tsx";
import { MINUTES, MINUTE_MS, lastHour, linePath, niceTop, sumOf } from "./traffic.ts";

const HEIGHT = 92;
const TOP = 8;
const FOOT = 16;

interface Series {
  word: string;
  tone: "run" | "second" | "bad";
  values: (number | null)[];
}
interface ChartProps {
  title: string;
  series: Series[];
  bars?: boolean;
  format: (value: number) => string;
  times: number[];
  /** Which minute the reader points at; shared by the three. */
  at: number | null;
  onAt: (at: number | null) => void;
  summary: string;
}

function Chart({ title, series, bars, format, times, at, onAt, summary }: ChartProps) {
  const { ref, width } = useElementSize();
  const most = Math.max(0, ...series.flatMap((each) => each.values.map((value) => value ?? 0)));
  const top = niceTop(most);
  const x = (n: number) => (n / (MINUTES - 1)) * Math.max(1, width - 4) + 2;
  const y = (value: number) => HEIGHT - FOOT - (value / top) * (HEIGHT - FOOT - TOP);
  const pointed = at ?? MINUTES - 1;
  return (
    <figure className="chart">
      <figcaption>
        <span className="t">{title}</span>
        <span className="v num">
          {series.map((each) => {
            const value = each.values[pointed];
            return (
              <span key={each.word} className="row" style={{ gap: 5 }}>
                {series.length > 1 && <i className={`key ${each.tone}`} aria-hidden />}
                {series.length > 1 && <span className="faint">{each.word}</span>}
                {value === null || value === undefined ? <span className="faint">–</span> : format(value)}
              </span>
            );
          })}
        </span>
      </figcaption>
      <div ref={ref}>
        <svg
          width={width || "100%"}
          height={HEIGHT}
          role="img"
          aria-label={`${title}, last hour. ${summary}`}
          onPointerMove={(event) => {
            const box = event.currentTarget.getBoundingClientRect();
            const n = Math.round(((event.clientX - box.left - 2) / Math.max(1, box.width - 4)) * (MINUTES - 1));
            onAt(Math.min(MINUTES - 1, Math.max(0, n)));
          }}
          onPointerLeave={() => onAt(null)}
        >
          <line className="grid" x1={0} x2={width} y1={y(top)} y2={y(top)} />
          <line className="grid" x1={0} x2={width} y1={y(top / 2)} y2={y(top / 2)} />
          <line className="base" x1={0} x2={width} y1={y(0) + 0.5} y2={y(0) + 0.5} />
          <text x={2} y={y(top) + 11}>
            {format(top)}
          </text>
          <text x={2} y={HEIGHT - 3}>
            {formatClock(times[0]!)}
          </text>
          <text x={width - 2} y={HEIGHT - 3} textAnchor="end">
            {formatClock(times.at(-1)!)}
          </text>
          {at !== null && <line className="cross" x1={x(at)} x2={x(at)} y1={TOP} y2={y(0)} />}
          {bars
            ? series[0]!.values.map((value, n) =>
                value === null || value === 0 ? null : (
                  <rect
                    key={times[n]}
                    className={series[0]!.tone}
                    x={x(n) - Math.max(1, width / MINUTES / 2 - 1)}
                    width={Math.max(2, width / MINUTES - 2)}
                    y={y(value)}
                    height={y(0) - y(value)}
                  />
                ),
              )
            : series.map((each) => <path key={each.word} className={each.tone} d={linePath(each.values, x, y)} />)}
          {at !== null && (
            <text className="at" x={Math.min(width - 34, Math.max(34, x(at)))} y={HEIGHT - 3} textAnchor="middle">
              {formatClock(times[at]!)}
            </text>
          )}
        </svg>
      </div>
    </figure>
  );
}

export function Traffic({ rollups, silent }: { rollups: Rollup[]; silent: boolean }) {
  const now = useNow();
  const [at, setAt] = useState<number | null>(null);
  const [table, setTable] = useState(false);
  const hour = lastHour(rollups, now);
  const known = hour.flatMap(({ rollup }) => (rollup === null ? [] : [rollup]));
  const sum = sumOf(known);
  const times = hour.map((each) => each.at);
  const of = (value: (rollup: Rollup) => number | null) =>
    hour.map(({ rollup }) => (rollup === null ? null : value(rollup)));
  const most = (values: (number | null)[]) => Math.max(0, ...values.map((value) => value ?? 0));
  const rates = of((each) => each.requests / 60);
  const p95 = of((each) => each.p95Ms);
  const shared = { times, at, onAt: setAt };
  return (
    <section className="card" aria-label="Traffic">
      <div className="card-head">
        <h2>Traffic</h2>
        <span className="faint small clip num">
          {known.length === 0
            ? "last hour"
            : `last hour: ${plural(sum.requests, "request")}, ${plural(sum.errors, "error")}, ${formatCount(sum.retries)} sent to a second replica`}
          {at !== null && hour[at]!.rollup === null && ` · ${formatClock(times[at]!)}: not reported`}
        </span>
        {known.length > 0 && (
          <Button
            ml="auto"
            variant="default"
            size="compact-xs"
            leftSection={table ? <IconChartLine size={13} /> : <IconTable size={13} />}
            onClick={() => setTable(!table)}
          >
            {table ? "Show as charts" : "Show as a table"}
          </Button>
        )}
      </div>
      {known.length === 0 ? (
        <div className="card-body dim">
          {silent
            ? "Nothing was reported in the last hour: the agent is silent. Requests at the endpoint do not depend on that."
            : "No whole minute was reported yet. The router counts requests at the endpoint and reports each minute: how many, how long they took, how many failed. Never what was in them."}
        </div>
      ) : table ? (
        <div className="chart-table" tabIndex={0} role="region" aria-label="Traffic by minute">
          <table className="plain-table">
            <thead>
              <tr>
                <th>Minute until</th>
                <th className="right">Requests per second</th>
                <th className="right">p50</th>
                <th className="right">p95</th>
                <th className="right">p99</th>
                <th className="right">Errors</th>
                <th className="right">Second replica</th>
              </tr>
            </thead>
            <tbody>
              {known.toReversed().map((each) => (
                <tr key={each.at}>
                  <td className="num">{formatClock(each.at)}</td>
                  <td className="right num">{formatRate(each.requests)}</td>
                  <td className="right num">{formatLatency(each.p50Ms)}</td>
                  <td className="right num">{formatLatency(each.p95Ms)}</td>
                  <td className="right num">{formatLatency(each.p99Ms)}</td>
                  <td className={`right num${each.errors > 0 ? " tone-bad" : ""}`}>{formatCount(each.errors)}</td>
                  <td className="right num">{formatCount(each.retries)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      ) : (
        <div className="charts">
          <Chart
            {...shared}
            title="Requests per second"
            series={[{ word: "requests", tone: "run", values: rates }]}
            format={(rate) => formatRate(rate * 60)}
            summary={`At most ${formatRate(most(rates) * 60)}.`}
          />
          <Chart
            {...shared}
            title="Time to answer"
            series={[
              { word: "p50", tone: "run", values: of((each) => each.p50Ms) },
              { word: "p95", tone: "second", values: p95 },
            ]}
            format={formatLatency}
            summary={`95 of 100 requests within ${formatLatency(most(p95))} in the slowest minute.`}
          />
          <Chart
            {...shared}
            title="Errors a minute"
            bars
            series={[{ word: "errors", tone: "bad", values: of((each) => each.errors) }]}
            format={(value) => formatCount(Math.round(value))}
            summary={sum.errors === 0 ? "None." : `${plural(sum.errors, "error")} in all.`}
          />
        </div>
      )}
    </section>
  );
}

/** A rollup older than this says nothing of now. */
export const isFresh = (rollup: Rollup | null, nowMs: number): boolean =>
  rollup !== null && nowMs - rollup.at < 3 * MINUTE_MS;
