// An agent whose link another process holds, on PostgreSQL: its key is changed from there, an upload goes on when its
// process is stopped or killed, and two of one identity that come to two processes at once are found.
import { createHash, randomBytes } from "node:crypto";
import { cpSync, mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import t, { type Test } from "tap";
import type { Agent } from "../../cloud/http/api.ts";
import { tempDir, waitFor } from "../support/launcher.ts";
import { lakeConfig, processesOf, startProcesses } from "../support/several.ts";
import { needs } from "../support/skip.ts";
import { connectAgent, TestAgent, type TestCloud } from "../support/stack.ts";

const MIB = 2 ** 20;
const CONTENT = randomBytes(24 * MIB + 321);
const DIGEST = `sha256:${createHash("sha256").update(CONTENT).digest("hex")}`;
const file = "/v1/pools/lab/stores/lake/content?path=up/one.bin";

async function makeScene(t: Test) {
  const processes = await startProcesses(t, 2);
  const [a, b] = processes.all as [TestCloud, TestCloud];
  processes.balancer.prefer(a.port, b.port);
  const folder = tempDir(t, "lake");
  mkdirSync(join(folder, "up"));
  const config = lakeConfig(folder);
  const agent = await connectAgent(t, a, "lab", { config, url: processes.balancer.url });
  await waitFor("the other process to know it", async () => (await b.agent()).status !== null);
  return { a, b, agent, config, balancer: processes.balancer, id: (await a.agent()).id };
}
const heldBy = async (cloud: TestCloud): Promise<number> =>
  (await processesOf(cloud)).items.find((one) => one.self)!.sessions;

/** An upload to that process; `half` is awaited when half of its bytes were handed over. */
const upload = (cloud: TestCloud, half: () => Promise<unknown>) =>
  cloud.api.call(file, {
    method: "PUT",
    body: (async function* () {
      for (let at = 0; at < CONTENT.length; at += 64 * 1024) {
        if (at === 12 * MIB) await half();
        yield CONTENT.subarray(at, at + 64 * 1024);
      }
    })(),
  });
const stored = async (cloud: TestCloud): Promise<string> =>
  `sha256:${createHash("sha256")
    .update((await cloud.api.call(file)).body)
    .digest("hex")}`;

t.test("key change and uploads", { skip: needs("postgres"), timeout: 350_000 }, async (t) => {
  const { a, b, agent, config, balancer, id } = await makeScene(t);
  t.same([await heldBy(a), await heldBy(b)], [1, 0], "the agent is at the first");
  const key = () => readFileSync(join(agent.state, "identity.key"), "utf8");
  const old = join(tempDir(t, "old"), "state");
  cpSync(agent.state, old, { recursive: true, filter: (path) => !/\.sock$|control|host/.test(path) });

  await t.test("its key is changed through the process that does not hold it", async (t) => {
    const before = key();
    t.equal((await b.api.call(`/v1/agents/${id}/rotate-key`, { method: "POST", json: {} })).status, 204);
    t.not(key(), before, "it has another key when that is answered");
    t.same([await heldBy(a), await heldBy(b)], [1, 0], "over the same link");
  });

  await t.test("its process is killed: the new key opens the door of the other, and an upload goes on", async (t) => {
    const put = await upload(b, async () => {
      await a.program.killHard();
      await waitFor("the agent to be at the other", async () => (await heldBy(b)) === 1);
    });
    t.equal(put.status, 200, put.body.toString());
    t.match(put.json(), { digest: DIGEST, sizeBytes: CONTENT.length });
    t.equal(await stored(b), DIGEST);
    const thief = new TestAgent(t, b, { config, url: b.url, state: old });
    thief.start();
    await thief.program.waitForOutput(/did not prove that it holds its key/);
    t.match(await b.agent(), { id, state: "connected" }, "the old key is worth nothing at either");
    await thief.program.killHard();
  });

  await t.test("its process is stopped: an upload through the other goes on", async (t) => {
    await a.start();
    await waitFor(
      "the two to be linked",
      async () => (await processesOf(a)).items.filter((one) => one.state === "reached").length === 1,
    );
    await waitFor("it to know the agent", async () => (await a.agent()).state === "connected");
    balancer.prefer(a.port);
    const put = await upload(a, () => b.program.stop({ graceMs: 60_000 }));
    t.equal(put.status, 200, put.body.toString());
    t.match(put.json(), { digest: DIGEST });
    t.equal(await heldBy(a), 1, "the agent has moved");
    t.equal(await stored(a), DIGEST);
  });

  await t.test(
    "the process that takes the upload is killed: the client is told by its connection, and sends again",
    async (t) => {
      await b.start();
      await waitFor("it to know the agent", async () => (await b.agent()).state === "connected");
      const again = new Error("the process was killed");
      const broken = upload(b, async () => {
        await b.program.killHard();
        throw again;
      });
      await t.rejects(broken);
      t.equal(await stored(a), DIGEST, "what was there is there");
      const put = await upload(a, async () => {});
      t.match(put.json(), { digest: DIGEST });
    },
  );
});

t.test(
  "two of one identity come to two processes at once",
  { skip: needs("postgres"), timeout: 350_000 },
  async (t) => {
    const { a, b, agent, config, id } = await makeScene(t);
    await agent.program.killHard();
    const state = join(tempDir(t, "copy"), "state");
    cpSync(agent.state, state, { recursive: true, filter: (path) => !/\.sock$|control|host/.test(path) });
    const original = new TestAgent(t, a, { config, url: a.url, state: agent.state });
    const copy = new TestAgent(t, b, { config, url: b.url, state });
    const before = await b.api.json<Agent>(`/v1/agents/${id}`);
    t.same(before.alarms, []);
    const known = [a, b].map((cloud) => cloud.program.output.length);
    original.start();
    copy.start();
    await waitFor("both to have shown their identity", () =>
      [a, b].every((cloud, n) =>
        /agent connected|link refused/.test(cloud.program.output.subarray(known[n]).toString()),
      ),
    );
    const began = performance.now();
    await waitFor("the alarm", async () =>
      (await b.api.json<Agent>(`/v1/agents/${id}`)).alarms.some((one) => one.code === "IDENTITY_CLONED"),
    );
    const ms = Math.round(performance.now() - began);
    t.ok(ms < 5_000, `told ${ms} ms after both were there`);
    await waitFor("one of them to be left", async () => (await heldBy(a)) + (await heldBy(b)) === 1);
  },
);
