import t from "tap";
import { isShare, metricsOf, wordsOf } from "../viewers/metrics.ts";
import { cutAt, findLines } from "../viewers/lines.ts";
import { readPipeline } from "../runs/read-pipeline.ts";
import { formatAgo, formatBytes, formatDuration, formatFigure, shortId, stripAnsi } from "./format.ts";

t.test("figures", async (t) => {
  const bytes: [number | null, string][] = [
    [null, "–"],
    [0, "0 B"],
    [999, "999 B"],
    [1000, "1 KB"],
    [999_499, "999 KB"],
    [999_500, "1 MB"],
    [1234, "1.23 KB"],
    [5_368_709_120, "5.37 GB"],
  ];
  for (const [value, text] of bytes) t.equal(formatBytes(value), text);
  const durations: [number | null, string][] = [
    [null, "–"],
    [0, "0 ms"],
    [999, "999 ms"],
    [999.9, "1.0 s"],
    [9949, "9.9 s"],
    [9960, "10 s"],
    [59_600, "1 m 00 s"],
    [187_000, "3 m 07 s"],
    [3_599_600, "1 h 00 m"],
    [7_440_000, "2 h 04 m"],
    [277_200_000, "3 d 5 h"],
  ];
  for (const [value, text] of durations) t.equal(formatDuration(value), text);
  t.equal(formatAgo(1000, 2000), "just now");
  t.equal(formatAgo(0, 59_999), "59 s ago");
  t.equal(formatAgo(0, 3_600_000), "1 h ago");
  t.equal(formatAgo(2_400_000, 0), "in 40 min");
  t.equal(formatAgo(30 * 86_400_000 - 5_000, 0), "in 30 d", "what lies ahead is rounded");
  t.equal(formatFigure(0.97214999), "0.97215");
  t.equal(formatFigure(22026), "22,026");
  t.equal(formatFigure(0.0000123), "1.230e-5");
  t.equal(shortId(`run_${"0".repeat(24)}1abcdef2`), "run_…1abcdef2");
  t.equal(stripAnsi("\u001b[1;31mbold\u001b[0m \u001b]0;title\u0007x"), "bold x");
});

t.test("what is a set of metrics", async (t) => {
  t.match(metricsOf({ accuracy: 0.97, perClass: { one: 1 } }), [{ title: "" }, { title: "perClass" }]);
  for (const other of [null, 3, [], {}, { a: "x" }, { a: [1] }, { a: { b: { c: 1 } } }])
    t.equal(metricsOf(other), null, JSON.stringify(other));
  t.equal(wordsOf("testAccuracy"), "Test accuracy");
  t.ok(isShare("test_accuracy", 0.9));
  t.notOk(isShare("loss", 0.9));
});

t.test("searching lines", async (t) => {
  t.same(findLines([{ text: "Ab" }, { text: "c" }, { text: "xAB" }], "ab"), [0, 2]);
  t.same(findLines([{ text: "a" }], ""), []);
  t.same(cutAt("xAbyab", "ab"), ["x", "Ab", "y", "ab", ""]);
});

t.test("reading a pipeline's text for the form", async (t) => {
  t.same(readPipeline(" "), { pipeline: null, problem: null });
  t.match(readPipeline("{"), { pipeline: null, problem: /not JSON/ });
  t.match(readPipeline("[]").problem, /object/);
  t.match(readPipeline('{"name":"x","steps":[]}').problem, /steps/);
  t.match(
    readPipeline(
      '{"name":"x","params":{"n":{"default":3},"must":{}},"steps":[{"name":"b","program":"p","needs":["a"],"inputs":{"i":{"step":"a","output":"o"}}}]}',
    ).pipeline,
    {
      steps: [{ name: "b", program: "p", after: ["a"] }],
      params: [
        { name: "n", fallback: 3 },
        { name: "must", fallback: undefined },
      ],
    },
  );
});
