// Two processes of one control plane that do not reach each other at their addresses. With NATS, streams cross by it, and
// each serves the other's agents; without, each serves its own, and says so.
import { createHash, randomBytes } from "node:crypto";
import { cpSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t, { type Test } from "tap";
import type { Agent } from "../../cloud/http/api.ts";
import { tempDir, waitFor } from "../support/launcher.ts";
import { startNats } from "../support/nats.ts";
import { lakeConfig, processesOf, startProcesses } from "../support/several.ts";
import { needs } from "../support/skip.ts";
import { connectAgent, TestAgent, type TestCloud } from "../support/stack.ts";

const MIB = 2 ** 20;
const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

/** An agent at this process, in a pool and with content of its own. */
async function agentAt(t: Test, cloud: TestCloud, pool: string) {
  const folder = tempDir(t, pool);
  const content = randomBytes(16 * MIB);
  writeFileSync(join(folder, "big.bin"), content);
  const agent = await connectAgent(t, cloud, pool, { config: lakeConfig(folder), url: cloud.url });
  return { pool, agent, folder, digest: sha256(content) };
}
async function download(cloud: TestCloud, pool: string, half = async () => {}): Promise<string> {
  const hash = createHash("sha256");
  let bytes = 0;
  let told = false;
  for await (const chunk of await cloud.api.open(`/v1/pools/${pool}/stores/lake/content?path=big.bin`)) {
    hash.update(chunk as Buffer);
    bytes += (chunk as Buffer).length;
    if (!told && bytes > 4 * MIB) {
      told = true;
      await half();
    }
  }
  return hash.digest("hex");
}

// What docs/operations/nats.md says that the user of the control plane needs.
const AUTHORIZATION = `users: [
  { user: app, password: app-secret, permissions: {
    publish: ["sallyport.down.>", "sallyport.*.note", "sallyport.*.peer.>"],
    subscribe: ["sallyport.up.>", "sallyport.*.note", "sallyport.*.peer.>"] } }
]`;

t.test("by NATS", { skip: needs("postgres", "nats"), timeout: 200_000 }, async (t) => {
  const server = await startNats(t, { authorization: AUTHORIZATION });
  const nats = { ...server, user: "app", password: "app-secret" };
  const { all } = await startProcesses(t, 2, { nats, unreachable: true });
  const [a, b] = all as [TestCloud, TestCloud];
  for (const cloud of all)
    t.match(
      (await processesOf(cloud)).items.toSorted((one) => (one.self ? -1 : 1)),
      [
        { self: true, state: "here", way: null },
        { self: false, state: "reached", way: "nats" },
      ],
      "linked over NATS",
    );
  const near = await agentAt(t, a, "near");
  const far = await agentAt(t, b, "far");
  await waitFor("both to know both agents", async () =>
    (await Promise.all(all.map((one) => one.agents()))).every(
      (agents) => agents.filter((one) => one.state === "connected").length === 2,
    ),
  );
  const began = performance.now();
  t.same(
    await Promise.all([download(b, "near"), download(a, "far")]),
    [near.digest, far.digest],
    "each serves a download of the other's agent",
  );
  t.comment(`2 x 16 MiB crosswise over NATS: ${Math.round(performance.now() - began)} ms`);

  const body = randomBytes(8 * MIB);
  await b.api.json(`/v1/pools/near/stores/lake/content?path=up.bin`, {
    method: "PUT",
    body,
    headers: { "content-type": "application/octet-stream" },
  });
  const back = await a.api.call("/v1/pools/near/stores/lake/content?path=up.bin");
  t.equal(sha256(back.body), sha256(body), "and an upload");

  const got = await download(b, "near", async () => {
    await server.stop();
    await waitFor("it to be noticed", async () =>
      (await processesOf(b)).items.some((one) => one.state === "unreachable"),
    );
    await server.resume();
  });
  t.equal(got, near.digest, "the NATS server is restarted in the middle: the same answer goes on");
});

t.test("without NATS", { skip: needs("postgres"), timeout: 200_000 }, async (t) => {
  const { all } = await startProcesses(t, 2, { unreachable: true });
  const [a, b] = all as [TestCloud, TestCloud];
  const one = await agentAt(t, a, "near");
  t.equal(await download(a, "near"), one.digest);
  await waitFor("the other to say that it cannot", async () => {
    const { code } = await b.api.problem("/v1/pools/near/stores/lake/content?path=big.bin");
    return code === "AGENT_OFFLINE";
  });
  t.match(
    (await processesOf(b)).items.find((other) => !other.self),
    { state: "unreachable", way: null, problem: /No connection to another process/ },
  );

  // Neither process can ask the other one about the identity: both let it in, which is what two that come at the same
  // moment meet, too.
  await t.test("a copy of the agent at the other process is told within 5 s, and one is left", async (t) => {
    const id = (await a.agents())[0]!.id;
    const copy = new TestAgent(t, b, {
      config: lakeConfig(one.folder),
      url: b.url,
      state: join(tempDir(t, "copy"), "state"),
    });
    cpSync(one.agent.state, copy.state, { recursive: true, filter: (path) => !/\.sock$|control|host/.test(path) });
    copy.start();
    await waitFor("the copy to be let in", () => b.program.output.includes("agent connected"));
    const began = performance.now();
    const alarmed = await waitFor("the alarm", async () => {
      const agent = await b.api.json<Agent>(`/v1/agents/${id}`);
      return agent.alarms.find((one) => one.code === "IDENTITY_CLONED");
    });
    const ms = Math.round(performance.now() - began);
    t.comment(`told ${ms} ms after the copy was let in`);
    t.ok(ms < 5_000);
    t.match(alarmed, { message: /Two running agents use this identity/ });
  });
});
