// The short form of `npm run soak:link`: the link flaps and both programs stand still, while downloads, uploads and looks
// go on. No byte wrong, nothing hangs, and after every fault the link is there again.
import t from "tap";
import { linkRun } from "../soak/link-run.ts";

t.setTimeout(300_000);

t.test("every fault of the link once", { timeout: 280_000 }, async (t) => {
  const result = await linkRun(t, { seed: 1, forMs: 14_000, flapMs: [200, 2_000], frozenMs: 2_500, deadMs: 1_500 });
  t.comment(JSON.stringify({ ...result, violations: undefined }));
  t.same(result.violations, []);
  t.ok(
    Object.values(result.faults).every((count) => count > 0),
    "each kind was made",
  );
  t.ok(result.downloads.whole > 0 && result.uploads.whole > 0 && result.looks.answered > 0, "work was done");
});
