// A run is cancelled at each stage of its life, over HTTP: it ends once, says what was really stopped, and nothing of it is
// left, not a process that ignores TERM, not one that left its session.
import { randomUUID } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";
import type { Command, RunDetail } from "../../cloud/http/api.ts";
import { TestApi } from "../support/api.ts";
import { tempDir, waitFor, type Teardown } from "../support/launcher.ts";
import { startDocker } from "../support/servers/docker.ts";
import { busyboxImage } from "../support/servers/images.ts";
import { needs } from "../support/skip.ts";
import { connectAgent, TERMINAL, TestCloud, type TestAgent } from "../support/stack.ts";

t.setTimeout(500_000);

/** Ends by KILL alone, and leaves children behind: one in its session, one in a session of its own. */
const STUBBORN = `trap '' TERM; sleep 7919 & setsid sleep 7919 & echo began >> "$0"; while :; do sleep 1; done`;
const BRIEF = `echo began >> "$0"`;

const config = (store: string, more = "", policy = "") => `
stores: [{ id: box, kind: fs, root: ${store} }]
${more}
policy:
  ceilings: { concurrentRuns: 1, concurrentSteps: 1, stepTimeoutMs: 3600000, stepsPerRun: 10, streams: 32, cpus: 4, memoryBytes: 4294967296 }
  commands: ["pipeline.run", "run.*"]
  programs: [sh]
  stores: [{ store: box, read: ["**"], write: ["runs/**"] }]
  release: { metadata: true, logs: true }
  ${policy}
`;

/** Processes that carry the name of the command's work, as the kernel shows them. */
function processesOf(command: string): string[] {
  return readdirSync("/proc").filter((pid) => {
    if (!/^\d+$/.test(pid)) return false;
    try {
      if (/ [ZX] /.test(readFileSync(`/proc/${pid}/stat`, "latin1").replace(/^.*\)/s, ""))) return false;
      return readFileSync(`/proc/${pid}/environ`, "latin1").includes(`SALLYPORT_WORK=${command}.`);
    } catch {
      return false;
    }
  });
}

class Scene {
  readonly cloud: TestCloud;
  readonly effects: string;
  readonly engine: string;
  constructor(t: Teardown, cloud: TestCloud, engine = "process") {
    this.cloud = cloud;
    this.effects = join(tempDir(t, "effects"), "effects");
    this.engine = engine;
  }
  start(script: string, { pool = "lab", effects = this.effects } = {}): Promise<{ id: string; command: string }> {
    const steps = [
      { name: "a", program: "sh", args: ["-c", script, effects] },
      { name: "b", program: "sh", args: ["-c", BRIEF, effects], needs: ["a"] },
    ];
    return this.cloud.api.json("/v1/runs", {
      headers: { "idempotency-key": randomUUID() },
      json: { pool, pipeline: { name: "p", engine: this.engine, outputs: { store: "box" }, steps } },
    });
  }
  run(id: string): Promise<RunDetail> {
    return this.cloud.api.json<RunDetail>(`/v1/runs/${id}`);
  }
  /** Status and body of the answer. */
  async cancel(id: string, api: TestApi = this.cloud.api): Promise<{ status: number; run: RunDetail }> {
    const answer = await api.call(`/v1/runs/${id}/cancel`, { method: "POST" });
    return { status: answer.status, run: answer.json<RunDetail>() };
  }
  ended(id: string): Promise<RunDetail> {
    return waitFor(
      "the run to end",
      async () => {
        const now = await this.run(id);
        return TERMINAL.includes(now.state) && now;
      },
      { timeoutMs: 60_000 },
    );
  }
  async cancels(id: string): Promise<Command[]> {
    const all = await this.cloud.api.json<{ items: Command[] }>("/v1/commands?kind=run.cancel&limit=100");
    return all.items.filter((one) => one.run === id || one.resource === `run:${id}`);
  }
  /** What its end says was stopped. */
  async stopped(run: RunDetail): Promise<string[]> {
    const { result } = await this.cloud.api.json<Command>(`/v1/commands/${run.command}`);
    return (result as { stopped?: string[] } | null)?.stopped ?? [];
  }
  began(): number {
    return existsSync(this.effects) ? readFileSync(this.effects, "utf8").trim().split("\n").length : 0;
  }
}
type Asserts = Pick<typeof t, "same" | "ok">;

t.test("cancelled at each stage of its life", { timeout: 300_000 }, async (t) => {
  const cloud = await TestCloud.start(t);
  const scene = new Scene(t, cloud);
  const store = tempDir(t, "store");
  const hold = join(tempDir(t, "hold"), "hold");
  const more = "programs: { sh: { path: /bin/sh } }";
  const agent: TestAgent = await connectAgent(t, cloud, "lab", {
    config: config(store, more, "engines: [process]"),
    nodeArgs: ["--import", fileURLToPath(new URL("../faults/hold-start.ts", import.meta.url))],
    env: { SALLYPORT_TEST_HOLD: hold },
  });
  await cloud.enroll("empty");
  const gone = async (t: Asserts, run: { id: string; command: string }) => {
    t.same(processesOf(run.command), [], "no process of it is left");
    for (const one of await scene.cancels(run.id))
      t.ok(TERMINAL.includes(one.state) || one.state === "queued", one.state);
  };

  await t.test("queued, and no agent to take it", async (t) => {
    const run = await scene.start(BRIEF, { pool: "empty" });
    const { status, run: after } = await scene.cancel(run.id);
    t.match({ status, state: after.state }, { status: 200, state: "cancelled" }, "at once");
    t.same(await scene.stopped(after), []);
    t.equal((await scene.cancel(run.id)).status, 200, "again: the same");
    t.equal((await scene.cancels(run.id)).length, 0, "nobody is asked");
  });

  await t.test("offered to an agent that has not answered", async (t) => {
    const before = scene.began();
    process.kill(agent.program.pid, "SIGSTOP");
    const run = await scene.start(STUBBORN).finally(() => undefined);
    await waitFor("it to be offered", async () => {
      const { offers } = await cloud.api.json<Command>(`/v1/commands/${run.command}`);
      return offers > 0;
    });
    // The answer to this waits for the agent's to the offer.
    const asked = scene.cancel(run.id);
    process.kill(agent.program.pid, "SIGCONT");
    t.ok([200, 202].includes((await asked).status));
    const ended = await scene.ended(run.id);
    t.equal(ended.state, "cancelled", ended.error?.message ?? "");
    t.ok(scene.began() - before <= 1, "it began once at most");
    const stopped = await scene.stopped(ended);
    if (scene.began() === before) t.same(stopped, [], "what never began was not stopped");
    await gone(t, run);
  });

  const other = new TestApi(cloud.url);
  other.token = (await cloud.api.json<{ token: string }>("/v1/tokens", { json: { label: "another" } })).token;

  await t.test("running a tree that ignores TERM; a second one waits for its slot; two ask at once", async (t) => {
    const before = scene.began();
    const run = await scene.start(STUBBORN);
    await waitFor("it to run", () => scene.began() === before + 1, { timeoutMs: 60_000 });
    await waitFor("its tree to be there", () => processesOf(run.command).length >= 3);
    const behind = await scene.start(BRIEF);
    await waitFor("the second to wait at the agent or in the queue", async () => {
      const now = await cloud.api.json<Command>(`/v1/commands/${behind.command}`);
      return now.state === "accepted" || (now.state === "queued" && now.waiting !== null);
    });
    await scene.cancel(behind.id);
    const second = await scene.ended(behind.id);
    t.equal(second.state, "cancelled");
    t.same(await scene.stopped(second), [], "it had not begun: nothing was stopped");
    t.equal((await scene.run(run.id)).state, "running", "the one before it is not touched");

    const answers = await Promise.all([
      scene.cancel(run.id),
      scene.cancel(run.id, other),
      scene.cancel(run.id),
      scene.cancel(run.id, other),
    ]);
    for (const { status } of answers) t.equal(status, 202);
    const ended = await scene.ended(run.id);
    t.equal(ended.state, "cancelled");
    const [stopped] = await scene.stopped(ended);
    const processes = Number(/^step a, attempt 1: (\d+) process/.exec(stopped ?? "")?.[1]);
    t.ok(processes >= 3, `says what was stopped: ${stopped}`);
    t.same(
      ended.attempts.map(({ step, state }) => [step, state]).filter(([, state]) => state !== "skipped"),
      [
        ["a", "cancelled"],
        ["b", "cancelled"],
      ].slice(0, ended.attempts.filter((one) => one.state !== "skipped").length),
      "and nothing came after it",
    );
    t.equal(scene.began(), before + 1, "it began once, and the step after it never");
    await waitFor("the stops to be settled", async () =>
      (await scene.cancels(run.id)).every((one) => TERMINAL.includes(one.state)),
    );
    const results = (await scene.cancels(run.id)).map((one) => (one.result as { stopped?: string[] } | null)?.stopped);
    t.ok(
      results.some((one) => one?.[0] === stopped),
      `the answer to the stop tells the same: ${JSON.stringify(results)}`,
    );
    await gone(t, run);
    const events = ended.endedAt;
    const again = await scene.cancel(run.id, other);
    t.match(
      { status: again.status, ...again.run },
      { status: 200, state: "cancelled", endedAt: events },
      "later: no more than that",
    );
  });

  await t.test("while it starts", async (t) => {
    const before = scene.began();
    mkdirSync(join(hold, ".."), { recursive: true });
    writeFileSync(hold, "");
    const run = await scene.start(STUBBORN);
    await waitFor("it to stand right before its start", () => existsSync(`${hold}.held`), { timeoutMs: 60_000 });
    const asked = scene.cancel(run.id);
    rmSync(hold);
    t.ok([200, 202].includes((await asked).status));
    const ended = await scene.ended(run.id);
    t.equal(ended.state, "cancelled", ended.error?.message ?? "");
    t.ok(scene.began() - before <= 1);
    const stopped = await scene.stopped(ended);
    if (scene.began() > before)
      t.match(stopped, [/^step a, attempt 1: \d+ process/], "what began is told to be stopped");
    await gone(t, run);
  });

  await t.test("after its end", async (t) => {
    const run = await scene.start(BRIEF);
    const ended = await scene.ended(run.id);
    t.equal(ended.state, "succeeded", ended.error?.message ?? "");
    const { status, run: after } = await scene.cancel(run.id);
    t.match(
      { status, state: after.state, endedAt: after.endedAt },
      { status: 200, state: "succeeded", endedAt: ended.endedAt },
    );
    t.equal((await scene.cancels(run.id)).length, 0);
  });
});

t.test("a container that ignores TERM", { skip: needs("docker"), timeout: 240_000 }, async (t) => {
  const server = await startDocker(t);
  const image = await busyboxImage(server.docker);
  const cloud = await TestCloud.start(t);
  const scene = new Scene(t, cloud, "docker");
  await connectAgent(t, cloud, "lab", {
    config: config(
      tempDir(t, "store"),
      `engines: { docker: { socket: ${server.socket} } }\nprograms: { sh: { path: /bin/sh, image: "${image}" } }`,
      "engines: [docker]",
    ),
  });
  const run = await scene.start(`trap '' TERM; sleep 7919 & echo began; while :; do sleep 1; done`, { effects: "-" });
  const containers = async () =>
    (await server.docker.listContainers({ all: true })).filter(({ Names }) =>
      Names.some((name) => name.includes(run.command)),
    );
  await waitFor(
    "its container to run",
    async () => {
      const now = await scene.run(run.id);
      if (TERMINAL.includes(now.state)) t.fail(`it ended ${now.state}: ${now.error?.message}`);
      return (await containers())[0]?.State === "running";
    },
    { timeoutMs: 90_000 },
  );
  const { State } = await server.docker.getContainer((await containers())[0]!.Id).inspect();
  const inside = () => existsSync(`/proc/${State.Pid}`);
  t.ok(inside());
  await Promise.all([scene.cancel(run.id), scene.cancel(run.id)]);
  const ended = await scene.ended(run.id);
  t.equal(ended.state, "cancelled", ended.error?.message ?? "");
  t.match(await scene.stopped(ended), [/^step a, attempt 1: 1 process/]);
  t.notOk(inside(), "its first process is gone, and the others with it");
  t.notOk((await containers()).some((one) => one.State === "running"));
  await waitFor("its container to be removed", async () => (await containers()).length === 0);
  t.equal((await scene.cancel(run.id)).status, 200);
});
