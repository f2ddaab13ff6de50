// Where the bars of a run stand: pure geometry over time, no pixels and no drawing. Order is the order of the DAG.
import type { Attempt, PipelineStep, StepState } from "../api/types.ts";

export interface Bar {
  attempt: number;
  state: StepState;
  /** Share of the axis, 0 to 1. */
  from: number;
  to: number;
  startedAt: number;
  /** Null while it runs. */
  endedAt: number | null;
}
export interface Row {
  step: PipelineStep;
  /** State of the newest attempt; pending without one. */
  state: StepState;
  /** All attempts that began, oldest first. */
  attempts: Attempt[];
  bars: Bar[];
  /** From the moment when its last predecessor ended to its own start: time spent waiting. */
  wait: { from: number; to: number } | null;
  /** Rows of direct predecessors. */
  after: number[];
  /** Busy time of its newest attempt, in ms; null before it began. */
  tookMs: number | null;
}
export interface Timeline {
  rows: Row[];
  startMs: number;
  endMs: number;
  /** Share of the axis and ms since its start. */
  ticks: { at: number; ms: number }[];
}

/** Direct predecessors of a step: what it needs and who makes its inputs. */
export function predecessorsOf(step: PipelineStep): string[] {
  const from = Object.values(step.inputs).flatMap((input) => ("step" in input ? [input.step] : []));
  return [...new Set([...step.needs, ...from])];
}

/** Steps so that each comes after its predecessors and otherwise as written. A cycle (refused upstream) keeps its order. */
export function inOrder(steps: readonly PipelineStep[]): PipelineStep[] {
  const byName = new Map(steps.map((step) => [step.name, step]));
  const done = new Set<string>();
  const open = new Set<string>();
  const order: PipelineStep[] = [];
  const visit = (step: PipelineStep) => {
    if (done.has(step.name) || open.has(step.name)) return;
    open.add(step.name);
    for (const name of predecessorsOf(step)) {
      const before = byName.get(name);
      if (before) visit(before);
    }
    open.delete(step.name);
    done.add(step.name);
    order.push(step);
  };
  for (const step of steps) visit(step);
  return order;
}

const NICE_MS = [
  100, 200, 500, 1e3, 2e3, 5e3, 10e3, 15e3, 30e3, 60e3, 120e3, 300e3, 600e3, 900e3, 1800e3, 3600e3, 7200e3, 14400e3,
  21600e3, 43200e3, 86400e3,
];
/** Between `most / 2` and `most` round marks over `spanMs`, the first at 0. */
export function ticksOf(spanMs: number, most: number): number[] {
  const step = NICE_MS.find((each) => spanMs / each <= most) ?? Math.ceil(spanMs / most / 86400e3) * 86400e3;
  const ticks: number[] = [];
  for (let ms = 0; ms <= spanMs; ms += step) ticks.push(ms);
  return ticks;
}

export interface TimelineInput {
  steps: readonly PipelineStep[];
  attempts: readonly Attempt[];
  createdAt: number;
  startedAt: number | null;
  endedAt: number | null;
}

/** `nowMs` is where bars that still run end. An axis shorter than a second would show noise as structure. */
export function layoutTimeline(run: TimelineInput, nowMs: number, mostTicks = 8): Timeline {
  const began = run.attempts.flatMap((attempt) => (attempt.startedAt === null ? [] : [attempt.startedAt]));
  const startMs = Math.min(run.startedAt ?? run.createdAt, ...began);
  const ends = run.attempts.map((attempt) => attempt.endedAt ?? (attempt.startedAt === null ? startMs : nowMs));
  const endMs = Math.max(startMs + 1000, run.endedAt ?? nowMs, ...ends);
  const span = endMs - startMs;
  const share = (ms: number) => Math.min(1, Math.max(0, (ms - startMs) / span));

  const order = inOrder(run.steps);
  const rowOf = new Map(order.map((step, n) => [step.name, n]));
  const rows = order.map((step): Row => {
    const attempts = run.attempts.filter((attempt) => attempt.step === step.name).sort((a, b) => a.attempt - b.attempt);
    const bars = attempts.flatMap((attempt): Bar[] =>
      attempt.startedAt === null
        ? []
        : [
            {
              attempt: attempt.attempt,
              state: attempt.state,
              from: share(attempt.startedAt),
              to: share(attempt.endedAt ?? nowMs),
              startedAt: attempt.startedAt,
              endedAt: attempt.endedAt,
            },
          ],
    );
    const newest = attempts.at(-1);
    const before = predecessorsOf(step);
    const readyAt = before.map((name) => run.attempts.findLast((attempt) => attempt.step === name)?.endedAt ?? null);
    const ready = readyAt.includes(null) ? null : Math.max(startMs, ...(readyAt as number[]));
    const first = bars[0];
    return {
      step,
      state: newest?.state ?? "pending",
      attempts,
      bars,
      wait:
        first && ready !== null && first.startedAt - ready > span / 200 ? { from: share(ready), to: first.from } : null,
      after: before.flatMap((name) => rowOf.get(name) ?? []),
      tookMs: newest?.startedAt == null ? null : (newest.endedAt ?? nowMs) - newest.startedAt,
    };
  });
  return { rows, startMs, endMs, ticks: ticksOf(span, mostTicks).map((ms) => ({ at: ms / span, ms })) };
}
