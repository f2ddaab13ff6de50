// Many callers at once, on PostgreSQL through several stores as several processes would have: what holds on SQLite by its
// single writer must hold there as well. Histories are kept by the callers and judged afterwards.
import {
  ConnectorError,
  deploymentSpecSchema,
  jsonBody,
  newCommandId,
  newId,
  type CommandId,
  type JournalId,
  type ReplicaId,
  type Report,
} from "@sallyport/protocol";
import t, { type Test } from "tap";
import { onPostgres } from "../../test/support/postgres.ts";
import { storePlace } from "../../test/support/store.ts";
import type { ChangeRow, NewCommand, Scope, Store } from "./index.ts";

const CALLERS = 24;
const HOUR = 3_600_000;
const callers = <T>(work: (caller: number) => Promise<T>): Promise<T[]> =>
  Promise.all(Array.from({ length: CALLERS }, (_, caller) => work(caller)));
const codeOf = (error: unknown) => (error instanceof ConnectorError ? error.code : String(error));

interface World {
  stores: Store[];
  of(caller: number): Store;
  scope: Scope;
  pool: NewCommand["pool"];
  replica(): Promise<ReplicaId>;
  wish(over?: Partial<NewCommand>): NewCommand;
}

async function world(test: Test): Promise<World> {
  const place = await storePlace(test);
  // Opened at once, on nothing: the schema and the first rows are made by whoever comes first.
  const stores = await Promise.all(Array.from({ length: onPostgres ? 3 : 1 }, () => place.open()));
  for (const store of stores) test.teardown(() => store.close());
  const of = (caller: number) => stores[caller % stores.length]!;
  const lives = await callers((caller) => of(caller).incarnation());
  test.equal(new Set(lives).size, 1, "one incarnation");
  const users = await callers((caller) => of(caller).ensureAdmin("admin", "default"));
  test.equal(new Set(users.map((user) => user.id)).size, 1, "one admin");
  const user = users[0]!;
  const scope: Scope = { workspace: user.workspace, actor: { id: user.id, name: user.name, via: "session" } };
  const pools = await callers((caller) => of(caller).ensurePool(scope, "lab", 1));
  test.equal(new Set(pools.map((pool) => pool.id)).size, 1, "one pool of a name");
  const pool = pools[0]!.id;
  const enrol = async () => {
    const id = newId("enrollment");
    await of(0).addEnrollment(scope, { id, pool, name: null, secretHash: id, createdAt: 1, expiresAt: HOUR });
    return id;
  };
  const join = (store: Store, id: string, publicKey: string) =>
    store.redeemEnrollment({
      id,
      secretHash: id,
      publicKey,
      fingerprint: publicKey,
      nameHint: "host",
      remoteAddress: null,
      now: 2,
    });
  const contested = await enrol();
  const joined = await callers((caller) => join(of(caller), contested, `key-${caller}`));
  test.equal(joined.filter((answer) => "replica" in answer).length, 1, "one secret lets one key in");
  return {
    stores,
    of,
    scope,
    pool,
    wish: (over = {}) => ({
      id: newCommandId(),
      pool,
      kind: "k.k",
      resource: "r",
      intent: "{}",
      body: jsonBody({}),
      notBefore: 0,
      expires: HOUR,
      createdAt: 10,
      ...over,
    }),
    async replica() {
      const id = await enrol();
      const answer = await join(of(1), id, id);
      if ("refused" in answer) throw new Error(answer.refused);
      return answer.replica.id;
    },
  };
}

t.test("changes, keys, order within a resource", async (t) => {
  const w = await world(t);
  const told = w.stores.map((store) => {
    const seen: ChangeRow[] = [];
    store.onChange((_workspace, changes) => seen.push(...changes));
    return seen;
  });
  const start = (await w.of(0).changesAfter(w.scope.workspace, 0, 1)).newest;
  let clock = 0;
  const history: { id: CommandId; resource: string; asked: number; answered: number }[] = [];
  const byKey = new Map<string, Set<string>>();
  await callers(async (caller) => {
    for (let n = 0; n < 12; n++) {
      const command = w.wish({ resource: `r${(caller + n) % 8}`, createdAt: 10 });
      const asked = clock++;
      // Each key is sent by several callers at once, each with a command id of its own.
      const key = n % 4 === 0 ? `k${n}` : null;
      const entry =
        key === null
          ? undefined
          : { key, method: "POST", route: "/r", requestDigest: "d", answer: { status: 201, body: null } };
      const made = await w.of(caller + n).createCommand(w.scope, command, entry);
      const answered = clock++;
      if (key === null) history.push({ id: made.command.id, resource: made.command.resource, asked, answered });
      else byKey.set(key, (byKey.get(key) ?? new Set()).add(made.command.id));
    }
  });
  for (const [key, ids] of byKey) t.equal(ids.size, 1, `${key}: one command however often it is sent`);
  const { items } = await w.of(0).changesAfter(w.scope.workspace, start, 100_000);
  t.ok(
    items.every((change, at) => change.n > (items[at - 1]?.n ?? start)),
    "numbers rise",
  );
  t.equal(items.length, history.length + byKey.size, "one for each command, none for a repetition");
  t.same(
    told
      .flat()
      .map((change) => change.n)
      .sort((a, b) => a - b),
    items.map((change) => change.n),
    "each told once",
  );
  for (const seen of told)
    t.ok(
      seen.every((change, at) => change.n > (seen[at - 1]?.n ?? 0)),
      "to each in order",
    );

  // In which order they may go, one after the other: who was answered before another asked goes first.
  const replica = await w.replica();
  const place = new Map<CommandId, number>();
  for (;;) {
    const offers = await w.of(0).offerable(w.scope.workspace, w.pool, 20, 500);
    if (offers.length === 0) break;
    for (const offer of offers) {
      place.set(offer.id, place.size);
      await w.of(0).nextDispatch(w.scope.workspace, offer.id, replica, 0, 20);
      await w.of(1).markAccepted(w.scope.workspace, offer.id, replica, 21);
    }
  }
  t.equal(place.size, history.length + byKey.size, "all of them may go");
  let wrong = 0;
  for (const first of history)
    for (const second of history)
      if (
        first.resource === second.resource &&
        first.answered < second.asked &&
        place.get(first.id)! > place.get(second.id)!
      )
        wrong++;
  t.equal(wrong, 0, "order of commit within a resource");
});

t.test("dispatch numbers, epochs, ends", async (t) => {
  const w = await world(t);
  const replica = await w.replica();
  const opened = await callers((caller) =>
    w.of(caller).openSession(replica, {
      id: newId("session"),
      process: `p${caller}`,
      instance: "i",
      journal: "j",
      remoteAddress: null,
      now: 5 + caller,
    }),
  );
  t.same(
    opened.map((one) => one.epoch).sort((a, b) => a - b),
    Array.from({ length: CALLERS }, (_, n) => n + 1),
    "epochs",
  );

  const commands = Array.from({ length: 8 }, (_, n) => w.wish({ resource: `d${n}` }));
  for (const command of commands) await w.of(0).createCommand(w.scope, command);
  const numbers: number[] = [];
  const attempts = new Map<string, number[]>();
  await callers(async (caller) => {
    let last = 0;
    for (let n = 0; n < 8; n++) {
      const command = commands[(caller + n) % commands.length]!;
      if (n % 3 === 2) {
        const first = await w.of(caller).reserveDispatches(w.scope.workspace, replica, 0, 3);
        numbers.push(first, first + 1, first + 2);
        if (first <= last) t.fail("a caller's numbers rise");
        last = first + 2;
        continue;
      }
      const next = (await w.of(caller).nextDispatch(w.scope.workspace, command.id, replica, 0, 20))!;
      numbers.push(next.sequence);
      attempts.set(command.id, [...(attempts.get(command.id) ?? []), next.attempt]);
      if (next.sequence <= last) t.fail("a caller's numbers rise");
      last = next.sequence;
    }
  });
  t.same(
    numbers.sort((a, b) => a - b),
    Array.from({ length: numbers.length }, (_, n) => n + 1),
    "each number once, no gap",
  );
  for (const [, given] of attempts)
    t.same(
      given.sort((a, b) => a - b),
      Array.from({ length: given.length }, (_, n) => n + 1),
      "attempts",
    );

  // Taken, cancelled and declared lost at once: one state, whatever the callers were told.
  for (const command of commands) {
    const answers = await callers(async (caller) => {
      const store = w.of(caller);
      if (caller % 3 === 0) return store.cancelQueued(w.scope, command.id, 30).then((done) => (done ? "mine" : null));
      if (caller % 3 === 1) return store.markAccepted(w.scope.workspace, command.id, replica, 30);
      return store
        .markRefused(w.scope.workspace, command.id, replica, { code: "POLICY_DENIED", message: "m" }, 30)
        .then(() => null);
    });
    const { state } = (await w.of(0).command(w.scope, command.id))!;
    t.ok(["cancelled", "accepted", "refused"].includes(state));
    t.equal(answers.filter((answer) => answer === "mine").length, state === "cancelled" ? 1 : 0, `one end: ${state}`);
    const others = answers.filter((answer) => answer !== null && answer !== "mine");
    t.ok(
      others.every((answer) => answer === state),
      "everybody is told the same",
    );
  }
});

t.test("reports that come several times at once are applied once; rivals of a generation: one wins", async (t) => {
  const w = await world(t);
  const replica = await w.replica();
  const journal = newId("journal") as JournalId;
  const commands = Array.from({ length: 30 }, (_, n) => w.wish({ resource: `d${n}` }));
  const reports: Report[] = [];
  for (const command of commands) {
    await w.of(0).createCommand(w.scope, command);
    await w.of(0).nextDispatch(w.scope.workspace, command.id, replica, 0, 20);
    for (const body of [{ type: "command.running" }, { type: "command.succeeded", result: { n: reports.length } }])
      reports.push({ journal, sequence: reports.length + 1, at: 20, command: command.id, body: jsonBody(body) });
  }
  const start = (await w.of(0).changesAfter(w.scope.workspace, 0, 1)).newest;
  const through = await callers(async (caller) => {
    let known = 0;
    for (let from = 0; from < reports.length; from += 7) {
      const slice = reports.slice(Math.max(0, from - caller), from + 7);
      const { committedThrough } = await w.of(caller).commitReports(w.scope.workspace, replica, journal, slice, 30);
      if (committedThrough < known) t.fail("what was committed stays so");
      known = committedThrough;
    }
    return known;
  });
  t.ok(through.every((known) => known === reports.length));
  for (const [n, command] of commands.entries())
    t.match(await w.of(0).command(w.scope, command.id), { state: "succeeded", result: { n: n * 2 } });
  const { items } = await w.of(0).changesAfter(w.scope.workspace, start, 10_000);
  // Queued to running to succeeded, in one transaction or in two.
  t.ok(items.length <= commands.length * 2, `${items.length} changes`);

  const id = newId("deployment");
  const model = { store: "lake", path: "m.onnx", digest: `sha256:${"ab".repeat(32)}` };
  for (let generation = 0; generation < 5; generation++) {
    const ends = await callers((caller) =>
      w
        .of(caller)
        .commitDeployment(w.scope, {
          deployment: {
            id,
            pool: w.pool,
            name: "d",
            spec: deploymentSpecSchema.parse({ model, replicas: generation }),
          },
          expectedGeneration: generation,
          revision: 1,
          command: w.wish({ kind: "deployment.apply", resource: `deployment:${id}`, createdAt: 40 + generation }),
        })
        .then(() => "won", codeOf),
    );
    t.equal(ends.filter((end) => end === "won").length, 1, ends.join(" "));
    t.ok(ends.every((end) => end === "won" || end === "PRECONDITION_FAILED"));
  }
  const queued = (await w.of(0).commands(w.scope, { limit: 100, state: "queued" })).items;
  t.equal(queued.filter((one) => one.resource === `deployment:${id}`).length, 1, "older applies are superseded");
});

t.test("processes that offer one command to replicas of their own: one replica may have it", async (t) => {
  const w = await world(t);
  const replicas = await Promise.all(Array.from({ length: 4 }, () => w.replica()));
  for (let round = 0; round < 6; round++) {
    const command = w.wish({ resource: `x${round}` });
    await w.of(0).createCommand(w.scope, command);
    const offer = (caller: number) =>
      w.of(caller).nextDispatch(w.scope.workspace, command.id, replicas[caller % 4]!, 0, 20, true);
    const won = (await callers(async (caller) => ((await offer(caller)) === null ? null : caller % 4))).filter(
      (one) => one !== null,
    );
    t.equal(new Set(won).size, 1, "to one replica, however often");
    const holder = won[0]!;
    t.equal(await w.of(1).cancelQueued(w.scope, command.id, 30, true), false, "it may have it: not ended here");
    const last = (await offer(holder))!;
    const freed = { attempt: last.attempt, replica: replicas[holder]!, code: "AT_CAPACITY" };
    t.equal(await w.of(2).markNotTaken(w.scope.workspace, command.id, freed, 1_000_000), null);
    t.not(await offer(holder + 1), null, "it said no: another may be asked");
  }
});

t.test("processes: listed, beating, gone; sessions of the one that is gone are over, and those only", async (t) => {
  const w = await world(t);
  const join = (id: string, kids: string[], store = w.of(0)) =>
    store.joinProcess({ id, peerUrl: `ws://${id}`, identity: "f", kids, now: 5 });
  await w.of(0).putCloudKeys([{ kid: "k1", purpose: "identity", publicKey: "p", createdAt: 1 }]);
  await Promise.all(["a", "b"].map((id, at) => join(id, ["k1", "k2"], w.of(at))));
  await t.rejects(join("c", ["other"]), { code: "CONFIG_INVALID" });
  await t.rejects(w.of(0).checkIdentity(["other"]), { code: "CONFIG_INVALID" });
  t.ok(await w.of(1).beatProcess("a"));
  t.match(await w.of(1).processes(), [
    { id: "a", peerUrl: "ws://a", beat: 2, leaving: false },
    { id: "b", beat: 1 },
  ]);
  await w.of(0).announceLeaving("b");
  t.match((await w.of(1).processes())[1], { leaving: true });

  const [one, two] = [await w.replica(), await w.replica()];
  const session = (process: string) => ({
    id: newId("session"),
    process,
    instance: "i",
    journal: newId("journal"),
    remoteAddress: "192.0.2.1",
    now: 7,
  });
  const [atA, atB] = [session("a"), session("b")];
  t.equal((await w.of(0).openSession(one, atA)).epoch, 1);
  await w.of(1).openSession(two, atB);
  const here = async () =>
    Object.fromEntries((await w.of(0).presence()).map((row) => [row.replica, [row.process, row.session]]));
  t.same(await here(), { [one]: ["a", atA.id], [two]: ["b", atB.id] });
  t.equal(await w.of(1).leaveProcess("a", 1), false, "it has moved on since it was looked at");
  t.ok(await w.of(1).leaveProcess("a", 2));
  t.equal(await w.of(1).releaseProcess("a", 9), 1);
  t.same(await here(), { [two]: ["b", atB.id] });
  t.equal(await w.of(0).beatProcess("a"), false, "it hears that it was taken for gone");
  await join("a", ["k1"]);
  await w.of(0).holdSession(one, atA.id);
  t.equal(Object.keys(await here()).length, 2, "and goes on");
  const newer = session("b");
  t.equal((await w.of(1).openSession(one, newer)).epoch, 2, "the newest epoch wins");
  await w.of(0).closeSession(one, atA.id, 10);
  await w.of(0).holdSession(one, atA.id);
  t.match(await w.of(0).presenceOf([one]), [{ session: newer.id, process: "b", epoch: 2, live: true, instance: "i" }]);
});
