// Random output, cut anywhere, crashed anywhere: what is read is what the redactor makes of the whole, once, in order.
import { randomBytes } from "node:crypto";
import {
  appendFileSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import t, { type Test } from "tap";
import { lastSeq, logRecordSchema, newId, systemClock, wait, type LogRecord } from "@sallyport/protocol";
import { createRedactor } from "../redaction/index.ts";
import type { Redactor } from "../redaction/redactor.ts";
import { LineSplitter, MAX_PIECE_BYTES } from "./line-splitter.ts";
import { LogStore } from "./log-store.ts";
import { SegmentReader, SegmentWriter } from "./segments.ts";

const SECRETS = ["hunter2-hunter2", "-----BEGIN KEY-----\nAAAABBBBCCCC\nDDDD\n-----END KEY-----", "abcabcabd"];

function redactorWith(secrets: string[]): Redactor {
  const redactor = createRedactor();
  for (const secret of secrets) redactor.add(secret);
  return redactor;
}

const folderOf = (t: Test): string => {
  const folder = mkdtempSync(join(tmpdir(), "sallyport-logs-"));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
};

/** Lines of one stream, put together again. */
function linesOf(records: LogRecord[], stream: string): string[] {
  const lines: string[] = [];
  for (const record of records) {
    if ("gap" in record || record.stream !== stream) continue;
    if (record.continued === true) lines.push(lines.pop()! + record.body.data);
    else lines.push(record.body.data);
  }
  return lines;
}
const expectedLines = (redactor: Redactor, source: string): string[] => {
  const lines = redactor.text(source).split("\n");
  if (lines.at(-1) === "") lines.pop();
  return lines;
};

await t.test("any chunks, any crashes", async (t) => {
  const word = fc.oneof(
    {
      weight: 6,
      arbitrary: fc.constantFrom(
        "a",
        "abcabc",
        "abcabd",
        "\n",
        "\n\n",
        "hunter2-",
        "hunter2",
        "é",
        "漢字",
        "plain line\n",
      ),
    },
    {
      weight: 4,
      arbitrary: fc.constantFrom("-----BEGIN KEY-----\n", "-----BEGIN KEY-----\nAAAABBBBCCCC\n", ...SECRETS),
    },
    { weight: 1, arbitrary: fc.constant("€".repeat(6000)) },
  );
  const source = fc.array(word, { maxLength: 60 }).map((words) => words.join(""));
  const step = fc.record({
    /** Which stream reads on, by how much, and what happens then. */
    stream: fc.constantFrom<"stdout" | "stderr">("stdout", "stderr"),
    bytes: fc.oneof(fc.integer({ min: 1, max: 40 }), fc.integer({ min: 1, max: 20_000 })),
    after: fc.constantFrom("go", "go", "go", "idle", "crash", "torn"),
    torn: fc.nat(3000),
  });
  await fc.assert(
    fc.asyncProperty(source, source, fc.array(step, { maxLength: 120 }), async (out, err, steps) => {
      const folder = folderOf(t);
      const redactor = redactorWith(SECRETS);
      const bytes = { stdout: Buffer.from(out), stderr: Buffer.from(err) };
      let writer = await SegmentWriter.open(folder, 64 * 1024 * 1024);
      let splitters = {
        stdout: new LineSplitter(redactor, writer.cursors.stdout),
        stderr: new LineSplitter(redactor, writer.cursors.stderr),
      };
      let { cursors } = writer;
      let seq = writer.lastSeq;
      const write = async (stream: "stdout" | "stderr", pieces: ReturnType<LineSplitter["push"]>) => {
        await writer.append(
          pieces.map((piece) => {
            cursors = { ...cursors, [stream]: piece.cursor };
            return {
              record: {
                seq: ++seq,
                ts: 1,
                stream,
                body: { encoding: "utf8" as const, enc: "none" as const, kid: null, data: piece.text },
                ...(piece.continued ? { continued: true as const } : {}),
              },
              cursors,
            };
          }),
        );
      };
      for (const { stream, bytes: count, after, torn } of steps) {
        const splitter = splitters[stream];
        await write(stream, splitter.push(bytes[stream].subarray(splitter.offset, splitter.offset + count)));
        if (after === "idle") await write(stream, splitter.idle());
        if (after === "crash" || after === "torn") {
          await writer.close();
          const last = readdirSync(folder).sort().at(-1);
          if (after === "torn" && last !== undefined) {
            const path = join(folder, last);
            truncateSync(path, Math.max(0, statSync(path).size - torn));
          }
          writer = await SegmentWriter.open(folder, 64 * 1024 * 1024);
          splitters = {
            stdout: new LineSplitter(redactor, writer.cursors.stdout),
            stderr: new LineSplitter(redactor, writer.cursors.stderr),
          };
          ({ cursors } = writer);
          seq = writer.lastSeq;
        }
      }
      for (const stream of ["stdout", "stderr"] as const) {
        await write(stream, splitters[stream].push(bytes[stream].subarray(splitters[stream].offset)));
        await write(stream, splitters[stream].end());
      }
      await writer.close();
      const records = await new SegmentReader(folder, 0).next(1_000_000);
      rmSync(folder, { recursive: true });
      for (const [i, record] of records.entries()) {
        logRecordSchema.parse(record);
        if (lastSeq(record) !== i + 1) throw new Error(`record ${i + 1} has the number ${lastSeq(record)}`);
        if (!("gap" in record) && Buffer.byteLength(record.body.data) > MAX_PIECE_BYTES) throw new Error("too long");
      }
      for (const [stream, text] of [
        ["stdout", out],
        ["stderr", err],
      ] as const) {
        const found = linesOf(records, stream);
        const expected = expectedLines(redactor, text);
        if (JSON.stringify(found) !== JSON.stringify(expected))
          throw new Error(`${JSON.stringify(found).slice(0, 500)}\nis not\n${JSON.stringify(expected).slice(0, 500)}`);
      }
    }),
    { numRuns: 300 },
  );
  t.pass("300 outputs");
});

await t.test("what could steer a terminal is written out; colours stay", async (t) => {
  const splitter = new LineSplitter(createRedactor());
  const [one, two, three] = splitter.push(
    Buffer.from("\x1b[31mred\x1b[0m\ttab\x07\x1b]0;title\x07\r\n10%\r20%\n\xff bad\n", "latin1"),
  );
  t.equal(one?.text, "\x1b[31mred\x1b[0m\ttab\\x07\\x1b]0;title\\x07");
  t.equal(two?.text, "10%\\r20%");
  t.equal(three?.text, "\ufffd bad");
});

const address = { run: newId("run"), step: "train", attempt: 1 };
const makeStore = (stateDir: string, capBytesPerAttempt = 64 * 1024 * 1024, redactor = redactorWith(SECRETS)) =>
  new LogStore({ stateDir, redactor, clock: systemClock, capBytesPerAttempt, capBytes: 1e9 });
const all = async (records: AsyncIterable<LogRecord>): Promise<LogRecord[]> => {
  const found: LogRecord[] = [];
  for await (const record of records) found.push(record);
  return found;
};

await t.test("followed while it is written, over a change of agents; a secret in pieces is never shown", async (t) => {
  const stateDir = folderOf(t);
  const store = makeStore(stateDir);
  let log = await store.open(address);
  await log.system("Attempt 1 begins.");
  await log.follow();
  const following = all(store.read({ ...address, after: 0, limit: 1, follow: true }));
  appendFileSync(log.stdout, "one\nthe key is hunter2-");
  appendFileSync(log.stderr, "warn\n");
  while ((await store.status(address))!.lastSeq < 4) await wait(systemClock, 10);
  t.notMatch(
    await all(store.read({ ...address, after: 0, limit: 10, follow: false })),
    /hunter2-/,
    "what may become a secret is held back",
  );
  await log.close();
  appendFileSync(log.stdout, "hunter2 and more\ntwo\n");
  log = await store.open(address);
  t.ok(existsSync(log.stdout), "the raw output is still there");
  await log.follow();
  appendFileSync(log.stdout, "last, without an end");
  const last = await log.finish();
  const records = await following;
  t.equal(records.length, last);
  t.equal(lastSeq(records.at(-1)!), last);
  t.same(linesOf(records, "stdout"), ["one", "the key is [redacted] and more", "two", "last, without an end"]);
  t.same(linesOf(records, "stderr"), ["warn"]);
  t.same(linesOf(records, "system"), ["Attempt 1 begins."]);
  t.notOk(existsSync(log.stdout), "the raw output is gone");
  t.same(await store.status(address), { lastSeq: last, ended: true });
  t.same((await all(store.read({ ...address, after: 3, limit: 2, follow: false }))).map(lastSeq), [4, 5]);
  t.same((await all(store.read({ ...address, after: 0, tail: 2, limit: 100, follow: true }))).map(lastSeq), [
    last - 1,
    last,
  ]);
  for (const file of readdirSync(join(stateDir, "logs"), { recursive: true, withFileTypes: true })) {
    if (file.isFile()) t.notMatch(readFileSync(join(file.parentPath, file.name), "utf8"), /hunter2-hunter2/);
  }
});

await t.test("over its cap a log keeps beginning and end, and says what is missing", async (t) => {
  const stateDir = folderOf(t);
  const store = makeStore(stateDir, 256 * 1024);
  const log = await store.open(address);
  await log.follow();
  const count = 40_000;
  const wide = Array.from({ length: count }, (_, i) => `line ${i}\n`).join("");
  mkdirSync(stateDir, { recursive: true });
  appendFileSync(log.stdout, wide);
  const last = await log.finish();
  t.equal(last, count);
  const records = await all(store.read({ ...address, after: 0, limit: 100_000, follow: false }));
  const gaps = records.filter((r) => "gap" in r);
  t.equal(gaps.length, 1);
  t.equal(linesOf(records, "stdout")[0], "line 0");
  t.equal(linesOf(records, "stdout").at(-1), `line ${count - 1}`);
  let expected = 1;
  for (const record of records) {
    if (("gap" in record ? record.from : record.seq) !== expected) t.fail(`hole before ${expected}`);
    expected = lastSeq(record) + 1;
  }
  t.equal(expected, count + 1, "no silence: each number is a record or in the gap");
  const size = readdirSync(join(stateDir, "logs"), { recursive: true, withFileTypes: true }).reduce(
    (sum, f) => sum + (f.isFile() ? statSync(join(f.parentPath, f.name)).size : 0),
    0,
  );
  t.ok(size < 256 * 1024 * 1.2, `${size} bytes on disk`);
  const [gap] = gaps;
  t.same(
    (await all(store.read({ ...address, after: (gap as { from: number }).from + 5, limit: 1, follow: false }))).map(
      (r) => "gap" in r && r.from,
    ),
    [(gap as { from: number }).from + 6],
    "read from within the gap",
  );
  const near = await all(store.read({ ...address, after: count - 3, limit: 100, follow: false }));
  t.same(linesOf(near, "stdout"), [`line ${count - 3}`, `line ${count - 2}`, `line ${count - 1}`]);
});

await t.test("a rest that cannot be redacted is a gap; old runs are collected", async (t) => {
  const stateDir = folderOf(t);
  const store = new LogStore({
    stateDir,
    redactor: createRedactor(),
    clock: systemClock,
    capBytesPerAttempt: 1e6,
    capBytes: 100_000,
  });
  const log = await store.open(address);
  appendFileSync(log.stdout, "unreadable\n");
  await log.withhold("The secret of this step cannot be resolved any more.");
  await log.finish();
  t.match(await all(store.read({ ...address, after: 0, limit: 10, follow: false })), [{ gap: true, from: 1, to: 1 }]);
  const other = newId("run");
  mkdirSync(join(stateDir, "logs", other, "s.1"), { recursive: true });
  writeFileSync(join(stateDir, "logs", other, "s.1", "000000000001.ndjson"), randomBytes(200_000));
  t.match(await store.collect(async () => (run) => run === other), { removed: [address.run] });
  t.match(await store.collect(async () => () => false), { removed: [other] });
  t.equal(await store.status(address), null);
});

await t.test("a segment as this format was first written", async (t) => {
  const folder = folderOf(t);
  copyFileSync(new URL("./fixtures/segment-1.ndjson", import.meta.url), join(folder, "000000000001.ndjson"));
  const writer = await SegmentWriter.open(folder, 1e6);
  t.equal(writer.lastSeq, 5);
  t.same(writer.cursors, { stdout: { from: 8, out: 0, open: false }, stderr: { from: 10, out: 0, open: false } });
  const records = (await new SegmentReader(folder, 0).next(10)).map((record) => logRecordSchema.parse(record));
  t.same(linesOf(records, "stderr"), ["loss 0.25"]);
  t.same(records.map(lastSeq), [1, 2, 3, 4, 5]);
});
