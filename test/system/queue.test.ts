// Commands queue while their agent is away for an hour, time injected; the whole of it is `npm run soak:queue`.
import t from "tap";
import { onPostgres } from "../support/postgres.ts";
import { queueRun } from "../soak/queue-run.ts";

t.setTimeout(420_000);
const skip = onPostgres && "looks into SQLite by itself";

t.test(
  "2,000 commands for 200 resources while their agent is away for an hour",
  { skip, timeout: 400_000 },
  async (t) => {
    const result = await queueRun(t, { commands: 2000, drainMs: 150_000 });
    t.same(result.violations, [], "none lost, none twice, none out of order within its resource");
    t.equal(result.commands, 2000);
    t.comment(
      `submitted in ${(result.submitMs / 1000).toFixed(1)} s, ${result.begun} begun and ended in ${(result.drainMs / 1000).toFixed(1)} s`,
    );
  },
);
