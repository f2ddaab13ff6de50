// Commands against the store as it is: random callers, some at the same time, over replicas that answer, repeat, skip,
// wipe their journal and take over from each other, with restarts of the store in between. Each history must be one that
// a small pure machine could have had, call after call (test/support/command-model.ts); beside that stand checks that
// know neither the machine nor the queries. SALLYPORT_MODEL_RUNS and SALLYPORT_MODEL_SEED set how many and which.
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import {
  ConnectorError,
  jsonBody,
  newCommandId,
  newId,
  pipelineSchema,
  type CommandId,
  type JournalId,
  type PoolId,
  type ReplicaId,
  type Report,
  type RunId,
  type WorkspaceId,
} from "@sallyport/protocol";
import fc from "fast-check";
import t from "tap";
import {
  commandModel,
  EMPTY,
  RUN,
  STOP,
  type Answer,
  type Op,
  type ReportOf,
  type State,
  type Wish,
} from "../../test/support/command-model.ts";
import { explain, Undecided, type Call } from "../../test/support/history.ts";
import { onPostgres, postgres } from "../../test/support/postgres.ts";
import { waitFor } from "../../test/support/launcher.ts";
import { storePlace } from "../../test/support/store.ts";
import { openStore, TERMINAL_STATES, type ChangeRow, type HistoryRow, type Scope, type Store } from "./index.ts";

type Event = Call<Op, Answer>;
const runs = Number(process.env["SALLYPORT_MODEL_RUNS"] ?? (onPostgres ? 60 : 300));
// The same stories each time, for whoever changes something; the soak tells others.
const seed = Number(process.env["SALLYPORT_MODEL_SEED"] ?? 1);
t.setTimeout(600_000 + runs * 1000);
const START = Date.UTC(2026, 0, 1);
const MEMORY = "/dev/shm";
const MINUTE = 60_000;
const DAY = 24 * 3600_000;

// -- what is generated: choices alone; what they mean is decided when their turn comes
const pick = fc.nat({ max: 1 << 20 });
const action = fc.record({
  what: fc.oneof(
    { weight: 9, arbitrary: fc.constant("create" as const) },
    { weight: 12, arbitrary: fc.constant("dispatch" as const) },
    { weight: 9, arbitrary: fc.constant("accepted" as const) },
    { weight: 12, arbitrary: fc.constant("reports" as const) },
    { weight: 3, arbitrary: fc.constant("notTaken" as const) },
    { weight: 2, arbitrary: fc.constant("refused" as const) },
    { weight: 2, arbitrary: fc.constant("cancel" as const) },
    { weight: 2, arbitrary: fc.constant("lost" as const) },
    { weight: 2, arbitrary: fc.constant("expire" as const) },
    { weight: 4, arbitrary: fc.constant("takeOver" as const) },
    { weight: 1, arbitrary: fc.constant("settled" as const) },
    { weight: 1, arbitrary: fc.constant("limit" as const) },
    { weight: 5, arbitrary: fc.constant("read" as const) },
    { weight: 2, arbitrary: fc.constant("steps" as const) },
    { weight: 3, arbitrary: fc.constant("offerable" as const) },
    { weight: 2, arbitrary: fc.constant("moved" as const) },
    { weight: 2, arbitrary: fc.constant("handoffs" as const) },
  ),
  a: pick,
  b: pick,
  c: pick,
});
type Action = typeof action extends fc.Arbitrary<infer T> ? T : never;
const step = fc.record({
  /** At the same time. */
  together: fc.oneof(
    { weight: 3, arbitrary: fc.array(action, { minLength: 1, maxLength: 1 }) },
    { weight: 2, arbitrary: fc.array(action, { minLength: 2, maxLength: 4 }) },
  ),
  /** The clock, which may also run backwards. */
  passMs: fc.oneof(
    { weight: 20, arbitrary: fc.nat({ max: 500 }) },
    { weight: 3, arbitrary: fc.constantFrom(61_000, 10 * MINUTE) },
    { weight: 1, arbitrary: fc.constantFrom(DAY + 1, -DAY, -MINUTE) },
  ),
  /** Closed under the calls that are under way, and opened again. */
  restart: fc.oneof({ weight: 249, arbitrary: fc.constant(false) }, { weight: 1, arbitrary: fc.constant(true) }),
  /** On PostgreSQL: its connections are cut under the calls that are under way. */
  cut: fc.oneof({ weight: 59, arbitrary: fc.constant(false) }, { weight: 1, arbitrary: fc.constant(onPostgres) }),
});
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never;
/** In runs it is spread over long and short ones alike, about forty calls in the middle. */
const story = fc.array(step, { minLength: 6, maxLength: 40, size: "max" });

// -- the store, and one run's place in it
/** Where a store goes wrong on purpose, so that the judge is seen to notice. */
type Sabotage = (op: Op, call: () => Promise<Answer>) => Promise<Answer>;

type Heard = (store: number, workspace: WorkspaceId, changes: ChangeRow[]) => void;
class Bench {
  readonly #openOne: () => Promise<Store>;
  /** PostgreSQL is shared by two, which know nothing of each other; SQLite has one. */
  stores: Store[] = [];
  #heard: Heard | null = null;
  readonly #database: string | null;
  constructor(openOne: () => Promise<Store>, database: string | null) {
    this.#openOne = openOne;
    this.#database = database;
  }
  async open(): Promise<void> {
    this.stores = await Promise.all(Array.from({ length: onPostgres ? 2 : 1 }, () => this.#openOne()));
    for (const [n, store] of this.stores.entries())
      store.onChange((workspace, changes) => this.#heard?.(n, workspace, changes));
  }
  async close(): Promise<void> {
    await Promise.all(this.stores.map((store) => store.close()));
  }
  /** All connections of the stores, from the side of the server. */
  async cut(): Promise<void> {
    const statement =
      "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()";
    await (await postgres()).sql(this.#database!, statement);
  }
  /** Resolves when every store answers again. */
  async back(scope: Scope): Promise<void> {
    const answers = (store: Store) =>
      store.ensurePool(scope, "lab", START).then(
        () => true,
        () => false,
      );
    for (const store of this.stores) await waitFor("an answer", () => answers(store), { timeoutMs: 60_000 });
  }
  listen(heard: Heard): void {
    this.#heard = heard;
  }
}

let made = 0;
interface Replica {
  id: ReplicaId;
  journal: JournalId;
  /** All that this journal ever said; the first `dropped` are gone from it. */
  said: ReportOf[];
  dropped: number;
}
interface Offered {
  id: string;
  replica: ReplicaId;
  attempt: number;
}

class World {
  readonly #bench: Bench;
  readonly #sabotage: Sabotage | null;
  readonly events: Event[] = [];
  readonly told: number[][] = [[], []];
  readonly changes: ChangeRow[] = [];
  readonly wishes = new Map<string, Wish>();
  readonly #offers: Offered[] = [];
  /** When listeners were told of each. */
  readonly #heardOf = new Map<string, number[]>();
  /** Those of which an answer said so. */
  readonly #ended = new Set<string>();
  readonly #marks = new Map<string, ReportOf>();
  replicas: Replica[] = [];
  scope!: Scope;
  pool!: PoolId;
  now = START;
  #tick = 0;

  constructor(bench: Bench, sabotage: Sabotage | null) {
    this.#bench = bench;
    this.#sabotage = sabotage;
  }

  async begin(): Promise<void> {
    const store = this.#bench.stores[0]!;
    const name = `w${++made}`;
    // What an earlier run left queued would be counted with this one's.
    await store.expireQueued(START + 1000 * DAY);
    const user = await store.makeWorkspace(name, `${name}-admin`, START);
    this.scope = { workspace: user.workspace, actor: { id: user.id, name: user.name, via: "session" } };
    this.pool = (await store.ensurePool(this.scope, "lab", START)).id;
    this.replicas = await Promise.all(
      ["a", "b", "c"].map(async (hint): Promise<Replica> => {
        const id = newId("enrollment");
        const secretHash = `${name}-${hint}`;
        await store.addEnrollment(this.scope, {
          id,
          pool: this.pool,
          name: null,
          secretHash,
          createdAt: START,
          expiresAt: START + DAY,
        });
        const answer = await store.redeemEnrollment({
          id,
          secretHash,
          publicKey: secretHash,
          fingerprint: "f",
          nameHint: hint,
          remoteAddress: null,
          now: START,
        });
        if ("refused" in answer) throw new Error(answer.refused);
        return { id: answer.replica.id, journal: newId("journal"), said: [], dropped: 0 };
      }),
    );
    const before = (await store.changesAfter(this.scope.workspace, 0, 1000)).newest;
    this.#bench.listen((n, workspace, changes) => {
      if (workspace !== this.scope.workspace) return;
      this.told[n]!.push(...changes.map((change) => change.n).filter((each) => each > before));
      this.changes.push(...changes.filter((change) => change.n > before));
      for (const { id } of changes) this.#heardOf.set(id, [...(this.#heardOf.get(id) ?? []), ++this.#tick]);
    });
    this.firstChange = before;
  }
  firstChange = 0;

  async play(one: Step): Promise<void> {
    this.now += one.passMs;
    const ops = one.together.map((each) => this.#meant(each));
    const done = ops.map((op, n) => this.#call(op, one.together[n]!.c));
    if (one.cut) {
      let cutting = true;
      const cut = this.#bench.cut().finally(() => (cutting = false));
      // It comes when it comes: meanwhile they call again.
      for (let n = 0; n < 8 && cutting; n++)
        await Promise.all(one.together.map((each) => this.#call(this.#meant(each), each.c + n)));
      await cut;
      await Promise.all(done);
      await this.#bench.back(this.scope);
    }
    if (one.restart) {
      const closed = this.#bench.close();
      await Promise.all(done);
      await closed;
      await this.#bench.open();
    }
    await Promise.all(done);
  }

  async #call(op: Op, choice: number): Promise<void> {
    const store = this.#bench.stores[choice % this.#bench.stores.length]!;
    const event: Event = { op, called: ++this.#tick, returned: Infinity };
    const call = () => this.#do(store, op);
    try {
      const answer = this.#sabotage === null ? await call() : await this.#sabotage(op, call);
      event.returned = ++this.#tick;
      event.answer = answer;
      this.#learn(op, answer);
    } catch (error) {
      if (!(error instanceof ConnectorError)) throw error;
      // Refused at the door: it was not begun.
      if (error.code === "GOING_AWAY") return;
      // Done or not: nobody can tell.
      if (error.code !== "DATABASE_UNAVAILABLE") {
        event.returned = ++this.#tick;
        event.answer = { code: error.code };
      }
    }
    this.events.push(event);
  }

  #learn(op: Op, answer: Answer): void {
    if (op.name === "dispatch" && answer !== null)
      this.#offers.push({
        id: op.id,
        replica: op.replica as ReplicaId,
        attempt: (answer as { attempt: number }).attempt,
      });
    if ("id" in op) {
      const state = typeof answer === "string" ? answer : (answer as { state?: string } | null)?.state;
      if (TERMINAL_STATES.includes(state as never) || (answer === true && op.name !== "takeOver"))
        this.#ended.add(op.id);
    }
    if (op.name !== "reports") return;
    const replica = this.replicas.find((one) => one.id === op.replica);
    const { through } = answer as { through: number };
    if (replica?.journal === op.journal)
      replica.dropped = Math.max(replica.dropped, Math.min(through, replica.said.length));
  }

  // -- from choices to calls
  #of<T>(list: readonly T[], choice: number): T | undefined {
    return list.length === 0 ? undefined : list[choice % list.length];
  }
  /** Mostly of those that go on, as far as callers were told. */
  #id(choice: number): string {
    const ids = [...this.wishes.keys()];
    const going = ids.filter((id) => !this.#ended.has(id));
    return this.#of(choice % 8 === 0 || going.length === 0 ? ids : going, choice >> 3) ?? newCommandId();
  }
  #replica(choice: number): Replica {
    return this.#of(this.replicas, choice)!;
  }
  /** Mostly an offer that was made; now and then somebody whom nobody asked. */
  #offer(a: number, b: number): Offered {
    const going = this.#offers.filter((one) => !this.#ended.has(one.id));
    const offered = this.#of(a % 6 === 0 ? this.#offers : going.slice(-4), a >> 3);
    if (offered !== undefined && b % 12 !== 0) return offered;
    return { id: this.#id(a), replica: this.#replica(b >> 4).id, attempt: 1 + (b % 3) };
  }

  #wish(a: number, b: number, c: number): Wish {
    const again = a % 8 === 0 ? this.wishes.get(this.#id(b)) : undefined;
    // The same id: for the same, or for something else.
    if (again !== undefined) return c % 3 === 0 ? { ...again, asks: "other" } : again;
    const earlier = [...this.wishes.values()].filter((one) => one.kind === RUN);
    const stopped = a % 6 === 1 ? this.#of(earlier, b) : undefined;
    const kind = stopped !== undefined ? STOP : a % 6 === 2 ? "deployment.logs" : RUN;
    return {
      id: newCommandId(),
      kind,
      resource: stopped !== undefined ? `run:${stopped.run}` : `r${b % 3}`,
      run: stopped?.run ?? (kind === RUN ? newId("run") : null),
      pipeline: kind === RUN ? `p${(b >> 4) % 2}` : null,
      concurrency: kind === RUN && (b >> 6) % 3 === 0 ? 1 + ((b >> 8) % 2) : null,
      priority: ((b >> 10) % 3) - 1,
      notBefore: (b >> 12) % 6 === 0 ? this.now + MINUTE : this.now,
      expires: this.now + [5_000, 5 * MINUTE, 5 * MINUTE, 2 * DAY][c % 4]!,
      asks: "this",
    };
  }

  #meant({ what, a, b, c }: Action): Op {
    const { now } = this;
    switch (what) {
      case "create": {
        const wish = this.#wish(a, b, c >> 8);
        const key =
          (c >> 4) % 2 === 0
            ? null
            : { key: `k${(c >> 5) % 3}`, digest: `d${(c >> 7) % 5 === 0 ? 1 : 0}`, answer: wish.id };
        if (!this.wishes.has(wish.id)) this.wishes.set(wish.id, wish);
        return { name: "create", wish, key, now };
      }
      case "dispatch": {
        const floor = a % 10 === 0 ? a % 50 : 0;
        return { name: "dispatch", id: this.#id(a), replica: this.#replica(b).id, floor, now };
      }
      case "accepted": {
        const { id, replica } = this.#offer(a, b);
        return { name: "accepted", id, replica, now };
      }
      case "notTaken": {
        const { id, replica, attempt } = this.#offer(a, b);
        return { name: "notTaken", id, replica, attempt, now };
      }
      case "refused": {
        const { id, replica } = this.#offer(a, b);
        return { name: "refused", id, replica, code: c % 3 === 0 ? "COMMAND_EXPIRED" : "POLICY_DENIED", now };
      }
      case "cancel":
        return { name: "cancel", id: this.#id(a), now };
      case "lost":
        return { name: "lost", id: this.#id(a), replica: b % 3 === 0 ? undefined : this.#offer(a, c).replica, now };
      case "expire":
        return { name: "expire", now };
      case "takeOver": {
        const { id, replica } = this.#offer(a, b);
        const others = this.replicas.filter((one) => one.id !== replica);
        return { name: "takeOver", id, from: replica, to: this.#of(others, b >> 4)!.id, holds: c % 4 !== 0, now };
      }
      case "settled":
        return { name: "settled", ids: [this.#id(a)], now };
      case "limit":
        return { name: "limit", maxRuns: [null, 1, 2][a % 3]! };
      case "read":
        return { name: "read", id: this.#id(a) };
      case "steps":
        return { name: "steps", run: this.wishes.get(this.#id(a))?.run ?? newId("run") };
      case "offerable":
        return { name: "offerable", now };
      case "moved":
        return { name: "moved" };
      case "handoffs":
        return { name: "handoffs", replica: this.#replica(a).id };
      case "reports":
        return this.#reports(a, b, c);
    }
  }

  #reports(a: number, b: number, c: number): Op {
    const replica = this.#replica(a);
    if (b % 40 === 0) {
      // Its disk was lost: a new journal begins at one.
      replica.journal = newId("journal");
      replica.said = [];
      replica.dropped = 0;
    }
    const about = this.#offers
      .filter((one) => one.replica === replica.id && (a % 5 === 0 || !this.#ended.has(one.id)))
      .map((one) => one.id);
    for (let n = 0; n < 1 + (b % 3); n++) replica.said.push(this.#report(replica, about, a >> (n + 2), c >> (n * 5)));
    const { dropped, said } = replica;
    const how = (b >> 3) % 12;
    // In order; the whole again; with a hole; out of order; another's.
    const from = how === 1 ? 0 : dropped;
    let reports = said.slice(from);
    if (how === 2) reports = reports.filter((_, n) => n !== 1);
    if (how === 3) reports = reports.toReversed();
    if (how === 4) reports = [...reports, ...reports];
    if (how === 5) reports = reports.slice(0, -1);
    const sender = how === 6 ? this.#replica(a + 1) : replica;
    return {
      name: "reports",
      replica: sender.id,
      journal: replica.journal,
      reports,
      lowestHeld: how === 7 ? dropped + 1 + ((b >> 8) % 2) : 1,
      now: this.now,
    };
  }

  #report(replica: Replica, about: string[], a: number, b: number): ReportOf {
    const command = (b % 8 === 0 ? undefined : this.#of(about.slice(-3), a)) ?? this.#id(a);
    const base = { sequence: replica.said.length + 1, command, mark: `m${this.#marks.size}` };
    const types = [
      "running",
      "running",
      "step",
      "step",
      "step",
      "succeeded",
      "failed",
      "cancelled",
      "released",
      "nonsense",
    ] as const;
    const type = types[(b >> 3) % types.length]!;
    const report: ReportOf =
      type === "step"
        ? {
            ...base,
            type,
            run: this.wishes.get(command)?.run ?? newId("run"),
            step: `s${a % 2}`,
            attempt: 1 + ((a >> 1) % 2),
            ends: (a >> 2) % 3 === 0,
            logSeq: (a >> 4) % 9,
          }
        : { ...base, type };
    this.#marks.set(base.mark, report);
    return report;
  }

  // -- from calls to the store, and its answers to what the model tells
  async #do(store: Store, op: Op): Promise<Answer> {
    const { scope } = this;
    const { workspace } = scope;
    const id = ("id" in op ? op.id : "") as CommandId;
    const replica = ("replica" in op ? op.replica : null) as ReplicaId;
    switch (op.name) {
      case "create": {
        const { wish, key, now } = op;
        const { command, replayed } = await store.createCommand(
          scope,
          {
            id: wish.id as CommandId,
            pool: this.pool,
            kind: wish.kind,
            resource: wish.resource,
            intent: JSON.stringify({ asks: wish.asks, notBefore: now }),
            body: jsonBody({}),
            notBefore: wish.notBefore,
            expires: wish.expires,
            createdAt: now,
            priority: wish.priority,
            ...(wish.kind === RUN ? { run: this.#run(wish, now) } : {}),
          },
          key === null
            ? undefined
            : {
                key: key.key,
                method: "POST",
                route: "/v1/runs",
                requestDigest: key.digest,
                answer: { status: 202, body: key.answer },
              },
        );
        return { id: command.id, state: command.state, replayed: replayed === null ? null : replayed.body };
      }
      case "dispatch":
        return store.nextDispatch(workspace, id, replica, op.floor, op.now);
      case "accepted":
        return store.markAccepted(workspace, id, replica, op.now);
      case "refused":
        await store.markRefused(workspace, id, replica, { code: op.code as "POLICY_DENIED", message: "no" }, op.now);
        return null;
      case "notTaken":
        return store.markNotTaken(workspace, id, { attempt: op.attempt, replica, code: "AT_CAPACITY" }, op.now);
      case "cancel":
        return store.cancelQueued(scope, id, op.now);
      case "lost":
        return op.replica === undefined
          ? store.declareLost(scope, id, op.now)
          : store.declareLost(scope, id, op.now, { reason: "burnt", replica });
      case "expire":
        return store.expireQueued(op.now);
      case "takeOver":
        return store.takeOver(
          workspace,
          id,
          { from: op.from as ReplicaId, to: op.to as ReplicaId, reason: "SILENT", holds: op.holds },
          op.now,
        );
      case "settled":
        await store.markSettled(workspace, op.ids as CommandId[], op.now);
        return null;
      case "limit":
        await store.limitPool(scope, this.pool, { maxRuns: op.maxRuns });
        return null;
      case "reports": {
        const reports = op.reports.map((one) => this.#sent(op.journal as JournalId, one));
        const { lowestHeld } = op;
        const answer =
          lowestHeld === 1
            ? await store.commitReports(workspace, replica, op.journal, reports, op.now)
            : await store.commitReports(workspace, replica, op.journal, reports, op.now, lowestHeld);
        return {
          through: answer.committedThrough,
          released: (answer.released ?? []).toSorted(),
          fenced: (answer.fenced ?? []).toSorted(),
        };
      }
      case "read": {
        const row = await store.command(scope, id);
        if (row === null) return null;
        const { result, error } = row;
        const mark =
          (result as { mark?: string } | null)?.mark ??
          (result as { stopped?: string[] } | null)?.stopped?.[0] ??
          (row.state === "failed" ? error!.message : null);
        return { state: row.state, replica: row.replica, offers: row.offers, offeredTo: row.offeredTo ?? null, mark };
      }
      case "steps": {
        const found = await store.run(scope, op.run as RunId);
        if (found === null) return null;
        return {
          state: found.command.state,
          steps: found.attempts
            .map((one) => `${one.step}/${one.attempt} ${one.outputs[0]!.path} ${one.logSeq}`)
            .toSorted(),
        };
      }
      case "offerable":
        return (await store.offerable(workspace, this.pool, op.now, 100)).map((row) => row.id);
      case "moved":
        return (await store.unacceptedTakeovers(workspace, this.pool, 100)).map((row) => row.id).toSorted();
      case "handoffs": {
        const { released, settled } = await store.handoffs(workspace, replica, 100);
        return { released: released.toSorted(), settled: settled.toSorted() };
      }
    }
  }

  #run(wish: Wish, now: number) {
    const spec = pipelineSchema.parse({
      name: wish.pipeline,
      steps: [{ name: "s0", program: "p" }],
      outputs: { store: "lake" },
      ...(wish.concurrency === null ? {} : { concurrency: wish.concurrency }),
    });
    return { id: wish.run as RunId, pool: this.pool, pipeline: wish.pipeline!, spec, params: {}, createdAt: now };
  }

  #sent(journal: JournalId, one: ReportOf): Report {
    const { sequence, mark } = one;
    const data = (): unknown => {
      switch (one.type) {
        case "running":
        case "released":
          return { type: `command.${one.type}` };
        case "succeeded":
          return { type: "command.succeeded", result: { mark } };
        case "failed":
          return { type: "command.failed", error: { code: "STEP_FAILED", message: mark } };
        case "cancelled":
          return { type: "command.cancelled", stopped: [mark] };
        case "nonsense":
          return { type: "command.paused" };
        case "step":
          return {
            type: "step",
            run: one.run,
            step: one.step,
            attempt: one.attempt,
            state: one.ends ? "succeeded" : "running",
            error: null,
            exitCode: one.ends ? 0 : null,
            outputs: [
              {
                name: "o",
                store: "lake",
                path: mark,
                kind: "file",
                sizeBytes: 1,
                digest: `sha256:${"00".repeat(32)}`,
                mediaType: "text/plain",
              },
            ],
            logSeq: one.logSeq,
            adopted: false,
          };
      }
    };
    return { journal, sequence, at: this.now, command: one.command as CommandId, body: jsonBody(data()) };
  }

  // -- judgement
  async judge(): Promise<void> {
    await this.play({
      together: [...this.wishes.keys()].map((_, n) => ({ what: "read", a: n, b: 0, c: n })),
      passMs: 0,
      restart: false,
      cut: false,
    });
    const verdict = explain(this.events, commandModel);
    if (!verdict.ok) throw new Error(told(verdict.explained, verdict.stuck));
    await this.#independently(movesIn(verdict.order));
  }

  async #independently(moved: readonly { id: string; by: Event }[]): Promise<void> {
    const store = this.#bench.stores[0]!;
    const { workspace } = this.scope;
    const must = (holds: boolean, what: string): void => {
      if (!holds) throw new Error(`${what}\n${told(this.events, [])}`);
    };
    const stored = (await store.changesAfter(workspace, this.firstChange, 10_000)).items;
    const numbers = stored.map((change) => change.n);
    must(rises(numbers), "changes rise");
    for (const heard of this.told) must(rises(heard), "listeners are told of changes in order");
    // A commit of which nobody can tell whether it was done is told by nobody.
    const certain = this.events.every((one) => one.returned !== Infinity);
    must(
      !certain ||
        this.changes
          .map((one) => one.n)
          .toSorted((a, b) => a - b)
          .join() === numbers.join(),
      "each change is told once, to those who asked the store that made it",
    );
    // Whoever has an answer finds that listeners were told. Of calls at the same time one may have done it for the other.
    for (const { id, by } of moved) {
      if (by.returned === Infinity) continue;
      const beside = this.events.filter((one) => one.called < by.returned && by.called < one.returned);
      const until = Math.max(...beside.map((one) => one.returned));
      must(
        (this.#heardOf.get(id) ?? []).some((tick) => tick > by.called && tick < until),
        `${id}: a change tells that it moved at ${by.called}-${by.returned}`,
      );
    }
    const answered = this.events.filter((one) => one.returned !== Infinity);
    const created = answered.filter((one) => one.op.name === "create" && "id" in (one.answer as object));
    const offered = new Map<string, { sequence: number; called: number; returned: number }[]>();
    for (const { op, answer, called, returned } of answered)
      if (op.name === "dispatch" && answer !== null) {
        const of = offered.get(op.replica) ?? [];
        of.push({ sequence: (answer as { sequence: number }).sequence, called, returned });
        offered.set(op.replica, of);
      }
    for (const of of offered.values())
      for (const one of of)
        for (const other of of) {
          must(one === other || one.sequence !== other.sequence, "no dispatch sequence twice");
          must(one.returned > other.called || one.sequence < other.sequence, "dispatch sequences rise");
        }
    this.#committed(must);
    this.#keys(must, created);
    const ids = [...new Set(created.map((one) => (one.answer as { id: string }).id))];
    const histories = new Map<string, HistoryRow[]>();
    for (const id of ids) {
      const row = (await store.command(this.scope, id as CommandId))!;
      const rows = await store.history(this.scope, id as CommandId);
      histories.set(id, rows);
      const events = rows.filter((one) => one.type !== "offered");
      const moves = events.filter((one) => one.applied && one.type !== "released");
      // Ends never flip, and nothing follows them.
      const ends = moves.filter((one) => TERMINAL_STATES.includes(one.type as never));
      must(ends.length <= 1 && (ends.length === 0 || moves.at(-1) === ends[0]), `${id} ends once: ${typesOf(events)}`);
      must((ends[0]?.type ?? row.state) === row.state, `${id} ends as its history says`);
      // One holder at a time, handed on only by a takeover.
      let holder: string | null = null;
      for (const one of moves) {
        if (one.type === "taken-over") {
          const { from, to } = one.detail as { from: string; to: string };
          must(holder === null || holder === from, `${id} is taken from who has it`);
          if (holder !== null) holder = to;
        } else if (one.type === "accepted" || one.type === "running") {
          must(holder === null || holder === one.agent!.id, `${id} is accepted by one at a time: ${typesOf(events)}`);
          holder = one.agent!.id;
        }
      }
      must(holder === null || holder === row.replica, `${id} is with who took it`);
      // Reports: each at most once from whoever sends it, whatever was repeated.
      const marks = events.filter((one) => markOf(one) !== undefined).map((one) => `${one.agent?.id} ${markOf(one)}`);
      must(new Set(marks).size === marks.length, `${id}: each report counts once`);
      const said = [...this.#marks.values()].filter((one) => one.command === id && one.type === "running").length;
      must(events.filter((one) => one.type === "running").length <= said * 2, `${id}: no report is counted again`);
    }
    // Who is still waiting was never passed by a younger one of its resource.
    const askedFor = Map.groupBy(created, (one) => (one.answer as { id: string }).id);
    const there = (id: string): number => Math.min(...askedFor.get(id)!.map((one) => one.returned));
    const asked = (id: string): number => Math.min(...askedFor.get(id)!.map((one) => one.called));
    for (const [id, rows] of histories) {
      if (rows.some((one) => one.type !== "queued" && one.type !== "offered" && one.applied)) continue;
      for (const [other, others] of histories)
        if (
          other !== id &&
          this.wishes.get(other)!.resource === this.wishes.get(id)!.resource &&
          there(id) < asked(other)
        )
          must(!others.some((one) => one.type === "offered"), `${other} was offered before ${id} of its resource`);
    }
  }

  /** Never beyond the reports that were there without a hole, and never back. */
  #committed(must: (holds: boolean, what: string) => void): void {
    const sent = this.events.filter((one) => one.op.name === "reports");
    for (const one of sent) {
      if (one.returned === Infinity) continue;
      const { replica, journal } = one.op as Op & { name: "reports" };
      const { through } = one.answer as { through: number };
      const there = new Set<number>();
      let floor = 0;
      for (const other of sent) {
        const { op } = other as Event & { op: Op & { name: "reports" } };
        if (op.replica !== replica || op.journal !== journal) continue;
        if (other.returned < one.called)
          must((other.answer as { through: number }).through <= through, "committed once is committed");
        if (other.called > one.returned) continue;
        for (const { sequence } of op.reports) there.add(sequence);
        floor = Math.max(floor, op.lowestHeld - 1);
      }
      for (let n = floor + 1; n <= through; n++) must(there.has(n), `report ${n} was never there, but is committed`);
    }
  }

  /** Within a day one key is one command, told the same each time. */
  #keys(must: (holds: boolean, what: string) => void, created: readonly Event[]): void {
    const times = created.map((one) => (one.op as Op & { name: "create" }).now);
    if (Math.max(...times) - Math.min(...times) >= DAY) return;
    const first = new Map<string, string>();
    for (const { op, answer } of created) {
      const { key } = op as Op & { name: "create" };
      if (key === null) continue;
      const { id } = answer as { id: string };
      must((first.get(key.key) ?? `${key.digest} ${id}`) === `${key.digest} ${id}`, `key ${key.key} is one command`);
      first.set(key.key, `${key.digest} ${id}`);
    }
  }
}

/** Calls that changed the state of commands or who has them, by the order that was found. */
function movesIn(order: readonly Event[]): { id: string; by: Event }[] {
  const moved: { id: string; by: Event }[] = [];
  let state: State = EMPTY;
  for (const by of order) {
    const next = commandModel.step(state, by.op, by.answer)!;
    for (const [id, one] of Object.entries(next.commands)) {
      const before = state.commands[id];
      if (before?.state !== one.state || before.replica !== one.replica || before.moves.length !== one.moves.length)
        moved.push({ id, by });
    }
    state = next;
  }
  return moved;
}
const rises = (numbers: readonly number[]): boolean => numbers.every((n, at) => at === 0 || n > numbers[at - 1]!);
const typesOf = (events: readonly HistoryRow[]): string =>
  events.map((one) => `${one.type}${one.applied ? "" : " (kept)"} ${one.agent?.name ?? ""}`).join(", ");
const markOf = ({ type, detail }: HistoryRow): string | undefined => {
  const found =
    type === "failed"
      ? detail?.["message"]
      : ((detail?.["result"] as { mark?: string } | undefined)?.mark ??
        (detail?.["stopped"] as string[] | undefined)?.[0]);
  return typeof found === "string" && /^m\d+$/.test(found) ? found : undefined;
};
const told = (explained: readonly Event[], stuck: readonly Event[]): string => {
  const names = new Map<string, string>();
  const line = ({ op, answer, called, returned }: Event): string =>
    `${called}-${returned} ${JSON.stringify(op)} -> ${JSON.stringify(answer)}`;
  const text = [
    ...explained.map(line),
    ...(stuck.length === 0 ? [] : ["none of these can come next:", ...stuck.map(line)]),
  ].join("\n");
  // Short names, so that a person can read it.
  return text.replace(
    /\b(?:rep_|run_|jrn_)?[0-9a-f]{8}-?[0-9a-f]{4}-?7[0-9a-f]{3}-?[0-9a-f]{4}-?[0-9a-f]{12}\b/g,
    (id) => {
      const kind = /^[a-z]+(?=_)/.exec(id)?.[0] ?? "c";
      if (!names.has(id)) names.set(id, `${kind}${names.size + 1}`);
      return names.get(id)!;
    },
  );
};

async function playOut(bench: Bench, steps: readonly Step[], sabotage: Sabotage | null = null): Promise<World> {
  const world = new World(bench, sabotage);
  await world.begin();
  for (const one of steps) await world.play(one);
  return world;
}

async function opened(test: Parameters<typeof storePlace>[0]): Promise<Bench> {
  const place = await storePlace(test);
  // In memory where that can be had: what a disk does is not the question here.
  const dir = existsSync(MEMORY) ? mkdtempSync(join(MEMORY, "sallyport-model-")) : place.dir;
  test.teardown(() => rmSync(dir, { recursive: true, force: true }));
  const bench = new Bench(() => openStore({ dir, database: place.database }), place.database);
  await bench.open();
  test.teardown(() => bench.close());
  return bench;
}

t.test("each history of the store is one of the machine's", async (t) => {
  const bench = await opened(t);
  let calls = 0;
  let tried = 0;
  let concurrent = 0;
  let unknown = 0;
  let undecided = 0;
  const counts = new Map<string, number>();
  const started = performance.now();
  const verdict = await fc.check(
    fc.asyncProperty(story, async (steps) => {
      const world = await playOut(bench, steps);
      try {
        await world.judge();
      } catch (error) {
        if (!(error instanceof Undecided)) throw error;
        undecided++;
      }
      calls += world.events.length;
      unknown += world.events.filter((one) => one.returned === Infinity).length;
      tried++;
      const ordered = world.events.toSorted((a, b) => a.called - b.called);
      for (const [n, { op, answer, returned }] of ordered.entries()) {
        if ((ordered[n + 1]?.called ?? Infinity) < returned) concurrent++;
        const kind = answer === null || answer === false ? "no" : "yes";
        counts.set(`${op.name} ${kind}`, (counts.get(`${op.name} ${kind}`) ?? 0) + 1);
      }
    }),
    { numRuns: runs, seed, endOnFailure: process.env["SALLYPORT_MODEL_SHRINK"] === undefined },
  );
  if (verdict.failed) {
    const { message, stack } = verdict.errorInstance as Error;
    const again = `SALLYPORT_MODEL_SEED=${verdict.seed} SALLYPORT_MODEL_RUNS=${verdict.numRuns}`;
    t.fail(`after ${verdict.numRuns} runs, ${verdict.numShrinks} times shrunk. Again: ${again}`);
    console.error(`${message}\n${stack}`);
  }
  t.ok(undecided <= runs / 5, `${undecided} of ${tried} histories could not be judged`);
  const seconds = (performance.now() - started) / 1000;
  t.comment(
    `${tried} runs, ${calls} calls (${concurrent} overlapping, ${unknown} unanswered) in ${seconds.toFixed(1)} s, seed ${seed}, ${onPostgres ? "PostgreSQL" : "SQLite"}`,
  );
  t.comment(
    [...counts]
      .map(([name, n]) => `${name} ${n}`)
      .sort()
      .join(", "),
  );
});

// -- the judge itself
const wished = (id: string, more: Partial<Wish> = {}): Wish => ({
  id,
  kind: "k.k",
  resource: "r",
  run: null,
  pipeline: null,
  concurrency: null,
  priority: 0,
  notBefore: 0,
  expires: 1000,
  asks: "this",
  ...more,
});
const asking = (id: string, key: string | null = null): Op => ({
  name: "create",
  wish: wished(id),
  key: key === null ? null : { key, digest: "d", answer: id },
  now: 1,
});
const offering = (id: string, replica = "a"): Op => ({ name: "dispatch", id, replica, floor: 0, now: 1 });
const taking = (id: string, replica = "a"): Op => ({ name: "accepted", id, replica, now: 1 });
const reading = (id: string): Op => ({ name: "read", id });
const saying = (replica: string, ...reports: [number, string, "running" | "succeeded" | "failed"][]): Op => ({
  name: "reports",
  replica,
  journal: "j",
  reports: reports.map(([sequence, command, type]) => ({ sequence, command, type, mark: `m${sequence}` })),
  lowestHeld: 1,
  now: 1,
});
const row = (state: string, replica: string | null, offers: number, mark: string | null = null) => ({
  state,
  replica,
  offers,
  offeredTo: offers > 0 ? "a" : null,
  mark,
});
const through = (n: number) => ({ through: n, released: [], fenced: [] });
const new_ = (id: string) => ({ id, state: "queued", replayed: null });
/** One after the other. */
const inTurn = (...calls: [Op, Answer][]): Event[] =>
  calls.map(([op, answer], n) => ({ op, answer, called: 2 * n, returned: 2 * n + 1 }));

t.test("the judge: histories made by hand, right ones and wrong ones", async (t) => {
  const begun: [Op, Answer][] = [
    [asking("x"), new_("x")],
    [offering("x"), { sequence: 1, attempt: 1 }],
    [taking("x"), "accepted"],
  ];
  const right: Record<string, Event[]> = {
    "a life": inTurn(
      ...begun,
      [reading("x"), row("accepted", "a", 1)],
      [saying("a", [1, "x", "running"], [2, "x", "succeeded"]), through(2)],
      [saying("a", [2, "x", "succeeded"], [3, "x", "failed"]), through(3)],
      [reading("x"), row("succeeded", "a", 1, "m2")],
    ),
    "at the same time, the later call first": [
      { op: reading("x"), answer: row("queued", null, 0), called: 0, returned: 3 },
      { op: asking("x"), answer: new_("x"), called: 1, returned: 2 },
    ],
    "no answer, and it was done": [
      ...inTurn(...begun.slice(0, 2)),
      { op: taking("x"), called: 10, returned: Infinity },
      { op: reading("x"), answer: row("accepted", "a", 1), called: 11, returned: 12 },
    ],
    "no answer, and it was not done": [
      ...inTurn(...begun.slice(0, 2)),
      { op: taking("x"), called: 10, returned: Infinity },
      { op: reading("x"), answer: row("queued", null, 1), called: 11, returned: 12 },
    ],
  };
  const wrong: Record<string, Event[]> = {
    "an acceptance is lost": inTurn(...begun, [reading("x"), row("queued", null, 1)]),
    "an end flips": inTurn(
      ...begun,
      [saying("a", [1, "x", "succeeded"]), through(1)],
      [saying("a", [2, "x", "failed"]), through(2)],
      [reading("x"), row("failed", "a", 1, "m2")],
    ),
    "a cancelled one is accepted": inTurn(
      ...begun.slice(0, 2),
      [{ name: "cancel", id: "x", now: 1 }, true],
      [taking("x"), "accepted"],
    ),
    "the second of a resource goes first": inTurn(
      [asking("x"), new_("x")],
      [asking("y"), new_("y")],
      [offering("y"), { sequence: 1, attempt: 1 }],
    ),
    "two have it": inTurn(...begun, [taking("x", "b"), "accepted"], [reading("x"), row("accepted", "b", 1)]),
    "a sequence comes twice": inTurn(
      ...begun.slice(0, 1),
      [offering("x"), { sequence: 1, attempt: 1 }],
      [offering("x"), { sequence: 1, attempt: 2 }],
    ),
    "committed over a hole": inTurn(...begun, [saying("a", [1, "x", "running"], [3, "x", "succeeded"]), through(3)]),
    "a repeated report counts again": inTurn(
      ...begun,
      [saying("a", [1, "x", "running"]), through(1)],
      [saying("a", [1, "x", "failed"]), through(1)],
      [reading("x"), row("failed", "a", 1, "m1")],
    ),
    "one key, two commands": inTurn([asking("x", "k"), new_("x")], [asking("y", "k"), new_("y")]),
    "an old answer after a newer one": [
      { op: asking("x"), answer: new_("x"), called: 0, returned: 9 },
      { op: reading("x"), answer: row("queued", null, 0), called: 1, returned: 2 },
      { op: reading("x"), answer: null, called: 3, returned: 4 },
    ],
    "no answer, done and undone": [
      ...inTurn(...begun.slice(0, 2)),
      { op: taking("x"), called: 10, returned: Infinity },
      { op: reading("x"), answer: row("accepted", "a", 1), called: 11, returned: 12 },
      { op: reading("x"), answer: row("queued", null, 1), called: 13, returned: 14 },
    ],
  };
  for (const [name, history] of Object.entries(right)) t.equal(explain(history, commandModel).ok, true, name);
  for (const [name, history] of Object.entries(wrong)) t.equal(explain(history, commandModel).ok, false, name);
});

t.test("the judge: a store that goes wrong now and then is found out", async (t) => {
  const bench = await opened(t);
  /** The second time that `which` holds, `instead` is done. */
  const second = (which: (op: Op) => boolean, instead: (call: () => Promise<Answer>, op: Op) => Promise<Answer>) => {
    return (): Sabotage => {
      let seen = 0;
      return (op, call) => (which(op) && ++seen === 2 ? instead(call, op) : call());
    };
  };
  const saboteurs: Record<string, () => Sabotage> = {
    "an acceptance that is answered, not done": second(
      ({ name }) => name === "accepted",
      async () => "accepted",
    ),
    "reports that are acknowledged, not kept": second(
      ({ name }) => name === "reports",
      async (_call, op) => through((op as Op & { name: "reports" }).reports.at(-1)?.sequence ?? 0),
    ),
    "a dispatch that is done twice": second(
      ({ name }) => name === "dispatch",
      async (call) => {
        await call();
        return call();
      },
    ),
    "a read of what was": (() => {
      const before = new Map<string, Answer>();
      return (): Sabotage => async (op, call) => {
        if (op.name !== "read") return call();
        const old = before.get(op.id);
        if (old === undefined) before.set(op.id, await call());
        return old ?? before.get(op.id);
      };
    })(),
  };
  for (const [name, make] of Object.entries(saboteurs)) {
    const verdict = await fc.check(
      fc.asyncProperty(story, async (steps) => {
        const world = await playOut(bench, steps, make());
        await world.judge();
      }),
      { numRuns: 60, seed: 1, endOnFailure: true },
    );
    t.ok(verdict.failed, `${name}: after ${verdict.numRuns} runs`);
  }
});

t.test("the judge: any answer that is altered is noticed", async (t) => {
  // Call after call: then there is one right answer to each.
  const bench = await opened(t);
  let altered = 0;
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 5, maxLength: 15 }), pick, async (steps, at) => {
      const alone = steps.map((one) => ({ ...one, together: one.together.slice(0, 1), restart: false, cut: false }));
      const { events } = await playOut(bench, alone);
      // What may be offered under limits has more than one right answer.
      const fit = events.filter((one) => one.op.name !== "offerable");
      if (fit.length === 0) return;
      const one = fit[at % fit.length]!;
      one.answer = typeof one.answer === "number" ? one.answer + 1 : { other: one.answer };
      altered++;
      if (explain(events, commandModel).ok) throw new Error(`not noticed:\n${told(events, [])}`);
    }),
    { numRuns: Math.min(runs, 40), seed },
  );
  t.ok(altered > 0, `${altered} answers`);
});
