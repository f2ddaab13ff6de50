// Why a queued command waits, over HTTP: each code made to happen, the limits kept, the order kept, nothing expired that
// an agent may have. The clock is the test's; the agents behind the link too.
import { ConnectorError, type AgentStatus, type ReportBody } from "@sallyport/protocol";
import t from "tap";
import { apiWorld, type ApiWorld } from "../../../test/support/api-world.ts";
import { ManualClock } from "../../../test/support/clock.ts";
import { accept, type FakeAgent } from "../../../test/support/fake-agent.ts";
import { waitFor } from "../../../test/support/launcher.ts";
import { WAITING_CODES, type Command, type CommandDetail, type Run, type RunDetail } from "../api.ts";
import { agentRoutes } from "./agents.ts";
import { agentStatus } from "../../../test/support/agent-status.ts";

const clock = new ManualClock();
let world: ApiWorld;
t.before(async () => {
  world = await apiWorld(
    t,
    ({ store, dispatch, sessions }) => [
      agentRoutes({
        store,
        clock,
        links: {
          ofReplica: (workspace, replica) => sessions.ofReplica(workspace, replica),
          revoke: () => {},
          changeKey: async () => false,
        },
        poke: dispatch.poke,
      }),
    ],
    { clock },
  );
});

const statusOf = (more: Partial<AgentStatus> = {}): AgentStatus =>
  agentStatus({ programs: ["node"], engineIds: {}, commands: ["pipeline.run", "run.cancel"], ...more });

/** An agent of a pool of its own, connected; what it answers to a run is `refusal`, or it takes it. */
async function agentOf(
  pool: string,
  options: { status?: Partial<AgentStatus>; name?: string; run?: (agent: FakeAgent) => void } = {},
): Promise<FakeAgent> {
  const agent = await world.replica(options.name ?? `${pool}-1`, pool);
  agent.status = statusOf(options.status);
  agent.handlers.set("pipeline.run", ({ stream }) => accept(stream));
  agent.handlers.set("run.cancel", ({ stream }) => accept(stream));
  options.run?.(agent);
  await agent.connect();
  return agent;
}
const refusing = (code: ConstructorParameters<typeof ConnectorError>[0], message: string) => (agent: FakeAgent) =>
  agent.handlers.set("pipeline.run", () => {
    throw new ConnectorError(code, message);
  });

/** What it said of itself is written down, and it goes away. */
async function known(agent: FakeAgent): Promise<void> {
  const session = agent.session!;
  const { workspace, replica } = agent.identity;
  const now = clock.now();
  const presence = { id: session.id, process: "p", instance: "i", journal: session.journal, remoteAddress: null, now };
  await world.store.openSession(replica, presence);
  await world.store.seen([{ workspace, replica, session: session.id, at: now, status: agent.status }]);
  await agent.cut();
}

const pipeline = (more: object = {}) => ({
  name: "p",
  outputs: { store: "lake" },
  steps: [{ name: "a", program: "node" }],
  ...more,
});
async function start(pool: string, body: object = {}): Promise<RunDetail> {
  await world.store.ensurePool(world.scope, pool, clock.now());
  return world.api.json<RunDetail>("/v1/runs", { json: { pool, pipeline: pipeline(), ...body } });
}
const run = (id: string) => world.api.json<RunDetail>(`/v1/runs/${id}`);
const command = (id: string) => world.api.json<CommandDetail>(`/v1/commands/${id}`);
const taken = (made: RunDetail) =>
  waitFor("the run is accepted", async () => (await command(made.command)).state !== "queued");
const seen = (agent: FakeAgent, id: string) =>
  waitFor("it was offered", () => agent.seen.some((one) => one.command === id));
const end = (agent: FakeAgent, made: RunDetail, body: ReportBody = { type: "command.succeeded", result: {} }) =>
  agent.report([{ command: made.command, body }]);

interface Case {
  code: (typeof WAITING_CODES)[number];
  what: string;
  /** Answers the id of the command that waits. */
  make(pool: string): Promise<string>;
  text: RegExp;
  fix: RegExp;
  unknown?: boolean;
  queue?: object;
}
const CASES: Case[] = [
  {
    code: "NOT_BEFORE",
    what: "its time has not come",
    async make(pool) {
      await agentOf(pool);
      return (await start(pool, { notBefore: clock.now() + 3600_000 })).command;
    },
    text: /not to begin before \d{4}-/,
    fix: /cancel it/,
  },
  {
    code: "AGENT_OFFLINE",
    what: "no agent is connected",
    make: async (pool) => (await start(pool)).command,
    text: /No agent of pool .* none was ever seen/,
    fix: /^Start an agent of pool/,
  },
  {
    code: "AGENT_OFFLINE",
    what: "the one that may have it is away",
    async make(pool) {
      const agent = await agentOf(pool, { run: (one) => one.handlers.set("pipeline.run", () => {}) });
      const made = await start(pool);
      await seen(agent, made.command);
      await agent.cut();
      await agentOf(pool, { name: `${pool}-other` });
      return made.command;
    },
    text: /Agent \S+-1 of pool .* which alone can take it, is not connected/,
    fix: /Start agent \S+-1 again.*sallyport command lost/,
    unknown: true,
  },
  {
    code: "AGENT_OFFLINE",
    what: "the only one with its labels is away",
    async make(pool) {
      await known(await agentOf(pool, { status: { labels: { gpu: "a100" } }, name: `${pool}-gpu` }));
      await agentOf(pool);
      return (await start(pool, { requires: { gpu: "a100" } })).command;
    },
    text: /only \S+-gpu has what it needs \(gpu=a100\), and is not connected/,
    fix: /^Start/,
  },
  {
    code: "NO_MATCHING_AGENT",
    what: "labels that nobody has",
    async make(pool) {
      await agentOf(pool, { status: { labels: { gpu: "t4" } } });
      await agentOf(pool, { name: `${pool}-2` });
      return (await start(pool, { requires: { gpu: "a100", zone: "b" } })).command;
    },
    text: /needs gpu=a100 and zone=b; .*-1 has gpu=t4 and no zone and .*-2 has no gpu and no zone/,
    fix: /Start an agent of pool \S+ with gpu=a100 and zone=b/,
  },
  {
    code: "AGENT_PAUSED",
    what: "its owner paused it",
    async make(pool) {
      await agentOf(pool, {
        status: { paused: { reason: "month end", until: null } },
        run: refusing("AGENT_PAUSED", "The owner paused it."),
      });
      return (await start(pool)).command;
    },
    text: /customer paused the intake of pool \S+ until it is resumed: month end\./,
    fix: /sallyport-agent resume/,
  },
  {
    code: "AGENT_DRAINING",
    what: "it is stopping",
    async make(pool) {
      await agentOf(pool, { status: { draining: true }, run: refusing("AGENT_DRAINING", "It is stopping.") });
      return (await start(pool)).command;
    },
    text: /is stopping and takes no new commands/,
    fix: /start an agent/,
  },
  {
    code: "CAPABILITY_MISSING",
    what: "no policy allows the kind",
    async make(pool) {
      await known(await agentOf(pool));
      await agentOf(pool, { status: { commands: [] }, name: `${pool}-other` });
      return (await start(pool)).command;
    },
    text: /No connected agent of pool \S+ takes commands of kind pipeline\.run; \S+-1, which did, is not connected/,
    fix: /Start \S+-1 again, or allow pipeline\.run in the policy/,
  },
  {
    code: "AGENT_UNREADY",
    what: "its journal cannot be written",
    async make(pool) {
      await agentOf(pool, { run: refusing("AUDIT_UNAVAILABLE", "The audit disk is full.") });
      return (await start(pool)).command;
    },
    text: /The audit disk is full/,
    fix: /needs room or repair/,
  },
  {
    code: "AT_CAPACITY",
    what: "its slots are taken",
    async make(pool) {
      const agent = await agentOf(pool);
      await taken(await start(pool));
      refusing("AT_CAPACITY", "One of one runs is running.")(agent);
      await start(pool);
      return (await start(pool, { priority: 5 })).command;
    },
    text: /One of one runs is running\. It is number 1 of 2 in the queue\./,
    fix: /Wait until running work ends/,
    queue: { position: 1, of: 2, holders: [{ text: /^p, accepted on \S+-1 for 0 s$/ }] },
  },
  {
    code: "CONCURRENCY_LIMIT",
    what: "the pool's limit",
    async make(pool) {
      await agentOf(pool);
      await world.store.ensurePool(world.scope, pool, clock.now());
      await world.api.json(`/v1/pools/${pool}`, { method: "PATCH", json: { maxRuns: 1 } });
      await taken(await start(pool));
      await start(pool);
      return (await start(pool)).command;
    },
    text: /Pool \S+ takes 1 run at a time, and that one is taken\. It is number 2 of 2/,
    fix: /sallyport pool limit/,
    queue: { position: 2, of: 2, holders: [{ text: /accepted on/ }] },
  },
  {
    code: "CONCURRENCY_LIMIT",
    what: "the pipeline's limit",
    async make(pool) {
      await agentOf(pool);
      await taken(await start(pool, { pipeline: pipeline({ concurrency: 1 }) }));
      const made = await start(pool, { pipeline: pipeline({ concurrency: 1 }) });
      await taken(await start(pool, { pipeline: pipeline({ name: "other" }) }));
      return made.command;
    },
    text: /Pipeline p lets 1 of its runs go at a time/,
    fix: /`concurrency` in the pipeline/,
    queue: { holders: [{ text: /^p, accepted/ }] },
  },
  {
    code: "RETRY_BACKOFF",
    what: "the last offer failed",
    async make(pool) {
      await agentOf(pool, { run: refusing("TIMED_OUT", "The disk was slow.") });
      return (await start(pool)).command;
    },
    text: /The disk was slow\. It is offered again in 1 s/,
    fix: /look at the agent's log/,
  },
  {
    code: "UPSTREAM_PENDING",
    what: "an older one of the same resource",
    async make(pool) {
      await agentOf(pool, { run: refusing("TIMED_OUT", "The disk was slow.") });
      const made = await start(pool);
      await waitFor("it was tried", async () => (await run(made.id)).waiting?.code === "RETRY_BACKOFF");
      await world.api.json(`/v1/runs/${made.id}/cancel`, { method: "POST", json: {} });
      const cancels = await world.api.json<{ items: Command[] }>(`/v1/commands?kind=run.cancel&pool=${pool}`);
      return cancels.items[0]!.id;
    },
    text: /Command \S+ on the same run comes first/,
    fix: /sallyport command explain/,
  },
  {
    code: "OFFERED",
    what: "it is being asked",
    async make(pool) {
      const agent = await agentOf(pool, { run: (one) => one.handlers.set("pipeline.run", () => {}) });
      const made = await start(pool);
      await seen(agent, made.command);
      return made.command;
    },
    text: /has not answered yet/,
    fix: /Nothing to do/,
  },
];

t.test("each waiting reason, the same in every place", async (t) => {
  for (const [at, one] of CASES.entries()) {
    await t.test(`${one.code}: ${one.what}`, async (t) => {
      const pool = `pool${at}`;
      const id = await one.make(pool);
      await waitFor(`${one.code} is told`, async () => (await command(id)).waiting?.code === one.code);
      const told = await command(id);
      t.equal(told.state, "queued");
      t.match(told.waiting, { code: one.code, text: one.text, fix: one.fix });
      t.equal(told.text, one.unknown === true ? told.text : told.waiting!.text);
      t.equal(told.unknown, one.unknown === true);
      if (one.queue !== undefined) t.match(told.waiting!.queue, one.queue);
      const listed = await world.api.json<{ items: Command[] }>(`/v1/commands?state=queued&pool=${pool}`);
      t.same(listed.items.find((item) => item.id === id)?.waiting, told.waiting);
      for (const item of listed.items) t.ok(item.waiting, "no queued command is without a reason");
      if (told.kind === "pipeline.run") t.same((await run(told.run!)).waiting, told.waiting);
    });
  }
  t.same(
    WAITING_CODES.filter((code) => !CASES.some((one) => one.code === code)),
    [],
    "every code has a case",
  );
});

t.test("priority goes before age; the limits of pool and pipeline are never passed", async (t) => {
  const pool = "limits";
  const agent = await world.replica("limits-1", pool);
  agent.status = statusOf({ limits: { runs: 100, steps: 100 } });
  agent.handlers.set("pipeline.run", ({ stream }) => accept(stream));
  await world.store.ensurePool(world.scope, pool, clock.now());
  const limit = (maxRuns: unknown) => world.api.call(`/v1/pools/${pool}`, { method: "PATCH", json: { maxRuns } });
  for (const wrong of [0, 1.5, "2", 1e9]) t.equal((await limit(wrong)).status, 422);
  t.equal((await world.api.call("/v1/pools/nope", { method: "PATCH", json: { maxRuns: 1 } })).status, 404);
  t.match((await limit(3)).json(), { name: pool, maxRuns: 3 });

  const narrow = pipeline({ name: "narrow", concurrency: 1 });
  const made: RunDetail[] = [];
  for (const [at, priority] of [0, 0, -5, 7, 0, 100, 7, -100].entries())
    made.push(await start(pool, { priority, ...(at % 2 === 0 ? { pipeline: narrow } : {}) }));
  for (const wrong of [101, -101, 0.5, "1"])
    t.equal((await world.api.call("/v1/runs", { json: { pool, pipeline: narrow, priority: wrong } })).status, 422);
  const alive = new Set<string>();
  const order: string[] = [];
  const nameOf = (id: string) => made.find((one) => one.command === id)!.pipeline;
  agent.handlers.set("pipeline.run", ({ intent, stream }) => {
    alive.add(intent.command);
    order.push(intent.command);
    if (alive.size > 3) t.fail(`${alive.size} runs at a time in a pool of 3`);
    const same = [...alive].filter((id) => nameOf(id) === "narrow");
    if (same.length > 1) t.fail(`${same.length} runs at a time of a pipeline of 1`);
    accept(stream);
  });
  await agent.connect();
  for (let ended = 0; ended < made.length; ended++) {
    const full = Math.min(3, made.length - ended);
    await waitFor(`${full} slots are used`, async () => {
      const held = (await world.api.json<{ items: Command[] }>(`/v1/commands?state=accepted&pool=${pool}`)).items;
      // Only runs of the narrow pipeline are left: one at a time.
      const left = made.filter((one) => !order.includes(one.command) || alive.has(one.command));
      const possible = left.filter((one) => one.pipeline !== "narrow").length + 1;
      return held.length === Math.min(full, possible) && held.length === alive.size;
    });
    const oldest = [...alive][0]!;
    alive.delete(oldest);
    await end(
      agent,
      made.find((one) => one.command === oldest)!,
    );
  }
  // Offers go out together, so those that begin at one time have no order; each group has.
  const place = (at: number) => order.indexOf(made[at]!.command);
  t.ok(place(5) < 3, "the highest priority is among the first");
  t.ok(place(7) > place(1) && place(7) > place(3), "the lowest goes last of those without a limit of their own");
  t.same(
    order.filter((id) => nameOf(id) === "narrow").map((id) => made.findIndex((one) => one.command === id)),
    [6, 0, 4, 2],
    "by priority, and by age where that is the same",
  );
  t.same(agent.faults, []);
  t.match((await limit(null)).json(), { maxRuns: null });
});

t.test("what an agent may have does not expire; what none can have does", async (t) => {
  const pool = "expiry";
  const agent = await agentOf(pool, { run: (one) => one.handlers.set("pipeline.run", () => {}) });
  const minute = { expiresInMs: 60_000 };
  const late = await start(pool, minute);
  const early = await start(pool, minute);
  const known = await start(pool, minute);
  for (const made of [late, early, known]) await seen(agent, made.command);
  await agent.cut();
  const never = await start(pool, minute);
  await clock.advance(120_000);
  await waitFor("what nobody was asked for expires", async () => (await command(never.command)).state === "expired");
  t.match(await command(never.command), {
    error: { code: "COMMAND_EXPIRED", message: /No agent of the pool took it/ },
  });
  for (const made of [late, early, known]) {
    t.match(await command(made.command), {
      state: "queued",
      unknown: true,
      waiting: { code: "AGENT_OFFLINE", text: /It has expired, but expiry-1 may have taken it in time/ },
      silence: { name: "expiry-1", settles: /journal of expiry-1 settles it/, canBeLost: true },
    });
  }
  // Its journal has one, another came too late; the third it took, and ran while nobody heard.
  agent.handlers.set("pipeline.run", ({ intent, stream }) => {
    if (intent.command === late.command)
      throw new ConnectorError("COMMAND_EXPIRED", "It expired before it reached the agent.");
    accept(stream, true);
  });
  await agent.connect();
  await end(agent, known);
  t.equal((await command(known.command)).state, "succeeded");
  await waitFor("the other two are settled", async () => (await command(late.command)).state === "expired");
  await waitFor("the journaled one is taken", async () => (await command(early.command)).state === "accepted");
  t.same(agent.faults, []);

  // Refused each time before anything was journaled: nothing can have it, so it expires while the agent is there.
  refusing("AT_CAPACITY", "One of one runs is running.")(agent);
  const full = await start(pool, minute);
  await waitFor("it was refused", async () => (await command(full.command)).waiting?.code === "AT_CAPACITY");
  await clock.advance(120_000);
  await waitFor("it expired", async () => (await command(full.command)).state === "expired");
  t.match(await command(full.command), { error: { message: /each that was offered it said not now/ } });
  const runs = await world.api.json<{ items: Run[] }>("/v1/runs?state=unknown");
  t.same(runs.items, []);
});
