// What networks do to a link: both ends live, a proxy between them does the harm, and after it the link is usable again by
// itself, with the reason said. Times are shortened by the link's own settings: dead after 0.8 s instead of 12.
import { readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { Server as TlsServer } from "node:tls";
import { ConnectorError, systemClock, wait, type ErrorCode } from "@sallyport/protocol";
import t, { type Test } from "tap";
import { ownTls } from "../../cloud/keys/authority.ts";
import { tempDir, waitFor } from "../support/launcher.ts";
import { startTcpProxy, type TcpProxy } from "../support/tcp-proxy.ts";
import { startAgentEnd, type AgentEnd } from "../contract/link/agent-end.ts";
import { startCloudEnd, type CloudEnd } from "../contract/link/cloud-end.ts";

const DEAD_MS = 800;
const MIB = 2 ** 20;

interface Ends {
  cloud: CloudEnd;
  agent: AgentEnd;
  proxy: TcpProxy;
}

async function start(t: Test): Promise<Ends> {
  const cloud = await startCloudEnd({ deadMs: DEAD_MS });
  t.teardown(() => cloud.stop());
  const proxy = await startTcpProxy(t, { port: cloud.port });
  const agent = startAgentEnd({
    url: `http://127.0.0.1:${proxy.port}`,
    enrolment: cloud.enrolment(),
    deadMs: DEAD_MS,
    stableMs: 0,
    random: () => 0.1,
  });
  t.teardown(() => agent.stop());
  // Answers at once; sends as many bytes as it is asked for.
  agent.link.onStream((stream) => {
    const { bytes = 0 } = stream.head as { bytes?: number };
    stream.respond({ ok: true }, { end: bytes === 0 });
    const send = async () => {
      for (let left = bytes; left > 0; left -= 65_536) await stream.write(Buffer.alloc(65_536));
      await stream.end();
    };
    if (bytes > 0) send().catch(() => undefined);
  });
  await agent.online();
  return { cloud, agent, proxy };
}

/** One command through whatever session there is: ms, or null when it failed. */
async function ask({ cloud }: Ends): Promise<number | null> {
  const began = performance.now();
  try {
    const session = cloud.gateway.sessions.all()[0];
    if (session === undefined) return null;
    await session.open({}, { lane: "interactive", end: true }).answer;
    return performance.now() - began;
  } catch {
    return null;
  }
}

/** Reads for ever what the agent sends, over any session. */
function load({ cloud }: Ends): { stop(): void } {
  let on = true;
  const run = async () => {
    while (on) {
      try {
        const session = cloud.gateway.sessions.all()[0];
        const stream = session?.open({ bytes: 64 * MIB }, { lane: "bulk", end: true });
        if (stream !== undefined) for await (const _chunk of stream.bytes) if (!on) return;
      } catch {
        // the next session
      }
      await wait(systemClock, 5);
    }
  };
  void run();
  return { stop: () => void (on = false) };
}

/** Ms from now until a command is answered. */
async function usable(ends: Ends): Promise<number> {
  const began = performance.now();
  await waitFor("the link to be usable", async () => (await ask(ends)) !== null, { everyMs: 5 });
  return performance.now() - began;
}

const reasons = ({ agent, cloud }: Ends): Set<ErrorCode> =>
  new Set([
    ...agent.events.flatMap((event) => (event.type === "state" && event.error !== null ? [event.error.code] : [])),
    ...cloud.events.flatMap((event) => (event.type === "offline" ? [event.reason.code] : [])),
  ]);

interface Fault {
  harm(ends: Ends): Promise<void> | void;
  heal?(ends: Ends): Promise<void> | void;
  /** How long it lasts. */
  forMs: number;
  /** Usable again so long after it, at most. */
  withinMs: number;
  /** What one of the ends says of it; none: the link holds. */
  reason: ErrorCode[];
}

const flow = ({ proxy }: Ends) => proxy.setMode("flow");
/** What was swallowed leaves a hole: the connection is of no use any more, as with a router that forgot it. */
const FAULTS: Record<string, Fault> = {
  "reset, a download under way": { harm: ({ proxy }) => proxy.cut(), forMs: 0, withinMs: 1_500, reason: ["LINK_LOST"] },
  "black hole, both ways": {
    harm: ({ proxy }) => proxy.setMode("swallow"),
    heal: flow,
    forMs: 3 * DEAD_MS,
    withinMs: 6_000,
    reason: ["LINK_LOST"],
  },
  "black hole, towards the cloud": {
    harm: ({ proxy }) => proxy.setMode("swallow", ["up"]),
    heal: flow,
    forMs: 2 * DEAD_MS,
    withinMs: 6_000,
    reason: ["LINK_LOST"],
  },
  "black hole, towards the agent": {
    harm: ({ proxy }) => proxy.setMode("swallow", ["down"]),
    heal: flow,
    forMs: 2 * DEAD_MS,
    withinMs: 6_000,
    reason: ["LINK_LOST"],
  },
  "half-open: nobody reads": {
    harm: ({ proxy }) => proxy.setMode("stall"),
    heal: flow,
    forMs: 3 * DEAD_MS,
    withinMs: 6_000,
    reason: ["LINK_LOST"],
  },
  "1 kB/s": {
    harm: ({ proxy }) => proxy.setRate(1_000),
    heal: ({ proxy }) => proxy.setRate(null),
    forMs: 2_000,
    withinMs: 6_000,
    reason: [],
  },
  "a bit flipped towards the agent": {
    harm: ({ proxy }) => [...proxy.connections].at(-1)!.flip("down"),
    forMs: 300,
    withinMs: 3_000,
    reason: ["PROTOCOL_ERROR", "LINK_LOST"],
  },
  "late by 40 to 120 ms": {
    harm: ({ proxy }) => proxy.setDelay(40, 80),
    heal: ({ proxy }) => proxy.setDelay(0),
    forMs: 2_000,
    withinMs: 2_000,
    reason: [],
  },
  "up and down": {
    async harm({ proxy }) {
      for (let n = 0; n < 12; n++) {
        proxy.cut();
        proxy.refuse(n % 3 === 0);
        await wait(systemClock, 30 + n * 30);
      }
      proxy.refuse(false);
    },
    forMs: 0,
    withinMs: 15_000,
    reason: ["LINK_LOST"],
  },
};

t.setTimeout(240_000);

for (const [name, fault] of Object.entries(FAULTS)) {
  t.test(name, async (t) => {
    const ends = await start(t);
    const busy = load(ends);
    t.teardown(() => busy.stop());
    await waitFor("a quiet start", async () => (await ask(ends)) !== null);
    const instance = ends.cloud.gateway.sessions.all()[0]!.instance;
    const heldBytes = process.memoryUsage().rss;
    const before = ends.cloud.gateway.sessions.all()[0]!.id;
    await fault.harm(ends);
    if (fault.forMs > 0) await wait(systemClock, fault.forMs);
    await fault.heal?.(ends);
    const tookMs = await usable(ends);
    t.ok(tookMs <= fault.withinMs, `usable ${Math.round(tookMs)} ms after it`);
    const said = reasons(ends);
    if (fault.reason.length > 0) {
      t.ok(
        fault.reason.some((code) => said.has(code)),
        `the reason: ${[...said].join(", ")}`,
      );
      t.not(ends.cloud.gateway.sessions.all()[0]?.id, before, "another session");
    } else if (name.startsWith("late")) t.equal(ends.cloud.gateway.sessions.all()[0]?.id, before, "the link held");
    t.equal(ends.cloud.gateway.sessions.all()[0]?.instance, instance, "the same agent, not restarted");
    const grownMib = (process.memoryUsage().rss - heldBytes) / MIB;
    t.ok(grownMib < 200, `memory grew by ${Math.round(grownMib)} MiB under load`);
  });
}

t.test("a dead link is found by both ends in the time of the setting", async (t) => {
  const ends = await start(t);
  await waitFor("a quiet start", async () => (await ask(ends)) !== null);
  const began = performance.now();
  const there = ends.cloud.gateway.sessions.all()[0]!;
  const failed = ends.agent.failed();
  ends.proxy.setMode("swallow");
  const [byCloud, byAgent] = await Promise.all([
    there.closed.then((reason) => ({ reason, ms: performance.now() - began })),
    failed.then((reason) => ({ reason, ms: performance.now() - began })),
  ]);
  for (const end of [byCloud, byAgent]) {
    t.match(end.reason, { code: "LINK_LOST", message: /Nothing came from the other end/ });
    // A busy machine may be late, never early.
    t.ok(end.ms >= DEAD_MS * 0.5 && end.ms < DEAD_MS * 4, `after ${Math.round(end.ms)} ms`);
  }
});

t.test("the proxy in between restarts", async (t) => {
  const ends = await start(t);
  const { port } = ends.proxy;
  await ends.proxy.close();
  await waitFor("the loss to be seen", () => ends.agent.link.session === null);
  await startTcpProxy(t, { port: ends.cloud.port }, port);
  t.ok((await usable(ends)) < 10_000);
  t.ok(reasons(ends).has("CLOUD_UNREACHABLE") || reasons(ends).has("LINK_LOST"));
});

t.test("one reader that stands still holds up nobody, and no more than its credit", async (t) => {
  const ends = await start(t);
  const stalled = ends.cloud.gateway.sessions.all()[0]!.open({ bytes: 512 * MIB }, { lane: "bulk", end: true });
  await stalled.answer;
  await wait(systemClock, 300);
  const heldBytes = process.memoryUsage().rss;
  const took: number[] = [];
  const id = ends.agent.link.session?.id;
  for (let n = 0; n < 100; n++) took.push((await ask(ends)) ?? Infinity);
  t.ok(took.toSorted((a, b) => a - b)[90]! < 500, "commands go on beside it");
  t.ok((process.memoryUsage().rss - heldBytes) / MIB < 64);
  t.equal(ends.agent.link.session?.id, id, "the session goes on");
  stalled.reset(new ConnectorError("CANCELLED", "Enough."));
});

t.test(
  "the server's certificate changes under load: the link holds, and the next dial takes the new one",
  async (t) => {
    const folder = tempDir(t, "ca");
    const first = await ownTls(folder, ["127.0.0.1"], Date.now());
    const cloud = await startCloudEnd({ tls: first, deadMs: DEAD_MS });
    t.teardown(() => cloud.stop());
    const proxy = await startTcpProxy(t, { port: cloud.port });
    const agent = startAgentEnd({
      url: `https://127.0.0.1:${proxy.port}`,
      ca: readFileSync(first.caFile!, "utf8"),
      enrolment: cloud.enrolment(),
      deadMs: DEAD_MS,
      stableMs: 0,
    });
    t.teardown(() => agent.stop());
    agent.link.onStream((stream) => stream.respond({ ok: true }, { end: true }));
    const { id } = await agent.online();
    const ends = { cloud, agent, proxy };
    const server = cloud.server as unknown as TlsServer;
    for (const name of readdirSync(folder)) if (name.startsWith("server")) rmSync(join(folder, name));
    const second = await ownTls(folder, ["127.0.0.1"], Date.now());
    t.not(second.cert, first.cert);
    server.setSecureContext(second);
    let answered = 0;
    for (let n = 0; n < 50; n++) if ((await ask(ends)) !== null) answered++;
    t.equal(answered, 50);
    t.equal(agent.link.session?.id, id, "the link holds");
    proxy.cut();
    await usable(ends);
    // A certificate of somebody else is not taken, and the reason says so; the right one again is.
    server.setSecureContext(await ownTls(tempDir(t, "other-ca"), ["127.0.0.1"], Date.now()));
    proxy.cut();
    await waitFor("the reason", () => reasons(ends).has("CLOUD_UNTRUSTED"));
    t.not(agent.link.state, "closed", "it goes on trying, slowly: a person has to look at such a thing");
  },
);
