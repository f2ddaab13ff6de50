import { execFileSync, spawn } from "node:child_process";
import {
  closeSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { monitorEventLoopDelay } from "node:perf_hooks";
import { jsonBody, newCommandId, systemClock, type CommandId } from "@sallyport/protocol";
import t from "tap";
import { openJournal, type SqliteJournal } from "./sqlite-journal.ts";

const command = (id: CommandId = newCommandId(), expires = Date.now() + 60_000) => ({
  id,
  kind: "pipeline.run",
  resource: "run:1",
  intent: '{"a":1}',
  body: jsonBody({ run: 1 }),
  acceptedAt: Date.now(),
  expires,
});
const from = (sequence: number) => ({ incarnation: "inc", sequence });
const open = (file: string, maxBytes?: number) =>
  openJournal({ file, clock: systemClock, ...(maxBytes === undefined ? {} : { maxBytes }) });

t.test("a command is held once, moves forward only, and its reports keep their numbers", async (t) => {
  const file = join(t.testdir(), "state/journal.db");
  let journal = await open(file);
  t.equal(statSync(file).mode & 0o777, 0o600);
  t.equal(statSync(join(file, "..")).mode & 0o777, 0o700);
  t.equal(journal.startCounter, 1);
  const { id } = journal;
  const first = command();
  t.same(await journal.accept(first, from(7)), { known: false, state: "accepted" });
  t.same(await journal.accept(first, from(9)), { known: true, state: "accepted" });
  t.equal(await journal.advance(first.id, "running", [{ type: "command.running" }]), true);
  t.same(
    (await journal.open()).map((held) => [held.id, held.state]),
    [[first.id, "running"]],
  );
  t.equal(await journal.advance(first.id, "succeeded", [{ type: "command.succeeded", result: 1 }]), true);
  t.equal(
    await journal.advance(first.id, "failed", [{ type: "command.cancelled", stopped: [] }]),
    false,
    "a terminal state never changes",
  );
  t.same(await journal.open(), []);
  await journal.commit({
    put: [
      { namespace: "run", key: "a%", value: { x: 1 } },
      { namespace: "run", key: "ab", value: 2 },
    ],
    command: first.id,
    reports: [{ type: "command.running" }],
  });
  t.same(await journal.entries("run", "a%"), [{ key: "a%", value: { x: 1 } }]);
  t.same(await journal.get("run", "none"), undefined);
  await journal.acknowledge(2);
  await journal.close();
  await t.rejects(journal.open(), { code: "JOURNAL_UNAVAILABLE" });

  journal = await open(file);
  t.equal(journal.id, id);
  t.equal(journal.startCounter, 2);
  t.same(journal.dispatchSequences, { inc: 9 });
  t.equal(journal.acknowledgedThrough, 2);
  t.same(
    (await journal.reportsAfter(0, 10)).map((report) => report.sequence),
    [3],
  );
  await journal.acknowledge(3);
  t.equal(await journal.compact(Date.now()), 0, "the intent could still be offered again");
  t.equal(await journal.compact(Date.now() + 2 * 3600_000), 1);
  await journal.report(first.id, [{ type: "command.running" }]);
  t.same(
    (await journal.reportsAfter(0, 10)).map((report) => report.sequence),
    [4],
    "a number is never used twice",
  );
  await journal.close();
});

t.test("whoever waits for a report is woken by it, or by the signal", async (t) => {
  const journal = await open(join(t.testdir(), "journal.db"));
  const woken = journal.changed(0, new AbortController().signal);
  await journal.report(newCommandId(), [{ type: "command.running" }]);
  await woken;
  const stop = new AbortController();
  const never = journal.changed(1, stop.signal);
  stop.abort();
  await never;
  await journal.close();
});

t.test("operations that wait together share a commit, and the event loop waits for none", async (t) => {
  const journal = await open(join(t.testdir(), "journal.db"));
  const delay = monitorEventLoopDelay({ resolution: 5 });
  delay.enable();
  const started = performance.now();
  const count = 4000;
  await Promise.all(Array.from({ length: count }, (_, n) => journal.accept(command(), from(n + 1))));
  const perSecond = count / ((performance.now() - started) / 1000);
  delay.disable();
  t.comment(`${Math.round(perSecond)} accepted commands/s, longest event loop delay ${Math.round(delay.max / 1e6)} ms`);
  t.ok(perSecond > 1500, "faster than one fsync each");
  t.equal((await journal.open()).length, count);
  await journal.close();
});

/** Accepts and ends commands on eight lanes, and prints each fact once the journal has acknowledged it. */
const writer = (file: string) => `
import { jsonBody, newCommandId, systemClock } from "@sallyport/protocol";
import { openJournal } from ${JSON.stringify(new URL("./sqlite-journal.ts", import.meta.url).href)};
const journal = await openJournal({ file: ${JSON.stringify(file)}, clock: systemClock });
let sequence = 0;
const lane = async () => {
  for (;;) {
    const id = newCommandId();
    await journal.accept({ id, kind: "k.k", resource: "r", intent: "{}", body: jsonBody({ pad: "x".repeat(Math.random() * 4000) }), acceptedAt: 1, expires: 2 }, { incarnation: "i", sequence: ++sequence });
    process.stdout.write("accepted " + id + "\\n");
    await journal.advance(id, "running", [{ type: "command.running" }]);
    process.stdout.write("running " + id + "\\n");
    await journal.commit({ put: [{ namespace: "n", key: id, value: 1 }], command: id, reports: [{ type: "command.running" }] });
    process.stdout.write("put " + id + "\\n");
    await journal.advance(id, "succeeded", [{ type: "command.succeeded", result: null }]);
    process.stdout.write("succeeded " + id + "\\n");
  }
};
await Promise.all(Array.from({ length: 8 }, lane));
`;

t.test("killed at a random moment, it holds every record that it acknowledged", async (t) => {
  const file = join(t.testdir(), "journal.db");
  const program = join(file, "../writer.ts");
  writeFileSync(program, writer(file));
  const rank = { accepted: 0, running: 1, put: 2, succeeded: 3 } as Record<string, number>;
  const facts = new Map<string, number>();
  const rounds = 8;
  for (let round = 0; round < rounds; round++) {
    const child = spawn(process.execPath, [program], { stdio: ["ignore", "pipe", "inherit"] });
    const killAfter = 20 + Math.floor(Math.random() * 400);
    let lines = 0;
    for await (const line of createInterface({ input: child.stdout })) {
      const [fact, id] = line.split(" ") as [string, string];
      facts.set(id, Math.max(facts.get(id) ?? 0, rank[fact]!));
      if (++lines === killAfter) child.kill("SIGKILL");
    }
    t.ok(lines >= killAfter);
  }
  const journal = await open(file);
  t.equal(journal.startCounter, rounds + 1);
  let lost = 0;
  for (const [id, fact] of facts) {
    const held = await journal.command(id as CommandId);
    if (held === null) lost++;
    else if (fact === 3 && held.state !== "succeeded") lost++;
    else if (fact >= 1 && held.state === "accepted") lost++;
    if (fact >= 2 && (await journal.get("n", id)) !== 1) lost++;
  }
  t.equal(lost, 0, `${facts.size} commands acknowledged over ${rounds} kills, none lost`);
  const reports = await journal.reportsAfter(0, 1_000_000);
  t.ok(
    reports.every((report, n) => report.sequence === n + 1),
    "numbers have no hole",
  );
  const puts = await journal.entries("n");
  const twos = new Map<string, number>();
  for (const report of reports)
    if (report.body.data.includes("running")) twos.set(report.command, (twos.get(report.command) ?? 0) + 1);
  t.ok(
    puts.every(({ key }) => twos.get(key) === 2),
    "a record and the reports of its commit never part",
  );
  await journal.close();
});

t.test("a file that is damaged, emptied or newer is refused and left as it is", async (t) => {
  const file = join(t.testdir(), "journal.db");
  const journal = await open(file);
  for (let n = 1; n < 300; n++) void journal.accept(command(), from(n));
  await journal.open();
  await journal.close();
  const whole = readFileSync(file);

  const handle = openSync(file, "r+");
  writeSync(handle, Buffer.alloc(4096, 0x5a), 0, 4096, 8192);
  closeSync(handle);
  const damaged = readFileSync(file);
  await t.rejects(open(file), { code: "JOURNAL_UNAVAILABLE", message: /damaged/, fix: /never replaced by itself/ });
  t.ok(readFileSync(file).equals(damaged), "left as it was");

  truncateSync(file, 0);
  await t.rejects(open(file), { code: "JOURNAL_UNAVAILABLE", message: /empty/ });
  writeFileSync(file, "not a database, but of some length, so that it is read as one".repeat(100));
  await t.rejects(open(file), { code: "JOURNAL_UNAVAILABLE", message: /no journal/ });
  rmSync(file);
  writeFileSync(`${file}-wal`, "");
  await t.rejects(open(file), { code: "JOURNAL_UNAVAILABLE", message: /-wal file/ });
  rmSync(`${file}-wal`);

  writeFileSync(file, whole);
  const again = await open(file);
  t.equal((await again.open()).length, 299);
  await again.close();
});

t.test("a journal at its cap takes no new commands but ends those it has", async (t) => {
  const journal = await open(join(t.testdir(), "journal.db"), 256 * 1024);
  const held: CommandId[] = [];
  const refused = await (async () => {
    for (;;) {
      const next = { ...command(), body: jsonBody("x".repeat(5000)) };
      try {
        await journal.accept(next, from(held.length + 1));
        held.push(next.id);
      } catch (error) {
        return error;
      }
    }
  })();
  t.match(refused, { code: "JOURNAL_UNAVAILABLE", message: /cap of 262144 bytes/ });
  const ended = await Promise.all(
    held.map((id) => journal.advance(id, "succeeded", [{ type: "command.succeeded", result: null }])),
  );
  t.ok(held.length > 10 && ended.every(Boolean));
  await journal.acknowledge(journal.lastSequence);
  await journal.compact(Date.now() + 1e9);
  t.same(
    await journal.accept(command(), from(1000)),
    { known: false, state: "accepted" },
    "and goes on when there is room",
  );
  await journal.close();
});

/** A real file system of a few hundred KiB, at `folder` until `work` has ended; only root can make one. */
async function onSmallDisk(folder: string, work: () => Promise<void>): Promise<void> {
  mkdirSync(folder);
  execFileSync("mount", ["-t", "tmpfs", "-o", "size=512k", "sallyport-test", folder]);
  try {
    await work();
  } finally {
    execFileSync("umount", ["-l", folder]);
  }
}
const skipDisk =
  process.platform === "linux" && process.getuid?.() === 0
    ? false
    : "needs root on Linux, to mount a small file system";

t.test("disk full: refused with its own code while it lasts, then it goes on alone", { skip: skipDisk }, async (t) => {
  const folder = join(t.testdir(), "disk");
  await onSmallDisk(folder, async () => {
    const journal: SqliteJournal = await open(join(folder, "state/journal.db"));
    const acknowledged: CommandId[] = [];
    const first = command();
    await journal.accept(first, from(1));
    acknowledged.push(first.id);
    const filler = join(folder, "filler");
    const handle = openSync(filler, "w");
    t.throws(
      () => {
        for (;;) writeSync(handle, Buffer.alloc(4096));
      },
      { code: "ENOSPC" },
    );
    closeSync(handle);
    let refused: unknown = null;
    for (let n = 2; refused === null && n < 500; n++) {
      const next = { ...command(), body: jsonBody("x".repeat(2000)) };
      await journal.accept(next, from(n)).then(
        () => acknowledged.push(next.id),
        (error: unknown) => (refused = error),
      );
    }
    t.match(refused, { code: "JOURNAL_UNAVAILABLE", fix: /free space/ });
    t.match(await journal.command(first.id), { id: first.id }, "reading goes on");
    rmSync(filler);
    const after = command();
    t.same(await journal.accept(after, from(1000)), { known: false, state: "accepted" });
    acknowledged.push(after.id);
    await journal.close();
    const again = await open(join(folder, "state/journal.db"));
    for (const id of acknowledged) t.ok(await again.command(id));
    await again.close();
  });
});

t.test("a file that is removed under a running agent: nothing more is accepted until it is back", async (t) => {
  const folder = t.testdir();
  const file = join(folder, "state/journal.db");
  const journal = await open(file);
  await journal.accept(command(), from(1));
  renameSync(join(folder, "state"), join(folder, "elsewhere"));
  const refused = command();
  await t.rejects(journal.accept(refused, from(2)), {
    code: "JOURNAL_UNAVAILABLE",
    message: /removed or replaced/,
    fix: /restore/,
  });
  renameSync(join(folder, "elsewhere"), join(folder, "state"));
  t.same(await journal.accept(refused, from(3)), { known: false, state: "accepted" }, "it goes on alone");
  await journal.close();
});
