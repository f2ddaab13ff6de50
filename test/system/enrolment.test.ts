// Enrolment from end to end: works once, refusals are plain on both sides, a restart needs the state folder only.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import type { Enrollment } from "../../cloud/http/api.ts";
import { waitFor } from "../support/launcher.ts";
import { connectAgent, TestAgent, TestCloud } from "../support/stack.ts";

const config = "policy: { commands: ['artifact.*'] }\n";

t.test("an enrolment secret joins one agent, once", { timeout: 400_000 }, async (t) => {
  const cloud = await TestCloud.start(t, { tls: true });
  const made = await cloud.enroll("lab");
  t.match(made.secret, /^spe_/);
  t.ok(made.expiresAt - made.createdAt === 3_600_000, "an hour");
  t.ok(
    made.commands.some((command) => command.text.includes(made.secret)),
    "the line to copy holds it",
  );
  const enrollment = () => cloud.api.json<Enrollment>(`/v1/enrollments/${made.id}`);

  const agent = new TestAgent(t, cloud, { config });
  agent.start(made.secret);
  const connected = await cloud.connected();
  t.equal(connected.pool.name, "lab");
  t.match(await enrollment(), { state: "used", agent: connected.id });
  t.notMatch(
    readFileSync(join(agent.state, "identity.json"), "utf8"),
    made.secret.split(".")[1],
    "the secret is not kept",
  );

  await t.test("used: refused, and both sides say so", async (t) => {
    const second = new TestAgent(t, cloud, { config });
    const program = second.start(made.secret);
    await program.waitForOutput(/ENROLMENT_USED/);
    const refused = await waitFor("the refusal to be listed", async () => (await enrollment()).refusals[0]);
    t.match(refused, { code: "ENROLMENT_USED" });
    t.equal((await cloud.agents()).length, 1, "nobody joined");
  });

  await t.test("a foreign control plane's secret is refused before it is shown", async (t) => {
    const other = await TestCloud.start(t);
    const stranger = new TestAgent(t, cloud, { config, url: other.url });
    const program = stranger.start((await cloud.enroll("lab")).secret);
    await program.waitForOutput(/CLOUD_UNTRUSTED/);
    t.equal((await other.agents()).length, 0);
  });

  await t.test("rubbish is refused with the reason", async (t) => {
    const confused = new TestAgent(t, cloud, { config });
    const program = confused.start("not-a-secret");
    await program.waitForOutput(/does not begin with spe_/);
  });

  await t.test("withdrawn: refused", async (t) => {
    const withdrawn = await cloud.enroll("lab");
    t.ok((await cloud.api.call(`/v1/enrollments/${withdrawn.id}`, { method: "DELETE" })).status < 300);
    const late = new TestAgent(t, cloud, { config });
    await late.start(withdrawn.secret).waitForOutput(/ENROLMENT_REVOKED/);
  });

  await t.test("a restart needs the state folder only, on both sides", async (t) => {
    await agent.program.stop();
    await waitFor("disconnected", async () => (await cloud.agent(connected.name)).state === "disconnected");
    agent.start();
    await cloud.connected(connected.name);
    await cloud.program.stop();
    await cloud.start();
    const back = await waitFor("the agent to find the restarted control plane", () => cloud.connected(connected.name), {
      timeoutMs: 30_000,
    });
    t.equal(back.id, connected.id);
  });

  await t.test("rename, revoke, delete", async (t) => {
    const renamed = await cloud.api.json<{ name: string }>(`/v1/agents/${connected.id}`, {
      method: "PATCH",
      json: { name: "gpu-1" },
    });
    t.equal(renamed.name, "gpu-1");
    t.equal(
      (await cloud.api.problem(`/v1/agents/${connected.id}`, { method: "DELETE" })).code,
      "CONFLICT",
      "a connected agent is not deleted",
    );
    const start = performance.now();
    await cloud.api.json(`/v1/agents/${connected.id}/revoke`, { method: "POST", json: {} });
    await agent.program.waitForOutput(/IDENTITY_REVOKED/, { timeoutMs: 10_000 });
    t.ok(performance.now() - start < 5_000, "the live link was cut within 5 s");
    t.equal((await cloud.agent("gpu-1")).state, "revoked");
    await agent.program.stop();
    const again = agent.start();
    await again.waitForOutput(/IDENTITY_REVOKED/);
    t.equal(again.exit, undefined, "it says so and stays: a supervisor must not spin");
    await again.stop();
    t.ok((await cloud.api.call(`/v1/agents/${connected.id}`, { method: "DELETE" })).status < 300);
    t.equal((await cloud.agents()).length, 0);
  });
});

t.test("two agents of one pool; a second program on one state folder is refused", { timeout: 180_000 }, async (t) => {
  const cloud = await TestCloud.start(t);
  const first = await connectAgent(t, cloud, "lab", { config });
  const twin = first.cli(["run"]);
  t.equal((await twin.exited).code !== 0, true, "a second one on the same state folder ends");
  t.match(twin.output.toString(), /Another agent \(process \d+\) uses the state directory/);
  await connectAgent(t, cloud, "lab", { config });
  t.equal((await cloud.agents()).filter((agent) => agent.state === "connected").length, 2);
});
