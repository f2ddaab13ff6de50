// A run of five hours whose agent nobody reaches for six, time injected: it ends as if nothing had been, with each line of
// its log. Until the agent is back it is unknown to the control plane, never failed. All of it is real but the clocks.
import { createHash, randomUUID } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { readNdjson, type LogRecord } from "@sallyport/protocol";
import type { Agent, CommandDetail, DeploymentDetail, RunDetail } from "../../cloud/http/api.ts";
import { FastTime } from "../support/fast-time.ts";
import { repository, tempDir, waitFor, type Teardown } from "../support/launcher.ts";
import { connectAgent, freePort, TestCloud } from "../support/stack.ts";
import { startTcpProxy, type TcpProxy } from "../support/tcp-proxy.ts";

const HOUR = 3600_000;
/** 6 h in 18 s. Beats, handshakes and requests are made at the machine's own pace: nothing goes over the link meanwhile. */
const SPEED = 1200;

/** Writes lines up to the number in its pace file, and ends when it says so; it knows no time. */
const STEP = `import { appendFileSync, readFileSync, writeFileSync } from "node:fs";
const [name, effects, pace, out] = process.argv.slice(2);
appendFileSync(effects, name + " began\\n");
let n = 0;
const timer = setInterval(() => {
  const wanted = readFileSync(pace, "utf8");
  let text = "";
  for (const until = parseInt(wanted) || 0; n < until;) text += name + " line " + ++n + " " + "x".repeat(60) + "\\n";
  process.stdout.write(text);
  if (!wanted.endsWith("end")) return;
  clearInterval(timer);
  appendFileSync(effects, name + " ended\\n");
  writeFileSync(out, "out of " + name);
}, 10);
`;
const line = (step: string, n: number) => `${step} line ${n} ${"x".repeat(60)}`;

interface World {
  time: FastTime;
  cloud: TestCloud;
  proxy: TcpProxy;
  store: string;
  effects: string;
}

async function world(t: Teardown, config = ""): Promise<World> {
  const time = new FastTime(t);
  const fast = { nodeArgs: time.nodeArgs, env: time.env };
  const cloud = await TestCloud.start(t, fast);
  const proxy = await startTcpProxy(t, { port: cloud.port });
  const store = tempDir(t, "store");
  mkdirSync(join(store, "code"));
  writeFileSync(join(store, "code/step.mjs"), STEP);
  await connectAgent(t, cloud, "lab", {
    ...fast,
    url: `http://127.0.0.1:${proxy.port}`,
    config: `
stores: [{ id: box, kind: fs, root: ${store} }]
programs: { node: { path: ${process.execPath} } }
${config}
policy:
  ceilings: { concurrentRuns: 2, concurrentSteps: 2, stepTimeoutMs: ${24 * HOUR}, stepsPerRun: 10, streams: 32, deployments: 1, replicas: 1, cpus: 1, memoryBytes: 1073741824 }
  commands: ["pipeline.run", "run.*", "deployment.*"]
  engines: [process]
  programs: [node]
  stores: [{ store: box, read: ["**"], write: ["runs/**"] }]
  release: { metadata: true, logs: true }
`,
  });
  return { time, cloud, proxy, store, effects: join(tempDir(t, "effects"), "effects.txt") };
}

const pace = (w: World, step: string, lines: number, end = false): void =>
  writeFileSync(`${w.effects}.${step}`, `${lines}${end ? " end" : ""}`);
const effectsOf = (w: World): string[] =>
  existsSync(w.effects) ? readFileSync(w.effects, "utf8").trim().split("\n") : [];
const runOf = (w: World, id: string) => w.cloud.api.json<RunDetail>(`/v1/runs/${id}`);

async function startRun(w: World): Promise<{ id: string; command: string }> {
  for (const step of ["one", "two"]) pace(w, step, 0);
  const step = (name: string, needs: string[]) => ({
    name,
    needs,
    program: "node",
    args: ["${inputs.code}", name, w.effects, `${w.effects}.${name}`, "${outputs.out}"],
    inputs: { code: { store: "box", path: "code/step.mjs" } },
    outputs: { out: {} },
    timeoutMs: 6 * HOUR,
  });
  return w.cloud.api.json("/v1/runs", {
    headers: { "idempotency-key": randomUUID() },
    json: {
      pool: "lab",
      pipeline: { name: "long", outputs: { store: "box" }, steps: [step("one", []), step("two", ["one"])] },
    },
  });
}

async function logOf(w: World, run: string, step: string): Promise<LogRecord[]> {
  const records: LogRecord[] = [];
  for await (const record of readNdjson(await w.cloud.api.open(`/v1/runs/${run}/steps/${step}/logs?limit=100000`)))
    records.push(record as LogRecord);
  return records;
}

/** Every number is in one record or within a visible gap, each once and in order. */
function holes(records: readonly LogRecord[]): string[] {
  const found: string[] = [];
  let next = 1;
  for (const record of records) {
    const [from, to] = "gap" in record ? [record.from, record.to] : [record.seq, record.seq];
    if (from !== next) found.push(`${from} comes where ${next} was due`);
    next = to + 1;
  }
  return found;
}
/**
 * Whole lines. At this pace of time one that is read in two parts may have stood unfinished for "long": it is two records
 * then. What is left of one whose beginning is in a gap is none.
 */
function linesOf(records: readonly LogRecord[]): string[] {
  const lines: string[] = [];
  let afterGap = false;
  for (const one of records) {
    if ("gap" in one) afterGap = true;
    else if (one.stream === "stdout") {
      const text = one.body.data.trimEnd();
      if (one.continued !== true) lines.push(text);
      else if (!afterGap) lines.push(`${lines.pop()!}${text}`);
      afterGap = false;
    }
  }
  return lines;
}

/** Looks at the control plane again and again until `over`; what states it ever showed. */
function watchStates(w: World, run: string): { stop: () => Promise<{ runs: Set<string>; agents: Set<string> }> } {
  const seen = { runs: new Set<string>(), agents: new Set<string>() };
  let over = false;
  const looking = (async () => {
    while (!over) {
      seen.runs.add((await runOf(w, run)).state);
      seen.agents.add((await w.cloud.api.json<{ items: Agent[] }>("/v1/agents")).items[0]!.state);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  })();
  return {
    stop: async () => {
      over = true;
      await looking;
      return seen;
    },
  };
}

/** Reached again. Its wait before the next dial may be a minute; a handshake has deadlines of seconds. */
async function back(w: World): Promise<void> {
  w.proxy.setMode("flow");
  w.proxy.refuse(false);
  await w.time.run(10);
  await waitFor("the agent to be back", async () => (await w.cloud.agents())[0]?.state === "connected", {
    timeoutMs: 60_000,
  });
  await w.time.run(1);
}

t.test("a partition of six hours in a run of five", { timeout: 180_000 }, async (t) => {
  const w = await world(t);
  const run = await startRun(w);
  await waitFor("the first step to be running", () => effectsOf(w).includes("one began"));
  const began = w.time.elapsed();
  pace(w, "one", 100);
  await waitFor("its first lines to be read", async () => linesOf(await logOf(w, run.id, "one")).length === 100);

  // ---- six hours, nobody reached
  w.proxy.refuse(true);
  w.proxy.cut();
  await waitFor("the run to be unknown", async () => (await runOf(w, run.id)).state === "unknown");
  const states = watchStates(w, run.id);
  const cutAt = w.time.elapsed();
  const dialled = w.proxy.accepted;
  await w.time.run(SPEED);
  for (let part = 1; part <= 10; part++) {
    pace(w, "one", 100 + part * 290);
    await w.time.reach(cutAt + (part * 2.5 * HOUR) / 10);
  }
  pace(w, "one", 3000, true);
  await waitFor("the second step to begin", () => effectsOf(w).includes("two began"));
  const secondAt = w.time.elapsed();
  t.ok(secondAt - began >= 2.5 * HOUR, "the first step took hours");
  for (let part = 1; part <= 10; part++) {
    pace(w, "two", part * 300);
    await w.time.reach(cutAt + 2.5 * HOUR + (part * 2.5 * HOUR) / 10);
  }
  pace(w, "two", 3000, true);
  await waitFor("the second step to end", () => effectsOf(w).includes("two ended"));
  t.ok(w.time.elapsed() - cutAt >= 5 * HOUR);
  await w.time.reach(cutAt + 6 * HOUR);
  await w.time.run(1);
  const seen = await states.stop();
  const partitionMs = w.time.elapsed() - cutAt;
  const explained = await w.cloud.api.json<CommandDetail>(`/v1/commands/${run.command}`);
  t.equal(explained.unknown, true);
  t.ok(explained.silence !== null, "and says whose silence it is");
  t.same([...seen.runs], ["unknown"], "never failed, never anything else, while its agent was silent");
  t.notOk(seen.agents.has("connected"));
  t.ok(seen.agents.has("lost"));
  t.ok(w.proxy.accepted - dialled > 50, `it dialled all the while: ${w.proxy.accepted - dialled} times`);

  // ---- back
  await back(w);
  const ended = await waitFor(
    "the run to have succeeded",
    async () => {
      const now = await runOf(w, run.id);
      return now.state !== "unknown" && now.state !== "running" && now;
    },
    { timeoutMs: 90_000 },
  );
  t.equal(ended.state, "succeeded", ended.error?.message ?? "");
  t.same(effectsOf(w), ["one began", "one ended", "two began", "two ended"], "each step began once and ended once");
  t.same(
    ended.attempts.map(({ step, attempt, state, adopted }) => [step, attempt, state, adopted]),
    [
      ["one", 1, "succeeded", false],
      ["two", 1, "succeeded", false],
    ],
  );
  const took = ended.endedAt! - ended.startedAt!;
  t.ok(took >= 5 * HOUR && took < partitionMs + 60_000, `by its agent's own clock it took ${took / HOUR} h`);
  for (const step of ["one", "two"]) {
    const records = await logOf(w, run.id, step);
    t.same(holes(records), [], "no hole, no gap");
    t.notOk(
      records.some((record) => "gap" in record),
      "nothing is missing",
    );
    t.same(
      linesOf(records),
      Array.from({ length: 3000 }, (_, n) => line(step, n + 1)),
      `each line of ${step} once, in order`,
    );
  }
  const { history } = await w.cloud.api.json<CommandDetail>(`/v1/commands/${run.command}`);
  t.same(
    history.filter((one) => one.applied).map((one) => one.type),
    ["queued", "offered", "accepted", "running", "succeeded"],
    "what it said is told in order",
  );
  t.comment(`${(partitionMs / HOUR).toFixed(2)} h of partition, ${w.proxy.accepted - dialled} dials`);
});

t.test("a log over its cap says what is missing; silence on an open connection", { timeout: 180_000 }, async (t) => {
  const w = await world(t, "limits: { logBytesPerAttempt: 1048576 }");
  const run = await startRun(w);
  await waitFor("the first step to be running", () => effectsOf(w).includes("one began"));
  pace(w, "one", 50);
  await waitFor("its first lines to be read", async () => linesOf(await logOf(w, run.id, "one")).length === 50);

  // Nothing is refused or reset: both ends must find out by the silence. What is dialled meanwhile is open, and silent.
  w.proxy.setMode("swallow");
  const states = watchStates(w, run.id);
  await w.time.run(10);
  await waitFor("the run to be unknown", async () => (await runOf(w, run.id)).state === "unknown");
  await w.time.run(SPEED);
  const cutAt = w.time.elapsed();
  const total = 30_000;
  for (let part = 1; part <= 10; part++) {
    pace(w, "one", (part * total) / 10);
    await w.time.reach(cutAt + (part * HOUR) / 10);
  }
  pace(w, "one", total, true);
  await waitFor("the second step to begin", () => effectsOf(w).includes("two began"));
  pace(w, "two", 10, true);
  await waitFor("the second step to end", () => effectsOf(w).includes("two ended"));
  await w.time.run(1);
  const seen = await states.stop();
  t.same(
    [...seen.runs].filter((state) => state !== "running"),
    ["unknown"],
  );

  w.proxy.cut();
  await back(w);
  const ended = await waitFor(
    "the run to have ended",
    async () => {
      const now = await runOf(w, run.id);
      return now.state !== "unknown" && now.state !== "running" && now;
    },
    { timeoutMs: 60_000 },
  );
  t.equal(ended.state, "succeeded", ended.error?.message ?? "");
  const records = await logOf(w, run.id, "one");
  t.same(holes(records), [], "each number is in a record or in a gap that says so");
  const gaps = records.filter((record) => "gap" in record);
  t.ok(gaps.length >= 1, "there is a gap");
  for (const gap of gaps) t.ok("gap" in gap && gap.reason.length > 0, "with its reason");
  const lines = linesOf(records);
  t.equal(lines[0], line("one", 1), "the beginning is kept");
  t.equal(lines.at(-1), line("one", total), "and the end");
  const missing = gaps.reduce((sum, gap) => sum + ("gap" in gap ? gap.to - gap.from + 1 : 0), 0);
  // Records, of which a line that was read in parts has more than one; within the gap nobody can tell.
  const counted = records.filter((record) => !("gap" in record) && record.stream === "stdout").length + missing;
  t.ok(counted >= total && counted <= total + 10, `what is not shown is counted by the gaps: ${counted} of ${total}`);
  t.same(effectsOf(w), ["one began", "one ended", "two began", "two ended"]);
});

t.test("a deployment through half an hour without the control plane", { timeout: 180_000 }, async (t) => {
  const starts = join(tempDir(t, "starts"), "starts.txt");
  const serving = join(repository, "test/soak/serving.mjs");
  const w = await world(
    t,
    `serving: { listen: "127.0.0.1:${await freePort()}", process: { path: ${process.execPath}, args: [${JSON.stringify(serving)}] } }`,
  );
  const model = Buffer.from("no model at all");
  writeFileSync(join(w.store, "model.onnx"), model);
  const made = await w.cloud.api.json<DeploymentDetail>("/v1/deployments", {
    headers: { "idempotency-key": randomUUID() },
    json: {
      pool: "lab",
      name: "still",
      spec: {
        model: {
          store: "box",
          path: "model.onnx",
          digest: `sha256:${createHash("sha256").update(model).digest("hex")}`,
        },
        engine: "process",
        resources: { cpus: 0.1, memoryBytes: 134_217_728 },
        env: { EFFECTS: starts },
      },
    },
  });
  const deployment = () => w.cloud.api.json<DeploymentDetail>(`/v1/deployments/${made.id}`);
  await waitFor("it to be available", async () => (await deployment()).state === "available");
  const cutAt = w.time.elapsed();
  w.proxy.refuse(true);
  w.proxy.cut();
  await waitFor("it to be unknown", async () => (await deployment()).state === "unknown");
  // Its replica is asked for its health all the while, and answers at the machine's own pace.
  await w.time.run(60);
  const seen = new Set<string>();
  while (w.time.elapsed() - cutAt < HOUR / 2) {
    seen.add((await deployment()).state);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  await w.time.run(1);
  t.same([...seen], ["unknown"], "nobody knows, so nobody says that it failed");
  await back(w);
  const after = await waitFor("its state to be known", async () => {
    const now = await deployment();
    return now.state === "available" && now;
  });
  t.equal(after.observed?.replicas.length, 1);
  t.equal(readFileSync(starts, "utf8").trim().split("\n").length, 1, "its replica is the one that it was");
});
