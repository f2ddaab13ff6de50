// Steps on an engine with images: what it is told, what comes back, what is refused; an engine that goes away; what is
// collected, and what never is.
import { existsSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { ConnectorError, newId, type PipelineInput } from "@sallyport/protocol";
import { replicaWorkName, workName, type WorkSpec } from "../../engines/engine.ts";
import type { PolicyAction } from "../../policy/action.ts";
import { ids, logOf, pipeline, scene, statesOf, stepReports, textOf, until } from "./fixtures/scene.ts";

const IMAGE = `reg.example/ml/sh@sha256:${"a".repeat(64)}`;
const OTHER = `sha256:${"b".repeat(64)}`;
const onDocker = (steps: PipelineInput["steps"]) => pipeline(steps, { engine: "docker" });
const sh = (script: string, ...args: string[]) => ({ image: IMAGE, args: ["-c", script, ...args] });
const programs = { boxed: { path: "/bin/sh", image: OTHER, args: ["-c"], env: { MODE: "fast" } } };

await t.test(
  "an image, a program in an image: paths as they see them, limits, a network; outputs come back",
  async (t) => {
    const { agent: start, boxed, store, options } = scene(t);
    const docker = boxed();
    const agent = await start({ moreEngines: [docker], programs, secrets: { pw: "correct-horse-battery" } });
    mkdirSync(join(store, "code"));
    writeFileSync(join(store, "code", "a.txt"), "A\n");
    const { command, run } = ids();
    const steps = onDocker([
      {
        name: "first",
        ...sh(
          'pwd; echo "$HOME $TMPDIR"; echo "$PATH $${LANG-none}"; cat "$0"/a.txt; test "$0" = "$SALLYPORT_INPUT_CODE"; echo "$PW"; echo out > "$1"',
          "${inputs.code}",
          "${outputs.out}",
        ),
        inputs: { code: { store: "lake", path: "code" } },
        outputs: { out: {} },
        secrets: { PW: "pw" },
        resources: { cpus: 0.5, memoryBytes: 64 * 1024 ** 2 },
        network: "tracker",
      },
      {
        name: "second",
        program: "boxed",
        args: ['cat "$0"; echo "$MODE"', "${inputs.in}"],
        inputs: { in: { step: "first", output: "out" } },
      },
    ]);
    t.same(await agent.run(command, run, steps), { run, steps: 2 });
    const inside = docker.inside(join(options.stateDir, "work", run, "first.1"));
    t.not(inside, join(options.stateDir, "work", run, "first.1"));
    t.same(textOf(await logOf(agent, { run, step: "first" })), [
      inside,
      `${inside}/home ${inside}/tmp`,
      "/the/image:/usr/bin:/bin none",
      "A",
      "[redacted]",
    ]);
    t.same(textOf(await logOf(agent, { run, step: "first" }), "system"), [
      `Attempt 1 of step first begins: image ${IMAGE}.`,
    ]);
    t.same(textOf(await logOf(agent, { run, step: "second" })), ["out", "fast"]);
    t.match(docker.specs as WorkSpec[], [
      {
        executable: "",
        container: {
          image: IMAGE,
          resources: { cpus: 0.5, memoryBytes: 64 * 1024 ** 2 },
          network: { kind: "named", name: "tracker" },
        },
      },
      {
        executable: "/bin/sh",
        container: { image: OTHER, resources: { cpus: 1, memoryBytes: 512 * 1024 ** 2 }, network: { kind: "none" } },
      },
    ]);
    t.same(docker.boxes, [], "nothing is kept of it");
    t.same(await docker.list(), []);
  },
);

await t.test("what engine and policy do not have is said at acceptance", async (t) => {
  const { agent: start, boxed } = scene(t);
  const without = await start();
  const docker = boxed();
  const asked: PolicyAction[] = [];
  let deny = (_: PolicyAction): boolean => false;
  const agent = await start({ moreEngines: [docker], programs, denied: (a) => (asked.push(a), deny(a)) });
  const fails = async (steps: PipelineInput, code: string, message: RegExp, on = agent) => {
    const { command, run } = ids();
    await t.rejects(on.run(command, run, steps), { code, message }, message.source);
  };
  const image = onDocker([{ name: "a", ...sh("true"), network: "tracker" }]);
  await fails(image, "ENGINE_UNKNOWN", /no engine docker/, without);
  await fails(
    pipeline([{ name: "a", ...sh("true") }]),
    "PIPELINE_INVALID",
    /step a names its image, .* engine process/,
  );
  await fails(pipeline([{ name: "a", program: "boxed" }]), "PROGRAM_UNKNOWN", /boxed.* in an image; engine process/);
  await fails(onDocker([{ name: "a", program: "sh" }]), "PROGRAM_UNKNOWN", /sh.* agent's machine; engine docker/);
  for (const kind of ["engine", "image", "network"] as const) {
    deny = (a) => a.kind === kind;
    await fails(image, "POLICY_DENIED", /refuses/);
  }
  for (const ceiling of ["cpus", "memoryBytes"]) {
    deny = (a) => a.kind === "ceiling" && a.ceiling === ceiling;
    await fails(image, "POLICY_DENIED", /refuses/);
  }
  deny = () => false;
  asked.length = 0;
  const { command, run } = ids();
  await agent.run(command, run, pipeline([{ name: "a", program: "sh", args: ["true"] }]));
  t.same(
    asked.filter((a) => a.kind === "image" || (a.kind === "ceiling" && ["cpus", "memoryBytes"].includes(a.ceiling))),
    [],
    "an engine that does not isolate keeps no limits, and none are asked for",
  );
  asked.length = 0;
  const own = ids();
  await agent.run(own.command, own.run, onDocker([{ name: "a", program: "boxed", args: ["true"] }]));
  t.ok(asked.some((a) => a.kind === "program" && a.program === "boxed"));
  t.notOk(
    asked.some((a) => a.kind === "image"),
    "the configuration's image is the customer's own word",
  );
  t.same(docker.specs.length, 1);
});

await t.test("a policy that is tightened while the image is pulled stops the start", async (t) => {
  const { agent: start, boxed } = scene(t);
  const docker = boxed();
  let tight = false;
  docker.pull = async () => void (tight = true);
  const agent = await start({ moreEngines: [docker], denied: (a) => tight && a.kind === "image" });
  const { command, run } = ids();
  await t.rejects(agent.run(command, run, onDocker([{ name: "a", ...sh("true") }])), { code: "POLICY_DENIED" });
  t.same(docker.specs, []);
});

await t.test("an image that comes late, that does not come, that is refused", async (t) => {
  const { agent: start, boxed } = scene(t);
  const docker = boxed();
  const agent = await start({ moreEngines: [docker] });
  const late = ids();
  let tries = 0;
  docker.pull = async (image) => {
    if (++tries === 1) throw new ConnectorError("IMAGE_MISSING", `Nobody has ${image}.`);
    await until("the log says what it waits for", async () =>
      textOf(await logOf(agent, { run: late.run, step: "a" }), "system").includes(`Pulling image ${IMAGE} …`),
    );
  };
  await agent.run(late.command, late.run, onDocker([{ name: "a", ...sh("echo done") }]));
  const log = await logOf(agent, { run: late.run, step: "a" });
  t.same(
    textOf(log, "system").filter((text) => !text.startsWith("Pulling")),
    [`Waiting for the image, trying again: Nobody has ${IMAGE}.`, `Attempt 1 of step a begins: image ${IMAGE}.`],
  );
  t.same(textOf(log), ["done"]);

  docker.pull = async () => {
    throw new ConnectorError("IMAGE_DENIED", "The registry says no.");
  };
  const refused = ids();
  await t.rejects(agent.run(refused.command, refused.run, onDocker([{ name: "a", ...sh("true"), retries: 3 }])), {
    code: "IMAGE_DENIED",
  });
  t.same(statesOf(await stepReports(agent), "a").at(-1), "1 failed", "not asked again");

  docker.pull = () => new Promise(() => undefined);
  const cancelled = ids();
  const going = agent.run(cancelled.command, cancelled.run, onDocker([{ name: "a", ...sh("true") }]));
  going.catch(() => undefined);
  await until("it waits", () => agent.pipelines.active().some(({ steps }) => steps.length === 1));
  t.same((await agent.cancel(cancelled.command, cancelled.run, ids().command)).stopped, []);
  await t.rejects(going, { code: "CANCELLED" }, "a pull is not waited for by who gave up");
});

await t.test("on an engine that others ask too, an attempt that never began there uses up no name", async (t) => {
  const { agent: start, boxed } = scene(t);
  const docker = boxed();
  const shared = { id: () => "one", ofCommand: async () => docker.specs.map(({ name }) => name) };
  const begin = docker.start.bind(docker);
  let fails = 1;
  Object.assign(docker, {
    shared,
    start: async (spec: Parameters<typeof begin>[0]) => {
      if (fails-- > 0) throw new ConnectorError("ENGINE_FAILED", "Not now.");
      return begin(spec);
    },
  });
  const agent = await start({ moreEngines: [docker] });
  const { command, run } = ids();
  const script = 'if [ "$SALLYPORT_ATTEMPT" = 2 ]; then exit 1; fi; echo done';
  t.same(await agent.run(command, run, onDocker([{ name: "a", ...sh(script), retries: 2 }])), { run, steps: 1 });
  t.same(
    docker.specs.map(({ name }) => name),
    [workName(command, "a", 1), workName(command, "a", 2)],
    "whoever counts, from wherever: the first that began is the first",
  );
  t.same(
    statesOf(await stepReports(agent), "a").filter((state) => !state.endsWith("running") && !state.endsWith("pending")),
    ["1 failed", "2 failed", "3 succeeded"],
  );
  t.same(textOf(await logOf(agent, { run, step: "a", attempt: 3 })), ["done"]);
});

await t.test("an engine that is away before, during and after: waited for, said so, gone on", async (t) => {
  const { agent: start, boxed, effects, lines } = scene(t);
  const docker = boxed();
  const agent = await start({ moreEngines: [docker] });
  const { command, run } = ids();
  const said = async (what: string) =>
    (await logOf(agent, { run, step: "a" })).filter((r) => !("gap" in r) && r.body.data.startsWith(what)).length;
  docker.away = true;
  const going = agent.run(
    command,
    run,
    onDocker([
      {
        name: "a",
        ...sh(
          `echo a >> ${effects}; while [ ! -e ${effects}.go ]; do sleep 0.02; done; echo out > "$0"`,
          "${outputs.out}",
        ),
        outputs: { out: {} },
      },
    ]),
  );
  await until(
    "before",
    async () => agent.pipelines.active().length === 1 && (await said("Waiting for engine docker")) === 1,
  );
  docker.away = false;
  await until("it runs", () => lines().length === 1);
  docker.away = true;
  await until("during", async () => (await said("Waiting for engine docker")) === 2);
  writeFileSync(`${effects}.go`, "");
  docker.away = false;
  t.same(await going, { run, steps: 1 });
  t.same(lines(), ["a"], "begun once");
  t.equal(await said("Engine docker answers again."), 2);

  const dead = ids();
  docker.away = true;
  const waiting = agent.run(dead.command, dead.run, onDocker([{ name: "a", ...sh(`echo b >> ${effects}`) }]));
  waiting.catch(() => undefined);
  await until("it waits", () => agent.pipelines.active().some(({ steps }) => steps.length === 1));
  t.same(await agent.cancel(dead.command, dead.run, ids().command), { run: dead.run, stopped: [] });
  await t.rejects(waiting, { code: "CANCELLED" }, "who waits for an engine before the start can be cancelled");
  docker.away = false;
  t.same(lines(), ["a"]);
});

await t.test(
  "after a restart: its output of the time between is in the log; what somebody removed is not run again",
  async (t) => {
    const { agent: start, boxed, effects, lines } = scene(t);
    const steps = onDocker([
      {
        name: "a",
        ...sh(
          `echo a >> ${effects}; echo one; while [ ! -e ${effects}.go ]; do sleep 0.02; done; echo two; echo x > "$0"; echo end >> ${effects}`,
          "${outputs.out}",
        ),
        outputs: { out: {} },
      },
    ]);
    const leaveIn = async (state: "running" | "ended") => {
      const { command, run } = ids();
      rmSync(`${effects}.go`, { force: true });
      const first = await start({ moreEngines: [boxed()] });
      const leaving = new AbortController();
      const began = lines().length;
      const going = first.run(command, run, steps, {}, leaving.signal);
      going.catch(() => undefined);
      await until("it began", async () => lines().length > began && statesOf(await stepReports(first), "a").length > 1);
      await until("that is written down", async () => (await logOf(first, { run, step: "a" })).length > 0);
      leaving.abort(new ConnectorError("AGENT_DRAINING", "The agent stops."));
      await t.rejects(going, { code: "AGENT_DRAINING" });
      writeFileSync(`${effects}.go`, "");
      if (state === "ended") await until("it ended", () => lines().at(-1) === "end");
      return { command, run };
    };
    const { command, run } = await leaveIn("ended");
    const second = await start({ moreEngines: [boxed()] });
    t.same(await second.run(command, run, steps), { run, steps: 1 });
    t.same(textOf(await logOf(second, { run, step: "a" })), ["one", "two"]);
    t.equal((await stepReports(second)).findLast((r) => r.run === run)!.adopted, true);
    t.same(lines(), ["a", "end"]);

    const lost = await leaveIn("ended");
    const docker = boxed();
    const name = workName(lost.command, "a", 1);
    await until("the engine knows that it ended", async () => (await docker.status(name)).state === "exited");
    await docker.forget(name);
    const third = await start({ moreEngines: [docker] });
    await t.rejects(third.run(lost.command, lost.run, steps), { code: "STEP_FAILED", message: /nobody could see how/ });
    t.same(lines(), ["a", "end", "a", "end"], "its effect happened once");

    const gone = await leaveIn("ended");
    const fourth = await start();
    await t.rejects(fourth.run(gone.command, gone.run, steps), { code: "ENGINE_UNKNOWN", message: /no engine docker/ });
  },
);

await t.test("out of memory names the limit; outputs have one too", async (t) => {
  const { agent: start, boxed } = scene(t);
  const agent = await start({ moreEngines: [boxed()], workBytes: 1000 });
  const memory = ids();
  const resources = { memoryBytes: 33_554_432 };
  await t.rejects(agent.run(memory.command, memory.run, onDocker([{ name: "a", ...sh("kill -9 $$"), resources }])), {
    code: "OUT_OF_MEMORY",
    message: /limit of 33554432 bytes/,
    details: { memoryBytes: 33_554_432, reason: "out-of-memory" },
  });
  const large = ids();
  const step = { name: "a", ...sh('head -c 1001 /dev/zero > "$0"', "${outputs.o}"), outputs: { o: {} } };
  await t.rejects(agent.run(large.command, large.run, onDocker([step])), { code: "TOO_LARGE" });
});

await t.test("what no command wants any more is collected on every engine; nothing else is touched", async (t) => {
  const { agent: start, boxed, effects, lines } = scene(t);
  const docker = boxed();
  const agent = await start({ moreEngines: [docker] });
  // An engine that was away when a step's end was written down.
  docker.forgetting = () => {
    throw new ConnectorError("ENGINE_UNREACHABLE", "Just now it is away.");
  };
  const ended = ids();
  await agent.run(ended.command, ended.run, onDocker([{ name: "a", ...sh("true") }]));
  docker.forgetting = () => undefined;
  await agent.pipelines.collect();
  t.equal((await docker.list()).length, 1, "as long as its command is open");
  await agent.journal.advance(ended.command, "succeeded", []);

  // A run under way, a deployment's replica, work of a command that nobody knows, running and ended.
  const open = ids();
  const going = agent.run(open.command, open.run, onDocker([{ name: "a", ...sh(`echo a >> ${effects}; sleep 1000`) }]));
  going.catch(() => undefined);
  await until("it runs", () => lines().length === 1);
  const folder = join(effects, "..", "other", "w.1");
  mkdirSync(join(folder, "outputs"), { recursive: true });
  const other = (name: WorkSpec["name"], script: string): WorkSpec => ({
    name,
    executable: "/bin/sh",
    args: ["-c", script],
    env: {},
    cwd: folder,
    stdout: join(folder, "stdout"),
    stderr: join(folder, "stderr"),
    container: null,
  });
  const replica = replicaWorkName(newId("deployment"), 1, 0);
  const [running, over] = [workName(ids().command, "x.y", 1), workName(ids().command, "x", 2)];
  for (const engine of [docker, agent.engine]) {
    await engine.start(other(replica, "sleep 1000"));
    await engine.start(other(running, "sleep 1000"));
    await engine.start(other(over, "true"));
    await engine.ended(over);
  }
  await agent.pipelines.collect();
  const names = async (engine: { list(): Promise<{ name: string }[]> }) =>
    (await engine.list()).map(({ name }) => name).sort();
  t.same(await names(docker), [replica, workName(open.command, "a", 1)].sort());
  t.same(await names(agent.engine), [replica]);
  t.same(
    (await docker.list()).map(({ status }) => status.state),
    ["running", "running"],
  );

  // A restart that has not taken up its run yet.
  const second = await start({ moreEngines: [docker] });
  await second.pipelines.collect();
  t.ok((await names(docker)).includes(workName(open.command, "a", 1)));
  t.ok(existsSync(join(agent.stateDir, "work", open.run)), "nor its folder");
  await agent.cancel(open.command, open.run, ids().command);
  await t.rejects(going, { code: "CANCELLED" });
});
