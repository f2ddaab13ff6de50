// A program whose time runs faster is told one story by all its clocks, in its workers too, and time never runs back.
import { join } from "node:path";
import { writeFileSync } from "node:fs";
import t from "tap";
import { FastTime } from "./fast-time.ts";
import { startProgram, tempDir } from "./launcher.ts";

const PROGRAM = `
import { setTimeout as pause, setInterval as ticks } from "node:timers/promises";
import { setTimeout as imported } from "node:timers";
import { Worker, isMainThread, parentPort } from "node:worker_threads";
import { fileURLToPath } from "node:url";
// In the order in which it is written: what the others say lies between first and last, however long that took.
const look = () => ({ first: performance.now(), date: Date.now(), made: new Date().getTime(), hr: Number(process.hrtime.bigint()) / 1e6, last: performance.now() });
if (!isMainThread) {
  setInterval(() => parentPort.postMessage(look()), 60_000);
} else {
  let before = { date: Date.now(), mono: performance.now() };
  const say = (what, more = {}) => console.log(JSON.stringify({ what, ...more }));
  say("begin", look());
  // never back, and the clocks go together: what one says lies between two looks at the other
  let base = null;
  setInterval(() => {
    const first = performance.now();
    const date = Date.now();
    const last = performance.now();
    if (date < before.date || last < first || first < before.mono) say("back", { before, date, first, last });
    base = base === null ? [date - last, date - first] : [Math.max(base[0], date - last), Math.min(base[1], date - first)];
    if (base[0] > base[1] + 2) say("apart", { base });
    before = { date, mono: last };
  }, 1000);
  const at = performance.now();
  const spent = () => performance.now() - at;
  setTimeout(() => say("hour", { spent: spent() }), 3_600_000);
  imported(() => say("imported", { spent: spent() }), 1_800_000);
  pause(3_600_000, "value").then((value) => say("promise", { value, spent: spent() }));
  const cancelled = setTimeout(() => say("cancelled fired"), 600_000);
  setTimeout(() => clearTimeout(cancelled), 300_000);
  const controller = new AbortController();
  pause(600_000, null, { signal: controller.signal }).catch((error) => say("aborted", { name: error.name, spent: spent() }));
  setTimeout(() => controller.abort(), 300_000);
  const refreshed = setTimeout(() => say("refreshed", { spent: spent() }), 900_000);
  setTimeout(() => refreshed.refresh(), 600_000);
  const byNumber = +setTimeout(() => say("cleared by number fired"), 600_000);
  clearTimeout(byNumber);
  let n = 0;
  const every = setInterval(() => { if (++n === 10) { clearInterval(every); say("ten", { spent: spent() }); } }, 60_000);
  (async () => { let m = 0; for await (const _ of ticks(60_000)) if (++m === 3) break; say("three", { spent: spent() }); })();
  const unrefed = setTimeout(() => undefined, 1000).unref();
  if (unrefed.hasRef()) say("ref");
  const worker = new Worker(fileURLToPath(import.meta.url));
  let heard = 0;
  worker.on("message", (theirs) => {
    if (heard++ !== 5) return;
    say("worker", { apart: Math.abs(theirs.date - Date.now()) });
    void worker.terminate();
  });
  setTimeout(() => { say("end", look()); process.exit(0); }, 3_700_000);
}
`;

t.test("an hour passes in seconds, alike for each clock", { timeout: 180_000 }, async (t) => {
  const time = new FastTime(t);
  const file = join(tempDir(t, "clock"), "program.mjs");
  writeFileSync(file, PROGRAM);
  const program = startProgram(t, { name: "program", args: [...time.nodeArgs, file], env: time.env });
  await program.waitForOutput(/begin/);
  await time.run(1000);
  await program.exited;
  t.equal(program.exit?.code, 0, program.stderr);
  const said = program.stdout
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as { what: string; spent?: number; [more: string]: unknown });
  const of = (what: string) => said.find((one) => one.what === what);
  const [begin, end] = [of("begin")!, of("end")!] as Record<string, number>[];
  const passed = (name: string) => (end![name] as number) - (begin![name] as number);
  const least = end!["first"]! - begin!["last"]!;
  const most = end!["last"]! - begin!["first"]!;
  // Date counts whole milliseconds.
  for (const name of ["date", "made", "hr"])
    t.ok(passed(name) >= least - 2 && passed(name) <= most + 2, `${name}: ${passed(name)} of ${least} to ${most} ms`);
  t.ok(passed("last") >= 3_700_000);
  // A busy machine may be late by a second of its own, which is 1000 s here; never early.
  const due = { hour: 3_600_000, imported: 1_800_000, promise: 3_600_000, aborted: 300_000, refreshed: 1_500_000, ten: 600_000, three: 180_000 }; // prettier-ignore
  for (const [what, ms] of Object.entries(due))
    t.ok((of(what)?.spent ?? 0) >= ms - 1, `${what} after ${of(what)?.spent} ms`);
  t.equal(of("promise")?.["value"], "value");
  t.equal(of("aborted")?.["name"], "AbortError");
  t.ok((of("worker")?.["apart"] as number) < 60_000, "a worker's clock is its program's");
  for (const never of ["back", "apart", "cancelled fired", "cleared by number fired", "ref"])
    t.equal(of(never), undefined, `not: ${never}`);
});

t.test("time goes slowly again where it was made to", { timeout: 120_000 }, async (t) => {
  const time = new FastTime(t);
  const file = join(tempDir(t, "clock"), "program.mjs");
  writeFileSync(
    file,
    `console.log("begin"); setTimeout(() => console.log("day"), 86_400_000); setTimeout(() => console.log("never"), 2 * 86_400_000);`,
  );
  const program = startProgram(t, { name: "program", args: [...time.nodeArgs, file], env: time.env });
  await program.waitForOutput(/begin/);
  await time.run(86_400);
  await program.waitForOutput(/day/);
  await time.run(1);
  const at = time.elapsed();
  t.ok(at < 2 * 86_400_000, "the test was quick enough to say so");
  await new Promise((resolve) => setTimeout(resolve, 300));
  t.ok(time.elapsed() - at < 60_000);
  t.notMatch(program.stdout, /never/);
});
