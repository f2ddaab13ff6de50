import { execFileSync } from "node:child_process";
import {
  appendFileSync,
  closeSync,
  mkdirSync,
  openSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { newCommandId, systemClock, wait } from "@sallyport/protocol";
import t from "tap";
import { openAudit, verifyAudit, type AuditEntry } from "./index.ts";

const entry = (n: number): AuditEntry => ({
  event: "command.accepted",
  who: "cloud:k1",
  command: newCommandId(),
  kind: "artifact.delete",
  resource: `artifact:lake/${n}`,
  verdict: "allowed",
  rule: "policy.commands[0]",
});
const open = (folder: string, limits: { fileBytes?: number; totalBytes?: number } = {}) =>
  openAudit({ folder, clock: systemClock, ...limits });

t.test("any changed, removed, added or moved record is named", async (t) => {
  const folder = join(t.testdir(), "audit");
  const audit = await open(folder);
  for (let n = 0; n < 20; n++) await audit.commit(entry(n));
  await audit.close();
  const file = join(folder, "audit.ndjson");
  t.equal(statSync(file).mode & 0o777, 0o600);
  t.match(await verifyAudit(folder), { sound: true, records: 20, firstSeq: 1, lastSeq: 20 });
  const whole = readFileSync(file, "utf8");
  const lines = whole.trimEnd().split("\n");
  const tamper = async (change: (lines: string[]) => string[]) => {
    writeFileSync(file, `${change([...lines]).join("\n")}\n`);
    return verifyAudit(folder);
  };
  t.match(await tamper((all) => all.with(6, all[6]!.replace("allowed", "denied_"))), {
    sound: false,
    line: 7,
    seq: 7,
    problem: /hash/,
  });
  t.match(await tamper((all) => all.toSpliced(6, 1)), { sound: false, line: 7, seq: 8, problem: /missing/ });
  t.match(await tamper((all) => all.toSpliced(6, 0, all[6]!)), { sound: false, line: 8, seq: 7 });
  t.match(await tamper((all) => all.with(6, all[7]!).with(7, all[6]!)), { sound: false, line: 7, seq: 8 });
  t.match(await tamper((all) => all.slice(3)), { sound: false, line: 1, seq: 4, problem: /gone/ });
  t.match(await tamper((all) => all.with(6, "{}")), { sound: false, line: 7, seq: null });
  // Every single byte of a record counts.
  let found = 0;
  const target = Buffer.from(lines[4]!);
  for (let at = 0; at < target.length; at++) {
    const bytes = Buffer.from(target);
    bytes[at] = bytes[at]! ^ 1;
    const verdict = await tamper((all) => all.with(4, bytes.toString("latin1")));
    if (!verdict.sound && verdict.line >= 5) found++;
  }
  t.equal(found, target.length);
});

t.test("what a crash cut off is dropped with a record, and the chain goes on", async (t) => {
  const folder = join(t.testdir(), "audit");
  let audit = await open(folder);
  await Promise.all([1, 2, 3].map((n) => audit.commit(entry(n))));
  await audit.close();
  appendFileSync(join(folder, "audit.ndjson"), '{"seq":4,"at":1,"pr');
  audit = await open(folder);
  await audit.commit(entry(5));
  await audit.close();
  t.match(await verifyAudit(folder), { sound: true, records: 5 });
  t.match(readFileSync(join(folder, "audit.ndjson"), "utf8"), /"audit.recovered"/);
});

t.test("files are closed by size and the oldest removed by the cap, which the chain attests", async (t) => {
  const folder = join(t.testdir(), "audit");
  const audit = await open(folder, { fileBytes: 2000, totalBytes: 8000 });
  for (let n = 0; n < 100; n++) await audit.commit(entry(n));
  await audit.close();
  const bytes = readdirSync(folder).reduce((sum, name) => sum + statSync(join(folder, name)).size, 0);
  t.ok(bytes <= 8000 + 1000, `${bytes} bytes`);
  const verdict = await verifyAudit(folder);
  t.match(verdict, { sound: true });
  t.ok(verdict.sound && verdict.firstSeq > 1 && verdict.files > 2);
  const again = await open(folder);
  await again.commit(entry(1));
  await again.close();
  t.match(await verifyAudit(folder), { sound: true });
  rmSync(
    join(
      folder,
      readdirSync(folder)
        .filter((name) => name !== "audit.ndjson")
        .sort()[1]!,
    ),
  );
  t.match(await verifyAudit(folder), { sound: false, problem: /missing/ });
});

const skipDisk =
  process.platform === "linux" && process.getuid?.() === 0
    ? false
    : "needs root on Linux, to mount a small file system";

t.test(
  "a full disk refuses within a second, and the log goes on alone with its chain whole",
  { skip: skipDisk },
  async (t) => {
    const disk = join(t.testdir(), "disk");
    mkdirSync(disk);
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=2m", "sallyport-test", disk]);
    try {
      const folder = join(disk, "audit");
      const faults: string[] = [];
      const audit = await openAudit({ folder, clock: systemClock, onFault: (error) => faults.push(error.code) });
      await audit.commit(entry(0));
      const filler = openSync(join(disk, "filler"), "w");
      t.throws(() => {
        for (;;) writeSync(filler, Buffer.alloc(1024));
      });
      closeSync(filler);
      const started = performance.now();
      let refused: unknown = null;
      for (let n = 1; refused === null && performance.now() - started < 1000; n++) {
        audit.append(entry(n));
        try {
          audit.require();
          await wait(systemClock, 1);
        } catch (error) {
          refused = error;
        }
      }
      t.match(refused, { code: "AUDIT_UNAVAILABLE", message: /ENOSPC/, fix: /free space/ });
      t.ok(performance.now() - started < 1000);
      await t.rejects(audit.commit(entry(1)), { code: "AUDIT_UNAVAILABLE" });
      t.same(faults, ["AUDIT_UNAVAILABLE"], "said once");
      rmSync(join(disk, "filler"));
      for (let tries = 0; tries < 100; tries++) {
        try {
          audit.require();
          break;
        } catch {
          await wait(systemClock, 50);
        }
      }
      await audit.commit(entry(2));
      await audit.close();
      t.match(await verifyAudit(folder), { sound: true });
    } finally {
      execFileSync("umount", ["-l", disk]);
    }
  },
);

t.test("many records share an fsync", async (t) => {
  const audit = await open(join(t.testdir(), "audit"));
  const started = performance.now();
  await Promise.all(Array.from({ length: 5000 }, (_, n) => audit.commit(entry(n))));
  t.comment(`${Math.round(5000 / ((performance.now() - started) / 1000))} records/s`);
  t.equal(audit.head.seq, 5000);
  await audit.close();
});
