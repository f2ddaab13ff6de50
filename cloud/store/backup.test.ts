import { randomBytes } from "node:crypto";
import { readFileSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { gunzipSync, gzipSync } from "node:zlib";
import {
  deploymentSpecSchema,
  jsonBody,
  newCommandId,
  newId,
  pipelineSchema,
  type JournalId,
  type RunId,
} from "@sallyport/protocol";
import t from "tap";
import { tempDir } from "../../test/support/launcher.ts";
import { onPostgres } from "../../test/support/postgres.ts";
import { storePlace, type StorePlace } from "../../test/support/store.ts";
import { backupStore, openStore, restoreStore, type Scope, type Store } from "./index.ts";

const NOW = 1_800_000_000_000;
const DAY = 86_400_000;

interface World {
  place: StorePlace;
  store: Store;
  scope: Scope;
  replica: string;
  run: RunId;
  journal: JournalId;
  deployment: ReturnType<typeof newId<"deployment">>;
  incarnation: string;
}

/** A bit of everything: a joined agent, a run under way, a deployment, sessions, tokens, an enrolment that is open. */
async function world(test: Parameters<typeof storePlace>[0]): Promise<World> {
  const place = await storePlace(test);
  const store = await place.open();
  test.teardown(() => store.close());
  const user = await store.ensureAdmin("admin", "default");
  const scope: Scope = { workspace: user.workspace, actor: { id: user.id, name: user.name, via: "session" } };
  const pool = (await store.ensurePool(scope, "läb", NOW)).id;
  const enrollment = newId("enrollment");
  const enrol = (id: typeof enrollment) =>
    store.addEnrollment(scope, { id, pool, name: null, secretHash: "s", createdAt: NOW, expiresAt: NOW + DAY });
  await enrol(enrollment);
  await enrol(newId("enrollment"));
  const joined = await store.redeemEnrollment({
    id: enrollment,
    secretHash: "s",
    publicKey: "k",
    fingerprint: "f",
    nameHint: "host",
    remoteAddress: null,
    now: NOW,
  });
  if ("refused" in joined) throw new Error(joined.refused);
  const replica = joined.replica.id;
  const journal = newId("journal") as JournalId;
  await store.openSession(replica, {
    id: newId("session"),
    process: "p",
    instance: "i",
    journal,
    remoteAddress: null,
    now: NOW,
  });
  const run = newId("run") as RunId;
  const spec = pipelineSchema.parse({ name: "p", outputs: { store: "s" }, steps: [{ name: "a", program: "x" }] });
  const command = {
    id: newCommandId(),
    pool,
    kind: "pipeline.run",
    resource: `run:${run}`,
    intent: '{"text":"ünïcode \\n \\u0000"}',
    body: jsonBody({ a: 1 }),
    notBefore: NOW,
    expires: NOW + DAY,
    createdAt: NOW,
    run: { id: run, pool, pipeline: "p", spec, params: {}, createdAt: NOW },
  };
  await store.createCommand(scope, command as Parameters<Store["createCommand"]>[1], {
    key: "key",
    method: "POST",
    route: "/v1/runs",
    requestDigest: "d",
    answer: { status: 201, body: { run } },
  });
  await store.nextDispatch(scope.workspace, command.id, replica, 0, NOW);
  await store.markAccepted(scope.workspace, command.id, replica, NOW);
  const deployment = newId("deployment");
  await store.commitDeployment(scope, {
    deployment: {
      id: deployment,
      pool,
      name: "d",
      spec: deploymentSpecSchema.parse({
        model: { store: "lake", path: "m.onnx", digest: `sha256:${"ab".repeat(32)}` },
        replicas: 1,
      }),
    },
    expectedGeneration: 0,
    revision: 1,
    command: {
      ...command,
      id: newCommandId(),
      kind: "deployment.apply",
      resource: `deployment:${deployment}`,
      run: undefined,
    } as never,
  });
  await store.addWebSession(user, "cookie", NOW, NOW + DAY);
  await store.addSignIn(user.id, "link", NOW + DAY);
  await store.addToken(scope, {
    id: "tok_x",
    user: user.id,
    label: "l",
    hint: "h",
    hash: "token",
    createdAt: NOW,
    expiresAt: NOW + DAY,
  });
  return { place, store, scope, replica, run, journal, deployment, incarnation: await store.incarnation() };
}

const told = (file: string) =>
  gunzipSync(readFileSync(file))
    .toString()
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as unknown);

t.test("a backup is one snapshot of a store at work; a restored one is another life of it", async (t) => {
  const w = await world(t);
  const file = join(tempDir(t, "backup"), "b.gz");
  // Written to all the while: the file must be one moment of it.
  let writing = true;
  const writer = (async () => {
    for (let n = 0; writing; n++) {
      const id = newCommandId();
      const pool = (await w.store.pools(w.scope))[0]!.id;
      await w.store.createCommand(w.scope, {
        id,
        pool,
        kind: "k.k",
        resource: `r${n}`,
        intent: "{}",
        body: jsonBody({}),
        notBefore: 0,
        expires: NOW + DAY,
        createdAt: NOW,
      });
    }
  })();
  const { rows } = await backupStore(w.place, file, NOW + 1);
  writing = false;
  await writer;
  t.equal(statSync(file).mode & 0o777, 0o600, "its owner's alone");
  t.equal(readdirSync(join(file, "..")).length, 1, "nothing is left beside it");
  const lines = told(file);
  t.equal(lines.filter(Array.isArray).length, rows);
  const [events, commands] = ["command_events", "commands"].map((name) => {
    const at = lines.findIndex((line) => (line as { table?: string }).table === name);
    const from = (lines[at] as { columns: string[] }).columns.indexOf("command_id");
    const end = lines.findIndex((line, index) => index > at && !Array.isArray(line));
    return new Set(lines.slice(at + 1, end).map((row) => (row as string[])[from]!));
  });
  t.same(events, commands, "one moment: each command with its event");

  await t.rejects(restoreStore(w.place, file, NOW + 2, { replace: false }), { code: "CONFLICT", fix: /--replace/ });
  const other = await storePlace(t);
  const restored = await restoreStore(other, file, NOW + 2, { replace: false });
  t.match(restored, { rows, madeAt: NOW + 1, kept: null });
  const store = await other.open();
  t.teardown(() => store.close());
  t.not(await store.incarnation(), w.incarnation, "agents count its dispatches anew");
  const before = await w.store.run(w.scope, w.run);
  t.same(await store.run(w.scope, w.run), before, "what was there is there, to the letter");
  t.match(
    await store.idempotent(w.scope, { key: "key", method: "POST", route: "/v1/runs", requestDigest: "d" }, NOW + 3),
    {
      status: 201,
    },
  );
  // What could have ended since is over; who followed changes must fetch everything.
  t.equal(await store.useWebSession("cookie", NOW + 3, DAY), null);
  t.equal(await store.redeemSignIn("link", NOW + 3), null);
  t.ok(await store.useToken("token", NOW + 3));
  const open = (await store.enrollments(w.scope, { limit: 9 })).items;
  t.same(
    new Set(open.map((one) => `${one.usedAt !== null} ${one.withdrawnAt !== null}`)),
    new Set(["false true", "true false"]),
  );
  const last = await w.store.changesAfter(w.scope.workspace, 0, 1);
  const now = await store.changesAfter(w.scope.workspace, last.newest, 10);
  t.ok(last.newest < now.oldest - 1 && now.items.length === 0, "the number that a reader saw is too old");

  // The agent comes back. It holds generation 5 of the deployment, and reports from 8 on: the rest was acknowledged.
  const session = newId("session");
  const opened = await store.openSession(w.replica as never, {
    id: session,
    process: "q",
    instance: "i",
    journal: w.journal,
    remoteAddress: null,
    now: NOW + 4,
    generations: { [w.deployment]: 5 },
  });
  t.equal(opened.epoch, 2);
  // Nobody accepted it in this life: the first of its pool that says it holds it, owns it.
  t.equal(
    (await store.deployment(w.scope, w.deployment))?.deployment.generation,
    5,
    "counts on from what the agent holds",
  );
  const report = (sequence: number, body: object) => ({
    journal: w.journal,
    sequence,
    at: NOW + 5,
    command: before!.command.id,
    body: jsonBody(body),
  });
  t.same(
    await store.commitReports(
      w.scope.workspace,
      w.replica as never,
      w.journal,
      [report(8, { type: "command.running" }), report(9, { type: "command.succeeded", result: { n: 1 } })],
      NOW + 6,
      8,
    ),
    { committedThrough: 9 },
  );
  t.match(await store.command(w.scope, before!.command.id), { state: "succeeded", result: { n: 1 } }, "and work ends");
});

t.test("what is not a whole backup is refused, and nothing is changed", async (t) => {
  const w = await world(t);
  const dir = tempDir(t, "backup");
  const file = join(dir, "b.gz");
  await backupStore(w.place, file, NOW);
  const bytes = readFileSync(file);
  const text = gunzipSync(bytes).toString();
  const refused: [string, Buffer][] = [
    ["cut", bytes.subarray(0, bytes.length - 20)],
    ["without its end", gzipSync(text.slice(0, text.trimEnd().lastIndexOf("\n") + 1))],
    ["a row short", gzipSync(text.replace(/\n\[.*\]\n/, "\n"))],
    ["changed", Buffer.concat([bytes.subarray(0, 200), randomBytes(20), bytes.subarray(220)])],
    ["something else", gzipSync("hello\n")],
    ["nothing", Buffer.alloc(0)],
    ["a table of another", gzipSync(text.replace('"table":"pools"', '"table":"pg_authid"'))],
    ["a column that is none", gzipSync(text.replace('"pool_id"', '"pool_id) select 1; --"'))],
  ];
  await w.store.close();
  for (const [what, content] of refused) {
    const bad = join(dir, "bad.gz");
    writeFileSync(bad, content);
    await t.rejects(restoreStore(w.place, bad, NOW, { replace: true }), { code: "STORAGE_CORRUPT" }, what);
  }
  const newer = join(dir, "newer.gz");
  writeFileSync(newer, gzipSync(text.replace(/"schema":\d+/, '"schema":999')));
  await t.rejects(restoreStore(w.place, newer, NOW, { replace: true }), {
    code: "CONFIG_INVALID",
    message: /newer version/,
  });
  await t.rejects(restoreStore(w.place, join(dir, "none.gz"), NOW, { replace: true }), { code: "CONFIG_INVALID" });
  await t.rejects(backupStore(w.place, join(dir, "no/such/folder.gz"), NOW), { code: "CONFIG_INVALID" });
  const same = await w.place.open();
  t.equal(await same.incarnation(), w.incarnation, "the same life as before");
  t.ok(await same.run(w.scope, w.run));
  await same.close();
  const { kept } = await restoreStore(w.place, file, NOW, { replace: true });
  t.equal(kept === null, onPostgres, "the replaced file is kept");
  const restored = await w.place.open();
  t.teardown(() => restored.close());
  t.not(await restored.incarnation(), w.incarnation);
  t.ok(await restored.run(w.scope, w.run));
});

if (onPostgres)
  t.test("from one database to the other and back, nothing is lost", async (t) => {
    const w = await world(t);
    const dir = tempDir(t, "backup");
    const files = [0, 1, 2].map((n) => join(dir, `${n}.gz`));
    await backupStore(w.place, files[0]!, NOW);
    const lite = { dir: tempDir(t, "store"), database: null };
    await restoreStore(lite, files[0]!, NOW, { replace: false });
    await (await openStore(lite)).close();
    await backupStore(lite, files[1]!, NOW);
    const back = await storePlace(t);
    await restoreStore(back, files[1]!, NOW, { replace: false });
    await backupStore(back, files[2]!, NOW);
    const rows = (file: string) =>
      told(file)
        .filter(Array.isArray)
        .map((row) => JSON.stringify(row))
        // What a new life changes.
        .filter((row) => !/^\[1,"|^\["wsp_[0-9a-f]+",\d+\]$/.test(row))
        .sort();
    t.same(rows(files[2]!), rows(files[1]!));
  });
