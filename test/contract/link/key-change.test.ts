// The key of an agent changes over its link, in two phases: whatever is lost in between, the agent still gets in, with
// one of the two keys, and in the end with the new one alone.
import { cpSync, readFileSync } from "node:fs";
import { createPublicKey } from "node:crypto";
import { join } from "node:path";
import { rawPublicKey, systemClock } from "@sallyport/protocol";
import t, { type Test } from "tap";
import { changeKey, IdentityStore } from "../../../agent/link/index.ts";
import { tempDir, waitFor } from "../../support/launcher.ts";
import { startTcpProxy } from "../../support/tcp-proxy.ts";
import { startAgentEnd, type AgentEnd } from "./agent-end.ts";
import { startCloudEnd } from "./cloud-end.ts";

async function start(t: Test) {
  const cloud = await startCloudEnd();
  t.teardown(() => cloud.stop());
  const proxy = await startTcpProxy(t, { port: cloud.port });
  const url = `http://127.0.0.1:${proxy.port}`;
  const agent = startAgentEnd({ url, enrolment: cloud.enrolment() });
  t.teardown(() => agent.stop());
  const session = await agent.online();
  const identity = new IdentityStore(agent.stateDirectory);
  const held = () => rawPublicKey(createPublicKey(identity.load()!.key));
  const known = () => cloud.directory.replicas.get(session.replica)!;
  /** The agent's process dies and another begins with what is on disk. */
  const restart = async (): Promise<AgentEnd> => {
    const folder = tempDir(t, "state");
    cpSync(agent.stateDirectory, folder, { recursive: true });
    agent.stop();
    await waitFor("the old session to end", () => cloud.gateway.sessions.all().length === 0);
    const next = startAgentEnd({ url, stateDirectory: folder });
    t.teardown(() => next.stop());
    return next;
  };
  return { cloud, proxy, agent, session, identity, held, known, restart };
}

t.test("offered, noted, taken up, used: then the old one is worth nothing", async (t) => {
  const { cloud, proxy, agent, session, identity, held, known } = await start(t);
  const before = held();
  const old = tempDir(t, "old");
  cpSync(agent.stateDirectory, old, { recursive: true });
  await changeKey(identity, session, systemClock);
  const after = held();
  t.not(after, before);
  t.match(known(), { publicKey: before, nextKey: after }, "either opens the door");
  t.notOk(identity.changing);
  t.notOk(readFileSync(join(agent.stateDirectory, "identity.json"), "utf8").includes(after), "no key is written there");
  proxy.cut();
  await waitFor("the next session", () => agent.link.session !== null && agent.link.session.id !== session.id);
  t.match(known(), { publicKey: after, nextKey: null }, "used once, it is the only one");
  agent.stop();
  await waitFor("the session to end", () => cloud.gateway.sessions.all().length === 0);
  const thief = startAgentEnd({ url: `http://127.0.0.1:${proxy.port}`, stateDirectory: old });
  t.teardown(() => thief.stop());
  t.equal((await thief.failed()).code, "HANDSHAKE_FAILED");
});

t.test(
  "the answer to the offer is lost: the old key still opens, and the change is ended with the same new one",
  async (t) => {
    const { cloud, proxy, agent, session, identity, held, known } = await start(t);
    const before = held();
    cloud.directory.afterOffer = () => {
      cloud.directory.afterOffer = null;
      proxy.cut();
    };
    await t.rejects(changeKey(identity, session, systemClock), { code: "LINK_LOST" });
    const offered = known().nextKey;
    t.ok(offered);
    t.equal(held(), before, "the agent stays with what it has");
    t.ok(identity.changing, "and knows that it is not at the end");
    await waitFor("the next session", () => agent.link.session !== null && agent.link.session.id !== session.id);
    t.match(known(), { publicKey: before, nextKey: offered });
    await changeKey(identity, agent.link.session!, systemClock);
    t.equal(held(), offered);
  },
);

for (const [name, reach] of [
  ["made and not offered", async ({ identity }) => void identity.nextKey()],
  [
    "offered and not taken up",
    async ({ identity, session, cloud, proxy }) => {
      cloud.directory.afterOffer = () => proxy.cut();
      await changeKey(identity, session, systemClock).catch(() => undefined);
      cloud.directory.afterOffer = null;
    },
  ],
  ["taken up and not used", async ({ identity, session }) => changeKey(identity, session, systemClock)],
] as [string, (system: Awaited<ReturnType<typeof start>>) => Promise<void>][]) {
  t.test(`the agent dies with a key ${name}: it gets in, and ends the change`, async (t) => {
    const system = await start(t);
    await reach(system);
    const next = await system.restart();
    const session = await next.online();
    const identity = new IdentityStore(next.stateDirectory);
    if (identity.changing) await changeKey(identity, session, systemClock);
    t.notOk(identity.changing);
    system.proxy.cut();
    await waitFor("the next session", () => next.link.session !== null && next.link.session.id !== session.id);
    t.equal(system.known().publicKey, rawPublicKey(createPublicKey(identity.load()!.key)));
    t.equal(system.known().nextKey, null);
  });
}

t.test("an offer that is not signed by both is refused, and nothing is noted", async (t) => {
  const { session, identity, known } = await start(t);
  const other = new IdentityStore(tempDir(t, "other"));
  const forged = Object.assign(Object.create(identity) as IdentityStore, {
    load: () => ({ ...identity.load()!, key: other.enrolmentKey() }),
    nextKey: () => other.nextKey(),
  });
  await t.rejects(changeKey(forged, session, systemClock), { code: "HANDSHAKE_FAILED" });
  t.equal(known().nextKey, null);
});
