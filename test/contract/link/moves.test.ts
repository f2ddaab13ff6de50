// An agent that is told to go to another process of the control plane: the next session is made before the last one ends,
// so no command fails on the way, and never are there more than two connections, nor two for longer than half a minute.
import { createPublicKey } from "node:crypto";
import { ConnectorError, systemClock, wait, type LinkStream } from "@sallyport/protocol";
import t from "tap";
import { ManualClock } from "../../support/clock.ts";
import { waitFor } from "../../support/launcher.ts";
import { startTcpProxy } from "../../support/tcp-proxy.ts";
import { startAgentEnd } from "./agent-end.ts";
import { startCloudEnd, type CloudEnd } from "./cloud-end.ts";

type Test = Parameters<typeof startTcpProxy>[0];

/** Two processes with one identity and one directory, behind one address that leads to the first. */
async function twoClouds(t: Test) {
  const first = await startCloudEnd();
  const second = await startCloudEnd({
    directory: first.directory,
    identityKey: { privateKey: first.identityKey, publicKey: createPublicKey(first.identityKey) },
  });
  const proxy = await startTcpProxy(t, { port: first.port });
  t.teardown(() => Promise.all([first.stop(), second.stop()]));
  return { first, second, proxy, url: `http://127.0.0.1:${proxy.port}` };
}

const sessionOf = (cloud: CloudEnd) => cloud.gateway.sessions.all()[0] ?? null;

t.test("told to go, the agent is online at the next process before the last stream here ends", async (t) => {
  const { first, second, proxy, url } = await twoClouds(t);
  const agent = startAgentEnd({ url, enrolment: first.enrolment() });
  t.teardown(() => agent.stop());
  const held: LinkStream[] = [];
  agent.link.onStream((stream) => {
    if ((stream.head as { hold?: boolean }).hold === true) held.push(stream);
    else stream.respond({ ok: true }, { end: true });
  });
  await agent.online();
  const long = sessionOf(first)!.open({ hold: true }, { lane: "interactive", end: true });
  await waitFor("the long command to begin", () => held.length === 1);

  // One command after the other, through whoever takes it, as a dispatcher of both would.
  let asked = 0;
  let most = 0;
  const over = new AbortController();
  const asking = (async () => {
    while (!over.signal.aborted) {
      most = Math.max(most, proxy.connections.size);
      for (let waits = 0; ; waits++) {
        let stream: LinkStream | null = null;
        for (const cloud of [first, second]) {
          try {
            stream ??= sessionOf(cloud)?.open({ asked }, { lane: "interactive", end: true }) ?? null;
          } catch (error) {
            if (!(error instanceof ConnectorError) || error.code !== "GOING_AWAY") throw error;
          }
        }
        if (stream !== null) {
          await stream.answer;
          asked++;
          break;
        }
        if (waits > 500) throw new Error("nobody takes commands");
        await wait(systemClock, 10);
      }
      await wait(systemClock, 1);
    }
  })();
  await waitFor("commands to flow", () => asked > 20);
  proxy.retarget(second.port);
  const drained = first.gateway.drain(20_000, 5_000);
  await waitFor("the agent to be at the second process", () => sessionOf(second) !== null);
  const before = asked;
  await waitFor("commands to flow there", () => asked > before + 20);
  t.equal(agent.link.state, "online");
  t.equal(agent.link.session?.id, sessionOf(second)?.id);
  t.ok(sessionOf(first), "the first process still has its session, for what is open there");
  held[0]!.respond({ done: true }, { end: true });
  t.same(await long.answer, { done: true }, "what was under way ended as if nothing had been");
  await drained;
  await waitFor("one connection", () => proxy.connections.size === 1);
  over.abort();
  await asking;
  t.equal(most, 2, "connections at a time, at most");
  t.notOk(
    agent.events.some((event) => event.type === "state" && event.error?.code === "LINK_LOST"),
    "no link was lost",
  );
});

t.test("what does not end within 30 s is cut, also when there is nowhere to go", async (t) => {
  const clock = new ManualClock();
  const { first, proxy, url } = await twoClouds(t);
  const agent = startAgentEnd({ url, enrolment: first.enrolment(), clock, deadMs: 600_000 });
  t.teardown(() => agent.stop());
  await agent.online();
  const long = sessionOf(first)!.open({}, { lane: "interactive", end: true });
  const cut = t.rejects(long.answer, { code: "LINK_LOST" });
  await waitFor("the command to arrive", () => agent.streams.length === 1);
  proxy.refuse(true);
  void first.gateway.drain(600_000);
  await waitFor("the goodbye to arrive", () => agent.link.state !== "online");
  t.ok(agent.link.session, "it is still there for what is open");
  await clock.advance(29_900);
  t.notOk(long.signal.aborted);
  await clock.advance(200);
  await cut;
  t.equal(agent.link.session, null);
  t.not(agent.link.state, "closed", "and it goes on dialling");
});
