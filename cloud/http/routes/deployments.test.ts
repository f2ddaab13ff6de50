// Deployments over HTTP, the real store and the real dispatcher; only what the agents answer is the test's.
import { once } from "node:events";
import { connect } from "node:net";
import { ConnectorError, type DeploymentStatus, type ReplicaId } from "@sallyport/protocol";
import t from "tap";
import { apiWorld, logLine } from "../../../test/support/api-world.ts";
import { accept, answer, type FakeAgent } from "../../../test/support/fake-agent.ts";
import { CEILINGS as ceilings, connectKnown, observedOf, say } from "../../../test/support/fake-deployments.ts";
import { waitFor } from "../../../test/support/launcher.ts";
import type { Command, Deployment, DeploymentDetail, DeploymentDiff, DeploymentRevision } from "../api.ts";

const DIGEST = `sha256:${"ab".repeat(32)}`;
const spec = (more: Record<string, unknown> = {}) => ({
  model: { store: "lake", path: "models/digits.onnx", digest: DIGEST },
  ...more,
});

/** A new life of the world, one agent that takes everything, and the words to speak with it. */
async function world(test: Parameters<typeof apiWorld>[0]) {
  const made = await apiWorld(test);
  const taken: { kind: string; input: Record<string, unknown>; agent: ReplicaId }[] = [];
  const takes = (agent: FakeAgent) => {
    for (const kind of ["deployment.apply", "deployment.remove"])
      agent.handlers.set(kind, ({ input, stream }) => {
        taken.push({ kind, input, agent: agent.identity.replica });
        accept(stream);
      });
    return agent;
  };
  const agent = takes(await made.replica("prod-1"));
  const get = async (id: string) => made.api.json<DeploymentDetail>(`/v1/deployments/${id}`);
  const connect = (one: FakeAgent, generations?: Record<string, number>) => connectKnown(made.store, one, generations);
  return {
    ...made,
    agent,
    taken,
    takes,
    get,
    connect,
    create: (more: Record<string, unknown> = {}, headers: Record<string, string> = {}) =>
      made.api.call("/v1/deployments", {
        method: "POST",
        json: { pool: "vpc", name: "digits", spec: spec(), ...more },
        headers,
      }),
    send: (method: string, path: string, json: unknown, match?: string) =>
      made.api.call(`/v1/deployments/${path}`, {
        method,
        ...(json === undefined ? {} : { json }),
        headers: match === undefined ? {} : { "if-match": match },
      }),
    state: (id: string, state: string) =>
      waitFor(`deployment is ${state}`, async () => (await get(id)).state === state),
    say: (one: FakeAgent, deployments: DeploymentStatus[]) => say(made.store, one, deployments),
    ended: (one: FakeAgent, command: string) =>
      one.report([{ command, body: { type: "command.succeeded", result: {} } }]),
  };
}

t.test("made while nobody is there, taken, observed; silent is unknown, forgotten is said", async (t) => {
  const w = await world(t);
  const made = await w.create();
  t.equal(made.status, 201, made.body.toString());
  t.equal(made.headers["etag"], '"1"');
  const first = made.json<DeploymentDetail>();
  t.match(first, {
    state: "queued",
    generation: 1,
    revision: 1,
    agent: null,
    appliedGeneration: null,
    waiting: { code: "AGENT_OFFLINE" },
    spec: { replicas: 1, engine: "process", resources: { cpus: 1 } },
    observed: null,
    actor: { name: "admin" },
  });
  await w.connect(w.agent);
  await w.state(first.id, "progressing");
  t.match(w.taken, [
    { kind: "deployment.apply", input: { deployment: first.id, name: "digits", generation: 1, revision: 1 } },
  ]);
  t.match(await w.get(first.id), { agent: { name: "prod-1" }, waiting: null, stateReason: /has not said yet/ });
  await w.ended(w.agent, first.command);
  await w.say(w.agent, [observedOf(first)]);
  t.match(await w.get(first.id), {
    state: "available",
    stateReason: "1 replica of revision 1 is ready.",
    appliedGeneration: 1,
    replicasReady: 1,
    endpoint: /digits/,
    ceilings,
    observed: { isolated: false },
  });
  await w.say(w.agent, [
    observedOf(first, {
      state: "degraded",
      replicasReady: 0,
      conditions: [
        { type: "available", ok: false, code: "AT_CAPACITY", message: "There is no room", fix: "Wait", since: 1 },
      ],
    }),
  ]);
  t.match(await w.get(first.id), { state: "degraded", stateReason: "There is no room. Wait." });
  await w.agent.cut();
  t.match(await w.get(first.id), {
    state: "unknown",
    replicasReady: null,
    stateReason: /prod-1.* is not connected\. It was degraded when last heard\. What runs there goes on\./,
  });
  await w.connect(w.agent);
  await w.say(w.agent, []);
  t.match(await w.get(first.id), { state: "unknown", stateReason: /does not have it any more/, observed: null });
  t.match((await w.api.json<{ items: Deployment[] }>("/v1/deployments?pool=vpc&name=digits")).items, [
    { id: first.id },
  ]);
  t.equal((await w.create()).json<{ code: string }>().code, "CONFLICT", "a name is one deployment's in its pool");
  t.match((await w.create()).json(), { details: { deployment: first.id, name: "digits" } });
});

t.test(
  "If-Match: missing, stale, any; scaling keeps the revision, other content makes one, rollback repeats it",
  async (t) => {
    const w = await world(t);
    await w.connect(w.agent);
    const { id } = (await w.create()).json<DeploymentDetail>();
    t.match((await w.send("POST", `${id}/scale`, { replicas: 2 })).json(), { status: 422, fix: /If-Match/ });
    t.match((await w.send("POST", `${id}/scale`, { replicas: 2 }, '"7"')).json(), {
      status: 412,
      code: "PRECONDITION_FAILED",
      details: { generation: 1 },
    });
    const scaled = await w.send("POST", `${id}/scale`, { replicas: 2 }, '"1"');
    t.match(scaled.json(), { generation: 2, revision: 1, spec: { replicas: 2 } });
    t.equal(scaled.headers["etag"], '"2"');
    t.equal((await w.send("POST", `${id}/scale`, { replicas: 3 }, '"1"')).status, 412, "somebody else was first");
    const put = await w.send("PUT", id, { spec: spec({ replicas: 2, env: { LEVEL: "debug" } }) }, "*");
    t.match(put.json(), { generation: 3, revision: 2 });
    t.match(
      (
        await w.send("POST", `${id}/diff`, { spec: spec({ replicas: 9, engine: "docker", resources: { cpus: 1.5 } }) })
      ).json<DeploymentDiff>(),
      {
        generation: 4,
        revision: 3,
        newRevision: true,
        changes: [
          { path: "engine", from: "process", to: "docker" },
          { path: "env.LEVEL", from: "debug" },
          { path: "replicas", from: 2, to: 9 },
          { path: "resources.cpus", from: 1, to: 1.5 },
        ],
      },
    );
    await w.say(w.agent, []);
    const { refusals } = (
      await w.send("POST", `${id}/diff`, { spec: spec({ replicas: 9, engine: "docker" }) })
    ).json<DeploymentDiff>();
    t.match(refusals, [
      { path: "replicas", message: /policy\.ceilings\.replicas/ },
      { path: "engine", message: /process/ },
    ]);
    t.match((await w.send("POST", `${id}/rollback`, { revision: 9 }, "*")).json(), { status: 404, fix: /revisions/ });
    t.match((await w.send("POST", `${id}/rollback`, { revision: 2 }, "*")).json(), { status: 409 });
    const back = await w.send("POST", `${id}/rollback`, { revision: 1 }, '"3"');
    t.match(back.json(), { generation: 4, revision: 3, spec: { replicas: 2, env: {} } });
    const revisions = await w.api.json<{ items: DeploymentRevision[] }>(`/v1/deployments/${id}/revisions`);
    t.match(revisions.items, [
      { revision: 3, from: 1 },
      { revision: 2, from: null, spec: { env: { LEVEL: "debug" } } },
      { revision: 1, from: null },
    ]);
    t.match(await w.api.json(`/v1/deployments/${id}/revisions?limit=1&cursor=3`), {
      items: [{ revision: 2 }],
      nextCursor: "2",
    });
    await waitFor("all are taken", () => w.taken.length === 4);
    t.same(
      w.taken.map(({ input }) => [input["generation"], input["revision"]]),
      [
        [1, 1],
        [2, 1],
        [3, 2],
        [4, 3],
      ],
    );
    t.match((await w.send("PUT", id, { spec: spec({ model: { store: "lake", path: "x" } }) }, "*")).json(), {
      status: 422,
      code: "INPUT_INVALID",
      errors: [{ path: "body.spec.model.digest" }],
    });
  },
);

t.test("an older generation that nobody took is superseded; a repeated key is the same request", async (t) => {
  const w = await world(t);
  const key = { "idempotency-key": "make-1" };
  const [one, two] = await Promise.all([w.create({}, key), w.create({}, key)]);
  t.equal(one.json<Deployment>().id, two.json<Deployment>().id);
  t.equal((await w.create({ name: "other" }, key)).json<{ code: string }>().code, "IDEMPOTENCY_MISMATCH");
  const { id, command } = one.json<Deployment>();
  const scale = () =>
    w.api.call(`/v1/deployments/${id}/scale`, {
      method: "POST",
      json: { replicas: 3 },
      headers: { "if-match": '"1"', "idempotency-key": "scale-1" },
    });
  const repeated = [await scale(), await scale()];
  t.same(
    repeated.map((each) => each.json<Deployment>().generation),
    [2, 2],
    "not 412: it is the request that moved the generation",
  );
  t.match(await w.api.json<Command>(`/v1/commands/${command}`), {
    state: "superseded",
    error: { code: "GENERATION_STALE" },
  });
  await w.connect(w.agent);
  await w.state(id, "progressing");
  t.match(w.taken, [{ input: { generation: 2, spec: { replicas: 3 } } }]);
});

t.test("refused by the policy: says which rule, the generation before goes on", async (t) => {
  const w = await world(t);
  await w.connect(w.agent);
  const first = (await w.create()).json<DeploymentDetail>();
  await waitFor("it is taken", () => w.taken.length === 1);
  await w.ended(w.agent, first.command);
  await w.say(w.agent, [observedOf(first)]);
  w.agent.handlers.set("deployment.apply", () => {
    throw new ConnectorError("POLICY_DENIED", "The agent's policy allows replicas of at most 3; 9 were asked for.", {
      fix: "policy: { ceilings: { replicas: 9 } }",
      details: { rule: "policy.ceilings.replicas" },
    });
  });
  await w.send("POST", `${first.id}/scale`, { replicas: 9 }, '"1"');
  await w.state(first.id, "refused");
  t.match(await w.get(first.id), {
    generation: 2,
    appliedGeneration: 1,
    error: { code: "POLICY_DENIED", details: { rule: "policy.ceilings.replicas" } },
    stateReason: /prod-1 refused generation 2: .* 9 were asked for\. Generation 1 goes on meanwhile \(available\)\./,
  });
  w.takes(w.agent);
  await w.send("POST", `${first.id}/scale`, { replicas: 2 }, '"2"');
  await w.state(first.id, "progressing");
  t.match(await w.get(first.id), { error: null });
});

t.test("the owner is sticky; it moves when it is revoked", async (t) => {
  const w = await world(t);
  const other = w.takes(await w.replica("prod-2"));
  await w.connect(w.agent);
  const { id } = (await w.create()).json<DeploymentDetail>();
  await w.state(id, "progressing");
  await w.connect(other);
  await w.agent.cut();
  await w.send("POST", `${id}/scale`, { replicas: 2 }, "*");
  t.match(await w.get(id), {
    state: "unknown",
    waiting: { code: "AGENT_OFFLINE", text: /prod-1/ },
    stateReason: /Generation 2 waits for it/,
  });
  t.equal(w.taken.length, 1, "the other is not asked");
  t.match((await w.api.call(`/v1/deployments/${id}/request`, { method: "POST", json: {} })).json(), {
    code: "AGENT_OFFLINE",
  });
  await w.store.revokeReplica(w.scope, w.agent.identity.replica, Date.now());
  t.match(await w.get(id), { state: "unknown", stateReason: /revoked or deleted/ });
  w.dispatch.poke(w.scope.workspace, w.pool.id);
  await waitFor("the other took it", () => w.taken.length === 2);
  await waitFor("and owns it", async () => (await w.get(id)).agent?.name === "prod-2");
  t.equal(w.taken[1]!.agent, other.identity.replica);
});

t.test("what an agent may have journaled goes to no other, even when a newer generation took its place", async (t) => {
  const w = await world(t);
  const other = w.takes(await w.replica("prod-2"));
  const { promise: cut, resolve: wasAsked } = Promise.withResolvers<void>();
  w.agent.handlers.set("deployment.apply", () => {
    wasAsked(); // and no answer: whether it has it is not known
  });
  await w.connect(w.agent);
  const { id } = (await w.create()).json<DeploymentDetail>();
  await cut;
  await w.agent.cut();
  await w.connect(other);
  await w.send("POST", `${id}/scale`, { replicas: 2 }, "*");
  w.dispatch.poke(w.scope.workspace, w.pool.id);
  t.match(await w.get(id), { waiting: { code: "AGENT_OFFLINE", text: /prod-1/ } });
  w.takes(w.agent);
  await w.connect(w.agent);
  await waitFor("the first took it", () => w.taken.length === 1);
  t.match(w.taken, [{ agent: w.agent.identity.replica, input: { generation: 2 } }]);
});

t.test("removed: at once when no agent can have it, else when its agent says so", async (t) => {
  const w = await world(t);
  const never = (await w.create()).json<DeploymentDetail>();
  const gone = await w.send("DELETE", never.id, undefined, '"1"');
  t.match([gone.status, gone.json()], [200, { state: "removing", removedAt: Number, generation: 2 }]);
  t.match(await w.api.json("/v1/deployments"), { items: [] });
  await w.connect(w.agent);
  const made = (await w.create()).json<DeploymentDetail>();
  await waitFor("it is taken", () => w.taken.length === 1);
  await w.ended(w.agent, made.command);
  await w.say(w.agent, [observedOf(made)]);
  t.equal((await w.send("DELETE", made.id, undefined)).status, 422);
  const asked = await w.send("DELETE", made.id, undefined, '"1"');
  t.match([asked.status, asked.json()], [202, { state: "removing", removedAt: null }]);
  const late = await w.send("POST", `${made.id}/scale`, { replicas: 3 }, "*");
  t.match(
    [late.status, late.json()],
    [409, { code: "CONFLICT", detail: /is being removed/ }],
    "a change does not bring it back",
  );
  await waitFor("the removal is taken", () => w.taken.length === 2);
  await w.ended(w.agent, asked.json<Deployment>().command);
  t.match(await w.get(made.id), { removedAt: Number, stateReason: /^Removed/ });
  t.match((await w.send("POST", `${made.id}/scale`, { replicas: 1 }, "*")).json(), { status: 404 });
  t.equal((await w.api.json<{ items: Deployment[] }>("/v1/deployments?removed=true")).items.length, 2);
  t.equal((await w.create()).status, 201, "its name is free again");
});

t.test("a request passes through as it is, and leaves nothing behind", async (t) => {
  const w = await world(t);
  const { id } = (await w.create()).json<DeploymentDetail>();
  t.match((await w.send("POST", `${id}/request`, {})).json(), { code: "CONFLICT", detail: /No agent has taken/ });
  await w.connect(w.agent);
  await w.state(id, "progressing");
  const secret = "very-private-tensor";
  const asked: unknown[] = [];
  w.agent.handlers.set("deployment.request", async ({ input, stream }) => {
    asked.push(input);
    const { body } = input as { body?: string };
    answer(
      stream,
      { status: body === "nonsense" ? 400 : 200, mediaType: "application/json", replica: "r1.0", tookMs: 1.25 },
      {},
    );
    await stream.write(Buffer.from(`{"answer":"${secret}"}`));
    await stream.end();
  });
  const raw = `{ "inputs" : [ "${secret}" ] }`;
  const sent = await w.api.call(`/v1/deployments/${id}/request`, { method: "POST", body: Buffer.from(raw) });
  t.equal(sent.status, 200, sent.body.toString());
  t.match(sent.headers, {
    "content-type": "application/json",
    "sallyport-replica": "r1.0",
    "sallyport-took-ms": "1.3",
    "cache-control": "no-store",
  });
  t.match(sent.json(), { answer: secret });
  t.match(asked, [{ deployment: id, method: "POST", path: "/v2/models/digits/infer", body: raw, timeoutMs: 30_000 }]);
  const bad = await w.api.call(`/v1/deployments/${id}/request?path=/v2/models/digits/infer&timeoutMs=500`, {
    method: "POST",
    body: Buffer.from("nonsense"),
  });
  t.match([bad.status, bad.headers["sallyport-replica"], bad.headers["sallyport-status"]], [400, "r1.0", "400"]);
  await w.send("POST", `${id}/request?method=GET`, undefined);
  t.match(asked.at(-1), { method: "GET", path: "/v2/models/digits" });
  t.match((await w.send("POST", `${id}/request?path=/etc`, {})).json(), { status: 422, code: "INPUT_INVALID" });
  const large = await w.api.call(`/v1/deployments/${id}/request`, { method: "POST", body: Buffer.alloc(200_000, " ") });
  t.match(large.json(), { status: 413, code: "TOO_LARGE", fix: /endpoint itself/ });
  t.match(
    (await w.api.call(`/v1/deployments/${id}/request`, { method: "POST", body: Buffer.from([0xff, 0xfe]) })).json(),
    { code: "INPUT_INVALID" },
  );
  w.agent.handlers.set("deployment.request", () => {
    throw new ConnectorError(
      "POLICY_DENIED",
      "The agent's policy does not let predictions of digits leave the network.",
    );
  });
  const denied = await w.send("POST", `${id}/request`, {});
  t.match([denied.json(), denied.headers["sallyport-replica"]], [{ code: "POLICY_DENIED", status: 403 }, undefined]);
  t.notOk(
    w.log.some((line) => line.includes(secret)),
    "nothing of it is logged",
  );
  t.ok(w.log.some((line) => line.includes('"kind":"deployment.request"')));
});

t.test("logs of a replica, and minutes at the endpoint", async (t) => {
  const w = await world(t);
  await w.connect(w.agent);
  const made = (await w.create()).json<DeploymentDetail>();
  const { id } = made;
  await w.state(id, "progressing");
  w.agent.handlers.set("deployment.logs", async ({ input, stream }) => {
    const { replica, start = 2 } = input as { replica: string; start?: number };
    answer(stream, { deployment: id, replica, start, lastSeq: 2, ended: true }, {});
    for (const seq of [1, 2]) await stream.write(logLine(seq, `start ${start}`));
    await stream.end();
  });
  const log = await w.api.call(`/v1/deployments/${id}/replicas/r1.0/logs?tail=5&start=1`);
  t.equal(log.headers["content-type"], "application/x-ndjson");
  t.equal(log.body.toString().trim().split("\n").length, 2);
  t.match((await w.api.call(`/v1/deployments/${id}/replicas/one/logs`)).json(), { status: 422 });

  const minute = 60_000;
  const rollup = (n: number) => ({
    at: n * minute,
    requests: n,
    errors: 0,
    retries: 0,
    p50Ms: 1.5,
    p95Ms: null,
    p99Ms: null,
  });
  let changes = (await w.store.changesAfter(w.scope.workspace, 0, 1000)).newest;
  const touched = async () => {
    const { items, newest } = await w.store.changesAfter(w.scope.workspace, changes, 1000);
    changes = newest;
    return items.filter((item) => item.entity === "deployment").length;
  };
  await w.say(w.agent, [observedOf(made, { rollup: rollup(1) })]);
  t.equal(await touched(), 1);
  await w.say(w.agent, [observedOf(made, { rollup: rollup(1) })]);
  t.equal(await touched(), 0, "nothing new");
  await w.say(w.agent, [observedOf(made, { rollup: rollup(2) })]);
  t.equal(await touched(), 1, "a new minute");
  t.match(await w.api.json(`/v1/deployments/${id}/rollups?since=0`), {
    items: [rollup(1), rollup(2)],
    nextCursor: null,
  });
  await w.say(w.agent, [observedOf(made, { rollup: rollup(2 + 24 * 60) })]);
  t.match(await w.api.json(`/v1/deployments/${id}/rollups?since=0`), { items: [{ requests: 2 + 24 * 60 }] });
  t.match(await w.get(id), { rollup: { requests: 2 + 24 * 60 } });
});

t.test("a client that is gone before its deployment was looked up leaves no follower behind", async (t) => {
  const w = await world(t);
  await w.connect(w.agent);
  const { id } = (await w.create()).json<DeploymentDetail>();
  await w.state(id, "progressing");
  const open = new Set<object>();
  let asked = 0;
  w.agent.handlers.set("deployment.logs", ({ input, stream }) => {
    asked++;
    open.add(stream);
    stream.signal.addEventListener("abort", () => open.delete(stream));
    const { replica } = input as { replica: string };
    answer(stream, { deployment: id, replica, start: 1, lastSeq: 0, ended: false }, {});
  });
  const arrived = Promise.withResolvers<void>();
  const goOn = Promise.withResolvers<void>();
  const lookUp = w.store.deployment.bind(w.store);
  w.store.deployment = async (...args) => {
    arrived.resolve();
    await goOn.promise;
    return lookUp(...args);
  };
  const client = connect(w.port, "127.0.0.1");
  client.write(
    `GET /v1/deployments/${id}/replicas/r1.0/logs?follow=true HTTP/1.1\r\nhost: 127.0.0.1:${w.port}\r\nauthorization: Bearer ${w.token}\r\n\r\n`,
  );
  await arrived.promise;
  client.resetAndDestroy();
  await once(client, "close");
  await w.api.call("/v1/deployments");
  w.store.deployment = lookUp;
  goOn.resolve();
  // A reader that stays is the proof that the one before it was dealt with.
  const second = new AbortController();
  const stays = fetch(`${w.url}/v1/deployments/${id}/replicas/r1.0/logs?follow=true`, {
    headers: { authorization: `Bearer ${w.token}` },
    signal: second.signal,
  });
  await stays;
  second.abort();
  await waitFor("nobody follows", () => open.size === 0);
  t.equal(asked, 1, "nothing was asked for the one that had gone");
});

t.test("a restored control plane counts on from what its agents hold", async (t) => {
  const w = await world(t);
  await w.connect(w.agent);
  const made = (await w.create()).json<DeploymentDetail>();
  await w.state(made.id, "progressing");
  await w.ended(w.agent, made.command);
  await w.agent.cut();
  // The backup was made at generation 1; the agent has been told more since.
  await w.connect(w.agent, { [made.id]: 8, dep_00000000000000000000000000000000: 3 });
  t.match(await w.get(made.id), { generation: 8, revision: 1 });
  t.match(await w.say(w.agent, [observedOf({ ...made, generation: 8, revision: 4 })]), { ignored: 0 });
  t.match(await w.get(made.id), { generation: 8, revision: 4, stateReason: /restored from a backup/ });
  const next = await w.send("PUT", made.id, { spec: spec() }, '"8"');
  t.match(next.json(), { generation: 9, revision: 5 }, "a revision whose content is not known is never repeated");
  const foreign = observedOf({ ...made, id: "dep_00000000000000000000000000000001" });
  t.match(await w.say(w.agent, [foreign]), { ignored: 1 });
});
