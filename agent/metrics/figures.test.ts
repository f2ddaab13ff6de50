// The text that a scraper reads, parsed as strictly as its format is described, and what bounds it.
import t from "tap";
import { parseExposition, valueOf } from "../../test/support/exposition.ts";
import { Figures } from "./figures.ts";

t.test("counters, histograms and what is read at the scrape", async (t) => {
  const figures = new Figures();
  const count = figures.counter("x_things_total", "Things", [{ kind: "none yet" }]);
  const seconds = figures.histogram("x_wait_seconds", "Waiting", [0.1, 1]);
  let disk: number | null = null;
  figures.gauge("x_disk_bytes", "Room", () => disk);
  figures.total("x_read_total", "Kept elsewhere", () => [{ labels: { way: 'a "quoted"\\\n' }, value: 3 }]);
  for (const value of [0.05, 0.1, 0.5, 5]) seconds(value, { kind: "a" });
  count({ kind: "a" }, 2);
  count({ kind: "a" });
  const families = parseExposition(figures.text());
  t.equal(valueOf(families, "x_things_total", { kind: "a" }), 3);
  t.equal(valueOf(families, "x_things_total", { kind: "none yet" }), 0);
  t.same(
    families.get("x_wait_seconds")!.series.map(({ labels, value }) => [labels["le"], value]),
    [
      ["0.1", 2],
      ["1", 3],
      ["+Inf", 4],
      [undefined, 5.65],
      [undefined, 4],
    ],
  );
  t.same(families.get("x_disk_bytes")!.series, [], "what is not known is not told");
  disk = 7;
  t.equal(valueOf(parseExposition(figures.text()), "x_disk_bytes"), 7);
  t.equal(families.get("x_read_total")!.series[0]!.labels["way"], 'a \\"quoted\\"\\\\\\n');
});

t.test("labels that should have been from a closed list cost no more than 200 series, and lose no count", async (t) => {
  const figures = new Figures();
  const count = figures.counter("x_total", "Things");
  const seconds = figures.histogram("x_seconds", "Waiting", [1]);
  for (let n = 0; n < 10_000; n++) {
    count({ path: `p${n}` });
    seconds(0.5, { path: `p${n}` });
  }
  const families = parseExposition(figures.text());
  const series = families.get("x_total")!.series;
  t.equal(series.length, 201);
  t.equal(
    series.reduce((sum, one) => sum + one.value, 0),
    10_000,
  );
  t.equal(valueOf(families, "x_total", { path: "other" }), 9_800);
  t.ok(figures.text().length < 60_000);
});
