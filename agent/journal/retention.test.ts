// What the journal forgets, and what it must not: whatever the order of things and whatever the clocks say.
import { mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { jsonBody, newCommandId, systemClock, type CommandId } from "@sallyport/protocol";
import fc from "fast-check";
import t from "tap";
import { compactionTime } from "./compaction-time.ts";
import { JournalFile } from "./journal-file.ts";
import type { JournaledCommand } from "./journal.ts";
import { openJournal } from "./sqlite-journal.ts";

t.setTimeout(600_000);
const HOUR = 3600_000;
const command = (id: CommandId, expires: number, resource = "run:1") => ({
  id,
  kind: "pipeline.run",
  resource,
  intent: '{"a":1}',
  body: jsonBody({ run: 1 }),
  acceptedAt: 1,
  expires,
});

const pick = fc.nat({ max: 1 << 16 });
const happening = fc.oneof(
  { weight: 5, arbitrary: fc.record({ what: fc.constant("accept" as const), a: pick, b: pick }) },
  { weight: 6, arbitrary: fc.record({ what: fc.constant("advance" as const), a: pick, b: pick }) },
  { weight: 2, arbitrary: fc.record({ what: fc.constant("report" as const), a: pick, b: pick }) },
  { weight: 1, arbitrary: fc.record({ what: fc.constant("release" as const), a: pick, b: pick }) },
  { weight: 4, arbitrary: fc.record({ what: fc.constant("acknowledge" as const), a: pick, b: pick }) },
  { weight: 4, arbitrary: fc.record({ what: fc.constant("compact" as const), a: pick, b: pick }) },
  { weight: 1, arbitrary: fc.record({ what: fc.constant("reopen" as const), a: pick, b: pick }) },
  // The cloud's clock: on by moments, hours, a day, or back.
  {
    weight: 4,
    arbitrary: fc.record({
      what: fc.constant("pass" as const),
      a: fc.constantFrom(1000, HOUR / 2, 2 * HOUR, 3 * HOUR, 24 * HOUR, -24 * HOUR),
      b: pick,
    }),
  },
);

t.test(
  "compaction forgets only ended commands past their expiry that owe no report; and those it does forget",
  async (t) => {
    let forgotten = 0;
    let kept = 0;
    fc.assert(
      fc.property(fc.array(happening, { minLength: 5, maxLength: 60, size: "max" }), (story) => {
        const folder = mkdtempSync(join(tmpdir(), "sallyport-journal-"));
        try {
          const options = { file: join(folder, "journal.db"), maxBytes: 1 << 26 };
          let journal = new JournalFile(options);
          const held = new Map<CommandId, { state: JournaledCommand["state"]; expires: number }>();
          let owed: { sequence: number; command: CommandId }[] = [];
          let now = 1_000 * HOUR;
          let dispatched = 0;
          let last = 0;
          const one = (choice: number): CommandId =>
            [...held.keys()][choice % Math.max(1, held.size)] ?? newCommandId();
          const did = (id: CommandId): void => void owed.push({ sequence: ++last, command: id });
          for (const { what, a, b } of story) {
            const { operations } = journal;
            journal.transaction(() => {
              switch (what) {
                case "pass":
                  return void (now += a);
                case "accept": {
                  const id = b % 4 === 0 ? one(a) : newCommandId();
                  const expires = now + [1000, HOUR, HOUR, 24 * HOUR][(b >> 2) % 4]!;
                  const before = held.get(id);
                  const answer = operations.accept(command(id, expires), { incarnation: "i", sequence: ++dispatched });
                  const known = before !== undefined && before.state !== "released";
                  if (answer.known !== known) throw new Error(`${id} is ${known ? "" : "not "}known`);
                  if (!known) held.set(id, { state: "accepted", expires: before?.expires ?? expires });
                  return;
                }
                case "advance": {
                  const id = one(a);
                  const state = (["running", "succeeded", "failed", "cancelled"] as const)[b % 4]!;
                  const of = held.get(id);
                  const open = of?.state === "accepted" || of?.state === "running";
                  if (operations.advance(id, state, [{ type: "command.running" }], now) !== open)
                    throw new Error(`${id}: an end flips`);
                  if (!open) return;
                  of.state = state;
                  return did(id);
                }
                case "report":
                  operations.report(one(a), [{ type: "command.running" }], now);
                  return did(one(a));
                case "release": {
                  const of = held.get(one(a));
                  if (of === undefined || of.state === "released") return;
                  operations.release(one(a), now);
                  of.state = "released";
                  return did(one(a));
                }
                case "acknowledge": {
                  const through = last - (a % 2) * (b % 3);
                  operations.acknowledge(through);
                  owed = owed.filter((report) => report.sequence > through);
                  return;
                }
                case "compact": {
                  operations.compact(now);
                  for (const [id, of] of held) {
                    const may =
                      of.state !== "accepted" &&
                      of.state !== "running" &&
                      of.expires < now - HOUR &&
                      !owed.some((report) => report.command === id);
                    const there = operations.command(id) !== null;
                    if (there === may)
                      throw new Error(`${id}, ${of.state}, is ${there ? "kept for ever" : "forgotten"}`);
                    if (there) kept++;
                    else {
                      held.delete(id);
                      forgotten++;
                    }
                  }
                  return;
                }
                case "reopen":
              }
            });
            if (what === "reopen") {
              journal.close();
              journal = new JournalFile(options);
            }
            const waiting = journal.operations.reportsAfter(0, 1000).map(({ sequence }) => sequence);
            if (waiting.join() !== owed.map(({ sequence }) => sequence).join())
              throw new Error(`reports ${waiting.join()} wait, ${owed.map((report) => report.sequence).join()} should`);
            if (journal.lastSequence() !== last) throw new Error("a number is used twice");
            for (const [id, of] of held)
              if (journal.operations.command(id)?.state !== of.state) throw new Error(`${id} is not ${of.state}`);
          }
          journal.close();
        } finally {
          rmSync(folder, { recursive: true, force: true });
        }
      }),
      { numRuns: 100 },
    );
    t.ok(forgotten > 10 && kept > 10, `${forgotten} forgotten, ${kept} kept`);
  },
);

t.test("20,000 commands come and go: the file and its log use their space again", async (t) => {
  const file = join(t.testdir(), "journal.db");
  const journal = await openJournal({ file, clock: systemClock });
  const round = 500;
  const rounds = 40;
  let now = 1_000 * HOUR;
  const bytes = (): number => statSync(file).size + (statSync(`${file}-wal`, { throwIfNoEntry: false })?.size ?? 0);
  let afterFirst = 0;
  let most = 0;
  for (let n = 0; n < rounds; n++) {
    const ids = Array.from({ length: round }, () => newCommandId());
    await Promise.all(
      ids.map(async (id, at) => {
        void journal.accept(command(id, now + HOUR, `run:${id}`), { incarnation: "i", sequence: n * round + at + 1 });
        void journal.advance(id, "running", [{ type: "command.running" }]);
        void journal.put("runs", id, { pad: "x".repeat(300) });
        await journal.advance(id, "succeeded", [{ type: "command.succeeded", result: { pad: "x".repeat(500) } }]);
      }),
    );
    await journal.acknowledge(journal.lastSequence);
    await journal.commit({ remove: ids.map((key) => ({ namespace: "runs", key })) });
    now += 3 * HOUR;
    t.equal(await journal.compact(now), round);
    most = Math.max(most, bytes());
    if (n === 4) afterFirst = bytes();
  }
  const kib = (size: number): string => `${Math.round(size / 1024)} KiB`;
  t.ok(most < 16 * 1024 * 1024, `never more than ${kib(most)}`);
  t.ok(bytes() <= afterFirst * 1.5, `${kib(afterFirst)} after ${5 * round} commands, ${kib(bytes())} after all`);
  await journal.close();
});

t.test("a clock that jumped lets nothing be forgotten that the other does not call expired", (t) => {
  const DAY = 24 * HOUR;
  const now = 1_000 * DAY;
  t.equal(compactionTime(now, now + 30), now);
  t.equal(compactionTime(now + DAY, now), now, "the cloud's went a day ahead");
  t.equal(compactionTime(now, now + DAY), now, "ours did");
  t.equal(compactionTime(now - DAY, now), now - DAY, "the cloud's was set back");
  t.equal(compactionTime(now, now - DAY), now - DAY, "ours was: it is forgotten a day later");
  t.equal(compactionTime(now, 0), now, "ours was never set");
  t.end();
});
