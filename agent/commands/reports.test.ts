import { join } from "node:path";
import {
  ConnectorError,
  ndjsonLine,
  newCommandId,
  readNdjson,
  reportSchema,
  systemClock,
  wait,
  type LinkStream,
  type Report,
} from "@sallyport/protocol";
import { pino } from "pino";
import t from "tap";
import { ManualClock } from "../../test/support/clock.ts";
import { openJournal } from "../journal/sqlite-journal.ts";
import { createRedactor } from "../redaction/index.ts";
import { ReportOutbox } from "./reports.ts";
import { testLink } from "./test-link.ts";

const clock = systemClock;
const log = pino({ enabled: false });

/** A control plane that commits in batches and forgets nothing. */
class Recorder {
  readonly received: Report[] = [];
  readonly committed = new Map<number, Report>();
  through = 0;
  /** The order in which numbers were first seen, over all sessions. */
  readonly first: number[] = [];

  async take(stream: LinkStream): Promise<void> {
    stream.respond({ type: "reports" });
    // As the control plane does: never beyond what came on this very stream, though earlier ones brought more.
    let here = 0;
    for await (const line of readNdjson(stream.bytes)) {
      const report = reportSchema.parse(line);
      here = report.sequence;
      this.received.push(report);
      if (!this.committed.has(report.sequence)) this.first.push(report.sequence);
      this.committed.set(report.sequence, report);
      this.through = Math.max(this.through, report.sequence);
      // Not each report is acknowledged by itself.
      if (this.received.length % 7 === 0 || report.sequence % 50 === 0)
        await stream.write(ndjsonLine({ committedThrough: Math.min(this.through, here) }));
    }
  }
}

t.test("sessions are cut at random moments: every report arrives, once after deduplication, in order", async (t) => {
  const folder = t.testdir();
  const file = join(folder, "journal.db");
  let journal = await openJournal({ file, clock });
  const redactor = createRedactor();
  redactor.add("correct-horse-battery");
  let outbox = new ReportOutbox({ journal, redactor, clock, log });
  const cloud = new Recorder();
  const total = 2000;
  let made = 0;
  const make = async () => {
    while (made < total) {
      const count = Math.min(total - made, 1 + Math.floor(Math.random() * 20));
      made += count;
      await journal.report(
        newCommandId(),
        Array.from({ length: count }, () => ({ type: "command.succeeded", result: "correct-horse-battery" }) as const),
      );
      await wait(clock, Math.random() * 5);
    }
  };
  let making = make();
  let sessions = 0;
  for (let over = false; !over;) {
    const link = await testLink({
      onCloudStream: (stream) =>
        void cloud.take(stream).catch((error: unknown) => stream.reset(error as ConnectorError)),
    });
    const serving = outbox.serve(link.session);
    sessions++;
    if (made < total || sessions < 10) {
      await wait(clock, Math.random() * 60);
      link.cut();
    } else {
      await making;
      // The last ones may have no acknowledgement of their own: the numbers are what counts.
      while (cloud.committed.size < total) await wait(clock, 5);
      over = true;
    }
    await link.close();
    await serving;
    if (sessions === 5) {
      // The agent starts again in between.
      await making;
      await journal.close();
      journal = await openJournal({ file, clock });
      outbox = new ReportOutbox({ journal, redactor, clock, log });
      making = make();
    }
  }
  t.equal(cloud.committed.size, total);
  t.ok(
    cloud.first.every((sequence, n) => sequence === n + 1),
    "in order, without a hole",
  );
  t.comment(`${sessions} sessions, ${cloud.received.length - total} reports came again`);
  t.notOk(
    cloud.received.some((report) => report.body.data.includes("horse")),
    "redacted on the way out",
  );
  await journal.close();
});

t.test("a refused stream is tried again while the session lives; flush waits for the acknowledgement", async (t) => {
  const journal = await openJournal({ file: join(t.testdir(), "journal.db"), clock });
  const outbox = new ReportOutbox({ journal, redactor: createRedactor(), clock, log, random: () => 0 });
  const cloud = new Recorder();
  let tries = 0;
  const link = await testLink({
    onCloudStream: (stream) => {
      if (++tries < 3) stream.reset(new ConnectorError("STORAGE_FULL", "not now"));
      else void cloud.take(stream).catch(() => undefined);
    },
  });
  await journal.report(
    newCommandId(),
    Array.from({ length: 6 }, () => ({ type: "command.running" }) as const),
  );
  t.equal(await outbox.flush(20), false, "nobody has acknowledged");
  const serving = outbox.serve(link.session);
  await journal.report(newCommandId(), [{ type: "command.running" }]);
  t.equal(await outbox.flush(5000), true);
  t.equal(journal.acknowledgedThrough, 7);
  t.same(await journal.reportsAfter(0, 10), [], "what is acknowledged is dropped");
  t.equal(tries, 3);
  await link.close();
  await serving;
  await journal.close();
});

t.test("an acknowledgement of what was never sent drops nothing", async (t) => {
  const journal = await openJournal({ file: join(t.testdir(), "journal.db"), clock });
  const outbox = new ReportOutbox({ journal, redactor: createRedactor(), clock, log });
  await journal.report(newCommandId(), [{ type: "command.running" }]);
  const reset = Promise.withResolvers<unknown>();
  const link = await testLink({
    onCloudStream: (stream) => {
      stream.respond({ type: "reports" });
      stream.signal.addEventListener("abort", () => reset.resolve(stream.signal.reason), { once: true });
      void stream.write(ndjsonLine({ committedThrough: 1000 })).catch(() => undefined);
    },
  });
  const serving = outbox.serve(link.session);
  t.match(await reset.promise, { code: "PROTOCOL_ERROR" });
  t.equal((await journal.reportsAfter(0, 10)).length, 1);
  await link.close();
  await serving;
  await journal.close();
});

t.test("a report of which nothing is heard is sent again", async (t) => {
  const time = new ManualClock();
  const journal = await openJournal({ file: join(t.testdir(), "journal.db"), clock });
  const outbox = new ReportOutbox({ journal, redactor: createRedactor(), clock: time, log });
  await journal.report(newCommandId(), [{ type: "command.running" }]);
  const came: number[] = [];
  let streams = 0;
  const take = async (stream: LinkStream): Promise<void> => {
    const loses = ++streams === 1;
    stream.respond({ type: "reports" });
    for await (const line of readNdjson(stream.bytes)) {
      const { sequence } = reportSchema.parse(line);
      came.push(sequence);
      if (!loses) await stream.write(ndjsonLine({ committedThrough: sequence }));
    }
  };
  const link = await testLink({ onCloudStream: (stream) => void take(stream).catch(() => undefined) });
  const serving = outbox.serve(link.session);
  while (came.length < 2) {
    await wait(clock, 5);
    if (came.length === 1) await time.advance(1000);
  }
  t.same(came, [1, 1]);
  const beginning = new ManualClock().now();
  t.ok(time.now() - beginning >= 15_000 && time.now() - beginning < 30_000, `after ${time.now() - beginning} ms`);
  t.equal(await outbox.flush(5000), true);
  await time.advance(60_000);
  t.same(came, [1, 1], "what was acknowledged is not sent again");
  await link.close();
  await serving;
  await journal.close();
});
