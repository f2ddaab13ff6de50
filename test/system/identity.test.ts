// An agent's identity over its life, with the real programs: its key changes over the link, a copy of it is found and
// reported, and a revocation cuts the link within seconds and holds after both have been started anew.
import { cpSync, readFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { tempDir, waitFor } from "../support/launcher.ts";
import { CEILINGS, connectAgent, TestAgent, TestCloud } from "../support/stack.ts";
import { startTcpProxy } from "../support/tcp-proxy.ts";

const SOON_MS = 5_000;
const config = `policy: { ${CEILINGS} }\n`;

t.setTimeout(240_000);
t.test("key change, clone, revocation", async (t) => {
  const cloud = await TestCloud.start(t);
  const proxy = await startTcpProxy(t, { port: cloud.port });
  const agent = await connectAgent(t, cloud, "lab", {
    config: `link: { stableAfterMs: 0 }\n${config}`,
    url: `http://127.0.0.1:${proxy.port}`,
  });
  const { id } = await cloud.agent();
  const key = () => readFileSync(join(agent.state, "identity.key"), "utf8");

  const before = key();
  t.equal((await cloud.api.call(`/v1/agents/${id}/rotate-key`, { method: "POST", json: {} })).status, 204);
  t.not(key(), before, "the agent has another key when that is answered");
  t.equal((await cloud.agent()).state, "connected", "over the same link");
  const dialled = proxy.accepted;
  proxy.cut();
  await waitFor("the next dial", () => proxy.accepted > dialled);
  await cloud.connected();

  // The new key, copied to where another agent runs.
  const state = tempDir(t, "copy");
  for (const name of ["identity.json", "identity.key"]) cpSync(join(agent.state, name), join(state, name));
  const clone = new TestAgent(t, cloud, { config, state });
  clone.start();
  const cloned = /Another running agent uses the identity/;
  await waitFor("the clone to be refused", () => cloned.test(clone.program.output.toString()), { timeoutMs: 60_000 });
  const refusedAt = performance.now();
  await waitFor("the alarm", async () =>
    (await cloud.agent()).alarms.some((alarm) => alarm.code === "IDENTITY_CLONED"),
  );
  t.ok(performance.now() - refusedAt < SOON_MS, "found and reported");
  const started = clone.program.output
    .toString()
    .split("\n")
    .flatMap((line) => (line.startsWith("{") ? [JSON.parse(line) as { time: string; msg: string }] : []));
  const dialledAt = Date.parse(started.findLast((line) => !cloned.test(line.msg))!.time);
  const toldAt = Date.parse(started.find((line) => cloned.test(line.msg))!.time);
  t.ok(toldAt - dialledAt < SOON_MS, `told after ${toldAt - dialledAt} ms`);
  t.equal((await cloud.agent()).state, "connected", "the one that was there stays");
  await clone.program.killHard();

  const revoked = /no link: This agent was revoked/;
  const began = performance.now();
  t.equal((await cloud.api.call(`/v1/agents/${id}/revoke`, { method: "POST", json: {} })).status, 200);
  await waitFor("the link to be cut", () => revoked.test(agent.program.output.toString()));
  t.ok(performance.now() - began < SOON_MS, `cut after ${Math.round(performance.now() - began)} ms`);
  await agent.program.killHard();
  await cloud.program.killHard();
  await cloud.start();
  const again = agent.start();
  await waitFor("the agent to be refused again", () => revoked.test(again.output.toString()), { timeoutMs: 60_000 });
  t.not((await cloud.agent()).state, "connected");
});
