// The short form of `npm run soak:chaos`: work goes on while the link is cut every few seconds and dispatches, reports
// and their acknowledgements are lost, repeated and moved. Lost 0, double 0, order kept within a resource.
import t from "tap";
import { chaosRun } from "../soak/chaos-run.ts";

t.setTimeout(300_000);

t.test("chaos for 20 s", { timeout: 300_000 }, async (t) => {
  const result = await chaosRun(t, {
    seed: 1,
    forMs: 20_000,
    engine: "process",
    database: null,
    width: 4,
    drainMs: 120_000,
  });
  t.comment(JSON.stringify({ ...result, violations: undefined, said: undefined }));
  t.same(result.violations, []);
  t.ok(result.runs > 0 && result.applies > 0, "work was done");
  t.ok(result.links > 1, "links were cut");
  t.ok(Object.keys(result.messages).length > 3, "messages were broken");
});
