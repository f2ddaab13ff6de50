import { join } from "node:path";
import { newCommandId, newId } from "@sallyport/protocol";
import t from "tap";
import { ManualClock } from "../../../test/support/clock.ts";
import { openJournal } from "../../journal/sqlite-journal.ts";
import { CANCEL_KEPT_MS, collectRecords } from "./records.ts";
import { CANCELS, NEW_STEP, runKey, RUNS, stepKey, type CancelRecord, type RunRecord } from "./run-record.ts";

t.test(
  "records of runs: the newest that are over stay, and all that is under way; cancels end with their time",
  async (t) => {
    const clock = new ManualClock();
    const journal = await openJournal({ file: join(t.testdir(), "journal.db"), clock });
    t.teardown(() => journal.close());
    const head = (more: Partial<RunRecord> = {}): RunRecord => ({
      format: 1,
      command: newCommandId(),
      pipeline: "p",
      state: "succeeded",
      createdAt: clock.now(),
      endedAt: clock.now(),
      error: null,
      ...more,
    });
    const begin = async (record: RunRecord) => {
      const run = newId("run");
      await journal.commit({
        put: [
          { namespace: RUNS, key: runKey(run), value: record },
          ...["a", "b"].map((step) => ({ namespace: RUNS, key: stepKey(run, step), value: NEW_STEP })),
          { namespace: CANCELS, key: run, value: { at: clock.now(), reason: "r" } satisfies CancelRecord },
        ],
      });
      await clock.advance(1000);
      return run;
    };
    const underWay = await begin(head({ state: "running", endedAt: null }));
    const letGo = await begin(head({ state: "running", endedAt: null }));
    const over = [];
    for (let n = 0; n < 20; n++) over.push(await begin(head()));
    const never = newId("run");
    await journal.put(CANCELS, never, { at: clock.now(), reason: "r" } satisfies CancelRecord);
    const runs = async () => new Set((await journal.entries(RUNS)).map(({ key }) => key.split("/")[0]));
    const cancels = async () => new Set((await journal.entries(CANCELS)).map(({ key }) => key));

    await collectRecords({ journal, clock }, async () => (run) => run === underWay, 21);
    t.equal((await runs()).size, 22, "all have room");
    await collectRecords({ journal, clock }, async () => (run) => run === underWay, 5);
    const left = [underWay, ...over.slice(-5)];
    t.same(await runs(), new Set(left), `${letGo}, which another agent has by now, is over here`);
    t.equal((await journal.entries(RUNS)).length, left.length * 3, "with their steps");
    t.same(await cancels(), new Set([...left, never]), "a run may still come for that one");
    await clock.advance(CANCEL_KEPT_MS + 1);
    await collectRecords({ journal, clock }, async () => (run) => run === underWay, 5);
    t.same(await cancels(), new Set(left));
  },
);
