// The steps of a run over time. Rows are in the order of the DAG; thin lines say what each one waited for.
import { Tooltip } from "@mantine/core";
import { useElementSize } from "@mantine/hooks";
import { useMemo } from "react";
import { nowMs } from "../api/clock.ts";
import type { RunDetail } from "../api/types.ts";
import { formatClockMs, formatDuration } from "../parts/format.ts";
import { STEP_LOOKS, StatusIcon, UNKNOWN_LOOK, lookOf } from "../parts/status.tsx";
import { useNow } from "../parts/time.tsx";
import { layoutTimeline, type Bar, type Row } from "./timeline-layout.ts";

const ROW_PX = 32;

export function Timeline({
  run,
  selected,
  onSelect,
}: {
  run: RunDetail;
  selected: string | null;
  onSelect: (step: string, attempt?: number) => void;
}) {
  const ended = run.endedAt !== null;
  const now = useNow(!ended);
  const { ref, width } = useElementSize();
  const unknown = run.state === "unknown";
  const layout = useMemo(
    () =>
      layoutTimeline(
        {
          steps: run.spec.steps,
          attempts: run.attempts,
          createdAt: run.createdAt,
          startedAt: run.startedAt,
          endedAt: run.endedAt,
        },
        now,
        Math.max(3, Math.floor(width / 110)),
      ),
    [run, now, width],
  );
  const x = (share: number) => share * width;
  return (
    <div
      className="tl"
      role="listbox"
      aria-label="Steps on a time line"
      style={{ maxHeight: "46%", minHeight: Math.min(5, layout.rows.length) * ROW_PX + 28 }}
    >
      <div className="tl-grid tl-axis" aria-hidden>
        <div />
        <div ref={ref} style={{ position: "relative" }}>
          {layout.ticks.map((tick) => (
            <span key={tick.ms}>
              <i className="tl-gridline" style={{ left: x(tick.at) }} />
              {x(tick.at) < width - 44 && (
                <span className="tick" style={{ left: x(tick.at) }}>
                  {tick.ms === 0 ? "0" : formatDuration(tick.ms).replace(/ 00 [sm]$|\.0(?= )/, "")}
                </span>
              )}
            </span>
          ))}
        </div>
        <div />
      </div>
      <div style={{ position: "relative" }}>
        <div className="tl-grid" style={{ position: "absolute", inset: 0, pointerEvents: "none" }} aria-hidden>
          <div />
          <div style={{ position: "relative" }}>
            {layout.ticks.map((tick) => (
              <i key={tick.ms} className="tl-gridline" style={{ left: x(tick.at), opacity: 0.7 }} />
            ))}
          </div>
        </div>
        {layout.rows.map((row, n) => (
          <StepRow
            key={row.step.name}
            row={row}
            at={n}
            count={layout.rows.length}
            selected={row.step.name === selected}
            unknown={unknown}
            width={width}
            onSelect={onSelect}
          />
        ))}
        <div className="tl-grid tl-lines" aria-hidden>
          <div />
          <svg width={width} height={layout.rows.length * ROW_PX} style={{ overflow: "visible" }}>
            {layout.rows.flatMap((row, to) =>
              row.after.map((from) => {
                const source = layout.rows[from]!.bars.at(-1);
                const target = row.bars[0];
                if (!source || !target) return null;
                const x1 = x(source.to);
                const x2 = Math.max(x(target.from), 0);
                const y1 = from * ROW_PX + 24;
                const y2 = to * ROW_PX + 16;
                const mid = Math.max(2, Math.min(x1, x2) - 5);
                const d = x2 - x1 > 10 ? `M${x1 - 3},${y1} V${y2} H${x2}` : `M${mid},${y1} V${y2} H${x2}`;
                return <path key={`${from} ${to}`} d={d} fill="none" stroke="var(--idle-bar)" strokeWidth={1} />;
              }),
            )}
          </svg>
        </div>
      </div>
    </div>
  );
}

function StepRow({
  row,
  at,
  count,
  selected,
  unknown,
  width,
  onSelect,
}: {
  row: Row;
  at: number;
  count: number;
  selected: boolean;
  unknown: boolean;
  width: number;
  onSelect: (step: string, attempt?: number) => void;
}) {
  const look = lookOf(STEP_LOOKS, row.state);
  const retries = row.attempts.length - 1;
  return (
    <div
      className="tl-grid tl-row"
      role="option"
      aria-selected={selected}
      tabIndex={selected || (at === 0 && !selected) ? 0 : -1}
      onClick={() => onSelect(row.step.name)}
      onKeyDown={(event) => {
        if (event.key === "Enter" || event.key === " ") {
          event.preventDefault();
          onSelect(row.step.name);
        }
        const by =
          event.key === "ArrowDown" || event.key === "j" ? 1 : event.key === "ArrowUp" || event.key === "k" ? -1 : 0;
        if (by === 0 || at + by < 0 || at + by >= count) return;
        event.preventDefault();
        event.stopPropagation();
        const next = event.currentTarget.parentElement?.querySelectorAll<HTMLElement>("[role=option]")[at + by];
        next?.focus();
        next?.click();
      }}
    >
      <div className="tl-name">
        <StatusIcon look={unknown && row.state === "running" ? UNKNOWN_LOOK : look} size={15} />
        <span className="clip">{row.step.name}</span>
        <span className="sr">{unknown && row.state === "running" ? "unknown" : look.word}</span>
        {retries > 0 && (
          <span className="tag" title={`Attempt ${retries + 1}`}>
            {retries} {retries === 1 ? "retry" : "retries"}
          </span>
        )}
      </div>
      <div className="tl-lane">
        {row.wait && (
          <i
            className="tl-wait"
            style={{ left: row.wait.from * width, width: Math.max(0, (row.wait.to - row.wait.from) * width) }}
          />
        )}
        {row.bars.map((bar) => (
          <StepBar key={bar.attempt} bar={bar} row={row} unknown={unknown} width={width} onSelect={onSelect} />
        ))}
      </div>
      <div className="tl-dur">
        {row.tookMs === null ? "" : unknown && row.state === "running" ? "?" : formatDuration(row.tookMs)}
      </div>
    </div>
  );
}

function StepBar({
  bar,
  row,
  unknown,
  width,
  onSelect,
}: {
  bar: Bar;
  row: Row;
  unknown: boolean;
  width: number;
  onSelect: (step: string, attempt?: number) => void;
}) {
  const look = lookOf(STEP_LOOKS, bar.state);
  const attempt = row.attempts.find((each) => each.attempt === bar.attempt);
  const tone = unknown && bar.endedAt === null ? "warn" : look.tone;
  return (
    <Tooltip
      label={
        <div style={{ lineHeight: 1.5 }}>
          <b>{row.step.name}</b>
          {row.attempts.length > 1 && <>, attempt {bar.attempt}</>}
          <div>
            {look.word}
            {attempt?.exitCode != null && attempt.exitCode !== 0 && <> with exit code {attempt.exitCode}</>}
          </div>
          <div className="num">
            {formatClockMs(bar.startedAt)} – {bar.endedAt === null ? "now" : formatClockMs(bar.endedAt)}
          </div>
          <div className="num">{formatDuration((bar.endedAt ?? nowMs()) - bar.startedAt)}</div>
          {attempt?.adopted && <div>Taken over by a restarted agent</div>}
        </div>
      }
    >
      {/* oxlint-disable-next-line jsx-a11y/click-events-have-key-events, jsx-a11y/no-static-element-interactions -- the row holds focus and keys; this is its finer target for the mouse */}
      <div
        className={`tl-bar ${tone}`}
        style={{
          left: bar.from * width,
          width: Math.max(3, (bar.to - bar.from) * width),
          opacity: bar.attempt < row.attempts.length ? 0.55 : 1,
        }}
        onClick={(event) => {
          event.stopPropagation();
          onSelect(row.step.name, bar.attempt === row.attempts.length ? undefined : bar.attempt);
        }}
      />
    </Tooltip>
  );
}
