// The control plane is away for hours, time injected, while its agent works: that silence is its own. Back again, it calls
// nobody lost and nothing failed before agents have had time to dial; what ran is taken up where it stands.
import { randomUUID } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import type { RunDetail } from "../../cloud/http/api.ts";
import { FastTime } from "../support/fast-time.ts";
import { tempDir, waitFor } from "../support/launcher.ts";
import { CEILINGS, connectAgent, TERMINAL, TestCloud } from "../support/stack.ts";
import { startTcpProxy } from "../support/tcp-proxy.ts";

t.setTimeout(200_000);
const HOUR = 3600_000;
const STEP = `import { appendFileSync, existsSync } from "node:fs";
const [effects] = process.argv.slice(2);
appendFileSync(effects, "began\\n");
const timer = setInterval(() => { if (existsSync(effects + ".gate")) clearInterval(timer); }, 20);
`;

t.test("two hours without a control plane", { timeout: 180_000 }, async (t) => {
  const time = new FastTime(t);
  const fast = { nodeArgs: time.nodeArgs, env: time.env };
  const cloud = await TestCloud.start(t, fast);
  const proxy = await startTcpProxy(t, { port: cloud.port });
  const store = tempDir(t, "store");
  const effects = join(tempDir(t, "effects"), "effects");
  mkdirSync(join(store, "code"));
  writeFileSync(join(store, "code/step.mjs"), STEP);
  const agent = await connectAgent(t, cloud, "lab", {
    ...fast,
    url: `http://127.0.0.1:${proxy.port}`,
    config: `
stores: [{ id: box, kind: fs, root: ${store} }]
programs: { node: { path: ${process.execPath} } }
policy:
  ${CEILINGS.replace("3600000", String(24 * HOUR))}
  commands: ["pipeline.run", "run.*"]
  engines: [process]
  programs: [node]
  stores: [{ store: box, read: ["**"], write: ["runs/**"] }]
  release: { metadata: true, logs: true }
`,
  });
  const id = (
    await cloud.api.json<{ id: string }>("/v1/runs", {
      headers: { "idempotency-key": randomUUID() },
      json: {
        pool: "lab",
        pipeline: {
          name: "long",
          outputs: { store: "box" },
          steps: [
            {
              name: "one",
              program: "node",
              args: ["${inputs.code}", effects],
              inputs: { code: { store: "box", path: "code/step.mjs" } },
              timeoutMs: 20 * HOUR,
            },
          ],
        },
      },
    })
  ).id;
  const run = () => cloud.api.json<RunDetail>(`/v1/runs/${id}`);
  await waitFor("the run to be running", async () => existsSync(effects) && (await run()).state === "running");

  await cloud.program.killHard();
  proxy.refuse(true);
  const downAt = time.elapsed();
  await time.run(600);
  await time.reach(downAt + 2 * HOUR);
  await time.run(1);
  t.equal(agent.program.exit, undefined, "the agent is there");
  await cloud.start();
  const up = await cloud.agent();
  t.equal(up.state, "disconnected", `not lost: ${up.stateReason}`);
  t.match(up.stateReason, /This control plane started/);
  t.ok(time.now() - up.lastSeenAt! >= 2 * HOUR, "the evidence is as old as it is");
  t.equal((await run()).state, "unknown");

  // From now on the silence is the agent's.
  await time.run(10);
  await waitFor("it to be lost", async () => (await cloud.agent()).state === "lost", { timeoutMs: 90_000 });
  t.equal((await run()).state, "unknown", "lost is the agent, not its work");
  proxy.refuse(false);
  await waitFor("the agent to be back", async () => (await cloud.agent()).state === "connected", { timeoutMs: 60_000 });
  await time.run(1);
  await waitFor("the run to be known", async () => (await run()).state === "running");
  writeFileSync(`${effects}.gate`, "");
  const ended = await waitFor("the run to end", async () => {
    const now = await run();
    return TERMINAL.includes(now.state) && now;
  });
  t.equal(ended.state, "succeeded", ended.error?.message ?? "");
  t.same(
    ended.attempts.map(({ attempt, state, adopted }) => [attempt, state, adopted]),
    [[1, "succeeded", false]],
  );
  t.equal(readFileSync(effects, "utf8"), "began\n", "it began once");
});
