// The feature with a real engine, a real journal and real processes that keep the serving contract; agents killed where it
// hurts. What a replica does is counted by itself: each start writes a line.
import { spawn } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import {
  ConnectorError,
  newId,
  sha256,
  systemClock,
  wait,
  type DeploymentId,
  type DeploymentSpecInput,
  type DeploymentStatus,
} from "@sallyport/protocol";
import t, { type Test } from "tap";
import { replicaWorkName, type Engine } from "../../engines/engine.ts";
import { allProcs } from "../../engines/process/proc.ts";
import { testAgent, type TestAgent, type TestAgentOptions } from "./fixtures/test-agent.ts";

t.setTimeout(300_000);
const until = async (what: string, holds: () => boolean | Promise<boolean>): Promise<void> => {
  const begin = performance.now();
  while (performance.now() - begin < 60_000) {
    if (await holds()) return;
    await wait(systemClock, 10);
  }
  throw new Error(`never: ${what}`);
};

const hostsOf = (stateDir: string): number[] =>
  allProcs().flatMap(({ pid }) => {
    try {
      const args = readFileSync(`/proc/${pid}/cmdline`, "latin1").split("\0");
      return args.some((arg) => arg.includes("host-main")) && args.includes(join(stateDir, "host")) ? [pid] : [];
    } catch {
      return [];
    }
  });

interface Scene {
  options: TestAgentOptions;
  deployment: DeploymentId;
  /** `<replica> <pid>` of each start, in order. */
  starts: () => string[];
  /** Writes a model into the store; what a spec says of it. */
  model: (behaviour: Record<string, unknown>, file?: string) => DeploymentSpecInput["model"];
  agent: (more?: Partial<TestAgentOptions>) => Promise<TestAgent>;
}

function scene(t: Test, stateName = "state"): Scene {
  const folder = mkdtempSync(join(tmpdir(), "sallyport-deployments-"));
  const storeDir = join(folder, "store");
  const stateDir = join(folder, stateName);
  mkdirSync(storeDir);
  mkdirSync(stateDir, { recursive: true });
  const effects = join(folder, "effects");
  const options: TestAgentOptions = { stateDir, storeDir, effects };
  const agents: TestAgent[] = [];
  t.teardown(async () => {
    for (const agent of agents) await agent.close();
    const last = await testAgent({ ...options, denied: () => true });
    for (const { name } of await last.engine.list().catch(() => [])) await last.engine.stop(name, 0);
    await last.close();
    for (const pid of hostsOf(stateDir)) process.kill(pid, "SIGKILL");
    await until("no host", () => hostsOf(stateDir).length === 0);
    rmSync(folder, { recursive: true, force: true });
  });
  return {
    options,
    deployment: newId("deployment"),
    starts: () =>
      existsSync(effects)
        ? readFileSync(effects, "utf8")
            .split("\n")
            .slice(0, -1)
            .map((line) => line.replace(/^start dep_[0-9a-f]+\./, ""))
        : [],
    model(behaviour, file = "model.json") {
      const bytes = JSON.stringify(behaviour);
      writeFileSync(join(storeDir, file), bytes);
      return { store: "lake", path: file, digest: `sha256:${sha256(bytes)}` };
    },
    async agent(more = {}) {
      const agent = await testAgent({ ...options, ...more });
      agents.push(agent);
      return agent;
    },
  };
}

const statusOf = (agent: TestAgent): DeploymentStatus => agent.deployments.statuses()[0]!;
const condition = (agent: TestAgent, type: string) => statusOf(agent).conditions.find((one) => one.type === type)!;
const available = (agent: TestAgent): Promise<void> => until("available", () => statusOf(agent)?.state === "available");
const names = (agent: TestAgent): string[] => statusOf(agent).replicas.map((one) => one.name);
/** Its log, once so much of it is written down: what a replica says is there a moment after it says so. */
const linesOf = async (agent: TestAgent, input: Record<string, unknown>, count: number): Promise<string[]> => {
  let lines: string[] = [];
  await until(`${count} lines`, async () => (lines = await agent.readLogs(input)).length >= count);
  return lines;
};
const pidOf = (line: string): number => Number(line.split(" ")[1]);
const alive = (pid: number): boolean => allProcs().some((one) => one.pid === pid);

await t.test(
  "deploy, predict, scale, a new revision, back to the old content, remove: nothing fails on the way",
  async (t) => {
    const { agent: start, deployment, model, starts, options } = scene(t);
    const agent = await start({ secrets: { "db-password": "correct-horse-battery" } });
    const spec = { model: model({}), env: { A: "1" }, secrets: { PASSWORD: "db-password" } };
    t.match((await agent.apply(deployment, "m", 1, 1, spec)).result, { deployment, generation: 1 });
    await available(agent);
    t.match(statusOf(agent), {
      name: "m",
      generation: 1,
      revision: 1,
      replicasWanted: 1,
      replicasReady: 1,
      isolated: false,
      endpoint: /^http:\/\/127\.0\.0\.1:\d+\/m$/,
      replicas: [{ name: "r1.0", state: "ready", code: null, starts: 1, adopted: false, lastExit: null }],
      conditions: [
        { type: "available", ok: true, code: "OK" },
        { type: "updated", ok: true },
        { type: "endpoint", ok: true },
      ],
    });
    t.match(await agent.ask(deployment, { x: 1 }), {
      status: 200,
      replica: "r1.0",
      body: { model_name: "m", model_version: "1", echo: { x: 1 } },
    });
    t.same(await linesOf(agent, { deployment, replica: "r1.0" }, 2), ["serving m 1, password [redacted]", "listens"]);
    const [endpoint] = agent.deployments.endpoints();
    t.match(endpoint, { name: "m", url: /^http:\/\/127\.0\.0\.1:\d+\/m$/, key: /^spk_.{43}$/ });
    t.equal(agent.redactor.text(`key ${endpoint!.key}`), "key [redacted]");
    t.equal(agent.redactor.text(`token ${agent.routes.get(deployment)!.replicas[0]!.token}`), "token [redacted]");
    t.equal(statSync(join(options.stateDir, "endpoints", `${deployment}.key`)).mode & 0o777, 0o600);

    // Requests go on through all that follows.
    let going = true;
    let asked = 0;
    const failed: unknown[] = [];
    const versions = new Set<string>();
    const load = (async () => {
      while (going) {
        asked++;
        await agent.post({ ms: 15 }).then(
          ({ status, body }) => (status === 200 ? versions.add(body.model_version) : failed.push(status)),
          (error: unknown) => failed.push(error),
        );
      }
    })();
    await agent.apply(deployment, "m", 2, 1, { ...spec, replicas: 3 });
    await until("3", () => statusOf(agent).replicasReady === 3);
    await available(agent);
    const victim = starts().find((line) => line.startsWith("r1.1"))!;
    process.kill(pidOf(victim), "SIGKILL");
    await until("it is missed", () => statusOf(agent).replicasReady === 2);
    await available(agent);
    await agent.apply(deployment, "m", 3, 2, { ...spec, replicas: 3, model: model({ slowMs: 100 }, "two.json") });
    await until("progressing", () => statusOf(agent).state === "progressing");
    let most = 0;
    let fewest = 9;
    await until("rolled", () => {
      const { replicas, replicasReady, state, revision } = statusOf(agent);
      most = Math.max(most, replicas.length);
      fewest = Math.min(fewest, replicasReady);
      return state === "available" && revision === 2 && replicas.length === 3;
    });
    t.equal(most, 4, "one more than wanted");
    t.equal(fewest, 3, "never fewer that serve");
    t.same(names(agent), ["r2.0", "r2.1", "r2.2"]);
    await agent.apply(deployment, "m", 4, 2, { ...spec, replicas: 1, model: model({ slowMs: 100 }, "two.json") });
    await until("1", () => names(agent).join() === "r2.0");
    await agent.apply(deployment, "m", 5, 3, spec);
    await until("back", () => names(agent).join() === "r3.0" && statusOf(agent).state === "available");
    going = false;
    await load;
    t.same(failed, [], `none of ${asked} requests failed`);
    t.same([...versions], ["1", "2", "3"]);
    t.same(
      starts()
        .map((line) => line.slice(0, line.indexOf(" ")))
        .toSorted((a, b) => (a < b ? -1 : 1)),
      ["r1.0", "r1.1", "r1.1", "r1.2", "r2.0", "r2.1", "r2.2", "r3.0"],
      "scaling restarts nobody",
    );

    await t.rejects(agent.apply(deployment, "m", 4, 2, spec), { code: "GENERATION_STALE" });
    await t.rejects(agent.apply(deployment, "m", 6, 3, { ...spec, env: {} }), { code: "CONFLICT" });
    await t.rejects(agent.apply(deployment, "m", 5, 3, { ...spec, replicas: 2 }), { code: "CONFLICT" });
    await agent.apply(deployment, "m", 5, 3, spec);
    await t.rejects(agent.apply(newId("deployment"), "m", 1, 1, spec), { code: "CONFLICT" });
    t.same(agent.deployments.generations(), { [deployment]: 5 });

    t.same((await agent.command("deployment.remove", { deployment, generation: 5 })).result, {
      deployment,
      stopped: ["r3.0"],
    });
    t.same(agent.deployments.statuses(), []);
    t.same(await agent.engine.list(), []);
    t.notOk(starts().some((line) => alive(pidOf(line))));
    t.same(readdirSync(join(options.stateDir, "serving")), []);
    t.notOk(agent.routes.has(deployment));
    t.notOk(existsSync(join(options.stateDir, "endpoints", `${deployment}.key`)));
    await t.rejects(agent.apply(deployment, "m", 5, 3, spec), { code: "GENERATION_STALE" });
    t.same((await agent.command("deployment.remove", { deployment, generation: 6 })).result, {
      deployment,
      stopped: [],
    });
  },
);

await t.test("a revision that does not come up says why; the old one serves, also when it is killed", async (t) => {
  const { agent: start, deployment, model, starts, options } = scene(t);
  let denied = false;
  const agent = await start({ denied: (action) => denied && action.kind === "store", secrets: { s: "correct-horse" } });
  const good = model({});
  await agent.apply(deployment, "m", 1, 1, { model: good });
  await available(agent);
  let generation = 1;
  const stuck = async (spec: DeploymentSpecInput, code: string, more: Record<string, unknown> = {}): Promise<void> => {
    generation++;
    await agent.apply(deployment, "m", generation, generation, spec);
    await until(`updated says ${code}`, () => condition(agent, "updated").code === code);
    t.match(condition(agent, "updated"), { ok: false, code, fix: String, ...more }, code);
    t.equal(statusOf(agent).state, "degraded");
    t.match(condition(agent, "available"), { ok: true });
    t.match(await agent.ask(deployment), { status: 200, body: { model_version: "1" } });
  };
  await stuck({ model: model({ refuse: true }, "refused.json") }, "MODEL_REFUSED", {
    message: /operator/,
    details: { replica: "r2.0", start: Number, logSeq: Number, exit: { code: 65, reason: "exit" } },
  });
  const log = await agent.readLogs({ deployment, replica: "r2.0", start: 1, tail: 1 });
  t.match(log, [/MODEL_REFUSED/], "the log that it points to");
  await stuck({ model: model({ crash: true }, "crash.json") }, "CRASH_LOOP", {
    details: { replica: "r3.0", exit: { code: 3 } },
  });
  const looped = starts().filter((line) => line.startsWith("r3.0")).length;
  await until("it is tried again", () => starts().filter((line) => line.startsWith("r3.0")).length > looped);
  await stuck({ model: { ...good, digest: `sha256:${"0".repeat(64)}` } }, "DIGEST_MISMATCH");
  t.same(
    readdirSync(join(options.stateDir, "models")).filter((file) => file.includes("0000")),
    [],
    "nothing of it is kept",
  );
  await stuck({ model: { ...good, path: "none.json", digest: `sha256:${"1".repeat(64)}` } }, "ARTIFACT_NOT_FOUND");
  await stuck({ model: good, secrets: { S: "unknown" } }, "SECRET_UNKNOWN");
  const old = starts().findLast((line) => line.startsWith("r1.0"))!;
  process.kill(pidOf(old), "SIGKILL");
  await until("r1.0 comes back", () =>
    statusOf(agent).replicas.some((one) => one.name === "r1.0" && one.state === "ready" && one.starts === 2),
  );
  t.match(
    statusOf(agent).replicas.find((one) => one.name === "r1.0"),
    { lastExit: { reason: "exit", signal: "SIGKILL", start: 1 } },
  );

  denied = true;
  agent.deployments.policyChanged();
  generation++;
  denied = false;
  await agent.apply(deployment, "m", generation, generation, { model: good, secrets: { S: "s" } });
  await available(agent);
  t.same(names(agent), [`r${generation}.0`], "and when it can be, it takes over");
  denied = true;
  process.kill(pidOf(starts().at(-1)!), "SIGKILL");
  await until("denied", () => condition(agent, "available").code === "POLICY_DENIED");
  t.equal(statusOf(agent).state, "failed");
  t.match(condition(agent, "available").details, { rule: "policy.test", replica: `r${generation}.0` });
});

await t.test("what cannot be is refused at once", async (t) => {
  const { agent: start, deployment, model } = scene(t);
  let deny = "";
  const agent = await start({
    denied: (action) => action.kind === deny || (action.kind === "ceiling" && action.ceiling === deny),
  });
  const spec = { model: model({}) };
  const refused = (given: Record<string, unknown>, error: { code: string; details?: Record<string, unknown> }) =>
    t.rejects(agent.apply(deployment, "m", 1, 1, { ...spec, ...given } as DeploymentSpecInput), error);
  await refused({ image: `sha256:${"a".repeat(64)}` }, { code: "DEPLOYMENT_INVALID" });
  await refused({ env: { LD_PRELOAD: "x" } }, { code: "DEPLOYMENT_INVALID", details: { variable: "LD_PRELOAD" } });
  await refused({ env: { A: "1" }, secrets: { A: "s" } }, { code: "DEPLOYMENT_INVALID" });
  await refused({ engine: "docker" }, { code: "ENGINE_UNKNOWN" });
  await refused({ model: { ...spec.model, store: "other" } }, { code: "STORE_UNKNOWN" });
  for (deny of ["engine", "store", "deployments", "replicas", "cpus", "memoryBytes"])
    await refused({}, { code: "POLICY_DENIED" });
  deny = "secret";
  await refused({ secrets: { A: "s" } }, { code: "POLICY_DENIED" });
  deny = "predict";
  await agent.apply(deployment, "m", 1, 1, spec);
  await available(agent);
  await t.rejects(agent.ask(deployment), { code: "POLICY_DENIED" });
  await t.rejects(agent.ask(newId("deployment")), { code: "DEPLOYMENT_UNKNOWN" });
  await t.rejects(agent.readLogs({ deployment, replica: "r1.7" }), { code: "LOGS_GONE" });
});

await t.test("room is for all deployments, in the order in which they wait", async (t) => {
  const { agent: start, deployment, model } = scene(t);
  const limits = { servingCpus: 2 };
  const agent = await start({ limits });
  const spec = { model: model({}), replicas: 2 };
  const [second, third] = [newId("deployment"), newId("deployment")];
  await agent.apply(deployment, "a", 1, 1, spec);
  await available(agent);
  await agent.apply(second, "b", 1, 1, { ...spec, replicas: 1 });
  await agent.apply(third, "c", 1, 1, { ...spec, replicas: 1 });
  const of = (id: DeploymentId) => agent.deployments.statuses().find((one) => one.deployment === id)!;
  await until("both wait", () => [second, third].every((id) => of(id).conditions[0]!.code === "AT_CAPACITY"));
  t.match(of(second), {
    state: "failed",
    replicas: [{ name: "r1.0", state: "waiting", code: "AT_CAPACITY", starts: 0 }],
  });
  t.match(of(second).conditions[0]!.message, /servingCpus is 2/);
  await agent.apply(deployment, "a", 2, 1, { ...spec, replicas: 1 });
  await until("the first has room", () => of(second).state === "available");
  t.equal(of(third).conditions[0]!.code, "AT_CAPACITY");
  await agent.command("deployment.remove", { deployment: second, generation: 1 });
  await until("the second has room", () => of(third).state === "available");
});

await t.test(
  "killed, deaf or stopped by hand: it comes back; stopped at the host it stays away until the next apply",
  async (t) => {
    const { agent: start, deployment, model, starts, options } = scene(t);
    const told: number[] = [];
    const agent = await start();
    agent.deployments.onChange(() => told.push(performance.now()));
    await agent.apply(deployment, "m", 1, 1, { model: model({}), replicas: 2 });
    await available(agent);
    for (let round = 0; round < 2; round++) {
      const victim = pidOf(starts().findLast((line) => line.startsWith("r1.1"))!);
      process.kill(victim, "SIGKILL");
      await until("gone", () => statusOf(agent).replicas[1]!.state !== "ready");
      await until("back", () => statusOf(agent).replicas[1]!.state === "ready");
      t.equal(statusOf(agent).replicas[1]!.starts, 2 + round);
      await available(agent);
    }
    t.same(starts().filter((line) => line.startsWith("r1.0")).length, 1, "the other one is left alone");
    // At the engine, past the agent.
    await agent.engine.stop(replicaWorkName(deployment, 1, 1), 0);
    await until(
      "back again",
      () => statusOf(agent).replicas[1]!.starts === 4 && statusOf(agent).replicas[1]!.state === "ready",
    );
    t.match(statusOf(agent).replicas[1]!.lastExit, { start: 3 });

    writeFileSync(`${options.effects}.unready`, "");
    await until("unready", () => statusOf(agent).replicas.every((one) => one.state === "unready"));
    t.equal(agent.routes.get(deployment)!.replicas.length, 0);
    const before = starts().length;
    await until("restarted", () => starts().length >= before + 2);
    rmSync(`${options.effects}.unready`);
    await available(agent);

    t.match(await agent.deployments.stop("m/r1.0", "root"), { stopped: [/./] });
    await until("it comes back", () => statusOf(agent).state !== "available");
    await available(agent);
    t.match(await agent.deployments.stop("m", "root"), { stopped: ["r1.0", "r1.1"] });
    t.match(condition(agent, "available"), { ok: false, code: "CANCELLED", message: /root/ });
    t.equal(statusOf(agent).state, "failed");
    t.same(await agent.engine.list(), []);
    t.equal(await agent.deployments.stop("none", "root"), null);
    await agent.apply(deployment, "m", 2, 1, { model: model({}), replicas: 1 });
    await available(agent);
    t.match(statusOf(agent).replicas, [{ name: "r1.0", state: "ready" }]);
    const gaps = told.slice(1).map((at, i) => at - told[i]!);
    t.ok(Math.min(...gaps) >= 45, "changes are told at most so often");
  },
);

await t.test(
  "an engine that is gone: what runs is kept and routed, and says so; removed by hand it comes back",
  async (t) => {
    const { agent: start, deployment, model, starts } = scene(t);
    let gone = false;
    /** While somebody removes work, the engine says nothing of it; then that it knows nothing. */
    let removal: Promise<void> | null = null;
    const agent = await start({
      engine: (real) => {
        const guarded =
          <A extends unknown[], R>(work: (...args: A) => Promise<R>) =>
          async (...args: A): Promise<R> => {
            if (gone)
              throw new ConnectorError("ENGINE_UNREACHABLE", "The engine does not answer.", { fix: "Start it." });
            return work(...args);
          };
        const engine: Engine = {
          name: real.name,
          isolated: real.isolated,
          inside: (folder) => real.inside(folder),
          prepare: (image, signal) => real.prepare(image, signal),
          fetchOutputs: (...args) => real.fetchOutputs(...args),
          start: guarded((spec) => real.start(spec)),
          status: guarded(async (name) => {
            await removal;
            return real.status(name);
          }),
          attach: guarded((name, files) => real.attach(name, files)),
          async ended(name, signal) {
            const end = await real.ended(name, signal);
            if (removal === null) return end;
            // What is removed has no end that could be told.
            return new Promise((_, reject) =>
              signal?.addEventListener("abort", () => reject(signal.reason as Error), { once: true }),
            );
          },
          address: guarded((name, port) => real.address(name, port)),
          stop: guarded((name, graceMs) => real.stop(name, graceMs)),
          list: guarded(() => real.list()),
          forget: guarded((name) => real.forget(name)),
        };
        return engine;
      },
    });
    await agent.apply(deployment, "m", 1, 1, { model: model({}) });
    await available(agent);
    gone = true;
    await until("it says so", () => statusOf(agent).state === "degraded");
    t.match(statusOf(agent).replicas, [{ state: "ready", code: "ENGINE_UNREACHABLE" }]);
    t.match(await agent.ask(deployment), { status: 200, replica: "r1.0" });
    await agent.apply(deployment, "m", 2, 1, { model: model({}), replicas: 2 });
    await until(
      "the second waits",
      () =>
        statusOf(agent).replicas[1]?.code === "ENGINE_UNREACHABLE" ||
        statusOf(agent).replicas[1]?.code === "ENGINE_FAILED",
    );
    t.equal(starts().length, 1);
    gone = false;
    await available(agent);
    t.equal(starts().length, 2);
    // Somebody removed both: neither the process nor the engine's record of it is there.
    const removed = Promise.withResolvers<void>();
    removal = removed.promise;
    for (const { name } of await agent.engine.list()) {
      await agent.engine.stop(name, 0);
      await agent.engine.forget(name);
    }
    removed.resolve();
    await until("noticed", () => statusOf(agent).replicas.every((one) => one.lastExit?.reason === "removed"));
    await available(agent);
  },
);

const driver = fileURLToPath(new URL("fixtures/driver.ts", import.meta.url));
await t.test(
  "an agent killed at each boundary: no start twice, what runs is taken over, what is wanted comes about",
  async (t) => {
    const boundaries: [string, number][] = [
      ["sallyport:deployment.applied", 1],
      ["sallyport:replica.numbered", 1],
      ["sallyport:replica.started", 2],
      ["sallyport:replica.begun", 2],
      ["sallyport:replica.numbered", 3],
      ["sallyport:replica.started", 3],
      ["sallyport:replica.ended", 1],
      ["sallyport:deployment.removing", 1],
      ["sallyport:deployment.removed", 1],
    ];
    for (const [killAt, killCount] of boundaries) {
      await t.test(`${killAt}, passing ${killCount}`, async (t) => {
        const { options, deployment, model, starts, agent: start } = scene(t);
        const result = join(options.stateDir, "result");
        const applies = [
          {
            generation: 1,
            revision: 1,
            spec: { model: model({}, "one.json"), replicas: 2, secrets: { PASSWORD: "p" } },
          },
          {
            generation: 2,
            revision: 2,
            spec: { model: model({ slowMs: 50 }, "two.json"), replicas: 2, secrets: { PASSWORD: "p" } },
          },
        ];
        const drive = async (kill: string | null): Promise<string | number | null> => {
          const plan = join(options.stateDir, "plan.json");
          writeFileSync(
            plan,
            JSON.stringify({
              agent: { ...options, secrets: { p: "s3cr3t-p4ssw0rd" } },
              deployment,
              applies,
              remove: 3,
              killAt: kill,
              killCount,
              result,
            }),
          );
          const child = spawn(process.execPath, [driver, plan], { stdio: ["ignore", "inherit", "inherit"] });
          return new Promise((resolve) => child.once("exit", (code, signal) => resolve(signal ?? code)));
        };
        t.equal(await drive(killAt), "SIGKILL");
        const removing = killAt.startsWith("sallyport:deployment.remov");
        t.equal(await drive(null), 0);
        const { statuses, failed, removed } = JSON.parse(readFileSync(result, "utf8")) as {
          statuses: DeploymentStatus[];
          failed: string[];
          removed: { stopped: string[] };
        };
        const startedPids = starts().map(pidOf);
        t.equal(new Set(startedPids).size, startedPids.length);
        if (removing) {
          // Killed while it went: it goes on going, and an apply of before does not bring it back.
          t.same(
            failed.every((code) => code === "CONFLICT" || code === "GENERATION_STALE"),
            true,
          );
        } else {
          t.match(statuses, [
            { generation: 2, revision: 2, state: "available", replicas: [{ name: "r2.0" }, { name: "r2.1" }] },
          ]);
          t.same(removed.stopped, ["r2.0", "r2.1"]);
          for (const replica of statuses[0]!.replicas)
            t.ok(
              starts().filter((line) => line.startsWith(replica.name)).length <= replica.starts,
              `${replica.name}: a number for each start`,
            );
        }
        const once = starts().map((line) => line.split(" ")[0]);
        t.equal(new Set(once).size, once.length, "no replica was started twice");
        t.notOk(startedPids.some(alive), "nothing is left");
        const agent = await start({ secrets: { p: "s3cr3t-p4ssw0rd" } });
        t.same(agent.deployments.statuses(), []);
        t.same(await agent.engine.list(), []);
      });
    }
  },
);

await t.test(
  "taken over after a restart: same start, not restarted, routed, its log goes on without a secret in it",
  async (t) => {
    // So long a path that no socket's address has room for it.
    const { options, deployment, model, starts, agent: start } = scene(t, `state-${"x".repeat(90)}`);
    const secrets = { p: "s3cr3t-p4ssw0rd" };
    const spec = { model: model({}), replicas: 2, secrets: { PASSWORD: "p" } };
    const first = await start({ secrets });
    await first.apply(deployment, "m", 1, 1, spec);
    await available(first);
    const key = first.deployments.endpoints()[0]!.key;
    await first.close();
    t.equal(starts().filter((line) => alive(pidOf(line))).length, 2, "they run on");
    // One of them ends while no agent is there; so does a replica that nobody wants.
    process.kill(pidOf(starts().find((line) => line.startsWith("r1.1"))!), "SIGKILL");
    const second = await start({ secrets });
    await available(second);
    t.match(statusOf(second).replicas, [
      { name: "r1.0", starts: 1, adopted: true },
      { name: "r1.1", starts: 2, adopted: false, lastExit: { start: 1, signal: "SIGKILL" } },
    ]);
    t.equal(second.deployments.endpoints()[0]!.key, key);
    t.match(await second.ask(deployment), { status: 200 });
    t.same(await linesOf(second, { deployment, replica: "r1.0" }, 2), ["serving m 1, password [redacted]", "listens"]);
    t.same(await linesOf(second, { deployment, replica: "r1.1", start: 1 }, 2), [
      "serving m 1, password [redacted]",
      "listens",
    ]);
    const following = second.readLogs({ deployment, replica: "r1.0", follow: true });
    process.kill(pidOf(starts()[0]!.startsWith("r1.0") ? starts()[0]! : starts()[1]!), "SIGTERM");
    t.same(await following, ["serving m 1, password [redacted]", "listens"], "a follower hears of the end");
    await available(second);
    // Work of a deployment that the journal does not know.
    const stray = replicaWorkName(newId("deployment"), 1, 0);
    const out = join(options.stateDir, "out");
    await second.engine.start({
      name: stray,
      executable: "/bin/sleep",
      args: ["1000"],
      env: {},
      cwd: options.stateDir,
      stdout: out,
      stderr: out,
      container: null,
    });
    await second.close();
    const third = await start({ secrets });
    await until("the stray one is ended", async () => (await third.engine.status(stray)).state === "absent");
    await available(third);
    t.equal((await third.engine.list()).length, 2);
  },
);
