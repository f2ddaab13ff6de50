// The feature with a real engine, a real journal and real processes; agents and hosts killed where it hurts.
import { spawn } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";
import {
  ConnectorError,
  newCommandId,
  newId,
  sha256,
  systemClock,
  treeDigest,
  wait,
  type PipelineInput,
} from "@sallyport/protocol";
import { hostsOf, ids, logOf, pipeline, scene, statesOf, stepReports, textOf, until } from "./fixtures/scene.ts";

await t.test(
  "files, trees, parameters and secrets go in; outputs with digests come out; the log has no secret",
  async (t) => {
    const { agent: start, store, options } = scene(t);
    const agent = await start({ secrets: { "db-password": "correct-horse-battery" } });
    mkdirSync(join(store, "code", "deep"), { recursive: true });
    writeFileSync(join(store, "code", "a.txt"), "A\n");
    writeFileSync(join(store, "code", "deep", "b.txt"), "B\n");
    writeFileSync(join(store, "data.csv"), "1,2\n");
    const { command, run } = ids();
    const result = await agent.run(
      command,
      run,
      pipeline(
        [
          {
            name: "second",
            program: "sh",
            args: ['cat "$0"/*.txt; cat "$1"; test -z "$DB"', "${inputs.tree}", "${inputs.one}"],
            inputs: { tree: { step: "first", output: "tree" }, one: { step: "first", output: "one.json" } },
          },
          {
            name: "first",
            program: "sh",
            args: [
              'echo "$1 $SALLYPORT_PARAM_DEEP_RATE $2"; cat "$3"/a.txt "$3"/deep/b.txt "$SALLYPORT_INPUT_DATA"; echo "password is $DB"; printf "%s" "$DB" | base64 >&2; mkdir "$4"; echo x > "$4"/x.txt; echo y > "$4"/y.txt; echo "{}" > "$5"; pwd; echo "$HOME" "$SALLYPORT_RUN"',
              "sh",
              "${params.deep.rate}",
              "$${params.deep.rate}",
              "${inputs.code}",
              "${outputs.tree}",
              "${outputs.one.json}",
            ],
            inputs: { code: { store: "lake", path: "code" }, data: { store: "lake", path: "data.csv" } },
            outputs: { tree: {}, "one.json": { mediaType: "application/json" } },
            secrets: { DB: "db-password" },
          },
        ],
        { params: { "deep.rate": { default: 0.5 } } },
      ),
    );
    t.same(result, { run, steps: 2 });
    const reports = await stepReports(agent);
    t.same(statesOf(reports, "first"), ["1 pending", "1 running", "1 succeeded"]);
    t.same(statesOf(reports, "second"), ["1 pending", "1 running", "1 succeeded"]);
    const outputs = reports.findLast((r) => r.step === "first")!.outputs;
    const sha = (text: string) => `sha256:${sha256(text)}` as const;
    t.match(
      outputs.find((o) => o.name === "one.json"),
      {
        store: "lake",
        path: `runs/${run}/first/one.json`,
        kind: "file",
        sizeBytes: 3,
        digest: sha("{}\n"),
        mediaType: "application/json",
      },
    );
    t.match(
      outputs.find((o) => o.name === "tree"),
      {
        kind: "tree",
        sizeBytes: 4,
        digest: treeDigest([
          { path: "x.txt", sizeBytes: 2, digest: sha("x\n") },
          { path: "y.txt", sizeBytes: 2, digest: sha("y\n") },
        ]),
      },
    );
    const log = await logOf(agent, { run, step: "first", follow: true });
    const [head, a, b, data, password, folder, home] = textOf(log);
    t.equal(head, "0.5 0.5 ${params.deep.rate}");
    t.same([a, b, data], ["A", "B", "1,2"]);
    t.equal(password, "password is [redacted]");
    t.same(textOf(log, "stderr"), ["[redacted]"]);
    t.equal(folder, join(options.stateDir, "work", run, "first.1"));
    t.equal(home, `${folder}/home ${run}`);
    t.same(textOf(await logOf(agent, { run, step: "second" })), ["x", "y", "{}"]);
    t.notOk(existsSync(folder!), "the work folder of a success is removed");
    t.same(await agent.engine.list(), [], "the engine's record too");
  },
);

await t.test("a run that begins while old ones are collected keeps its folder", async (t) => {
  const { agent: start, lines, effects } = scene(t);
  const agent = await start();
  const { engine, logs } = agent;
  const prepared = Promise.withResolvers<void>();
  const collected = Promise.withResolvers<void>();
  const begin = engine.start.bind(engine);
  engine.start = async (spec) => {
    prepared.resolve();
    await collected.promise;
    return begin(spec);
  };
  const { command, run } = ids();
  let running: Promise<unknown> | undefined;
  const collect = logs.collect.bind(logs);
  logs.collect = async (unfinished) => {
    const answer = await collect(unfinished);
    running ??= agent.run(command, run, pipeline([{ name: "a", program: "sh", args: [`echo a >> ${effects}`] }]));
    await prepared.promise;
    return answer;
  };
  await agent.pipelines.collect();
  collected.resolve();
  t.same(await running, { run, steps: 1 });
  t.same(lines(), ["a"]);
});

await t.test("order, and how many at a time", async (t) => {
  const { agent: start, effects, lines } = scene(t);
  const agent = await start({ concurrentSteps: 2 });
  // Of those that may run beside one another the first one waits for a second, however late that is begun.
  const beside = `while [ $(grep -c '^+[bcd]' ${effects}) = 1 ]; do sleep 0.02; done;`;
  const note = (name: string, needs: string[]) => ({
    name,
    program: "sh",
    needs,
    args: [`echo +${name} >> ${effects}; ${beside} sleep 0.1; echo -${name} >> ${effects}`],
  });
  const { command, run } = ids();
  await agent.run(
    command,
    run,
    pipeline([note("e", ["b", "c", "d"]), note("b", ["a"]), note("c", ["a"]), note("d", ["a"]), note("a", [])]),
  );
  const seen = lines();
  const before = (x: string, y: string) => t.ok(seen.indexOf(x) < seen.indexOf(y), `${x} before ${y}`);
  for (const middle of ["b", "c", "d"]) {
    before("-a", `+${middle}`);
    before(`-${middle}`, "+e");
  }
  let most = 0;
  let now = 0;
  for (const line of seen) {
    now += line.startsWith("+") ? 1 : -1;
    most = Math.max(most, now);
  }
  t.equal(most, 2);
});

await t.test("what is wrong is said at acceptance", async (t) => {
  const { agent: start } = scene(t);
  const agent = await start({
    denied: (a) =>
      (a.kind === "secret" && a.secret === "no") ||
      (a.kind === "ceiling" && a.ceiling === "stepTimeoutMs" && a.value > 1e6),
  });
  const { command, run } = ids();
  const refused = async (steps: PipelineInput["steps"], code: string, message: RegExp) =>
    t.rejects(agent.run(command, run, pipeline(steps)), { code, message }, message.source);
  const ok = { program: "sh", timeoutMs: 1000 };
  await refused(
    [
      { ...ok, name: "a", needs: ["b"] },
      { ...ok, name: "b", needs: ["a"] },
    ],
    "PIPELINE_INVALID",
    /a -> b -> a/,
  );
  await refused([{ ...ok, name: "a", args: ["${params.nope}"] }], "PIPELINE_INVALID", /params\.nope/);
  await refused([{ ...ok, name: "a", args: ["${HOME}"] }], "PIPELINE_INVALID", /\$\{HOME\}/);
  await refused([{ ...ok, name: "a", env: { LD_PRELOAD: "/tmp/x.so" } }], "PIPELINE_INVALID", /LD_PRELOAD/);
  await refused([{ ...ok, name: "a", program: "rm" }], "PROGRAM_UNKNOWN", /rm/);
  await refused([{ ...ok, name: "a", inputs: { x: { store: "sea", path: "x" } } }], "STORE_UNKNOWN", /sea/);
  await refused([{ ...ok, name: "a", inputs: { x: { store: "lake", path: "a/../../x" } } }], "PATH_INVALID", /\.\./);
  await refused([{ ...ok, name: "a", secrets: { X: "no" } }], "POLICY_DENIED", /refuses/);
  await refused([{ ...ok, name: "a", timeoutMs: 2e6 }], "POLICY_DENIED", /refuses/);
});

await t.test(
  "a failure: retries, then the run ends with it; what depends on it is skipped; no word of the log leaves",
  async (t) => {
    const { agent: start, effects, lines } = scene(t);
    const agent = await start();
    const { command, run } = ids();
    const failing = pipeline([
      { name: "bad", program: "sh", args: [`echo try >> ${effects}; echo private words; exit 3`], retries: 1 },
      { name: "next", program: "sh", needs: ["bad"], args: [`echo next >> ${effects}`] },
    ]);
    await t.rejects(agent.run(command, run, failing), {
      code: "STEP_FAILED",
      details: { step: "bad", attempt: 2, exitCode: 3 },
    });
    t.same(lines(), ["try", "try"]);
    const reports = await stepReports(agent);
    t.same(statesOf(reports, "bad"), ["1 pending", "1 running", "1 failed", "2 running", "2 failed"]);
    t.same(statesOf(reports, "next"), ["1 pending", "1 skipped"]);
    t.notMatch(JSON.stringify(reports), /private words/);
    t.equal(reports.findLast((r) => r.step === "bad")!.logSeq, 2);
    t.same(textOf(await logOf(agent, { run, step: "bad", attempt: 1 })), ["private words"]);
    await t.rejects(agent.run(command, run, failing), { code: "STEP_FAILED" }, "asked again: the same answer");
    t.same(lines(), ["try", "try"], "and no further effect");
    await t.rejects(agent.readLogs({ run: newId("run"), step: "bad" }), { code: "RUN_UNKNOWN" });
    t.same(textOf(await logOf(agent, { run, step: "next", follow: true })), []);
  },
);

await t.test("out of time, without its output, with a link for an output, without its input", async (t) => {
  const { agent: start } = scene(t);
  const agent = await start();
  const fails = async (
    step: Omit<PipelineInput["steps"][0], "name" | "program">,
    expected: { code: string; details?: object },
  ) => {
    const { command, run } = ids();
    await t.rejects(agent.run(command, run, pipeline([{ name: "s", program: "sh", ...step }])), expected);
  };
  await fails({ args: ["trap '' TERM; while :; do sleep 1; done"], timeoutMs: 1000 }, { code: "STEP_TIMED_OUT" });
  await fails(
    { args: ["true"], outputs: { model: {} } },
    { code: "STEP_OUTPUT_MISSING", details: { missing: ["model"] } },
  );
  await fails(
    { args: ['ln -s /etc/passwd "$SALLYPORT_OUTPUT_MODEL"'], outputs: { model: {} } },
    { code: "STEP_OUTPUT_MISSING" },
  );
  await fails(
    {
      args: ['mkdir "$SALLYPORT_OUTPUT_MODEL"; ln -s /etc/passwd "$SALLYPORT_OUTPUT_MODEL/x"'],
      outputs: { model: {} },
    },
    { code: "STEP_OUTPUT_MISSING" },
  );
  await fails({ args: ["true"], inputs: { x: { store: "lake", path: "none" } } }, { code: "ARTIFACT_NOT_FOUND" });
});

await t.test("a tightened policy stops the next step, not the running one", async (t) => {
  const { agent: start, effects, lines } = scene(t);
  let tight = false;
  const agent = await start({ denied: (a) => tight && a.kind === "program" });
  const { command, run } = ids();
  const go = agent.run(
    command,
    run,
    pipeline([
      { name: "a", program: "sh", args: [`echo a >> ${effects}; sleep 0.3; echo a2 >> ${effects}`] },
      { name: "b", program: "sh", needs: ["a"], args: [`echo b >> ${effects}`] },
    ]),
  );
  go.catch(() => undefined);
  await until("a runs", () => lines().length === 1);
  tight = true;
  await t.rejects(go, { code: "POLICY_DENIED", details: { rule: "policy.test" } });
  t.same(lines(), ["a", "a2"]);
  t.same(statesOf(await stepReports(agent), "b"), ["1 pending", "1 running", "1 failed"]);
});

await t.test("cancel before, during and after; a stop at the agent's host", async (t) => {
  const { agent: start, effects, lines } = scene(t);
  const agent = await start();
  const long = pipeline([
    {
      name: "a",
      program: "sh",
      args: [`echo a >> ${effects}; (sleep 1000 &) ; trap '' TERM; while :; do sleep 1; done`],
    },
    { name: "b", program: "sh", needs: ["a"], args: [`echo b >> ${effects}`] },
  ]);
  const during = ids();
  const going = agent.run(during.command, during.run, long);
  going.catch(() => undefined);
  await until("a runs", () => lines().length === 1);
  const { stopped } = await agent.cancel(during.command, during.run, newCommandId());
  t.match(stopped, [/^step a, attempt 1: \d+ processes$/]);
  await t.rejects(going, { code: "CANCELLED", details: { stopped } });
  t.match(await stepReports(agent), [{}, {}, {}, { step: "a", state: "cancelled" }, { step: "b", state: "cancelled" }]);
  t.same(await agent.cancel(during.command, during.run, newCommandId()), { run: during.run, stopped: [] }, "after");

  const before = ids();
  t.same((await agent.cancel(before.command, before.run, newCommandId())).stopped, []);
  await t.rejects(agent.run(before.command, before.run, long), { code: "CANCELLED" });
  t.same(lines(), ["a"]);

  const local = ids();
  const again = agent.run(local.command, local.run, long);
  again.catch(() => undefined);
  await until("a runs again", () => lines().length === 2);
  t.match(agent.pipelines.active(), [{ run: local.run, steps: [{ step: "a", attempt: 1 }] }]);
  t.equal(await agent.pipelines.stop(newId("run"), "root"), null);
  t.equal((await agent.pipelines.stop(`${local.run}/a`, "root"))!.stopped.length, 1);
  await t.rejects(again, { code: "CANCELLED", message: /root/ });

  const past = ids();
  const third = agent.run(past.command, past.run, long);
  third.catch(() => undefined);
  await until("a runs a third time", () => lines().length === 3);
  for (const { name } of await agent.engine.list()) await agent.engine.stop(name, 0);
  await t.rejects(
    third,
    { code: "CANCELLED", message: /at the agent's host/ },
    "past the agent: not a failure to try again",
  );
});

const driver = fileURLToPath(new URL("fixtures/driver.ts", import.meta.url));
const boundaries = [
  "sallyport:step.prepared",
  "sallyport:step.started",
  "sallyport:step.ended",
  "sallyport:step.stored",
  "sallyport:step.committed",
];

await t.test(
  "an agent killed at each boundary: each step's effect once, its log whole, its outputs there",
  async (t) => {
    for (const killAt of boundaries) {
      await t.test(killAt, async (t) => {
        const { options, effects, lines, agent: start } = scene(t);
        const { command, run } = ids();
        const count = 2000;
        const steps = pipeline([
          {
            name: "a",
            program: "sh",
            args: [
              `echo a >> ${effects}; i=0; while [ $i -lt ${count} ]; do echo "line $i"; i=$((i+1)); done; echo token=$T; echo out > "$0"`,
              "${outputs.out}",
            ],
            outputs: { out: {} },
            secrets: { T: "token" },
          },
          {
            name: "b",
            program: "sh",
            args: [`echo b >> ${effects}; cat "$0"`, "${inputs.out}"],
            inputs: { out: { step: "a", output: "out" } },
          },
        ]);
        const result = join(options.stateDir, "result");
        const drive = async (kill: string | null): Promise<string | number | null> => {
          const plan = join(options.stateDir, "plan.json");
          writeFileSync(
            plan,
            JSON.stringify({
              agent: { ...options, secrets: { token: "s3cr3t-t0k3n" } },
              command,
              run,
              pipeline: steps,
              killAt: kill,
              killCount: 1,
              result,
            }),
          );
          const child = spawn(process.execPath, [driver, plan], { stdio: ["ignore", "inherit", "inherit"] });
          return new Promise((resolve) => child.once("exit", (code, signal) => resolve(signal ?? code)));
        };
        t.equal(await drive(killAt), "SIGKILL");
        // Sometimes the host goes too.
        if (killAt.endsWith("started") || killAt.endsWith("stored"))
          for (const pid of hostsOf(options.stateDir)) process.kill(pid, "SIGKILL");
        t.equal(await drive(null), 0);
        t.same(JSON.parse(readFileSync(result, "utf8")), { run, steps: 2 });
        t.same(lines(), ["a", "b"], "effect once");
        const agent = await start();
        const log = await logOf(agent, { run, step: "a", limit: 100_000 });
        t.same(textOf(log), [...Array.from({ length: count }, (_, i) => `line ${i}`), "token=[redacted]"]);
        t.same(textOf(await logOf(agent, { run, step: "b" })), ["out"]);
        const ends = (await stepReports(agent)).filter((r) => r.state === "succeeded");
        t.equal(ends.length, 2);
        t.equal(ends[0]!.adopted, !(killAt.endsWith("prepared") || killAt.endsWith("committed")));
        t.equal(ends[0]!.outputs.length, 1);
      });
    }
  },
);

await t.test(
  "killed in the middle of running steps, agent and host, again and again: adopted, every line once",
  async (t) => {
    const { options, effects, lines, agent: start } = scene(t);
    const { command, run } = ids();
    const step = (name: string) => ({
      name,
      program: "sh",
      args: [
        `echo ${name} >> ${effects}; i=0; while [ $i -lt 150 ]; do echo "${name} $i"; echo "err $i" >&2; i=$((i+1)); sleep 0.03; done; while [ ! -e ${effects}.go ]; do sleep 0.05; done`,
      ],
    });
    const result = join(options.stateDir, "result");
    const plan = join(options.stateDir, "plan.json");
    writeFileSync(
      plan,
      JSON.stringify({
        agent: options,
        command,
        run,
        pipeline: pipeline([step("a"), step("b")]),
        killAt: null,
        killCount: 0,
        result,
      }),
    );
    let kills = 0;
    while (!existsSync(result)) {
      const child = spawn(process.execPath, [driver, plan], { stdio: ["ignore", "inherit", "inherit"] });
      const ended = new Promise((resolve) => child.once("exit", resolve));
      if (kills < 4) {
        // The first kill meets two steps that run, however slow the machine is.
        while (lines().length < 2 && child.exitCode === null) await wait(systemClock, 20);
        await Promise.race([ended, wait(systemClock, 500 + kills * 130)]);
        if (kills % 2 === 1) for (const pid of hostsOf(options.stateDir)) process.kill(pid, "SIGKILL");
        child.kill("SIGKILL");
        kills++;
        // None of them ends before the last kill.
        if (kills === 4) writeFileSync(`${effects}.go`, "");
      }
      await ended;
    }
    t.equal(kills, 4);
    t.same(JSON.parse(readFileSync(result, "utf8")), { run, steps: 2 });
    t.same(lines().sort(), ["a", "b"]);
    const agent = await start();
    for (const name of ["a", "b"]) {
      const log = await logOf(agent, { run, step: name, limit: 10_000 });
      t.same(
        textOf(log),
        Array.from({ length: 150 }, (_, i) => `${name} ${i}`),
      );
      t.same(
        textOf(log, "stderr"),
        Array.from({ length: 150 }, (_, i) => `err ${i}`),
      );
      t.same(
        log.map((r) => ("gap" in r ? 0 : r.seq)),
        log.map((_, i) => i + 1),
      );
    }
    const ends = (await stepReports(agent)).filter((r) => r.state === "succeeded");
    t.same(
      ends.map((r) => [r.attempt, r.adopted]),
      [
        [1, true],
        [1, true],
      ],
    );
  },
);

await t.test("a run that is followed while it runs; an agent that stops leaves its steps alone", async (t) => {
  const { agent: start, effects, lines } = scene(t);
  const first = await start();
  const { command, run } = ids();
  const steps = pipeline([
    {
      name: "a",
      program: "sh",
      args: [`echo a >> ${effects}; echo one; while [ ! -e ${effects}.go ]; do sleep 0.02; done; echo two`],
    },
  ]);
  const leaving = new AbortController();
  const going = first.run(command, run, steps, {}, leaving.signal);
  going.catch(() => undefined);
  await until("a runs", () => lines().length === 1);
  leaving.abort(new ConnectorError("AGENT_DRAINING", "The agent stops."));
  await t.rejects(going, { code: "AGENT_DRAINING" });
  const second = await start();
  const again = second.run(command, run, steps);
  const following = logOf(second, { run, step: "a", follow: true });
  writeFileSync(`${effects}.go`, "");
  t.same(await again, { run, steps: 1 });
  t.same(textOf(await following), ["one", "two"]);
  t.same(lines(), ["a"]);
});
