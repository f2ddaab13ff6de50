import fc from "fast-check";
import t from "tap";
import { Histogram } from "./histogram.ts";

t.test("percentiles are within 5 % of the exact ones", async (t) => {
  fc.assert(
    fc.property(
      fc.array(fc.double({ min: 0.05, max: 120_000, noNaN: true }), { minLength: 1, maxLength: 400 }),
      fc.constantFrom(0.5, 0.95, 0.99, 1),
      (times, p) => {
        const histogram = new Histogram();
        for (const time of times) histogram.record(time);
        const exact = [...times].sort((a, b) => a - b)[Math.max(1, Math.ceil(p * times.length)) - 1]!;
        return Math.abs(histogram.percentile(p)! - exact) <= exact * 0.05;
      },
    ),
    { numRuns: 500 },
  );
  const none = new Histogram();
  t.equal(none.percentile(0.5), null);
  none.record(1e12);
  t.ok(none.percentile(0.5)! > 4e6, "longest times count as the longest there is");
});
