// A process that stands still (SIGSTOP) for longer than a dead link takes: the other end notices, says so, and both go on
// by themselves when it moves again. Short here, by the setting; SALLYPORT_FROZEN_MS makes it as long as is wanted.
import t from "tap";
import { systemClock, wait } from "@sallyport/protocol";
import { tempDir, waitFor } from "../support/launcher.ts";
import { CEILINGS, connectAgent, TestCloud } from "../support/stack.ts";

const frozenMs = Number(process.env["SALLYPORT_FROZEN_MS"] ?? 4_000);
const DEAD_MS = 1_500;

t.setTimeout(180_000 + 4 * frozenMs);
t.test("agent, then control plane, stand still", async (t) => {
  const cloud = await TestCloud.start(t, { env: { SALLYPORT_CLOUD_LINK_DEAD_MS: String(DEAD_MS) } });
  const agent = await connectAgent(t, cloud, "lab", {
    config: `
link: { deadAfterMs: ${DEAD_MS}, stableAfterMs: 0 }
stores: [{ id: lake, kind: fs, root: ${JSON.stringify(tempDir(t, "lake"))} }]
policy:
  ${CEILINGS}
  commands: ["artifact.*"]
  stores: [{ store: lake, read: ["**"] }]
  release: { metadata: true }
`,
  });
  const list = async () => (await cloud.api.call("/v1/pools/lab/stores/lake/artifacts")).status;
  t.equal(await list(), 200);
  t.teardown(() => {
    for (const { program } of [agent, cloud]) if (program.exit === undefined) process.kill(program.pid, "SIGCONT");
  });
  const log = (line: RegExp) => line.test(agent.program.output.toString());

  process.kill(agent.program.pid, "SIGSTOP");
  const began = performance.now();
  await waitFor("the control plane to notice", async () => (await cloud.agent()).state !== "connected");
  const noticedMs = performance.now() - began;
  t.ok(noticedMs < DEAD_MS * 4, `noticed after ${Math.round(noticedMs)} ms`);
  t.equal(await list(), 503, "and who asks is told at once");
  await wait(systemClock, Math.max(0, frozenMs - noticedMs));
  process.kill(agent.program.pid, "SIGCONT");
  await waitFor("the agent to serve again", async () => (await list()) === 200);
  t.equal(agent.program.exit, undefined, "it is the same process");

  process.kill(cloud.program.pid, "SIGSTOP");
  await waitFor("the agent to notice", () => log(/no link: .*(Nothing came|broke|within)/));
  await wait(systemClock, frozenMs);
  process.kill(cloud.program.pid, "SIGCONT");
  await waitFor("the agent to serve again", async () => (await list()) === 200);
  t.equal(agent.program.exit, undefined);
  t.equal(cloud.program.exit, undefined);
});
