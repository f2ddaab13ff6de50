// Who gives up work to whom, and when: the real dispatcher and the real store; time and the far ends are the test's.
import { generateKeyPairSync } from "node:crypto";
import {
  commandOpenSchema,
  ConnectorError,
  dispatchSchema,
  jsonBody,
  keySigner,
  newId,
  pipelineRun,
  pipelineSchema,
  type AgentStatus,
  type CommandId,
  type Dispatch as DispatchText,
  type JournalId,
  type LinkStream,
  type ReplicaId,
  type Report,
  type ReportBody,
} from "@sallyport/protocol";
import { pino } from "pino";
import t, { type Test } from "tap";
import { ManualClock } from "../../test/support/clock.ts";
import { storePlace } from "../../test/support/store.ts";
import { SessionRegistry } from "../link/session-registry.ts";
import type { CloudSession } from "../link/sessions.ts";
import type { CommandRow, Scope, Store } from "../store/index.ts";
import { makeDispatch, type Dispatch } from "./index.ts";
import { REDIAL_MS, TAKEOVER_MS } from "./takeover.ts";
import { agentStatus } from "../../test/support/agent-status.ts";

t.setTimeout(240_000);

type Answer = "accept" | "silence" | ConstructorParameters<typeof ConnectorError>[0];

class Far {
  readonly replica: ReplicaId;
  readonly journal: JournalId = newId("journal");
  answer: Answer = "accept";
  /** What it was offered and said to. */
  readonly offers: { command: string; dispatch: DispatchText }[] = [];
  session: CloudSession | null = null;
  #seenMs = 0;
  #epoch = 0;
  #sequence = 0;
  readonly #w: World;
  readonly #status: Partial<AgentStatus>;
  readonly #open: ((error: ConnectorError) => void)[] = [];

  constructor(w: World, replica: ReplicaId, status: Partial<AgentStatus>) {
    this.#w = w;
    this.replica = replica;
    this.#status = status;
  }

  /** A beat came. */
  seen(): void {
    this.#seenMs = this.#w.clock.monotonic();
  }

  async connect(): Promise<void> {
    const { clock, store, sessions, scope, pool } = this.#w;
    this.seen();
    const id = newId("session");
    const { epoch } = await store.openSession(this.replica, {
      id,
      process: "p",
      instance: "i",
      journal: this.journal,
      remoteAddress: null,
      now: clock.now(),
    });
    const status = this.status();
    const session: CloudSession = {
      id,
      epoch,
      workspace: scope.workspace,
      pool: pool.id,
      replica: this.replica,
      journal: this.journal,
      dispatchSequence: this.#epoch++,
      instance: "i",
      remoteAddress: "",
      closed: new Promise(() => {}),
      rttMs: null,
      open: (head) => this.#serve(head),
      lastSeenMs: () => this.#seenMs,
      status: () => status,
      close: () => {},
    };
    await store.seen([{ workspace: scope.workspace, replica: this.replica, session: id, at: clock.now(), status }]);
    this.session = session;
    sessions.add({ session, setStatus: () => {} });
  }

  disconnect(): void {
    this.#w.sessions.remove(this.session!);
    this.session = null;
    for (const fail of this.#open.splice(0)) fail(new ConnectorError("LINK_LOST", "The test cut it."));
  }

  status(): AgentStatus {
    return agentStatus({
      engines: ["process", "docker"],
      engineIds: { docker: "one" },
      commands: ["pipeline.run", "run.cancel"],
      limits: { runs: 2, steps: 2 },
      ...this.#status,
    });
  }

  report(command: string, ...bodies: ReportBody[]) {
    const reports: Report[] = bodies.map((body) => ({
      journal: this.journal,
      sequence: ++this.#sequence,
      at: this.#w.clock.now(),
      command: command as CommandId,
      body: jsonBody(body),
    }));
    const { store, scope, clock } = this.#w;
    return store.commitReports(scope.workspace, this.replica, this.journal, reports, clock.now());
  }

  #serve(head: unknown): LinkStream {
    const open = commandOpenSchema.parse(head);
    const dispatch = dispatchSchema.parse(JSON.parse(open.dispatch.text));
    const command = (JSON.parse(open.intent.text) as { command: string }).command;
    this.offers.push({ command, dispatch });
    const { answer } = this;
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    promise.catch(() => {});
    this.#open.push(reject);
    if (answer === "accept") resolve({ type: "accepted", known: false });
    else if (answer !== "silence") reject(new ConnectorError(answer, "The test says so."));
    return { answer: promise, reset: (error: ConnectorError) => reject(error) } as unknown as LinkStream;
  }
}

interface World {
  clock: ManualClock;
  store: Store;
  scope: Scope;
  sessions: SessionRegistry;
  dispatch: Dispatch;
  pool: { id: CommandRow["pool"]; name: string };
  far(name: string, status?: Partial<AgentStatus>): Promise<Far>;
  /** Time goes by in steps in which the store answers; those that are connected beat. */
  pass(ms: number): Promise<void>;
  submit(engine?: string, requires?: Record<string, string>): Promise<CommandId>;
  row(id: CommandId): Promise<CommandRow>;
  restart(): Promise<void>;
  fail: { store: boolean };
}

async function world(t: Test): Promise<World> {
  const key = generateKeyPairSync("ed25519");
  const real = await (await storePlace(t)).open();
  let pending = 0;
  const fail = { store: false };
  // Counts what is asked, so that time stands still until it is answered.
  const store = new Proxy(real, {
    get(target, name) {
      const operation = target[name as keyof Store] as (...args: unknown[]) => unknown;
      if (name === "heldWork" && fail.store)
        return () => Promise.reject(new ConnectorError("DATABASE_UNAVAILABLE", "The test says so."));
      if (typeof operation !== "function" || name === "onChange") return operation;
      return (...args: unknown[]) => {
        pending++;
        return (operation.apply(target, args) as Promise<unknown>).finally(() => pending--);
      };
    },
  });
  const clock = new ManualClock(Date.now());
  const admin = await store.ensureAdmin("admin", "main");
  const scope: Scope = { workspace: admin.workspace, actor: { id: admin.id, name: admin.name, via: "token" } };
  const pool = await store.ensurePool(scope, "vpc", clock.now());
  const incarnation = await store.incarnation();
  const signer = keySigner("test", key.privateKey);
  const log = pino({ level: "silent" });
  const fars: Far[] = [];
  const quiet = async (): Promise<void> => {
    for (let still = 0; still < 3; still = pending === 0 ? still + 1 : 0)
      await new Promise((resolve) => setTimeout(resolve, 1));
  };
  const w: World = {
    clock,
    store,
    scope,
    pool,
    fail,
    sessions: null as unknown as SessionRegistry,
    dispatch: null as unknown as Dispatch,
    async far(name, status = {}) {
      const enrollment = await store.addEnrollment(scope, {
        id: newId("enrollment"),
        pool: pool.id,
        name,
        secretHash: name,
        createdAt: clock.now(),
        expiresAt: clock.now() + 60_000,
      });
      const redeemed = await store.redeemEnrollment({
        id: enrollment.id,
        secretHash: name,
        publicKey: `${name}-key`,
        fingerprint: name,
        nameHint: null,
        remoteAddress: null,
        now: clock.now(),
      });
      if ("refused" in redeemed) throw new Error(redeemed.refused);
      const far = new Far(w, redeemed.replica.id, status);
      fars.push(far);
      return far;
    },
    async pass(ms) {
      await quiet();
      for (let left = ms; left > 0; left -= 1000) {
        await clock.advance(Math.min(1000, left));
        for (const far of fars) if (far.session !== null) far.seen();
        await quiet();
      }
    },
    async submit(engine = "docker", requires = {}) {
      const id = newId("run");
      const image = `sha256:${"0".repeat(64)}`;
      const step = engine === "docker" ? { name: "a", image } : { name: "a", program: "true" };
      const pipeline = pipelineSchema.parse({ name: "p", engine, outputs: { store: "lake" }, steps: [step] });
      const { command } = await w.dispatch.submit(scope, {
        pool,
        spec: pipelineRun,
        input: { run: id, pipeline },
        resource: `run:${id}`,
        expiresInMs: 24 * 3600_000,
        requires,
        run: { id, pool: pool.id, pipeline: "p", spec: pipeline, params: {} },
      });
      await quiet();
      return command.id;
    },
    row: async (id) => (await store.command(scope, id))!,
    async restart() {
      await w.dispatch?.stop();
      w.sessions = new SessionRegistry(clock);
      w.dispatch = makeDispatch({ store, sessions: w.sessions, clock, signer, incarnation, log });
      for (const far of fars) far.session = null;
      w.dispatch.start();
    },
  };
  await w.restart();
  t.teardown(async () => {
    await w.dispatch.stop();
    await real.close();
  });
  return w;
}

/** Two agents of one Engine; the first holds a run. */
async function held(t: Test, engine?: string) {
  const w = await world(t);
  const [a, b] = [await w.far("a"), await w.far("b")];
  await a.connect();
  const id = await w.submit(engine);
  await w.pass(1000);
  t.equal((await w.row(id)).replica, a.replica);
  await b.connect();
  await w.pass(20_000);
  return { w, a, b, id };
}
const step = (run: string, state: "running" | "succeeded"): ReportBody => ({
  type: "step",
  run: run as never,
  step: "a",
  attempt: 1,
  state,
  error: null,
  exitCode: state === "succeeded" ? 0 : null,
  outputs: [],
  logSeq: 0,
  adopted: false,
});

t.test(
  "accepted work on a shared engine goes over after 15 s, once; what the former one says is kept and not applied",
  async (t) => {
    const { w, a, b, id } = await held(t);
    await a.report(id, { type: "command.running" });
    a.disconnect();
    await w.pass(TAKEOVER_MS - 2000);
    t.equal((await w.row(id)).replica, a.replica, "not before");
    t.equal(b.offers.length, 0);
    await w.pass(3000);
    const row = await w.row(id);
    t.equal(row.replica, b.replica);
    t.equal(row.state, "running", "it went back to nothing");
    t.equal(b.offers.length, 1);
    t.match(b.offers[0], { command: id, dispatch: { attempt: 2, takenOver: true, replica: b.replica } });
    t.match((await w.store.lastTakeovers(w.scope.workspace, [id]))[id], {
      from: a.replica,
      fromName: "a",
      reason: "AGENT_OFFLINE",
      acceptedAt: Number,
    });

    // The one that was away worked on, and says so.
    const run = (await w.row(id)).run!;
    const told = await a.report(id, step(run, "succeeded"), { type: "command.succeeded", result: {} });
    t.same(told.released, [id], "with the acknowledgement it is told");
    t.equal((await w.row(id)).state, "running");
    t.same((await w.store.run(w.scope, run))!.attempts, [], "no step of it");
    const end = await b.report(id, step(run, "succeeded"), { type: "command.succeeded", result: { by: "b" } });
    t.same(end.fenced, [id], "the former one has not let go");
    t.match(await w.row(id), { state: "succeeded", result: { by: "b" } });
    t.same((await w.store.handoffs(w.scope.workspace, b.replica, 9)).settled, []);
    t.same((await w.store.handoffs(w.scope.workspace, a.replica, 9)).released, [id], "and again on a new stream");
    await a.report(
      id,
      { type: "command.released" },
      { type: "command.failed", error: { code: "INTERNAL", message: "" } },
    );
    t.same((await w.store.handoffs(w.scope.workspace, a.replica, 9)).released, []);
    t.same((await w.store.handoffs(w.scope.workspace, b.replica, 9)).settled, [id]);
    t.match(await w.row(id), { state: "succeeded", result: { by: "b" } }, "an end does not flip");
    await w.pass(60_000);
    t.equal(b.offers.length, 1);
  },
);

t.test(
  "the engine process, and an engine that the other does not have: unknown, until its journal answers",
  async (t) => {
    const { w, a, b, id } = await held(t, "process");
    a.disconnect();
    await w.pass(90_000);
    t.equal((await w.row(id)).replica, a.replica);
    t.equal(b.offers.length, 0);
    t.equal((await w.dispatch.view(w.scope, [await w.row(id)]))[0]!.unknown, true);
    await a.connect();
    await a.report(id, { type: "command.running" }, { type: "command.succeeded", result: {} });
    t.equal((await w.row(id)).state, "succeeded");

    const c = await w.far("c", { engineIds: { docker: "two" } });
    await c.connect();
    b.disconnect();
    const other = await w.submit();
    await w.pass(1000);
    const holder = (await w.row(other)).replica === c.replica ? c : a;
    const rest = holder === c ? a : c;
    holder.disconnect();
    await w.pass(90_000);
    t.equal((await w.row(other)).replica, holder.replica);
    t.equal(rest.offers.filter((one) => one.command === other).length, 0);
  },
);

t.test(
  "what was not offered goes to whoever is there at once; an unanswered offer binds for 15 s, then to the same Engine only",
  async (t) => {
    const w = await world(t);
    const [a, b, c] = [await w.far("a"), await w.far("b"), await w.far("c", { engineIds: { docker: "two" } })];
    await a.connect();
    a.answer = "silence";
    const id = await w.submit();
    await w.pass(2000);
    t.equal(a.offers.length, 1);
    await c.connect();
    const beside = await w.submit();
    t.equal((await w.row(beside)).replica, c.replica, "an offer that hangs keeps no other waiting");
    a.disconnect();
    const fresh = await w.submit();
    await w.pass(1000);
    t.equal((await w.row(fresh)).replica, c.replica);
    await w.pass(60_000);
    t.equal((await w.row(id)).state, "queued");
    t.equal(c.offers.length, 2, "another Engine tells nothing of it");
    await b.connect();
    await w.pass(2000);
    t.match(await w.row(id), { state: "accepted", replica: b.replica });
    t.same((await a.report(id, { type: "command.running" })).released, [id]);
    t.equal((await w.row(id)).replica, b.replica);
  },
);

t.test("this process's own outages are not the agent's silence", async (t) => {
  const { w, a, b, id } = await held(t);
  // It stood still (a stopped process, a busy machine).
  a.disconnect();
  await w.clock.advance(0);
  (w.clock as unknown as { after: ManualClock["after"] }).after(0, () => {});
  const stall = async (ms: number) => {
    // One jump, in which no timer fires at its time.
    const clock = w.clock as unknown as { monotonic(): number; now(): number };
    const [monotonic, now] = [clock.monotonic.bind(clock), clock.now.bind(clock)];
    clock.monotonic = () => monotonic() + ms;
    clock.now = () => now() + ms;
  };
  await stall(60_000);
  b.seen();
  await w.pass(30_000);
  t.equal((await w.row(id)).replica, a.replica, "a stall");
  await a.connect();
  await w.pass(30_000);

  // Nobody reached it.
  a.disconnect();
  b.disconnect();
  await w.pass(60_000);
  await b.connect();
  await w.pass(REDIAL_MS);
  t.equal((await w.row(id)).replica, a.replica, "alone");
  await a.connect();
  await w.pass(30_000);

  // Its database was away: it could take in nobody.
  w.fail.store = true;
  a.disconnect();
  await w.pass(60_000);
  w.fail.store = false;
  await w.pass(REDIAL_MS);
  t.equal((await w.row(id)).replica, a.replica, "without a database");
  await a.connect();
  await w.pass(30_000);

  // It was not there at all.
  await w.restart();
  await w.pass(1000);
  await b.connect();
  await w.pass(REDIAL_MS);
  t.equal((await w.row(id)).replica, a.replica, "restarted");
  t.equal(b.offers.length, 0);
  t.same((await w.store.commands(w.scope, { limit: 10, state: "lost" })).items, [], "nothing is lost");
  // Then it is the agent.
  await w.pass(TAKEOVER_MS + 7000);
  t.equal((await w.row(id)).replica, b.replica);
});

t.test("who does not take it is passed over; who comes back before it was taken has it again", async (t) => {
  const { w, a, b, id } = await held(t);
  const c = await w.far("c");
  b.answer = "POLICY_DENIED";
  a.disconnect();
  await w.pass(TAKEOVER_MS + 2000);
  t.equal((await w.row(id)).replica, b.replica);
  t.equal((await w.row(id)).state, "accepted", "a refusal by another than its holder ends nothing");
  c.answer = "AT_CAPACITY";
  await c.connect();
  await w.pass(70_000);
  t.ok(c.offers.length > 0, "the third was asked");
  await a.connect();
  t.same((await w.store.handoffs(w.scope.workspace, a.replica, 9)).released, [], "nobody has it yet");
  await a.report(id, { type: "command.running" });
  t.match(await w.row(id), { state: "running", replica: a.replica });
  const before = c.offers.length + b.offers.length;
  await w.pass(120_000);
  t.equal(c.offers.length + b.offers.length, before);
  await a.report(id, { type: "command.succeeded", result: {} });
  t.equal((await w.row(id)).state, "succeeded");
});

t.test(
  "a stop that the silent one was told of is asked of the one that takes over; what has begun does not go back",
  async (t) => {
    const { w, a, b, id } = await held(t);
    const run = (await w.row(id)).run!;
    await a.report(id, { type: "command.running" }, step(run, "running"));
    a.answer = "silence";
    await w.dispatch.cancelRun(w.scope, run);
    await w.pass(2000);
    t.equal(a.offers.length, 2, "it may have been told");
    a.disconnect();
    await w.pass(TAKEOVER_MS + 3000);
    t.equal((await w.row(id)).replica, b.replica);
    t.equal(b.offers.length, 2, "the run, and the stop");
    // It took that and is silent in turn.
    await a.connect();
    a.answer = "accept";
    b.disconnect();
    await w.pass(TAKEOVER_MS + 3000);
    t.equal((await w.row(id)).replica, a.replica);
    t.equal(a.offers.length, 4, "a stop that was taken is asked for anew");
    await w.store.takeOver(
      w.scope.workspace,
      id,
      { from: a.replica, to: b.replica, reason: "AGENT_OFFLINE", holds: true },
      w.clock.now(),
    );
    await b.report(id, { ...(step(run, "running") as object), state: "pending" } as ReportBody);
    t.match((await w.store.run(w.scope, run))!.attempts, [{ state: "running" }]);
  },
);

t.test(
  "labels: offered to those alone that have them all; capacity: who is full is asked after who is not",
  async (t) => {
    const w = await world(t);
    const running = { command: newId("run"), run: null, kind: "pipeline.run" } as never;
    const full = await w.far("full", { labels: { gpu: "a100", zone: "x" }, running: [running, running] });
    const free = await w.far("free", { labels: { gpu: "a100" } });
    const plain = await w.far("plain", { labels: { gpu: "l4" } });
    await plain.connect();
    const id = await w.submit("docker", { gpu: "a100" });
    await w.pass(30_000);
    t.equal(plain.offers.length, 0);
    t.equal((await w.dispatch.view(w.scope, [await w.row(id)]))[0]!.waiting?.code, "NO_MATCHING_AGENT");
    await full.connect();
    await w.pass(1000);
    t.equal((await w.row(id)).replica, full.replica, "better than none");
    await free.connect();
    t.equal((await w.row(await w.submit("docker", { gpu: "a100" }))).replica, free.replica);
    free.answer = "AT_CAPACITY";
    const third = await w.submit("docker", { gpu: "a100" });
    await w.pass(1000);
    t.equal((await w.row(third)).replica, full.replica, "the pool is asked further at once");
    t.equal(plain.offers.length, 0);
  },
);
