// The dispatcher over real sockets and the real store; only the agent's insides are the test's.
import { generateKeyPairSync } from "node:crypto";
import {
  ConnectorError,
  artifactList,
  jsonBody,
  keySigner,
  ndjsonLine,
  newId,
  readNdjson,
  pipelineRun,
  pipelineSchema,
  systemClock,
  type PoolId,
  type ReplicaId,
  type ReportBody,
} from "@sallyport/protocol";
import { pino } from "pino";
import t, { type Test } from "tap";
import { accept, answer, FakeAgent } from "../../test/support/fake-agent.ts";
import { waitFor } from "../../test/support/launcher.ts";
import { storePlace } from "../../test/support/store.ts";
import { SessionRegistry } from "../link/session-registry.ts";
import type { Scope, Store } from "../store/index.ts";
import { makeDispatch, type Dispatch } from "./index.ts";

const key = generateKeyPairSync("ed25519");
const signer = keySigner("test", key.privateKey);
const keys = new Map([["test", key.publicKey]]);

interface World {
  store: Store;
  scope: Scope;
  sessions: SessionRegistry;
  dispatch: Dispatch;
  pool: { id: PoolId; name: string };
  audit: string[];
  replica(name: string): Promise<FakeAgent>;
  submit(id?: ReturnType<typeof newId<"run">>): Promise<string>;
  restart(): Promise<void>;
}

async function world(t: Test): Promise<World> {
  const store = await (await storePlace(t)).open();
  const admin = await store.ensureAdmin("admin", "main");
  const scope: Scope = { workspace: admin.workspace, actor: { id: admin.id, name: admin.name, via: "token" } };
  const pool = await store.ensurePool(scope, "vpc", Date.now());
  const sessions = new SessionRegistry(systemClock);
  const audit: string[] = [];
  const log = pino({ level: "info" }, { write: (line: string) => void audit.push(line) });
  const incarnation = await store.incarnation();
  const make = () => makeDispatch({ store, sessions, clock: systemClock, signer, incarnation, log });
  const agents: FakeAgent[] = [];
  const made: World = {
    store,
    scope,
    sessions,
    dispatch: make(),
    pool,
    audit,
    async replica(name) {
      const enrollment = await store.addEnrollment(scope, {
        id: newId("enrollment"),
        pool: pool.id,
        name,
        secretHash: name,
        createdAt: Date.now(),
        expiresAt: Date.now() + 60_000,
      });
      const publicKey = Buffer.from(
        generateKeyPairSync("ed25519").publicKey.export({ format: "jwk" }).x!,
        "base64url",
      ).toString("base64url");
      const redeemed = await store.redeemEnrollment({
        id: enrollment.id,
        secretHash: name,
        publicKey,
        fingerprint: name,
        nameHint: null,
        remoteAddress: null,
        now: Date.now(),
      });
      if ("refused" in redeemed) throw new Error(redeemed.refused);
      const agent = new FakeAgent(
        sessions,
        { workspace: scope.workspace, pool: pool.id, replica: redeemed.replica.id as ReplicaId },
        keys,
      );
      agents.push(agent);
      return agent;
    },
    async submit(id = newId("run")) {
      const pipeline = pipelineSchema.parse({
        name: "p",
        outputs: { store: "lake" },
        steps: [{ name: "a", program: "true" }],
      });
      const { command } = await made.dispatch.submit(scope, {
        pool,
        spec: pipelineRun,
        input: { run: id, pipeline },
        resource: `run:${id}`,
        expiresInMs: 60_000,
        run: { id, pool: pool.id, pipeline: "p", spec: pipeline, params: {} },
      });
      return command.id;
    },
    async restart() {
      await made.dispatch.stop();
      made.dispatch = make();
      made.dispatch.start();
    },
  };
  made.dispatch.start();
  t.teardown(async () => {
    await made.dispatch.stop();
    for (const agent of agents) await agent.cut();
    await store.close();
  });
  return made;
}

const state = async (w: World, id: string) => (await w.store.command(w.scope, id as never))!.state;
const view = async (w: World, id: string) =>
  (await w.dispatch.view(w.scope, [(await w.store.command(w.scope, id as never))!]))[0]!;
const list = (w: World) =>
  w.dispatch.relay(w.scope, w.pool, artifactList, { store: "lake", path: "" }, { resource: "artifact:lake/" });

t.test("interactive: answered, refused, offline at once, audited", async (t) => {
  const w = await world(t);
  const agent = await w.replica("prod-1");
  await t.rejects(list(w), { code: "AGENT_OFFLINE", message: /none was ever seen/ });
  agent.handlers.set("artifact.list", ({ stream }) =>
    answer(stream, { entries: [], nextCursor: null, newer: "ignored" }),
  );
  await agent.connect();
  t.same((await list(w)).result, { entries: [], nextCursor: null });
  agent.handlers.set("artifact.list", () => {
    throw new ConnectorError("POLICY_DENIED", "Rule 3 refuses.", { fix: "Ask the customer." });
  });
  await t.rejects(list(w), { code: "POLICY_DENIED", message: "Rule 3 refuses.", fix: "Ask the customer." });
  agent.handlers.set("artifact.list", ({ stream }) => answer(stream, { wrong: true }));
  await t.rejects(list(w), { code: "PROTOCOL_ERROR" });
  await t.rejects(
    w.dispatch.relay(w.scope, w.pool, artifactList, { store: "lake", path: "", bogus: 1 } as never, {
      resource: "artifact:lake/",
    }),
    { code: "INPUT_INVALID", details: { errors: [{ path: "" }] } },
  );
  let hanging = false;
  agent.handlers.set("artifact.list", () => void (hanging = true));
  const pending = list(w);
  await waitFor("the expected state", () => hanging);
  await Promise.all([t.rejects(pending, { code: "LINK_LOST" }), agent.cut()]);
  t.same(agent.faults, []);
  const outcomes = w.audit
    .map((line) => JSON.parse(line) as { component: string; outcome: string })
    .filter((line) => line.component === "audit")
    .map((line) => line.outcome);
  t.same(outcomes, ["AGENT_OFFLINE", "ok", "POLICY_DENIED", "PROTOCOL_ERROR", "INPUT_INVALID", "LINK_LOST"]);
});

t.test("interactive: a caller that leaves resets the agent's stream", async (t) => {
  const w = await world(t);
  const agent = await w.replica("prod-1");
  const reset = Promise.withResolvers<unknown>();
  const asked = Promise.withResolvers<void>();
  agent.handlers.set("artifact.list", ({ stream }) => {
    stream.signal.addEventListener("abort", () => reset.resolve((stream.signal.reason as ConnectorError).code));
    asked.resolve();
  });
  await agent.connect();
  const gone = new AbortController();
  const answered = w.dispatch.relay(
    w.scope,
    w.pool,
    artifactList,
    { store: "lake", path: "" },
    { resource: "artifact:lake/", signal: gone.signal },
  );
  await asked.promise;
  gone.abort();
  await t.rejects(answered, { code: "CANCELLED" });
  t.equal(await reset.promise, "CANCELLED");
});

t.test("durable: waits and says why, is taken at hello, its reports end it", async (t) => {
  const w = await world(t);
  const agent = await w.replica("prod-1");
  const id = await w.submit();
  t.match((await view(w, id)).waiting, { code: "AGENT_OFFLINE", text: /No agent of pool vpc/ });
  agent.handlers.set("pipeline.run", () => {
    throw new ConnectorError("AT_CAPACITY", "Two of two runs are running.");
  });
  await agent.connect();
  await waitFor("the expected state", async () => (await view(w, id)).waiting?.code === "AT_CAPACITY");
  t.match((await view(w, id)).waiting?.text, /^Two of two runs are running\. It is number 1 of 1/);
  agent.handlers.set("pipeline.run", ({ stream }) => accept(stream));
  w.dispatch.poke(w.scope.workspace, w.pool.id);
  await waitFor("the expected state", async () => (await state(w, id)) === "accepted");
  const done: ReportBody[] = [
    { type: "command.running" },
    { type: "command.succeeded", result: { run: "x", steps: 1 } },
  ];
  await agent.report(done.map((body) => ({ command: id, body })));
  t.equal(await state(w, id), "succeeded");
  t.same(agent.faults, []);
});

t.test("durable: refused for good is terminal and says so", async (t) => {
  const w = await world(t);
  const agent = await w.replica("prod-1");
  agent.handlers.set("pipeline.run", () => {
    throw new ConnectorError("POLICY_DENIED", "Program rm is not granted.", { fix: "Grant it.", details: { rule: 4 } });
  });
  await agent.connect();
  const id = await w.submit();
  await waitFor("the expected state", async () => (await state(w, id)) === "refused");
  t.match((await w.store.command(w.scope, id as never))!.error, {
    code: "POLICY_DENIED",
    fix: "Grant it.",
    details: { rule: 4 },
  });
  t.equal((await view(w, id)).waiting, null);
});

t.test(
  "durable: an unanswered offer binds the command to its replica, also after a restart of the control plane",
  async (t) => {
    const w = await world(t);
    const one = await w.replica("prod-1");
    const two = await w.replica("prod-2");
    const offered = Promise.withResolvers<void>();
    one.handlers.set("pipeline.run", () => offered.resolve());
    two.handlers.set("pipeline.run", ({ stream }) => accept(stream));
    await one.connect();
    const id = await w.submit();
    await offered.promise;
    await one.cut();
    await two.connect();
    for (let restarts = 0; restarts < 2; restarts++) {
      await waitFor("the expected state", async () => (await view(w, id)).waiting?.code === "AGENT_OFFLINE");
      t.match(
        (await view(w, id)).waiting!.text,
        /^Agent prod-1 of pool vpc, which alone can take it, is not connected/,
      );
      t.equal(two.seen.length, 0, "the other replica was not asked");
      await w.restart();
    }
    one.handlers.set("pipeline.run", ({ stream }) => accept(stream, true));
    await one.connect();
    await waitFor("the expected state", async () => (await state(w, id)) === "accepted");
    t.equal((await w.store.command(w.scope, id as never))!.replica, one.identity.replica);
    t.same([...one.faults, ...two.faults], []);
  },
);

t.test("durable: within one resource the older goes first; a cancel follows its run to its replica", async (t) => {
  const w = await world(t);
  const one = await w.replica("prod-1");
  const two = await w.replica("prod-2");
  const order: string[] = [];
  for (const agent of [one, two]) {
    agent.handlers.set("pipeline.run", ({ stream }) => (order.push("run"), accept(stream)));
    agent.handlers.set("run.cancel", ({ stream }) => (order.push("cancel"), accept(stream)));
  }
  // Never offered: SQL alone ends it.
  const first = newId("run");
  const firstCommand = await w.submit(first);
  t.match(await w.dispatch.cancelRun(w.scope, first), { done: true });
  t.equal(await state(w, firstCommand), "cancelled");
  // Offered without an answer: the cancel waits behind it and says so.
  const run = newId("run");
  const hung = Promise.withResolvers<void>();
  const good = one.handlers.get("pipeline.run")!;
  one.handlers.set("pipeline.run", () => hung.resolve());
  await one.connect();
  const id = await w.submit(run);
  await hung.promise;
  await one.cut();
  await waitFor("the expected state", async () => (await view(w, id)).waiting?.code === "AGENT_OFFLINE");
  t.match(await w.dispatch.cancelRun(w.scope, run), { done: false });
  t.match(await w.dispatch.cancelRun(w.scope, run), { done: false });
  const cancels = (await w.store.commands(w.scope, { limit: 10, kind: "run.cancel" })).items;
  t.equal(cancels.length, 1, "asking twice makes one command");
  await two.connect();
  one.handlers.set("pipeline.run", good);
  await one.connect();
  await waitFor("the expected state", async () => (await state(w, cancels[0]!.id)) === "accepted");
  t.same(order, ["run", "cancel"]);
  t.equal(two.seen.length, 0);
  // Accepted work of a silent replica is unknown.
  t.equal((await view(w, id)).unknown, false);
  await one.cut();
  t.equal((await view(w, id)).unknown, true);
});

t.test("reports: a malformed one is refused by name, a foreign journal too, numbers survive repetition", async (t) => {
  const w = await world(t);
  const agent = await w.replica("prod-1");
  agent.handlers.set("pipeline.run", ({ stream }) => accept(stream));
  await agent.connect();
  const id = await w.submit();
  await waitFor("the expected state", async () => (await state(w, id)) === "accepted");
  const open = (journal: string, line: unknown) => {
    const stream = agent.mux!.open({ type: "reports", journal }, { lane: "interactive" });
    return (async () => {
      await stream.answer;
      await stream.write(Buffer.from(`${JSON.stringify(line)}\n`));
      for await (const _ of stream.bytes);
    })();
  };
  await t.rejects(open(agent.journal, { journal: agent.journal, sequence: 0 }), {
    code: "PROTOCOL_ERROR",
    message: /malformed at sequence/,
  });
  await t.rejects(open(newId("journal"), {}), { code: "PROTOCOL_ERROR", message: /of journal/ });
  await agent.report([{ command: id, body: { type: "command.running" } }]);
  t.equal(await state(w, id), "running");
  // As after the database was restored from a backup: what lies between was acknowledged by the one before, and is gone.
  const stream = agent.mux!.open({ type: "reports", journal: agent.journal }, { lane: "interactive" });
  await stream.answer;
  const line = (sequence: number, body: ReportBody) =>
    ndjsonLine({ journal: agent.journal, sequence, at: Date.now(), command: id, body: jsonBody(body) });
  await stream.write(line(40, { type: "command.succeeded", result: {} }));
  await stream.write(line(41, { type: "command.succeeded", result: {} }));
  const acknowledged: unknown[] = [];
  for await (const ack of readNdjson(stream.bytes))
    if (acknowledged.push(ack) > 0 && (ack as { committedThrough: number }).committedThrough === 41) break;
  t.equal(await state(w, id), "succeeded", "the run does not wait for reports that nobody has");
});

t.test("reports: one that was lost on the way ends the stream, and the agent's next one brings it", async (t) => {
  const w = await world(t);
  const agent = await w.replica("prod-1");
  agent.handlers.set("pipeline.run", ({ stream }) => accept(stream));
  await agent.connect();
  const id = await w.submit();
  await waitFor("the expected state", async () => (await state(w, id)) === "accepted");
  const send = async (from: number, sequences: number[]): Promise<unknown[]> => {
    const stream = agent.mux!.open({ type: "reports", journal: agent.journal, from }, { lane: "interactive" });
    await stream.answer;
    for (const sequence of sequences) {
      const body = { type: sequence === 3 ? "command.succeeded" : "command.running", result: {} } as ReportBody;
      const line = { journal: agent.journal, sequence, at: Date.now(), command: id, body: jsonBody(body) };
      await stream.write(ndjsonLine(line));
    }
    const acknowledged: unknown[] = [];
    for await (const ack of readNdjson(stream.bytes))
      if (acknowledged.push(ack) > 0 && (ack as { committedThrough: number }).committedThrough === 3) break;
    return acknowledged;
  };
  await t.rejects(send(1, [2, 3]), { code: "PROTOCOL_ERROR", message: /2 came where 1 was due/ }, "the first");
  await t.rejects(send(1, [1, 1, 3]), { code: "PROTOCOL_ERROR", message: /3 came where 2 was due/ }, "one between");
  t.not(await state(w, id), "succeeded");
  t.match((await send(1, [1, 2, 2, 3])).at(-1), { committedThrough: 3 });
  t.equal(await state(w, id), "succeeded");
});

t.test("numbers rise over reads, durable offers and sessions", async (t) => {
  const w = await world(t);
  const agent = await w.replica("prod-1");
  agent.handlers.set("artifact.list", ({ stream }) => answer(stream, { entries: [], nextCursor: null }));
  agent.handlers.set("pipeline.run", ({ stream }) => accept(stream));
  for (let sessions = 0; sessions < 3; sessions++) {
    await agent.connect();
    const ids = await Promise.all(
      Array.from({ length: 40 }, async (_, n) => (n % 4 === 0 ? await w.submit() : (await list(w), null))),
    );
    for (const id of ids)
      if (id !== null) await waitFor("the expected state", async () => (await state(w, id)) === "accepted");
    await agent.cut();
  }
  t.equal(agent.seen.length, 120);
  t.same(agent.faults, []);
});
