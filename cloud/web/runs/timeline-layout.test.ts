import t from "tap";
import type { Attempt, PipelineStep } from "../api/types.ts";
import { inOrder, layoutTimeline, ticksOf } from "./timeline-layout.ts";

const step = (name: string, needs: string[] = [], inputs: PipelineStep["inputs"] = {}): PipelineStep => ({
  name,
  program: "node",
  args: [],
  needs,
  inputs,
  outputs: {},
  secrets: {},
  env: {},
  timeoutMs: 1000,
  retries: 0,
  resources: { cpus: 1, memoryBytes: 512 * 1024 ** 2 },
});
const attempt = (
  name: string,
  n: number,
  startedAt: number | null,
  endedAt: number | null,
  state: Attempt["state"] = "succeeded",
): Attempt => ({
  step: name,
  attempt: n,
  state,
  startedAt,
  endedAt,
  exitCode: null,
  error: null,
  outputs: [],
  logSeq: 0,
  adopted: false,
  retryAt: null,
});

t.test("steps stand in the order of the DAG, whatever order they are written in", async (t) => {
  const steps = [
    step("evaluate", [], { model: { step: "train", output: "model" } }),
    step("train", ["prepare"]),
    step("prepare"),
  ];
  t.same(
    inOrder(steps).map((each) => each.name),
    ["prepare", "train", "evaluate"],
  );
  t.equal(inOrder([step("a", ["b"]), step("b", ["a"])]).length, 2, "a cycle loses no step and ends");
});

t.test("bars, attempts and waiting", async (t) => {
  const run = { steps: [step("a"), step("b", ["a"]), step("c", ["b"])], createdAt: 0, startedAt: 1000, endedAt: null };
  const layout = layoutTimeline(
    {
      ...run,
      attempts: [
        attempt("a", 1, 1000, 3000),
        attempt("b", 2, 8000, null, "running"),
        attempt("b", 1, 5000, 6000, "failed"),
      ],
    },
    11_000,
  );
  const [a, b, c] = layout.rows;
  t.equal(layout.startMs, 1000);
  t.equal(layout.endMs, 11_000, "the axis ends now while the run goes on");
  t.match(a!.bars, [{ from: 0, to: 0.2 }]);
  t.match(b!.bars, [
    { attempt: 1, from: 0.4, to: 0.5, state: "failed" },
    { attempt: 2, from: 0.7, to: 1, endedAt: null },
  ]);
  t.same(b!.wait, { from: 0.2, to: 0.4 }, "from the end of its predecessor to its first start");
  t.equal(b!.tookMs, 3000, "of the newest attempt");
  t.match(c, { state: "pending", bars: [], wait: null, tookMs: null, after: [1] });
});

t.test("a run that has not begun, and one that took no time", async (t) => {
  t.equal(
    layoutTimeline({ steps: [step("a")], attempts: [], createdAt: 5000, startedAt: null, endedAt: null }, 5000).endMs,
    6000,
  );
  const quick = layoutTimeline(
    { steps: [step("a")], attempts: [attempt("a", 1, 100, 100)], createdAt: 100, startedAt: 100, endedAt: 100 },
    9e9,
  );
  t.match(quick.rows[0]!.bars, [{ from: 0, to: 0 }]);
});

t.test("marks are round and few", async (t) => {
  t.same(ticksOf(19_800, 8), [0, 5000, 10_000, 15_000]);
  for (const span of [1000, 7777, 61_000, 3.7e6, 9e7, 4e9]) {
    const ticks = ticksOf(span, 8);
    t.ok(ticks.length >= 2 && ticks.length <= 9, `${span} ms: ${ticks.length}`);
  }
});
