// Runs, their logs and commands over HTTP; the agent behind the link is the test's.
import { randomUUID } from "node:crypto";
import { ConnectorError, jsonBody, readNdjson, type LogRecord, type ReportBody } from "@sallyport/protocol";
import t from "tap";
import { accept, type FakeAgent } from "../../../test/support/fake-agent.ts";
import { apiWorld, logLine, type ApiWorld } from "../../../test/support/api-world.ts";
import { waitFor } from "../../../test/support/launcher.ts";
import type { Command, RunDetail, Run } from "../api.ts";

let world: ApiWorld;
let agent: FakeAgent;

t.before(async () => {
  world = await apiWorld(t);
  agent = await world.replica("prod-1");
  agent.handlers.set("pipeline.run", ({ stream }) => accept(stream));
  agent.handlers.set("run.cancel", ({ stream }) => accept(stream));
});

const pipeline = (steps: object[] = [{ name: "a", program: "node" }]) => ({
  name: "p",
  outputs: { store: "lake" },
  params: { epochs: { default: 3 } },
  steps,
});
const start = (body: object = {}, headers: Record<string, string> = {}) =>
  world.api.call("/v1/runs", { json: { pool: "vpc", pipeline: pipeline(), ...body }, headers });
const run = (id: string) => world.api.json<RunDetail>(`/v1/runs/${id}`);
const until = (id: string, state: string) => waitFor(`run ${state}`, async () => (await run(id)).state === state);

t.test("what is wrong with a run is said at once, each by its own code", async (t) => {
  for (const [body, status, expected] of [
    [
      {
        pipeline: pipeline([
          { name: "a", program: "x", needs: ["b"] },
          { name: "b", program: "x", needs: ["a"] },
        ]),
      },
      422,
      { code: "PIPELINE_INVALID", detail: /a -> b -> a/, details: { cycle: ["a", "b", "a"] } },
    ],
    [{ params: { nope: 1 } }, 422, { code: "PIPELINE_INVALID", detail: /no parameter nope/ }],
    [{ pool: "nope" }, 404, { code: "NOT_FOUND" }],
    [{ bogus: 1 }, 422, { code: "INPUT_INVALID" }],
    [
      { pipeline: { ...pipeline(), steps: [] } },
      422,
      { code: "INPUT_INVALID", errors: [{ path: "body.pipeline.steps" }] },
    ],
  ] as const) {
    const answer = await start(body);
    t.equal(answer.status, status, JSON.stringify(expected.code));
    t.match(answer.json(), expected);
  }
  t.equal((await world.api.call("/v1/runs/run_00000000000000000000000000000000")).status, 404);
});

t.test(
  "a repeated request makes one run; a queued run waits, says why, and is cancelled without an agent",
  async (t) => {
    const key = { "idempotency-key": randomUUID() };
    const first = await start({}, key);
    t.equal(first.status, 201);
    const made = first.json<RunDetail>();
    t.match(made, {
      state: "queued",
      waiting: { code: "AGENT_OFFLINE" },
      params: { epochs: 3 },
      stepsTotal: 1,
      stepsDone: 0,
    });
    t.same((await start({}, key)).json<RunDetail>().id, made.id);
    t.match((await start({ params: { epochs: 4 } }, key)).json(), { code: "IDEMPOTENCY_MISMATCH" });
    const together = await Promise.all(
      Array.from({ length: 5 }, () => start({ params: { epochs: 9 } }, { "idempotency-key": "same" })),
    );
    t.equal(new Set(together.map((answer) => answer.json<RunDetail>().id)).size, 1);
    t.equal((await world.api.json<{ items: Run[] }>("/v1/runs")).items.length, 2);
    t.match(await run(made.id), { waiting: { code: "AGENT_OFFLINE", text: /vpc/, fix: /Start an agent/ } });
    t.match(await world.api.json<Command>(`/v1/commands/${made.command}`), {
      kind: "pipeline.run",
      state: "queued",
      run: made.id,
      waiting: { code: "AGENT_OFFLINE" },
    });
    t.match((await world.api.call(`/v1/runs/${made.id}/steps/a/logs`)).json(), { code: "CONFLICT" });
    t.match((await world.api.call(`/v1/runs/${made.id}/steps/nope/logs`)).json(), { code: "NOT_FOUND" });
    for (const run of (await world.api.json<{ items: Run[] }>("/v1/runs")).items) {
      const cancelled = await world.api.call(`/v1/runs/${run.id}/cancel`, { method: "POST", json: {} });
      t.equal(cancelled.status, 200);
      t.match(cancelled.json(), { state: "cancelled", error: { code: "CANCELLED" } });
    }
  },
);

t.test("a run from queue to end, seen through its reports; a silent agent makes it unknown", async (t) => {
  await agent.connect();
  const made = (await start()).json<RunDetail>();
  await until(made.id, "running");
  const step = (state: "running" | "succeeded"): ReportBody => ({
    type: "step",
    run: made.id as never,
    step: "a",
    attempt: 1,
    state,
    error: null,
    exitCode: null,
    outputs: [],
    logSeq: 0,
    adopted: false,
  });
  await agent.report([
    { command: made.command, body: { type: "command.running" } },
    { command: made.command, body: step("running") },
  ]);
  t.match(await run(made.id), {
    state: "running",
    stepsDone: 0,
    attempts: [{ step: "a", state: "running" }],
    agent: { name: "prod-1" },
  });
  await agent.cut();
  t.match(await run(made.id), { state: "unknown" });
  t.match((await world.api.json<{ items: Run[] }>("/v1/runs?state=unknown")).items, [{ id: made.id }]);
  t.match((await world.api.call(`/v1/runs/${made.id}/steps/a/logs`)).json(), { code: "AGENT_OFFLINE", status: 503 });
  await agent.connect();
  t.match((await world.api.call(`/v1/runs/${made.id}/cancel`, { method: "POST", json: {} })).status, 202);
  await waitFor("the cancel is taken", () => agent.seen.some((one) => one.kind === "run.cancel"));
  await agent.report([
    { command: made.command, body: step("succeeded") },
    { command: made.command, body: { type: "command.succeeded", result: { run: made.id, steps: 1 } } },
  ]);
  t.match(await run(made.id), { state: "succeeded", stepsDone: 1 });
  const runs = await world.api.json<{ items: Command[] }>("/v1/commands?kind=run.cancel");
  t.equal(runs.items.length, 1);
  t.equal((await world.api.json<{ items: Command[] }>("/v1/commands?state=succeeded&pool=vpc")).items.length, 1);
  t.equal((await world.api.call("/v1/commands?state=nope")).status, 422);
});

t.test("a followed log goes on over a new link, each record once", async (t) => {
  const made = (await start()).json<RunDetail>();
  await until(made.id, "running");
  const total = 400;
  let cuts = 0;
  agent.handlers.set("run.logs", async ({ input, stream }) => {
    const { after, attempt } = input as { after: number; attempt?: number };
    stream.respond({
      type: "result",
      body: jsonBody({ run: made.id, step: "a", attempt: attempt ?? 1, lastSeq: total, ended: false }),
    });
    for (let seq = after + 1; seq <= total; seq++) {
      await stream.write(logLine(seq, `line ${seq}`));
      if (seq % 90 === 0 && cuts < 4) {
        cuts++;
        await new Promise((resolve) => setImmediate(resolve));
        await agent.cut();
        await agent.connect();
        return;
      }
    }
    await stream.end();
  });
  const response = await world.api.open(`/v1/runs/${made.id}/steps/a/logs?follow=true`);
  t.equal(response.headers["content-type"], "application/x-ndjson");
  const seqs: number[] = [];
  for await (const record of readNdjson(response)) seqs.push((record as LogRecord & { seq: number }).seq);
  t.same(
    seqs,
    Array.from({ length: total }, (_, at) => at + 1),
  );
  t.equal(cuts, 4);
  agent.handlers.set("run.logs", () => {
    throw new ConnectorError("LOGS_GONE", "The log was collected.");
  });
  t.match((await world.api.call(`/v1/runs/${made.id}/steps/a/logs`)).json(), { code: "LOGS_GONE", status: 410 });
});

t.test("a follower gets the head of the answer before the first record, and leaving stops the agent", async (t) => {
  const made = (await start()).json<RunDetail>();
  await until(made.id, "running");
  const stopped = Promise.withResolvers<string>();
  agent.handlers.set("run.logs", ({ stream }) => {
    stream.signal.addEventListener("abort", () => stopped.resolve((stream.signal.reason as ConnectorError).code));
    stream.respond({
      type: "result",
      body: jsonBody({ run: made.id, step: "a", attempt: 1, lastSeq: 0, ended: false }),
    });
  });
  const response = await world.api.open(`/v1/runs/${made.id}/steps/a/logs?follow=true`);
  t.equal(response.statusCode, 200);
  response.destroy();
  t.equal(await stopped.promise, "CANCELLED");
  t.same(agent.faults, []);
});
