// The control plane's database under work that goes on: it goes away and comes back, and it is put back from a backup.
// An agent is connected all the while and is never started again; steps are counted by what they append to.
import { randomUUID } from "node:crypto";
import { existsSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t, { type Test } from "tap";
import type { Problem, RunDetail } from "../../cloud/http/api.ts";
import { tempDir, waitFor } from "../support/launcher.ts";
import { startPostgres, type PostgresServer } from "../support/servers.ts";
import { needs } from "../support/skip.ts";
import { CEILINGS, connectAgent, TERMINAL, TestCloud, type TestAgent } from "../support/stack.ts";

/** Says that it began, ends when its gate is there. */
const STEP = `import { appendFileSync, existsSync } from "node:fs";
const [effects, gate] = process.argv.slice(2);
appendFileSync(effects, "began\\n");
const timer = setInterval(() => existsSync(gate) && clearInterval(timer), 20);
`;

interface World {
  cloud: TestCloud;
  agent: TestAgent;
  /** Starts a run whose one step waits for its gate; resolves when the step has begun. */
  begin(): Promise<{ id: string; open(): void; began(): number }>;
  ended(id: string): Promise<RunDetail>;
}

async function world(t: Test, database: string | undefined): Promise<World> {
  const cloud = await TestCloud.start(t, database === undefined ? {} : { database });
  const folder = tempDir(t, "steps");
  const step = join(folder, "step.mjs");
  writeFileSync(step, STEP);
  const agent = await connectAgent(t, cloud, "lab", {
    config: `
stores: [{ id: box, kind: fs, root: ${tempDir(t, "store")} }]
programs: { node: { path: ${process.execPath} } }
policy:
  ${CEILINGS}
  commands: ["pipeline.run", "run.*"]
  engines: [process]
  programs: [node]
  stores: [{ store: box, write: ["runs/**"] }]
  release: { metadata: true, logs: true }
`,
  });
  return {
    cloud,
    agent,
    async begin() {
      const effects = join(folder, randomUUID());
      const gate = `${effects}.gate`;
      const { id } = await cloud.api.json<{ id: string }>("/v1/runs", {
        headers: { "idempotency-key": randomUUID() },
        json: {
          pool: "lab",
          pipeline: {
            name: "gated",
            outputs: { store: "box" },
            steps: [{ name: "wait", program: "node", args: [step, effects, gate] }],
          },
        },
      });
      await waitFor("the step to begin", () => existsSync(effects));
      return {
        id,
        open: () => writeFileSync(gate, ""),
        began: () => readFileSync(effects, "utf8").trim().split("\n").length,
      };
    },
    ended: (id) =>
      waitFor(
        "the run to end",
        async () => {
          const now = await cloud.api.json<RunDetail>(`/v1/runs/${id}`);
          return TERMINAL.includes(now.state) && now;
        },
        { timeoutMs: 60_000 },
      ),
  };
}

t.test("PostgreSQL goes away in the middle of a run", { skip: needs("postgres"), timeout: 180_000 }, async (t) => {
  const server = await startPostgres(t);
  const database = await server.database();
  const w = await world(t, database);
  const run = await w.begin();
  await server.stop();
  run.open();
  const refused = await waitFor("a refusal in words", async () => {
    const response = await w.cloud.api.call(`/v1/runs/${run.id}`);
    return response.status === 503 && response.json<Problem>();
  });
  t.match(refused, { code: "DATABASE_UNAVAILABLE" });
  t.notMatch(JSON.stringify(refused), "app-secret");
  await server.resume();
  const ended = await w.ended(run.id);
  t.equal(ended.state, "succeeded", ended.error?.message ?? "");
  t.equal(run.began(), 1);
  const next = await w.begin();
  next.open();
  t.equal((await w.ended(next.id)).state, "succeeded", "and work goes on");
  t.equal(w.cloud.programs.length + w.agent.programs.length, 2, "nobody was started again");
  const shown = await w.cloud.cli(["config", "show", "--origin"]);
  t.match(shown.stdout, /database: "postgres:\/\/app:redacted@127/);
  for (const text of [shown.stdout, w.cloud.program.output.toString()]) t.notMatch(text, "app-secret");
  const second = await w.cloud.cli(["restore", join(tempDir(t, "b"), "x")]);
  t.match(second, { code: 2, stderr: /Another control plane/ }, "no restore under a running control plane");
});

for (const kind of ["SQLite", "PostgreSQL"] as const)
  t.test(
    `a control plane on ${kind} that is put back from a backup goes on`,
    { skip: kind === "PostgreSQL" ? needs("postgres") : false, timeout: 180_000 },
    async (t) => {
      const server: PostgresServer | null = kind === "PostgreSQL" ? await startPostgres(t) : null;
      const w = await world(t, await server?.database());
      const file = join(tempDir(t, "backup"), "cloud.backup");
      const across = await w.begin();
      const saved = await w.cloud.cli(["backup", file]);
      t.equal(saved.code, 0, saved.stderr);
      t.equal(statSync(file).mode & 0o777, 0o600);
      // Asked for and done after the backup: the restored control plane never hears of it, and must not mind.
      const forgotten = await w.begin();
      forgotten.open();
      t.equal((await w.ended(forgotten.id)).state, "succeeded");
      await w.cloud.program.stop();
      const kept = await w.cloud.cli(["restore", file]);
      t.match(kept, { code: 1, stderr: /There is a database already/ });
      const restored = await w.cloud.cli(["restore", "--replace", file]);
      t.equal(restored.code, 0, restored.stderr);
      await w.cloud.start();
      const link = await w.cloud.cli(["admin", "reset"]);
      await w.cloud.api.signIn(link.stdout.trim());
      t.equal((await w.cloud.api.call(`/v1/runs/${forgotten.id}`)).status, 404);
      await waitFor("the agent to come back by itself", async () =>
        (await w.cloud.agents()).some((row) => row.state === "connected"),
      );
      across.open();
      const ended = await w.ended(across.id);
      t.equal(ended.state, "succeeded", ended.error?.message ?? "");
      t.equal(across.began(), 1, "begun before the backup, once");
      const next = await w.begin();
      next.open();
      t.equal((await w.ended(next.id)).state, "succeeded", "new work is taken");
      t.equal(w.agent.programs.length, 1, "the agent was not started again");
    },
  );
