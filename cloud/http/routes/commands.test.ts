// A command told in plain words, declared lost, asked for twice; a run started again. The clock is the test's.
import { randomUUID } from "node:crypto";
import type { ReportBody } from "@sallyport/protocol";
import t from "tap";
import { newApiToken } from "../../auth/index.ts";
import { TestApi } from "../../../test/support/api.ts";
import { apiWorld, type ApiWorld } from "../../../test/support/api-world.ts";
import { ManualClock } from "../../../test/support/clock.ts";
import { accept, type FakeAgent } from "../../../test/support/fake-agent.ts";
import { waitFor } from "../../../test/support/launcher.ts";
import type { Command, CommandDetail, RunDetail } from "../api.ts";

const clock = new ManualClock(Date.now());
const HOUR_MS = 3600_000;
let world: ApiWorld;
t.before(async () => {
  world = await apiWorld(t, () => [], { clock });
});

async function agentOf(pool: string): Promise<FakeAgent> {
  const agent = await world.replica(`${pool}-1`, pool);
  agent.handlers.set("pipeline.run", ({ stream }) => accept(stream));
  agent.handlers.set("run.cancel", ({ stream }) => accept(stream));
  await agent.connect();
  return agent;
}
const body = (pool: string, more: object = {}) => ({
  pool,
  pipeline: {
    name: "p",
    outputs: { store: "lake" },
    params: { epochs: { default: 3 }, data: {} },
    steps: [{ name: "a", program: "node", retries: 2 }],
  },
  params: { data: "train.csv" },
  ...more,
});
async function start(pool: string, more: object = {}, headers: Record<string, string> = {}): Promise<RunDetail> {
  await world.store.ensurePool(world.scope, pool, clock.now());
  return world.api.json<RunDetail>("/v1/runs", { json: body(pool, more), headers });
}
const command = (id: string) => world.api.json<CommandDetail>(`/v1/commands/${id}`);
const run = (id: string) => world.api.json<RunDetail>(`/v1/runs/${id}`);
const until = (made: RunDetail, state: string) =>
  waitFor(`the command is ${state}`, async () => (await command(made.command)).state === state);
const lost = (id: string, json: unknown = { reason: "the host burned down" }) =>
  world.api.call(`/v1/commands/${id}/lost`, { method: "POST", json });
const step = (made: RunDetail, attempt: number, state: "running" | "failed" | "succeeded", more: object = {}) =>
  ({
    type: "step",
    run: made.id as never,
    step: "a",
    attempt,
    state,
    error: state === "failed" ? { code: "STEP_FAILED", message: "exit code 3" } : null,
    exitCode: state === "failed" ? 3 : null,
    outputs: [],
    logSeq: 0,
    adopted: false,
    ...more,
  }) as ReportBody;

t.test(
  "declared lost: only what a silent agent has, never twice, never over an end; later words are kept",
  async (t) => {
    const pool = "lost";
    const agent = await agentOf(pool);
    const made = await start(pool);
    await until(made, "accepted");
    t.match((await lost(made.command)).json(), {
      status: 409,
      code: "CONFLICT",
      detail: /lost-1, which has it, is connected/,
      fix: /Cancel it/,
    });
    await agent.report([{ command: made.command, body: { type: "command.running" } }]);
    await agent.cut();
    for (const wrong of [
      {},
      { reason: "" },
      { reason: "  " },
      { reason: "x", force: true },
      { reason: "x".repeat(1001) },
    ])
      t.equal((await lost(made.command, wrong)).status, 422);
    t.equal((await lost(randomUUID())).status, 422);
    t.equal((await lost("01990000-0000-7000-8000-000000000000")).status, 404);
    t.match(await command(made.command), {
      state: "running",
      unknown: true,
      text: /What became of it is not known: lost-1, which has it/,
      fix: /Start agent lost-1 again/,
      silence: { name: "lost-1", settles: /journal of lost-1 settles it.*operator's word/, canBeLost: true },
    });
    // A stop of it that can reach nobody.
    t.equal((await world.api.call(`/v1/runs/${made.id}/cancel`, { method: "POST", json: {} })).status, 202);
    const answer = await lost(made.command);
    t.equal(answer.status, 200);
    t.match(answer.json(), {
      state: "lost",
      unknown: false,
      silence: null,
      error: { code: "DECLARED_LOST", message: /admin.* declared it lost: the host burned down/ },
    });
    t.match(await run(made.id), { state: "failed", error: { code: "DECLARED_LOST" } });
    t.match((await world.api.json<{ items: Command[] }>(`/v1/commands?kind=run.cancel&pool=${pool}`)).items, [
      { state: "superseded" },
    ]);
    const again = await lost(made.command, { reason: "another word" });
    t.equal(again.status, 200);
    t.match(again.json(), { error: { message: /burned down/ } });

    await agent.connect();
    await agent.report([
      { command: made.command, body: step(made, 1, "succeeded") },
      { command: made.command, body: { type: "command.succeeded", result: { run: made.id, steps: 1 } } },
    ]);
    const after = await command(made.command);
    t.match(after, {
      state: "lost",
      result: null,
      text: /burned down After that lost-1 said: succeeded; that is kept beside it|burned down.*After that lost-1 said: succeeded/,
    });
    t.match(
      after.history.map((event) => [event.text, event.applied]),
      [
        [/asked for by admin/, true],
        [/offered to lost-1/, true],
        [/lost-1 has it in its journal/, true],
        [/lost-1 began it/, true],
        [/declared it lost: the host burned down/, true],
        [/step a is succeeded \(after its end/, false],
        [/lost-1 finished it \(after its end/, false],
      ],
    );
    t.equal((await run(made.id)).attempts.length, 0);

    const done = await start(pool);
    await until(done, "accepted");
    await agent.report([{ command: done.command, body: { type: "command.succeeded", result: {} } }]);
    await agent.cut();
    t.match((await lost(done.command)).json(), { code: "CONFLICT", detail: /it has ended, succeeded/ });
    const untouched = await start(pool);
    t.match((await lost(untouched.command)).json(), {
      code: "CONFLICT",
      detail: /no agent can have it/,
      fix: "Cancel it.",
    });

    // What was offered and not answered may be lost too; so may what a revoked agent has.
    await agent.connect();
    const held = await start(pool);
    await until(held, "accepted");
    agent.handlers.set("pipeline.run", () => {});
    const maybe = await start(pool);
    await waitFor("it was offered", () => agent.seen.some((one) => one.command === maybe.command));
    await agent.cut();
    await world.store.revokeReplica(world.scope, agent.identity.replica, clock.now());
    t.match(await command(held.command), {
      unknown: true,
      silence: { settles: /was revoked and cannot report any more/ },
    });
    t.match((await lost(held.command)).json(), { state: "lost" });
    t.match(await command(maybe.command), {
      state: "queued",
      unknown: true,
      waiting: { fix: /sallyport command lost/ },
    });
    t.match((await lost(maybe.command)).json(), { state: "lost", agent: { name: "lost-1" } });
  },
);

t.test("one key, one run: for a day, for one principal, for one route; whoever comes at once", async (t) => {
  const pool = "keys";
  const key = (value: string) => ({ "idempotency-key": value });
  const first = await start(pool, {}, key("k"));
  const repeated = await world.api.call("/v1/runs", { json: body(pool), headers: key("k") });
  t.equal(repeated.status, 201);
  t.equal(repeated.json<RunDetail>().id, first.id);
  // The members of an object have no order.
  const { params, pool: _pool, ...rest } = body(pool);
  const turned = await world.api.call("/v1/runs", { json: { params, ...rest, pool }, headers: key("k") });
  t.equal(turned.json<RunDetail>().id, first.id);
  const other = await world.api.call("/v1/runs", { json: body(pool, { params: { data: "x" } }), headers: key("k") });
  t.match(other.json(), { status: 422, code: "IDEMPOTENCY_MISMATCH", fix: /new key/ });
  for (const bad of ["", "a b", "ä", "x".repeat(256)])
    t.equal(
      (await world.api.call("/v1/runs", { json: body(pool), headers: key(encodeURI(bad) === bad ? bad : "a b") }))
        .status === 201,
      false,
    );

  // The key is of this route only, and of the very run that the path names.
  const again = await world.api.json<RunDetail>(`/v1/runs/${first.id}/rerun`, { json: {}, headers: key("k") });
  t.not(again.id, first.id);
  t.equal(
    (await world.api.json<RunDetail>(`/v1/runs/${first.id}/rerun`, { json: {}, headers: key("k") })).id,
    again.id,
  );
  t.match((await world.api.call(`/v1/runs/${again.id}/rerun`, { json: {}, headers: key("k") })).json(), {
    code: "IDEMPOTENCY_MISMATCH",
  });
  // Another token is another principal, another workspace is another world.
  const made = newApiToken();
  const admin = await world.store.makeWorkspace("elsewhere", "stranger", clock.now());
  for (const [id, scope, user] of [
    ["tok_second", world.scope, world.scope.actor.id],
    [
      "tok_foreign",
      { workspace: admin.workspace, actor: { id: admin.id, name: admin.name, via: "token" as const } },
      admin.id,
    ],
  ] as const) {
    const token = id === "tok_second" ? made : newApiToken();
    await world.store.addToken(scope, {
      id,
      user,
      label: id,
      hint: token.hint,
      hash: token.hash,
      createdAt: clock.now(),
      expiresAt: clock.now() + 90 * 24 * HOUR_MS,
    });
    await world.store.ensurePool(scope, pool, clock.now());
    const client = new TestApi(world.url);
    client.token = token.token;
    const answer = await client.json<RunDetail>("/v1/runs", { json: body(pool), headers: key("k") });
    t.not(answer.id, first.id, id);
  }

  const count = async () => (await world.store.runs(world.scope, { limit: 500 })).items.length;
  const before = await count();
  const racers = await Promise.all(
    Array.from({ length: 24 }, (_, at) =>
      world.api.call("/v1/runs", { json: body(pool, { priority: at % 2 }), headers: key("race") }),
    ),
  );
  const made201 = racers.filter((answer) => answer.status === 201);
  t.equal(new Set(made201.map((answer) => answer.json<RunDetail>().id)).size, 1);
  t.equal(made201.length, 12, "those that ask for the same are answered the same");
  for (const answer of racers)
    if (answer.status !== 201) t.match(answer.json(), { status: 422, code: "IDEMPOTENCY_MISMATCH" });
  t.equal(await count(), before + 1);

  await clock.advance(24 * HOUR_MS - 1000);
  t.equal((await start(pool, {}, key("k"))).id, first.id, "just before a day is over");
  await clock.advance(2000);
  const next = await start(pool, { params: { data: "x" } }, key("k"));
  t.not(next.id, first.id, "after a day the key is free, for another request too");
  t.equal((await start(pool, { params: { data: "x" } }, key("k"))).id, next.id);
});

t.test("a client's own command id: asking again is the same run, for something else it is refused", async (t) => {
  const id = (await start("own")).command.replace(/.$/, (last) => (last === "0" ? "1" : "0"));
  const header = { "sallyport-command-id": id };
  const made = await start("own", {}, header);
  t.equal(made.command, id);
  await clock.advance(5000);
  t.equal((await start("own", {}, header)).id, made.id);
  t.match(
    (await world.api.call("/v1/runs", { json: body("own", { params: { data: "x" } }), headers: header })).json(),
    {
      code: "CONFLICT",
    },
  );
});

t.test("a run again: its parameters or others, the same pipeline; put off, and when the next try begins", async (t) => {
  const pool = "again";
  const agent = await agentOf(pool);
  const inputs: { params: object }[] = [];
  agent.handlers.set("pipeline.run", ({ input, stream }) => {
    inputs.push(input as { params: object });
    accept(stream);
  });
  const made = await start(pool, { priority: 4 });
  await until(made, "accepted");
  t.match(made, { rerunOf: null, priority: 4 });
  const rerun = (id: string, json: object) => world.api.call(`/v1/runs/${id}/rerun`, { json });
  const same = (await rerun(made.id, {})).json<RunDetail>();
  t.match(same, { rerunOf: made.id, params: { epochs: 3, data: "train.csv" }, priority: 4, pipeline: "p" });
  const changed = (await rerun(same.id, { params: { epochs: 9 }, priority: -1 })).json<RunDetail>();
  t.match(changed, { rerunOf: same.id, params: { epochs: 9, data: "train.csv" }, priority: -1, spec: made.spec });
  await waitFor("both reached the agent", () => inputs.length === 3);
  t.same(inputs.map((one) => one.params).at(-1), { epochs: 9, data: "train.csv" });
  t.match((await rerun(made.id, { params: { nope: 1 } })).json(), { status: 422, code: "PIPELINE_INVALID" });
  t.match((await rerun(made.id, { parms: {} })).json(), { status: 422, code: "INPUT_INVALID" });
  t.equal((await rerun("run_00000000000000000000000000000000", {})).status, 404);

  const soon = clock.now() + HOUR_MS;
  const later = (await rerun(made.id, { notBefore: soon, expiresInMs: 60_000 })).json<RunDetail>();
  t.match(later, { notBefore: soon, expiresAt: soon + 60_000, waiting: { code: "NOT_BEFORE" } });
  t.match((await rerun(made.id, { notBefore: clock.now() + 7 * 24 * HOUR_MS })).json(), {
    status: 422,
    errors: [{ path: "body.notBefore" }],
  });
  await clock.advance(HOUR_MS - 6000);
  t.match(await run(later.id), { state: "queued", waiting: { code: "NOT_BEFORE" } });
  await clock.advance(12_000);
  await until(later, "accepted");

  await agent.report([
    { command: made.command, body: { type: "command.running" } },
    { command: made.command, body: step(made, 1, "running") },
    { command: made.command, body: step(made, 1, "failed", { retryAt: Date.now() + 8000 }) },
  ]);
  const waiting = (await run(made.id)).attempts;
  t.match(waiting, [{ attempt: 1, state: "failed", error: { code: "STEP_FAILED" } }]);
  t.ok(Math.abs(waiting[0]!.retryAt! - clock.now() - 8000) < 2000, "a duration of the agent's clock, on ours");
  await agent.report([{ command: made.command, body: step(made, 2, "running") }]);
  t.match((await run(made.id)).attempts, [
    { attempt: 1, retryAt: null },
    { attempt: 2, state: "running", retryAt: null },
  ]);
  t.same(agent.faults, []);
});
