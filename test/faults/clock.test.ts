// The wall clock of either side is set a day on and a day back while it works. Nothing expires that should not, nothing is
// taken past its expiry, and what is measured (beats, silence, limits of steps) goes on: all of it are durations.
import { randomUUID } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import type { Command, Enrollment, RunDetail } from "../../cloud/http/api.ts";
import { tempDir, waitFor, type Teardown } from "../support/launcher.ts";
import { needsFaketime, SetClock } from "../support/set-clock.ts";
import { CEILINGS, connectAgent, TERMINAL, TestAgent, TestCloud } from "../support/stack.ts";

t.setTimeout(400_000);
const HOUR = 3600_000;
const DAY = 24 * HOUR;
const skip = process.platform === "linux" ? needsFaketime() : "sets clocks by libfaketime, tested on Linux";

/** Says that it began, and ends when its gate is there. */
const STEP = `import { appendFileSync, existsSync } from "node:fs";
const [name, effects, gate] = process.argv.slice(2);
appendFileSync(effects, name + "\\n");
const timer = setInterval(() => { if (existsSync(gate)) clearInterval(timer); }, 20);
`;

class Scene {
  readonly cloud: TestCloud;
  readonly agent: TestAgent;
  readonly folder: string;

  constructor(cloud: TestCloud, agent: TestAgent, folder: string) {
    this.cloud = cloud;
    this.agent = agent;
    this.folder = folder;
  }

  static async start(t: Teardown, { cloudEnv = {}, agentEnv = {} }): Promise<Scene> {
    const cloud = await TestCloud.start(t, { tls: true, env: cloudEnv });
    const folder = tempDir(t, "scene");
    mkdirSync(join(folder, "store/code"), { recursive: true });
    writeFileSync(join(folder, "store/code/step.mjs"), STEP);
    const agent = await connectAgent(t, cloud, "lab", { env: agentEnv, config: Scene.config(folder) });
    return new Scene(cloud, agent, folder);
  }

  static config(folder: string): string {
    return `
stores: [{ id: box, kind: fs, root: ${join(folder, "store")} }]
programs: { node: { path: ${process.execPath} } }
policy:
  ${CEILINGS}
  commands: ["pipeline.run", "run.*", "artifact.*"]
  engines: [process]
  programs: [node]
  stores: [{ store: box, read: ["**"], write: ["runs/**"] }]
  release: { metadata: true, logs: true }
`;
  }

  async submit(name: string, { pool = "lab", expiresInMs = HOUR, timeoutMs = 30 * 60_000 } = {}): Promise<string> {
    const made = await this.cloud.api.json<{ id: string }>("/v1/runs", {
      headers: { "idempotency-key": randomUUID() },
      json: {
        pool,
        expiresInMs,
        pipeline: {
          name,
          outputs: { store: "box" },
          steps: [
            {
              name: "one",
              program: "node",
              args: ["${inputs.code}", name, join(this.folder, "effects"), join(this.folder, `${name}.gate`)],
              inputs: { code: { store: "box", path: "code/step.mjs" } },
              timeoutMs,
            },
          ],
        },
      },
    });
    return made.id;
  }

  open(name: string): void {
    writeFileSync(join(this.folder, `${name}.gate`), "");
  }
  effects(): string[] {
    const file = join(this.folder, "effects");
    return existsSync(file) ? readFileSync(file, "utf8").trim().split("\n") : [];
  }
  run(id: string): Promise<RunDetail> {
    return this.cloud.api.json<RunDetail>(`/v1/runs/${id}`);
  }
  async command(run: string): Promise<Command> {
    return this.cloud.api.json<Command>(`/v1/commands/${(await this.run(run)).command}`);
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
  begun(name: string): Promise<unknown> {
    return waitFor(`${name} to begin`, () => this.effects().includes(name), { timeoutMs: 60_000 });
  }
}

for (const side of ["cloud", "agent"] as const)
  t.test(`the ${side}'s clock is set while both work`, { skip, timeout: 200_000 }, async (t) => {
    const clock = new SetClock(t);
    const scene = await Scene.start(t, { [`${side}Env`]: clock.env });
    const { cloud, agent } = scene;
    const connectedAt = (await cloud.agent()).connectedAt;
    // Nobody is there to take these: an hour is an hour.
    const joining = await cloud.enroll("other");
    const kept = await scene.submit("kept", { pool: "other" });
    const long = await scene.submit("long");
    await scene.begun("long");

    let at = 0;
    for (const byMs of [DAY, -DAY]) {
      at++;
      clock.set(byMs);
      const what = `${byMs > 0 ? "+" : "-"}24 h`;
      const brief = await scene.submit(`brief-${at}`, { expiresInMs: 60_000 });
      scene.open(`brief-${at}`);
      const ended = await scene.ended(brief);
      t.equal(ended.state, "succeeded", `${what}: a command with a minute to live is taken: ${ended.error?.message}`);
      await cloud.api.json("/v1/pools/lab/stores/box/artifacts?path=");

      // The one with seconds to live shows that expiries were judged since; the one with an hour is still there.
      const short = await scene.submit(`short-${at}`, { pool: "other", expiresInMs: 1000 });
      const expired = await waitFor("the short one to expire", async () => {
        const command = await scene.command(short);
        return command.state === "expired" && command;
      });
      const lived = expired.endedAt! - expired.createdAt;
      t.ok(lived >= 990 && lived < 20_000, `${what}: it lived ${lived} ms`);
      t.equal((await scene.command(kept)).state, "queued", `${what}: what has an hour to live lives`);
      t.equal((await cloud.api.json<Enrollment>(`/v1/enrollments/${joining.id}`)).state, "waiting");
      t.equal((await scene.run(long)).state, "running", `${what}: what runs goes on`);
      const now = await cloud.agent();
      t.equal(now.state, "connected");
      t.ok(Math.abs(now.connectedAt! - connectedAt!) < 1000, `${what}: on the same connection`);
    }

    // It was away when its command expired: not taken past that, whatever the clocks say by now.
    await agent.program.killHard();
    const silent = performance.now();
    const late = await scene.submit("late", { expiresInMs: 1500 });
    scene.open("late");
    await waitFor("the silence to show", async () => (await cloud.agent()).state === "disconnected");
    t.ok(performance.now() - silent < 20_000);
    t.equal((await scene.run(long)).state, "unknown");
    await waitFor("it to expire", async () => (await scene.command(late)).state === "expired");
    // It comes back with its clock as it is by now, a day off: over TLS, to the work that it left.
    agent.start();
    await waitFor("the agent to be back", async () => (await cloud.agent()).state === "connected", {
      timeoutMs: 60_000,
    });
    await waitFor("the run to be known", async () => (await scene.run(long)).state === "running");
    scene.open("long");
    const ended = await scene.ended(long);
    t.equal(ended.state, "succeeded", ended.error?.message ?? "");
    t.same(
      ended.attempts.map(({ attempt, adopted }) => [attempt, adopted]),
      [[1, true]],
    );
    t.same(scene.effects().sort(), ["brief-1", "brief-2", "long"], "nothing else ever began, nothing twice");

    // Made before all that, within its hour: it still opens the door, and what waited is taken.
    const other = new TestAgent(t, cloud, {
      config: Scene.config(scene.folder),
      env: side === "agent" ? clock.env : {},
    });
    other.start(joining.secret);
    scene.open("kept");
    t.equal((await scene.ended(kept)).state, "succeeded");
    if (side === "cloud") t.match(cloud.program.output.toString(), /the machine's clock was set/);
  });

for (const byMs of [DAY, -DAY])
  t.test(
    `a step goes on while its agent is away and the clock is set by ${byMs / HOUR} h`,
    { skip, timeout: 120_000 },
    async (t) => {
      const clock = new SetClock(t);
      const scene = await Scene.start(t, { agentEnv: clock.env });
      const id = await scene.submit("long", { timeoutMs: 20_000 });
      await scene.begun("long");
      const began = performance.now();
      await waitFor("it to be known", async () => (await scene.run(id)).attempts[0]?.state === "running");
      await scene.agent.program.killHard();
      clock.set(byMs);
      scene.agent.start();
      await waitFor("the run to be known again", async () => (await scene.run(id)).attempts[0]?.adopted === true);
      // Its limit is neither over at once nor a day away.
      const ended = await scene.ended(id);
      const ranMs = performance.now() - began;
      t.equal(ended.state, "failed");
      t.equal(ended.error?.code, "STEP_TIMED_OUT", ended.error?.message ?? "");
      t.ok(ranMs >= 12_000 && ranMs < 60_000, `stopped after ${Math.round(ranMs)} ms`);
    },
  );
