// The journal and the database, killed at their n-th write, fsync or rename, and given a disk that fails for a while:
// whatever was promised is found again, each file opens, and a fault that passes is healed without a restart.
// The kernel's side is played by strace, which ends a system call with an error or its program with a signal.
import { spawn, type ChildProcessByStdio } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import type { Readable, Writable } from "node:stream";
import { systemClock, type CommandId } from "@sallyport/protocol";
import t from "tap";
import { openJournal } from "../../agent/journal/sqlite-journal.ts";
import { openSqliteStore, type Scope } from "../../cloud/store/index.ts";
import { repository, tempDir } from "../support/launcher.ts";
import { needsCommand } from "../support/skip.ts";

/** Points at which each is killed; the soak takes every one. */
const POINTS = Number(process.env["SALLYPORT_FAULT_POINTS"] ?? 8);
const COMMANDS = 8;
const PARALLEL = 2;
/** All by which a file's content or name changes on its way to the disk. */
const CALLS = "write,pwrite64,fsync,fdatasync,rename,ftruncate,unlink";

type What = "journal" | "store";
const FILES: Record<What, string[]> = {
  journal: ["journal.db", "journal.db-wal", "journal.db.new", "journal.db.new-journal"],
  store: ["sallyport.db", "sallyport.db-wal"],
};

interface Ran {
  lines: string[][];
  signal: NodeJS.Signals | null;
  code: number | null;
  stderr: string;
  calls: number;
}

/** Runs the writer and kills it at the `when`-th of CALLS that reaches its files; absent = only counts them. */
function writeKilled(what: What, folder: string, when?: number): Promise<Ran> {
  const fault = when === undefined ? [] : ["-e", `inject=${CALLS}:signal=SIGKILL:when=${when}`];
  const trace = join(folder, "..", `${basename(folder)}.trace`);
  const program = spawn(
    "strace",
    [
      "-f",
      "-qq",
      "-o",
      trace,
      "-e",
      `trace=${CALLS}`,
      ...pathsOf(what, folder),
      ...fault,
      process.execPath,
      ...writer(what, folder),
    ],
    { env: { PATH: process.env["PATH"] }, stdio: ["ignore", "pipe", "pipe"] },
  );
  return ranOf(program, trace);
}

/** Runs the writer and, once its file is open, lets system calls fail as strace's `fault` says. */
async function writeFailing(what: What, folder: string, fault: string): Promise<Ran> {
  const program = spawn(process.execPath, [...writer(what, folder), "wait"], {
    env: { PATH: process.env["PATH"] },
    stdio: ["pipe", "pipe", "pipe"],
  });
  const trace = join(folder, "..", `${basename(folder)}.trace`);
  const ran = ranOf(program, trace);
  await Promise.race([once(program.stdout, "data"), ran]);
  if (program.exitCode !== null) return ran;
  const tracer = spawn(
    "strace",
    [
      "-f",
      "-o",
      trace,
      "-e",
      `trace=${CALLS}`,
      ...pathsOf(what, folder),
      "-e",
      `inject=${fault}`,
      "-p",
      String(program.pid),
    ],
    { stdio: ["ignore", "ignore", "pipe"] },
  );
  // It says so once it holds the process and all its threads.
  await once(tracer.stderr, "data");
  program.stdin.end("go");
  const gone = once(tracer, "close");
  const result = await ran;
  await gone;
  return result;
}

const pathsOf = (what: What, folder: string): string[] => FILES[what].flatMap((file) => ["-P", join(folder, file)]);
const writer = (what: What, folder: string): string[] => [
  join(repository, "test/faults/writes.ts"),
  what,
  folder,
  String(COMMANDS),
];

function ranOf(program: ChildProcessByStdio<Writable | null, Readable, Readable>, trace: string): Promise<Ran> {
  let stdout = "";
  let stderr = "";
  program.stdout.on("data", (chunk: Buffer) => (stdout += chunk.toString()));
  program.stderr.on("data", (chunk: Buffer) => (stderr += chunk.toString()));
  return new Promise((resolve, reject) => {
    program.once("error", reject);
    program.once("close", (code, signal) => {
      // A line that was cut off by the kill was not said.
      const lines = stdout
        .split("\n")
        .slice(0, -1)
        .map((line) => line.split(" "));
      const calls = !existsSync(trace)
        ? 0
        : readFileSync(trace, "utf8")
            .split("\n")
            .filter((line) => /^\d+ +\w+\(/.test(line)).length;
      resolve({ lines, signal, code, stderr, calls });
    });
  });
}

const said = (ran: Ran, word: string): string[] => ran.lines.filter(([first]) => first === word).map(([, id]) => id!);

/** Throws the first promise that does not hold. */
async function verify(what: What, folder: string, ran: Ran): Promise<void> {
  const must = (holds: boolean, claim: string): void => {
    if (!holds) throw new Error(`${claim}; it had said:\n${ran.lines.map((line) => line.join(" ")).join("\n")}`);
  };
  if (what === "journal") {
    const journal = await openJournal({ file: join(folder, "journal.db"), clock: systemClock });
    try {
      const [opened] = said(ran, "opened");
      must(opened === undefined || opened === journal.id, "the journal is another one");
      const ended = new Set(said(ran, "succeeded"));
      for (const id of said(ran, "accepted")) {
        const held = await journal.command(id as CommandId);
        must(held !== null, `command ${id} was lost`);
        if (ended.has(id)) must(held!.state === "succeeded", `the end of ${id} was lost`);
      }
      for (const id of said(ran, "put"))
        must((await journal.get("test", id)) !== undefined, `the record of ${id} was lost`);
      const acknowledged = Math.max(0, ...said(ran, "acknowledged").map(Number));
      const reports = await journal.reportsAfter(0, 1000);
      must(
        reports.every((report, n) => n === 0 || report.sequence === reports[n - 1]!.sequence + 1),
        "the reports have a hole",
      );
      must((reports[0]?.sequence ?? journal.lastSequence + 1) >= acknowledged + 1, "acknowledged reports are back");
      // Each step forward was promised together with its report.
      must(journal.lastSequence >= said(ran, "running").length + ended.size, "a report was lost");
    } finally {
      await journal.close();
    }
    return;
  }
  const store = await openSqliteStore({ dir: folder });
  try {
    const { workspace } = await store.ensureAdmin("admin", "default");
    const scope: Scope = { workspace, actor: { id: "system", name: "system", via: "system" } };
    const cancelled = new Set(said(ran, "cancelled"));
    for (const id of said(ran, "created")) {
      const row = await store.command(scope, id as CommandId);
      must(row !== null, `command ${id} was lost`);
      if (cancelled.has(id)) must(row!.state === "cancelled", `the end of ${id} was lost`);
    }
    const { items, newest } = await store.changesAfter(workspace, 0, 10_000);
    must(
      items.every((item, n) => n === 0 || item.n > items[n - 1]!.n),
      "the changes are out of order",
    );
    must(newest === (items.at(-1)?.n ?? 0), "the counter of changes is not that of the last one");
  } finally {
    await store.close();
  }
}

for (const what of ["journal", "store"] as const) {
  t.test(
    `${what}: killed at a write, fsync or rename`,
    { skip: needsCommand("strace"), timeout: 600_000 },
    async (t) => {
      const whole = await writeKilled(what, tempDir(t, what));
      t.match(whole, { code: 0, signal: null }, whole.stderr);
      t.equal(whole.lines.at(-1)?.[0], "done");
      t.ok(whole.calls > 20, `${whole.calls} calls reach its files`);
      const every = Math.max(1, whole.calls / POINTS);
      const points = Array.from({ length: Math.min(POINTS, whole.calls) }, (_, n) => 1 + Math.floor(n * every));
      let killed = 0;
      const worker = async (): Promise<void> => {
        for (let n = points.shift(); n !== undefined; n = points.shift()) {
          const folder = tempDir(t, what);
          const ran = await writeKilled(what, folder, n);
          if (ran.signal === "SIGKILL" || ran.code === 137) killed++;
          else t.equal(ran.lines.at(-1)?.[0], "done", `call ${n}: ended by itself: ${ran.stderr}`);
          await t.resolves(verify(what, folder, ran), `call ${n}: all ${ran.lines.length} promises hold`);
          // What was cut off is taken up again by the next start.
          if (n % 5 === 0) t.match(await writeKilled(what, folder), { code: 0 }, `call ${n}: it goes on afterwards`);
        }
      };
      await Promise.all(Array.from({ length: PARALLEL }, worker));
      t.ok(killed > POINTS / 2, `${killed} were killed in the middle`);
    },
  );

  for (const [name, inject, code] of [
    ["fsync fails for a while", "fsync,fdatasync:error=EIO:when=3..9", /JOURNAL_UNAVAILABLE|DATABASE_UNAVAILABLE/],
    ["the disk is full for a while", "pwrite64:error=ENOSPC:when=5..30", /JOURNAL_UNAVAILABLE|STORAGE_FULL/],
    [
      "the disk is read-only for a while",
      "pwrite64,fdatasync,fsync:error=EROFS:when=5..30",
      /JOURNAL_UNAVAILABLE|DATABASE_UNAVAILABLE/,
    ],
  ] as const) {
    t.test(`${what}: ${name}`, { skip: needsCommand("strace"), timeout: 120_000 }, async (t) => {
      const folder = tempDir(t, what);
      const ran = await writeFailing(what, folder, inject);
      t.match(ran, { code: 0, signal: null }, `it lives through it: ${ran.stderr}`);
      const refused = said(ran, "refused");
      t.ok(refused.length > 0, `${refused.length} changes were refused: ${[...new Set(refused)].join(", ")}`);
      for (const one of new Set(refused)) t.match(one, code, "with a code of their own");
      t.equal(ran.lines.at(-1)?.[0], "done", "and goes on by itself");
      await t.resolves(verify(what, folder, ran), "all promises hold");
    });
  }
}
