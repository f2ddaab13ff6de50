// The feature on a real Docker Engine: steps in containers, an agent killed at each boundary, an Engine killed under them.
import { spawn } from "node:child_process";
import { readFileSync, writeFileSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";
import { newCommandId, type PipelineInput } from "@sallyport/protocol";
import { needs } from "../../../test/support/skip.ts";
import { startDocker } from "../../../test/support/servers/docker.ts";
import { busyboxImage } from "../../../test/support/servers/images.ts";
import { workName } from "../../engines/engine.ts";
import type { TestAgent } from "./fixtures/test-agent.ts";
import { ids, logOf, pipeline, scene, stepReports, textOf, until } from "./fixtures/scene.ts";

t.setTimeout(300_000);
const driver = fileURLToPath(new URL("fixtures/driver.ts", import.meta.url));
const MIB = 1024 * 1024;

await t.test("steps in containers of a real Docker Engine", { skip: needs("docker"), timeout: 300_000 }, async (t) => {
  const server = await startDocker(t, ["--live-restore"]);
  const image = await busyboxImage(server.docker);
  /** The end of its runs is known: nothing of them need be kept at the Engine. */
  const acknowledged = async (agent: TestAgent) => {
    for (const { id } of await agent.journal.open()) await agent.journal.advance(id, "succeeded", []);
    await agent.journal.acknowledge(Number.MAX_SAFE_INTEGER);
    // The one of the run's end may be under way, from before.
    await agent.pipelines.collect();
    await agent.pipelines.collect();
  };
  const containers = async () => (await server.docker.listContainers({ all: true })).map(({ Names }) => Names[0]);
  const onDocker = (steps: PipelineInput["steps"]) => pipeline(steps, { engine: "docker" });
  const resources = { cpus: 0.5, memoryBytes: 64 * MIB };
  const sh = (script: string, ...args: string[]) => ({ image, args: ["-c", script, ...args], resources });
  const programs = { boxed: { path: "/bin/sh", image, args: ["-c"], env: { MODE: "fast" } } };

  await t.test("inputs, outputs, environment, secrets, limits; nothing is left", async (t) => {
    const { agent: start, store } = scene(t);
    const agent = await start({ docker: server.socket, programs, secrets: { pw: "correct-horse-battery" } });
    mkdirSync(join(store, "code", "deep"), { recursive: true });
    writeFileSync(join(store, "code", "deep", "a.txt"), "A\n");
    const { command, run } = ids();
    const steps = onDocker([
      {
        name: "first",
        ...sh(
          'pwd; echo "$HOME $TMPDIR"; touch "$HOME/x" "$TMPDIR/y"; echo "$PATH"; cat "$0"/deep/a.txt; echo "$PW"; id -u; mkdir "$1"; echo out > "$1/o.txt"',
          "${inputs.code}",
          "${outputs.tree}",
        ),
        inputs: { code: { store: "lake", path: "code" } },
        outputs: { tree: {} },
        secrets: { PW: "pw" },
      },
      {
        name: "second",
        program: "boxed",
        args: ['cat "$0"/o.txt; echo "$MODE"', "${inputs.in}"],
        inputs: { in: { step: "first", output: "tree" } },
        resources,
      },
    ]);
    t.same(await agent.run(command, run, steps), { run, steps: 2 });
    const [folder, home, ...rest] = textOf(await logOf(agent, { run, step: "first" }));
    t.equal(home, `${folder}/home ${folder}/tmp`);
    t.same(rest, ["/usr/bin:/bin", "A", "[redacted]", "65532"]);
    t.same(textOf(await logOf(agent, { run, step: "second" })), ["out", "fast"]);
    t.equal((await containers()).length, 2, "kept until the end of the run is known");
    await acknowledged(agent);
    t.same(await containers(), []);
    t.same((await server.docker.listVolumes()).Volumes ?? [], []);
  });

  await t.test("out of memory, a stop, an image that is not there", async (t) => {
    const { agent: start } = scene(t);
    const agent = await start({ docker: server.socket });
    const memory = ids();
    const step = { name: "a", ...sh("exec dd if=/dev/zero of=/dev/null bs=200M count=1") };
    await t.rejects(agent.run(memory.command, memory.run, onDocker([step])), {
      code: "OUT_OF_MEMORY",
      message: new RegExp(`limit of ${64 * MIB} bytes`),
    });
    const long = ids();
    const going = agent.run(long.command, long.run, onDocker([{ name: "a", ...sh("echo here; sleep 1000") }]));
    going.catch(() => undefined);
    await until(
      "it runs",
      async () => textOf(await logOf(agent, { run: long.run, step: "a" }).catch(() => [])).length === 1,
    );
    t.equal((await agent.cancel(long.command, long.run, newCommandId())).stopped.length, 1);
    await t.rejects(going, { code: "CANCELLED" });
    const missing = ids();
    const absent = { name: "a", image: `sha256:${"0".repeat(64)}` };
    const waiting = agent.run(missing.command, missing.run, onDocker([absent]));
    waiting.catch(() => undefined);
    await until("it says so", async () =>
      textOf(await logOf(agent, { run: missing.run, step: "a" }).catch(() => []), "system").some((text) =>
        text.startsWith("Waiting for the image"),
      ),
    );
    await agent.cancel(missing.command, missing.run, newCommandId());
    await t.rejects(waiting, { code: "CANCELLED" });
    await acknowledged(agent);
    t.same(await containers(), []);
  });

  await t.test(
    "two agents of a pool run the same command at once: one effect, one manifest, two whole logs",
    async (t) => {
      const { options, agent: start, store } = scene(t);
      const agents = [];
      for (const agentId of ["first", "second"]) {
        const stateDir = join(options.stateDir, agentId);
        mkdirSync(stateDir);
        agents.push(await start({ docker: server.socket, agentId, stateDir }));
      }
      const { command, run } = ids();
      const uuid = 'read -r it < /proc/sys/kernel/random/uuid; echo $it; echo $it > "$0"';
      const steps = onDocker([
        // Fails at first: the second attempt has one name for both.
        {
          name: "a",
          ...sh(`if [ $SALLYPORT_ATTEMPT = 1 ]; then exit 1; fi; ${uuid}`, "${outputs.out}"),
          outputs: { out: {} },
          retries: 2,
        },
        {
          name: "b",
          ...sh('cat "$0"; echo b > "$1"', "${inputs.out}", "${outputs.end}"),
          inputs: { out: { step: "a", output: "out" } },
          outputs: { end: {} },
        },
      ]);
      t.same(await Promise.all(agents.map((agent) => agent.run(command, run, steps))), [
        { run, steps: 2 },
        { run, steps: 2 },
      ]);
      const made = await server.docker.listContainers({ all: true, filters: { name: [command] } });
      t.same(
        made.map(({ Names }) => Names[0]!.slice(`/sallyport.${command}.`.length)).sort(),
        ["a.1", "a.2", "b.1"],
        "each attempt once",
      );
      const its = await Promise.all(agents.map(async (agent) => textOf(await logOf(agent, { run, step: "a" }))));
      t.same(its[0], its[1]);
      for (const agent of agents) t.same(textOf(await logOf(agent, { run, step: "b" })), its[0]);
      t.equal(readFileSync(join(store, "runs", run, "a", "out"), "utf8"), `${its[0]![0]}\n`);
      const manifest = join(store, "runs", run, "a", "outputs.manifest.json");
      t.match(JSON.parse(readFileSync(manifest, "utf8")), { attempt: 2, outputs: [{ name: "out" }] });
      for (const agent of agents) await acknowledged(agent);
      t.same(await server.docker.listContainers({ all: true, filters: { name: [command] } }), []);

      // What another wrote meanwhile is not overwritten: the same is done, something else is a conflict.
      const again = ids();
      const path = join(store, "runs", again.run, "a");
      mkdirSync(path, { recursive: true });
      const other = { ...JSON.parse(readFileSync(manifest, "utf8")), run: again.run, attempt: 7 };
      writeFileSync(join(path, "outputs.manifest.json"), JSON.stringify(other));
      await t.rejects(agents[0]!.run(again.command, again.run, steps), { code: "CONFLICT" });
      t.same(JSON.parse(readFileSync(join(path, "outputs.manifest.json"), "utf8")), other);
      await acknowledged(agents[0]!);
    },
  );

  const count = 500;
  const steps = onDocker([
    {
      name: "a",
      ...sh(
        `read -r it < /proc/sys/kernel/random/uuid; echo $it; i=0; while [ $i -lt ${count} ]; do echo "line $i"; i=$((i+1)); done; echo $it > "$0"`,
        "${outputs.out}",
      ),
      outputs: { out: {} },
    },
    { name: "b", ...sh('cat "$0"', "${inputs.out}"), inputs: { out: { step: "a", output: "out" } } },
  ]);
  for (const killAt of ["prepared", "started", "ended", "stored", "committed"]) {
    await t.test(`an agent killed when a step is ${killAt}: effect once, log whole, outputs there`, async (t) => {
      const { options, agent: start } = scene(t);
      const { command, run } = ids();
      const result = join(options.stateDir, "result");
      const drive = async (kill: string | null): Promise<string | number | null> => {
        const plan = join(options.stateDir, "plan.json");
        const agent = { ...options, docker: server.socket };
        const text = { agent, command, run, pipeline: steps, killAt: kill, killCount: 1, result };
        writeFileSync(plan, JSON.stringify(text));
        const child = spawn(process.execPath, [driver, plan], { stdio: ["ignore", "inherit", "inherit"] });
        return new Promise((resolve) => child.once("exit", (code, signal) => resolve(signal ?? code)));
      };
      t.equal(await drive(`sallyport:step.${killAt}`), "SIGKILL");
      t.equal(await drive(null), 0);
      t.same(JSON.parse(readFileSync(result, "utf8")), { run, steps: 2 });
      const agent = await start({ docker: server.socket });
      const [it, ...log] = textOf(await logOf(agent, { run, step: "a", limit: 10_000 }));
      t.same(
        log,
        Array.from({ length: count }, (_, i) => `line ${i}`),
      );
      t.same(textOf(await logOf(agent, { run, step: "b" })), [it]);
      await acknowledged(agent);
      t.same(await containers(), [], "also what the killed one could not forget");
    });
  }

  await t.test(
    "an Engine that is killed and comes back: the step goes on, its log too; what is pruned is not run again",
    async (t) => {
      const { agent: start } = scene(t);
      const agent = await start({ docker: server.socket });
      const { command, run } = ids();
      const system = async (what: string) =>
        textOf(await logOf(agent, { run, step: "a", limit: 10_000 }), "system").filter((text) => text.startsWith(what))
          .length;
      const lines = async () => textOf(await logOf(agent, { run, step: "a", limit: 10_000 }).catch(() => []));
      const going = agent.run(
        command,
        run,
        onDocker([{ name: "a", ...sh("i=0; while [ $i -lt 80 ]; do echo $i; i=$((i+1)); sleep 0.1; done") }]),
      );
      going.catch(() => undefined);
      await until("it runs", async () => (await lines()).length > 5);
      await server.killHard();
      await until("it says so", async () => (await system("Waiting for engine docker")) > 0);
      await server.start();
      t.same(await going, { run, steps: 1 });
      t.equal(await system("Engine docker answers again."), await system("Waiting for engine docker"));
      t.same(
        await lines(),
        Array.from({ length: 80 }, (_, i) => `${i}`),
        "each line once, in order",
      );

      const pruned = ids();
      const second = agent.run(pruned.command, pruned.run, onDocker([{ name: "a", ...sh("echo here; sleep 1000") }]));
      second.catch(() => undefined);
      await until(
        "it runs",
        async () => textOf(await logOf(agent, { run: pruned.run, step: "a" }).catch(() => [])).length === 1,
      );
      const name = `sallyport.${workName(pruned.command, "a", 1)}`;
      await server.docker.getContainer(name).remove({ force: true });
      await t.rejects(second, { code: "STEP_FAILED" });
      t.same((await stepReports(agent)).filter((r) => r.run === pruned.run).at(-1)?.attempt, 1);
    },
  );
});
