import fc from "fast-check";
import t from "tap";
import type { LogRecord } from "../api/types.ts";
import { EMPTY_LOG, append, followNext, lineOf, missingBefore, prepend, splitNdjson } from "./log-model.ts";

const line = (seq: number, data = `line ${seq}`, stream: "stdout" | "stderr" | "system" = "stdout"): LogRecord => ({
  seq,
  ts: seq,
  stream,
  body: { encoding: "utf8", enc: "none", kid: null, data },
});

t.test("a log that is cut anywhere and read again from the last number has each line once, in order", async (t) => {
  fc.assert(
    fc.property(
      fc.array(fc.record({ gap: fc.integer({ min: 0, max: 5 }) }), { maxLength: 60 }),
      fc.array(fc.nat(60), { maxLength: 6 }),
      fc.nat(3),
      (shape, cuts, overlap) => {
        let seq = 0;
        const all = shape.map((each): LogRecord => {
          if (each.gap === 0) return line(++seq);
          const from = seq + 1;
          seq += each.gap;
          return { gap: true, from, to: seq, ts: 0, reason: "the disk was full" };
        });
        let log = EMPTY_LOG;
        // Each piece is read with some records before it again, as after a cut.
        let from = 0;
        for (const to of [...cuts.map((cut) => Math.min(cut, all.length)).sort((a, b) => a - b), all.length]) {
          log = append(log, all.slice(Math.max(0, from - overlap), to));
          from = Math.max(from, to);
        }
        const numbers = log.lines.flatMap((each) =>
          Array.from({ length: each.lastSeq - each.seq + 1 }, (_, n) => each.seq + n),
        );
        return (
          JSON.stringify(numbers) === JSON.stringify(Array.from({ length: seq }, (_, n) => n + 1)) &&
          log.lastSeq === seq
        );
      },
    ),
  );
  t.pass("60 records, up to 6 cuts");
});

t.test("memory is bounded: the oldest lines go, and can be asked for again", async (t) => {
  let log = append(
    EMPTY_LOG,
    Array.from({ length: 30 }, (_, n) => line(n + 1)),
    10,
  );
  t.equal(log.lines.length, 10);
  t.equal(missingBefore(log), 20);
  log = prepend(
    log,
    Array.from({ length: 25 }, (_, n) => line(n + 1)),
  );
  t.same(
    log.lines.map((each) => each.seq),
    Array.from({ length: 30 }, (_, n) => n + 1),
    "older ones join, those held are not doubled",
  );
  t.equal(append(log, [line(30)]), log, "nothing new is the same value, so nothing is drawn again");
});

t.test("what a record looks like", async (t) => {
  t.match(lineOf({ gap: true, from: 3, to: 1206, ts: 0, reason: "buffer full" }), {
    kind: "gap",
    text: "1,204 lines are missing: buffer full",
  });
  t.equal(lineOf(line(1, "\u001b[31mred\u001b[0m\r\n")).text, "red", "no terminal codes, no line end");
  t.equal(lineOf(line(1, "ERROR no space")).level, "error");
  t.equal(lineOf(line(1, "0 errors found")).level, null, "a word in a sentence is no level");
  t.equal(
    lineOf({
      seq: 1,
      ts: 0,
      stream: "stdout",
      body: { encoding: "bytes", enc: "none", kid: null, data: Buffer.from("Grüße").toString("base64url") },
    }).text,
    "Grüße",
  );
  t.match(
    lineOf({ seq: 1, ts: 0, stream: "stdout", body: { encoding: "utf8", enc: "hpke", kid: "k", data: "…" } }).text,
    /sealed/,
  );
});

t.test("NDJSON cut at any byte", async (t) => {
  const text = [line(1), line(2, "two\nlines"), line(3)].map((record) => `${JSON.stringify(record)}\n`).join("");
  for (let cut = 0; cut <= text.length; cut++) {
    const first = splitNdjson("", text.slice(0, cut));
    const second = splitNdjson(first.pending, text.slice(cut));
    if (first.records.length + second.records.length !== 3 || second.pending !== "") t.fail(`cut at ${cut}`);
  }
  t.pass(`${text.length + 1} cuts`);
});

t.test("following", async (t) => {
  const at = (top: number, byReader: boolean) => ({
    type: "scrolled" as const,
    top,
    height: 1000,
    view: 200,
    byReader,
  });
  t.equal(followNext(true, at(400, true)), false, "the reader scrolls up: it pauses");
  t.equal(followNext(true, at(400, false)), true, "lines arrive and the page is not there yet: it goes on");
  t.equal(followNext(false, at(800, true)), true, "the reader reaches the bottom: it is armed again");
  t.equal(followNext(false, at(790, true)), true, "a few pixels off count as the bottom");
  t.equal(followNext(true, { type: "jumped" }), false, "a jump to a line or a hit pauses");
  t.equal(followNext(false, { type: "button", on: true }), true);
});
