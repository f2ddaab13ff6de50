// Agents of one pool on one Engine: the container's name is the fence. Whoever comes second finds what the first began,
// whichever of them it is; a stranger's is nobody's. A real Docker Engine.
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pino } from "pino";
import t, { type Test } from "tap";
import { newCommandId, systemClock, type CommandId } from "@sallyport/protocol";
import { waitFor } from "../../../test/support/launcher.ts";
import { startDocker } from "../../../test/support/servers/docker.ts";
import { busyboxImage } from "../../../test/support/servers/images.ts";
import { needs } from "../../../test/support/skip.ts";
import { workName, type WorkSpec } from "../engine.ts";
import { createDockerEngine } from "./index.ts";
import { containerBody } from "./template.ts";

t.setTimeout(120_000);

await t.test("peers", { skip: needs("docker"), timeout: 120_000 }, async (t) => {
  const server = await startDocker(t);
  const image = await busyboxImage(server.docker);

  function peer(t: Test, agentId: string, pool: string | null) {
    const stateDir = mkdtempSync(join(tmpdir(), "sallyport-peer-"));
    const log = pino({ level: "silent" });
    const engine = createDockerEngine({
      socket: server.socket,
      agentId,
      stateDir,
      clock: systemClock,
      log,
      pool: () => pool,
    });
    t.teardown(async () => {
      await engine.close();
      rmSync(stateDir, { recursive: true, force: true });
    });
    const spec = (command: CommandId, script: string): WorkSpec => {
      const cwd = join(stateDir, "work", command);
      for (const part of ["inputs", "outputs", "tmp", "home"]) mkdirSync(join(cwd, part), { recursive: true });
      return {
        name: workName(command, "a", 1),
        executable: "/bin/sh",
        args: ["-c", script],
        env: { PATH: "/bin" },
        cwd,
        stdout: join(stateDir, `${command}.out`),
        stderr: join(stateDir, `${command}.err`),
        container: { image, resources: { cpus: 0.5, memoryBytes: 64 * 1024 ** 2 }, network: { kind: "none" } },
      };
    };
    return { engine, spec, agentId, stateDir };
  }
  const made = async (command: string) =>
    await server.docker.listContainers({ all: true, filters: { name: [command] } });
  const removed = async (command: string) => {
    for (const one of await made(command)) await server.docker.getContainer(one.Id).remove({ force: true, v: true });
  };

  await t.test("the same work begun by both at once is one container; each has its end, log and outputs", async (t) => {
    const [a, b] = [peer(t, "agent-a", "pool-1"), peer(t, "agent-b", "pool-1")];
    for (let round = 0; round < 5; round++) {
      const command = newCommandId();
      const name = workName(command, "a", 1);
      const script = "read -r it < /proc/sys/kernel/random/uuid; echo $it; echo $it > outputs/o; sleep 0.3; echo end";
      const both = await Promise.all([a, b].map((one) => one.engine.start(one.spec(command, script))));
      for (const status of both) t.match(status.state, /running|exited/);
      const ends = await Promise.all([a, b].map((one) => one.engine.ended(name)));
      t.same(ends[0], ends[1]);
      t.equal((await made(command)).length, 1);
      const texts = await Promise.all(
        [a, b].map(async (one) => {
          await one.engine.fetchOutputs(name, one.spec(command, "").cwd, 1e6);
          return [
            readFileSync(one.spec(command, "").stdout, "utf8"),
            readFileSync(join(one.spec(command, "").cwd, "outputs/o"), "utf8"),
          ];
        }),
      );
      t.same(texts[0], texts[1]);
      t.match(texts[0]![0], /^[0-9a-f-]{36}\nend\n$/, "once, whole");
      t.same(await a.engine.shared.ofCommand(command), [name]);
      t.same(await b.engine.shared.ofCommand(command), [name]);
      await b.engine.forget(name);
      t.same(await a.engine.status(name), { state: "absent" });
    }
    t.type(a.engine.shared.id(), "string");
    t.equal(a.engine.shared.id(), b.engine.shared.id(), "they know that it is the same Engine");
  });

  await t.test("an ended one is not begun again by another, also when its agent is gone", async (t) => {
    const [a, b] = [peer(t, "agent-c", "pool-1"), peer(t, "agent-d", "pool-1")];
    const command = newCommandId();
    const name = workName(command, "a", 1);
    await a.engine.start(a.spec(command, "echo once; exit 3"));
    await a.engine.ended(name);
    await a.engine.close();
    t.match(await b.engine.start(b.spec(command, "echo twice")), { state: "exited", code: 3 });
    await b.engine.ended(name);
    t.equal(readFileSync(b.spec(command, "").stdout, "utf8"), "once\n");
    t.same(await b.engine.list(), [], "what it cleans up by itself is its own alone");
    await removed(command);
  });

  await t.test("another pool's container, or a stranger's, is neither found nor begun beside", async (t) => {
    const [a, other, alone] = [peer(t, "agent-e", "pool-1"), peer(t, "agent-f", "pool-2"), peer(t, "agent-g", null)];
    const command = newCommandId();
    const name = workName(command, "a", 1);
    await a.engine.start(a.spec(command, "sleep 100"));
    for (const one of [other, alone]) {
      t.same(await one.engine.status(name), { state: "absent" });
      t.same(await one.engine.shared.ofCommand(command), []);
      await t.rejects(one.engine.start(one.spec(command, "true")), { code: "ENGINE_FAILED", message: /is taken/ });
      t.same(await one.engine.stop(name, 0), { stopped: [] });
    }
    t.match(await a.engine.status(name), { state: "running" });
    await removed(command);
  });

  await t.test(
    "made by another and never started: after 15 s it is made anew, and the other's start finds that",
    async (t) => {
      const [a, b] = [peer(t, "agent-h", "pool-1"), peer(t, "agent-i", "pool-1")];
      const command = newCommandId();
      const spec = a.spec(command, "echo a");
      // As by an agent that stood still between making and starting it.
      const body = containerBody(
        { ...spec, container: spec.container! },
        {
          agentId: "agent-h",
          pool: "pool-1",
          imageId: image,
          network: { kind: "none" },
          user: { uid: 65532, gid: 65532 },
        },
      );
      const left = await server.docker.createContainer({ ...body, name: `sallyport.${spec.name}` });
      const since = performance.now();
      await b.engine.start(b.spec(command, "echo b"));
      t.ok(performance.now() - since > 14_000, "it was given the time to start it");
      await b.engine.ended(spec.name);
      await t.rejects(left.start(), /no such container/i, "it cannot be started any more");
      // Woken, it asks again: what is there is what it has.
      t.match(await a.engine.start(spec), { state: "exited", code: 0 });
      await a.engine.ended(spec.name);
      t.equal(readFileSync(spec.stdout, "utf8"), "b\n");
      t.equal((await made(command)).length, 1);
      await removed(command);
      await waitFor("nothing", async () => (await made(command)).length === 0);
    },
  );
});
