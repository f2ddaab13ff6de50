// What earlier agents left on disk, and say on sockets of the same machine, is understood by the agent of today: the
// recordings of fixtures/v1. What is made again is the same bytes.
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import {
  type ConnectorError,
  pipelineSchema,
  systemClock,
  treeDigest,
  type ManifestEntry,
  type RunId,
} from "@sallyport/protocol";
import t from "tap";
import { auditLine, openAudit, readAuditLine } from "./audit/file-audit.ts";
import { verifyAudit } from "./audit/verify.ts";
import { askAgent, ControlServer, PauseFile } from "./control/index.ts";
import { socketAddress } from "./control/socket-path.ts";
import { CANCELS, runKey, RUNS, stepKey } from "./features/pipelines/run-record.ts";
import { storeOutputs } from "./features/pipelines/step-files.ts";
import { HOST_LINES, CONTROL_LINES, STILL_AGENT, withControl, withHost } from "./fixtures/conversations.ts";
import { openJournal } from "./journal/sqlite-journal.ts";
import { IdentityStore } from "./link/index.ts";
import { FsStore } from "./stores/fs.ts";

const folder = fileURLToPath(new URL("./fixtures/v1/", import.meta.url));
const text = (name: string): string => readFileSync(join(folder, name), "utf8");
const pairs = (name: string): { ask: string; answer: string }[] =>
  text(name)
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as { ask: string; answer: string });
const run = `run_${"d".repeat(32)}` as RunId;
const command = (n: number) => `01a0f0c0-5800-7000-8000-00000000000${n}` as never;

t.test("identity", async (t) => {
  const state = t.testdir();
  for (const name of ["identity.json", "identity.key"]) copyFileSync(join(folder, name), join(state, name));
  const store = new IdentityStore(state);
  const { identity, key } = store.load()!;
  t.match(identity, { replica: `rep_${"7".repeat(32)}`, cloudUrl: "https://cloud.example:8443", ca: null });
  t.equal((key.export({ format: "jwk" }) as { d: string }).d, Buffer.alloc(32, 2).toString("base64url"));
  store.save(identity);
  t.equal(readFileSync(join(state, "identity.json"), "utf8"), text("identity.json"));
});

t.test("pause", async (t) => {
  const state = t.testdir();
  copyFileSync(join(folder, "pause.json"), join(state, "pause.json"));
  const file = new PauseFile(state);
  t.same(file.read(), { reason: "maintenance", until: 1_795_255_200_000 });
  file.write(file.read());
  t.equal(readFileSync(join(state, "pause.json"), "utf8"), text("pause.json"));
});

t.test("journal: opened, brought to the schema of today, and worked with", async (t) => {
  const file = join(t.testdir(), "journal.db");
  copyFileSync(join(folder, "journal.db"), file);
  const journal = await openJournal({ file, clock: systemClock });
  t.teardown(() => journal.close());
  t.equal(journal.startCounter, 2);
  t.same(journal.dispatchSequences, { "incarnation-1": 43 });
  t.equal(journal.acknowledgedThrough, 2);
  t.same(
    (await journal.open()).map((held) => [held.id, held.state, held.expires]),
    [
      [command(2), "running", 1_795_258_800_000],
      [command(3), "accepted", 1_795_258_800_000],
    ],
  );
  t.match(await journal.command(command(1)), {
    state: "succeeded",
    kind: "pipeline.run",
    resource: `run:${run}`,
    intent: '{"kind":"pipeline.run"}',
    body: { encoding: "json", data: JSON.stringify({ run }) },
  });
  const reports = await journal.reportsAfter(2, 10);
  t.same(
    reports.map((report) => [
      report.sequence,
      report.command,
      report.journal,
      (JSON.parse(report.body.data) as { type: string }).type,
    ]),
    [
      [3, command(2), journal.id, "command.running"],
      [4, command(2), journal.id, "step"],
    ],
  );
  t.match(await journal.get(RUNS, runKey(run)), { format: 1, command: command(2), state: "running" });
  t.match(await journal.get(RUNS, stepKey(run, "train")), {
    state: "running",
    attempt: 2,
    stopping: "timeout",
    logSeq: 7,
  });
  t.match(await journal.entries(CANCELS), [{ key: run, value: { reason: "asked for" } }]);
  t.equal(await journal.advance(command(1), "failed", []), false, "what has ended stays ended");
  t.equal(await journal.advance(command(3), "running", [{ type: "command.running" }]), true);
  t.same(
    (await journal.reportsAfter(4, 10)).map((report) => report.sequence),
    [5],
  );
});

t.test("audit: the chain is sound, and goes on", async (t) => {
  const log = t.testdir();
  for (const name of ["audit-000000000002.ndjson", "audit.ndjson"]) copyFileSync(join(folder, name), join(log, name));
  t.match(await verifyAudit(log), { sound: true, records: 3, firstSeq: 1, lastSeq: 3, files: 2 });
  for (const line of (text("audit-000000000002.ndjson") + text("audit.ndjson")).trimEnd().split("\n")) {
    const { record, sound } = readAuditLine(line)!;
    const { hash: _, ...rest } = record;
    t.ok(sound);
    t.equal(auditLine(rest).line, line);
  }
  const audit = await openAudit({ folder: log, clock: systemClock });
  await audit.commit({ event: "agent.stopped", who: "agent" });
  await audit.close();
  t.match(await verifyAudit(log), { sound: true, records: 4, lastSeq: 4 });
  writeFileSync(
    join(log, "audit.ndjson"),
    readFileSync(join(log, "audit.ndjson"), "utf8").replace('"bytesOut":12', '"bytesOut":13'),
  );
  t.match(await verifyAudit(log), { sound: false, seq: 3 });
});

t.test("manifest of outputs: an attempt that wrote it has done its work", async (t) => {
  const root = t.testdir();
  mkdirSync(join(root, "lake/runs", run, "train"), { recursive: true });
  copyFileSync(join(folder, "outputs.manifest.json"), join(root, "lake/runs", run, "train/outputs.manifest.json"));
  const pipeline = pipelineSchema.parse({
    name: "digits",
    outputs: { store: "lake" },
    steps: [{ name: "train", program: "node", outputs: { report: { mediaType: "text/plain" }, model: {} } }],
  });
  const store = new FsStore("lake", join(root, "lake"));
  const made = (attempt: number, outputs: string) => {
    const places = { folder: outputs, inputs: () => "", outputs: (name: string) => join(outputs, name) };
    return storeOutputs(pipeline, run, pipeline.steps[0]!, attempt, places, {
      stores: { get: async () => store, ids: ["lake"] },
      policy: { require: () => undefined } as never,
      signal: new AbortController().signal,
    } as never);
  };
  const recorded = JSON.parse(text("outputs.manifest.json")) as {
    outputs: { entries?: ManifestEntry[]; digest: string }[];
  };
  t.same(
    await made(1, join(root, "nothing")),
    recorded.outputs.map(({ entries: _, ...artifact }) => artifact),
  );
  for (const output of recorded.outputs)
    if (output.entries !== undefined) t.equal(treeDigest(output.entries), output.digest);

  // The same outputs in an empty store give the same bytes.
  const again = new FsStore("lake", join(root, "again"));
  mkdirSync(join(root, "again"));
  mkdirSync(join(root, "made/model/sub"), { recursive: true });
  writeFileSync(join(root, "made/report"), "fine");
  writeFileSync(join(root, "made/model/a.bin"), "a");
  writeFileSync(join(root, "made/model/sub/ü"), "b");
  const places = { folder: root, inputs: () => "", outputs: (name: string) => join(root, "made", name) };
  await storeOutputs(pipeline, run, pipeline.steps[0]!, 1, places, {
    stores: { get: async () => again, ids: ["lake"] },
    policy: { require: () => undefined } as never,
    signal: new AbortController().signal,
  } as never);
  t.equal(
    readFileSync(join(root, "again/runs", run, "train/outputs.manifest.json"), "utf8"),
    text("outputs.manifest.json"),
  );
});

t.test("process host: what an older engine asks is answered as it was", async (t) => {
  const recorded = pairs("host-wire.ndjson");
  t.same(
    recorded.map((pair) => pair.ask),
    HOST_LINES,
    "the recording is that of conversations.ts",
  );
  t.same(
    await withHost(
      join(t.testdir(), "host"),
      recorded.map((pair) => pair.ask),
    ),
    recorded.map((pair) => pair.answer),
  );
});

t.test("control socket: an older command and this agent, this command and an older agent", async (t) => {
  const recorded = pairs("control.ndjson");
  t.same(
    recorded.map((pair) => pair.ask),
    CONTROL_LINES,
    "the recording is that of conversations.ts",
  );
  const state = t.testdir();
  const today = new ControlServer(state, STILL_AGENT);
  await today.listen();
  t.same(
    await withControl(
      state,
      recorded.map((pair) => pair.ask),
    ),
    recorded.map((pair) => pair.answer),
  );
  await today.close();

  const answers = new Map(recorded.map(({ ask, answer }) => [ask, answer]));
  const older = createServer({ allowHalfOpen: true }, (socket) =>
    socket.on("data", (chunk) => socket.end(`${answers.get(chunk.toString().trimEnd())}\n`)),
  );
  const address = socketAddress(state);
  await new Promise<void>((resolve) => older.listen(address.path, resolve));
  for (const { ask, answer } of recorded) {
    const expected = JSON.parse(answer) as { value?: unknown; error?: object };
    const got = await askAgent(state, JSON.parse(ask) as never).then(
      (value) => ({ value }),
      (error: unknown) => ({ error: (error as ConnectorError).toBody() }),
    );
    t.same(got, expected, ask);
  }
  await new Promise((resolve) => older.close(resolve));
  address.release();
});
