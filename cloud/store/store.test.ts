import { spawn } from "node:child_process";
import { readdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { fileURLToPath } from "node:url";
import {
  ConnectorError,
  deploymentSpecSchema,
  jsonBody,
  newCommandId,
  nameSchema,
  newId,
  revisionText,
  type CommandId,
  type DeploymentId,
  type DeploymentSpec,
  type JournalId,
  type PipelineInput,
  type PoolId,
  type ReplicaId,
  type Report,
  type RunId,
  type StepState,
} from "@sallyport/protocol";
import { pipelineSchema } from "@sallyport/protocol";
import fc from "fast-check";
import t from "tap";
import { tempDir, waitFor, type Teardown } from "../../test/support/launcher.ts";
import { postgres } from "../../test/support/postgres.ts";
import { storePlace, type StorePlace } from "../../test/support/store.ts";
import { STORED_COLUMNS } from "./columns.ts";
import { DATABASE_FILE, openSqliteStore, type Scope, type Store, type UserRow } from "./index.ts";

const HOUR = 3600_000;
const code = (error: unknown) => (error instanceof ConnectorError ? error.code : String(error));
const scopeOf = (user: UserRow): Scope => ({
  workspace: user.workspace,
  actor: { id: user.id, name: user.name, via: "session" },
});

async function opened(
  test: Teardown,
): Promise<{ store: Store; place: StorePlace; user: UserRow; scope: Scope; pool: PoolId }> {
  const place = await storePlace(test);
  const store = await place.open();
  test.teardown(() => store.close());
  const user = await store.ensureAdmin("admin", "default");
  const scope = scopeOf(user);
  const pool = await store.ensurePool(scope, "lab", 1);
  return { store, place, user, scope, pool: pool.id };
}

let joined = 0;
async function join_(store: Store, scope: Scope, pool: PoolId): Promise<ReplicaId> {
  const id = newId("enrollment");
  joined++;
  await store.addEnrollment(scope, {
    id,
    pool,
    name: null,
    secretHash: `secret-${joined}`,
    createdAt: 1,
    expiresAt: HOUR,
  });
  const answer = await store.redeemEnrollment({
    id,
    secretHash: `secret-${joined}`,
    publicKey: `key-${joined}`,
    fingerprint: "f",
    nameHint: null,
    remoteAddress: null,
    now: 2,
  });
  if ("refused" in answer) throw new Error(answer.refused);
  return answer.replica.id;
}

const wish = (
  pool: PoolId,
  over: Partial<Parameters<Store["createCommand"]>[1]> = {},
): Parameters<Store["createCommand"]>[1] => ({
  id: newCommandId(),
  pool,
  kind: "pipeline.run",
  resource: "r",
  intent: "{}",
  body: jsonBody({}),
  notBefore: 0,
  expires: HOUR,
  createdAt: 10,
  ...over,
});

const specWith = (more: { replicas?: number; level?: string } = {}): DeploymentSpec =>
  deploymentSpecSchema.parse({
    model: { store: "lake", path: "m.onnx", digest: `sha256:${"ab".repeat(32)}` },
    replicas: more.replicas ?? 1,
    env: more.level === undefined ? {} : { LEVEL: more.level },
  });
/** A change of a deployment, as the dispatcher submits it. */
const change = (
  pool: PoolId,
  id: DeploymentId,
  expectedGeneration: number,
  revision: number,
  more: { name?: string; spec?: DeploymentSpec; removing?: boolean; at?: number } = {},
): Parameters<Store["commitDeployment"]>[1] => ({
  deployment: { id, pool, name: more.name ?? "d", spec: more.spec ?? specWith() },
  expectedGeneration,
  revision,
  ...(more.removing === true ? { removing: true } : {}),
  command: wish(pool, {
    kind: more.removing === true ? "deployment.remove" : "deployment.apply",
    resource: `deployment:${id}`,
    createdAt: more.at ?? 10,
  }),
});

interface Table {
  name: string;
  columns: string[];
  /** Columns of the primary key, then of each foreign key, in order. */
  keys: string[][];
}
/** The schema as the database itself tells it. */
async function schemaOf(place: StorePlace): Promise<Table[]> {
  const tables: Table[] = [];
  if (place.database === null) {
    const database = new DatabaseSync(join(place.dir, DATABASE_FILE), { readOnly: true });
    const names = database.prepare("select name from sqlite_schema where type = 'table' and name not like 'sqlite_%'");
    for (const name of names.all().map((row) => String(row["name"]))) {
      const columns = database.prepare(`select name, pk from pragma_table_info('${name}')`).all();
      const primary = columns.filter((column) => Number(column["pk"]) > 0);
      primary.sort((a, b) => Number(a["pk"]) - Number(b["pk"]));
      const foreign = Map.groupBy(
        database.prepare(`select id, seq, "from" from pragma_foreign_key_list('${name}') order by seq`).all(),
        (row) => row["id"],
      );
      const text = (rows: Record<string, unknown>[], column: string) => rows.map((row) => String(row[column]));
      tables.push({
        name,
        columns: text(columns, "name"),
        keys: [text(primary, "name"), ...[...foreign.values()].map((rows) => text(rows, "from"))],
      });
    }
    database.close();
    return tables;
  }
  const ask = async (statement: string) => (await postgres()).sql(place.database!, statement);
  for (const row of await ask(
    `select c.relname as name,
       (select json_agg(a.attname) from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns,
       (select json_agg((select json_agg(a.attname order by k.place) from unnest(x.conkey) with ordinality as k (n, place)
                         join pg_attribute a on a.attrelid = c.oid and a.attnum = k.n) order by x.contype desc)
        from pg_constraint x where x.conrelid = c.oid and x.contype in ('p', 'f')) as keys
     from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind = 'r'`,
  ))
    tables.push(row as unknown as Table);
  return tables;
}

t.test("every stored column is on the list, every key begins with the workspace, files are private", async (t) => {
  const { store, place } = await opened(t);
  await store.incarnation();
  for (const name of readdirSync(place.dir))
    t.equal(statSync(join(place.dir, name)).mode & 0o077, 0, `${name} is its owner's alone`);
  const tables = (await schemaOf(place)).filter((table) => table.name !== "schema_migrations");
  t.same(tables.map((table) => table.name).sort(), Object.keys(STORED_COLUMNS).sort());
  // Above workspaces, or outside of them.
  const outside = new Set(["cloud", "cloud_keys", "processes", "organisations"]);
  for (const { name, columns, keys } of tables) {
    t.same([...columns].sort(), Object.keys(STORED_COLUMNS[name as keyof typeof STORED_COLUMNS]).sort(), name);
    if (outside.has(name)) continue;
    for (const [at, key] of keys.entries())
      if (at === 0 || name !== "workspaces") t.equal(key[0], "workspace_id", `${name}: key ${key.join(", ")}`);
  }
});

t.test("a damaged database is refused in words", async (t) => {
  const dir = tempDir(t, "store");
  writeFileSync(join(dir, DATABASE_FILE), Buffer.alloc(8192, "nonsense"));
  await t.rejects(openSqliteStore({ dir }), { code: "STORAGE_CORRUPT", fix: /backup/ });
  const other = await storePlace(t);
  await (await other.open()).close();
  const later = "insert into schema_migrations values (99, 'later', 1)";
  if (other.database === null) {
    const database = new DatabaseSync(join(other.dir, DATABASE_FILE));
    database.exec(later);
    database.close();
  } else await (await postgres()).sql(other.database, later);
  await t.rejects(other.open(), { code: "CONFIG_INVALID", message: /newer version/ });
});

t.test("changes: numbered in order of commit, told in order, after their commit", async (t) => {
  const { store, scope, pool } = await opened(t);
  const other = scopeOf(await store.makeWorkspace("other", "other-admin", 1));
  const otherPool = (await store.ensurePool(other, "lab", 1)).id;
  const told = new Map<string, number[]>();
  store.onChange((workspace, changes) =>
    told.set(workspace, [...(told.get(workspace) ?? []), ...changes.map((c) => c.n)]),
  );
  const start = (await store.changesAfter(scope.workspace, 0, 1)).newest;
  const work: Promise<unknown>[] = [];
  for (let i = 0; i < 300; i++) {
    work.push(store.createCommand(scope, wish(pool)), store.createCommand(other, wish(otherPool)));
    // Fails in its savepoint: takes no number with it.
    work.push(
      store.renameReplica(scope, newId("replica"), "x"),
      store.setPassword(scope, "nobody", "x").catch(() => {}),
    );
  }
  await Promise.all(work);
  const { items, newest } = await store.changesAfter(scope.workspace, start, 1000);
  t.equal(items.length, 300);
  // A number may be taken for something else (the order of commands), never given twice.
  t.ok(
    items.every((change, at) => change.n > (items[at - 1]?.n ?? start)),
    "numbers rise",
  );
  t.equal(newest, items.at(-1)?.n);
  t.same(
    told.get(scope.workspace),
    items.map((c) => c.n),
  );
  t.equal(told.get(other.workspace)?.length, 300);
});

t.test("what a write resolved, a read sees", async (t) => {
  const { store, scope, pool } = await opened(t);
  for (let i = 0; i < 200; i++) {
    const input = wish(pool);
    await store.createCommand(scope, input);
    const read = await store.command(scope, input.id);
    if (read === null) return t.fail(`command ${i} not seen`);
  }
});

t.test(
  "closed while it writes: each write is settled, and closing comes to its end in a program that waits for nothing else",
  async (t) => {
    const { store, place, scope } = await opened(t);
    await store.close();
    const program = join(place.dir, "closer.ts");
    writeFileSync(
      program,
      `import { openStore } from ${JSON.stringify(fileURLToPath(new URL("./index.ts", import.meta.url)))};
     const store = await openStore(${JSON.stringify({ dir: place.dir, database: place.database })});
     const writes = Array.from({ length: 20 }, (_, n) => store.ensurePool(${JSON.stringify(scope)}, "p" + n, 1));
     await store.close();
     const settled = await Promise.allSettled(writes);
     console.log("closed after " + settled.filter((one) => one.status === "fulfilled").length);`,
    );
    const child = spawn(process.execPath, [program], { stdio: ["ignore", "pipe", "inherit"] });
    let out = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => (out += text));
    const code = await new Promise((resolve) => child.on("close", resolve));
    t.equal(out, "closed after 20\n");
    t.equal(code, 0);
  },
);

t.test("acknowledged is durable: kill -9 in the middle of writing", async (t) => {
  const { store, place, scope, pool } = await opened(t);
  await store.close();
  const writer = join(place.dir, "writer.ts");
  const here = (path: string) => JSON.stringify(fileURLToPath(new URL(path, import.meta.url)));
  writeFileSync(
    writer,
    `import { writeSync } from "node:fs";
     import { openStore } from ${here("./index.ts")};
     const store = await openStore(${JSON.stringify({ dir: place.dir, database: place.database })});
     const scope = ${JSON.stringify(scope)};
     let n = 0;
     const one = async () => { for (;;) { const id = ids(); await store.createCommand(scope, { id, pool: ${JSON.stringify(pool)}, kind: "k.k", resource: "r", intent: "{}", body: { encoding: "json", enc: "none", kid: null, data: "{}" }, notBefore: 0, expires: 9, createdAt: 1 }); writeSync(1, id + "\\n"); } };
     const ids = () => "01900000-0000-7000-8000-" + String(process.pid).padStart(6, "0") + String(n++).padStart(6, "0");
     await Promise.all(Array.from({ length: 32 }, one));`,
  );
  let acknowledged: string[] = [];
  for (let round = 0; round < 3; round++) {
    const child = spawn(process.execPath, [writer], { stdio: ["ignore", "pipe", "inherit"] });
    let out = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => (out += text));
    const exit = new Promise((resolve) => child.on("close", resolve));
    await waitFor("acknowledged writes", () => out.length > 37 * (500 + 400 * round), { timeoutMs: 60_000 });
    child.kill("SIGKILL");
    await exit;
    acknowledged = [...acknowledged, ...out.split("\n").filter((line) => line.length === 36)];
  }
  const again = await place.open();
  t.teardown(() => again.close());
  t.ok(acknowledged.length > 1500, `${acknowledged.length} acknowledged`);
  const missing: string[] = [];
  for (const id of acknowledged) if ((await again.command(scope, id as CommandId)) === null) missing.push(id);
  t.same(missing, []);
});

t.test("tenants: whatever two workspaces do, none sees a thing of the other", async (t) => {
  const { store, scope, pool } = await opened(t);
  const second = scopeOf(await store.makeWorkspace("second", "second-admin", 1));
  const sides = [
    {
      scope,
      pool,
      own: new Set<string>(),
      commands: [] as CommandId[],
      replicas: [] as ReplicaId[],
      tokens: [] as string[],
      deployments: [] as DeploymentId[],
    },
    {
      scope: second,
      pool: (await store.ensurePool(second, "lab", 1)).id,
      own: new Set<string>(),
      commands: [] as CommandId[],
      replicas: [] as ReplicaId[],
      tokens: [] as string[],
      deployments: [] as DeploymentId[],
    },
  ] as const;
  for (const side of sides) side.own.add(side.pool);
  const step = fc.record({
    side: fc.constantFrom(0, 1),
    what: fc.constantFrom("command", "enrol", "token", "rename", "revoke", "cancel", "deploy", "foreign"),
    pick: fc.nat(50),
  });
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 10, maxLength: 40 }), async (steps) => {
      for (const { side, what, pick } of steps) {
        const me = sides[side]!;
        const other = sides[1 - side]!;
        const any = <T>(list: readonly T[]): T | undefined => list[pick % Math.max(1, list.length)];
        if (what === "command") {
          const input = wish(me.pool, { createdAt: pick });
          me.commands.push(input.id);
          me.own.add(input.id);
          await store.createCommand(me.scope, input);
        } else if (what === "enrol") {
          const replica = await join_(store, me.scope, me.pool);
          me.replicas.push(replica);
          me.own.add(replica);
        } else if (what === "token") {
          const id = `tok_${newId("run").slice(4)}`;
          me.tokens.push(id);
          me.own.add(id);
          await store.addToken(me.scope, {
            id,
            user: me.scope.actor.id,
            label: "l",
            hint: "h",
            hash: id,
            createdAt: 1,
            expiresAt: HOUR,
          });
        } else if (what === "rename") {
          const id = any(me.replicas);
          if (id !== undefined)
            await store
              .renameReplica(me.scope, id, `n${pick}`)
              .catch((error: unknown) => t.equal(code(error), "CONFLICT"));
        } else if (what === "revoke") {
          const id = any(me.tokens);
          if (id !== undefined) await store.revokeToken(me.scope, id, 5);
        } else if (what === "cancel") {
          const id = any(me.commands);
          if (id !== undefined) await store.cancelQueued(me.scope, id, 5);
        } else if (what === "deploy") {
          const id = newId("deployment");
          const input = change(me.pool, id, 0, 1, { name: id.slice(-20) });
          await store.commitDeployment(me.scope, input);
          me.deployments.push(id);
          me.own.add(id).add(input.command.id);
        } else if (what === "foreign") {
          const [command, replica, token] = [any(other.commands), any(other.replicas), any(other.tokens)];
          const deployment = any(other.deployments);
          if (deployment !== undefined) {
            const at = (await store.deployment(other.scope, deployment))!.deployment.generation;
            const stolen = await store.commitDeployment(me.scope, change(me.pool, deployment, at, 1)).then(
              () => "changed",
              (error: unknown) => code(error),
            );
            if (
              stolen !== "NOT_FOUND" ||
              (await store.deployment(me.scope, deployment)) !== null ||
              (await store.deploymentHolder(me.scope.workspace, deployment, newCommandId())) !== null ||
              (await store.deploymentRevisions(me.scope, deployment, { limit: 9 })).length > 0 ||
              (await store.deploymentRollups(me.scope, deployment, 0)).length > 0
            )
              throw new Error(`foreign deployment: ${stolen}`);
          }
          if (command !== undefined) {
            if (
              (await store.command(me.scope, command)) !== null ||
              (await store.cancelQueued(me.scope, command, 5)) ||
              (await store.declareLost(me.scope, command, 5)) ||
              (await store.history(me.scope, command)).length > 0 ||
              (await store.queue(me.scope.workspace, other.pool, [command], 11)).items.length > 0 ||
              (await store.limitPool(me.scope, other.pool, { maxRuns: 1 })) !== null
            )
              throw new Error("foreign command");
          }
          if (replica !== undefined) {
            if (
              (await store.replica(me.scope, replica)) !== null ||
              (await store.renameReplica(me.scope, replica, "stolen")) !== null ||
              (await store.revokeReplica(me.scope, replica, 5)) !== null ||
              (await store.deleteReplica(me.scope, replica, 5))
            )
              throw new Error("foreign replica");
          }
          if (token !== undefined && (await store.revokeToken(me.scope, token, 5))) throw new Error("foreign token");
          // A foreign pool cannot even be pointed at: the foreign key begins with the workspace.
          const refused = await store.createCommand(me.scope, wish(other.pool)).then(
            () => "made",
            () => "refused",
          );
          if (refused !== "refused") throw new Error("command in a foreign pool");
        }
      }
      for (const me of sides) {
        const seen = [
          ...(await store.commands(me.scope, { limit: 500 })).items.map((c) => c.id as string),
          ...(await store.replicas(me.scope)).map((r) => r.id as string),
          ...(await store.tokens(me.scope)).map((token) => token.id),
          ...(await store.pools(me.scope)).map((p) => p.id as string),
          ...(await store.deployments(me.scope, { limit: 500 })).items.map((d) => d.deployment.id as string),
          ...(await store.offerable(me.scope.workspace, me.pool, 11, 500)).map((c) => c.id as string),
        ];
        const foreign = seen.filter((id) => !me.own.has(id));
        if (foreign.length > 0) throw new Error(`sees ${foreign.join(", ")}`);
      }
    }),
    { numRuns: 15 },
  );
});

t.test(
  "idempotency keys: same request, same answer; another request, refused; scope is the principal and the route",
  async (t) => {
    const { store, scope, pool } = await opened(t);
    const key = {
      key: "k",
      method: "POST",
      route: "/v1/runs",
      requestDigest: "d",
      answer: { status: 201, body: { made: 1 } },
    };
    const [a, b] = await Promise.all([
      store.createCommand(scope, wish(pool), key),
      store.createCommand(scope, wish(pool), key),
    ]);
    t.equal(a!.command.id, b!.command.id, "two at the same time make one command");
    t.same([a!.replayed, b!.replayed], [null, { status: 201, body: { made: 1 } }]);
    t.same(await store.idempotent(scope, key, 11), { status: 201, body: { made: 1 } });
    await t.rejects(store.createCommand(scope, wish(pool), { ...key, requestDigest: "e" }), {
      code: "IDEMPOTENCY_MISMATCH",
    });
    const someone: Scope = { ...scope, actor: { ...scope.actor, id: "tok_1" } };
    t.equal((await store.createCommand(someone, wish(pool), key)).replayed, null);
    t.equal((await store.createCommand(scope, wish(pool), { ...key, route: "/v1/other" })).replayed, null);
    t.equal(await store.idempotent(scope, key, 10 + 25 * HOUR), null, "forgotten after a day");
  },
);

t.test("what is asked for at once is written together, and what fails fails alone", async (t) => {
  const { store, scope, pool } = await opened(t);
  const key = { method: "POST", route: "/v1/runs", requestDigest: "d", answer: { status: 201, body: {} } };
  await store.createCommand(scope, wish(pool), { ...key, key: "used" });
  const inputs = Array.from({ length: 30 }, () => wish(pool));
  const done = await Promise.allSettled(
    inputs.map((input, n) =>
      n % 10 === 5
        ? store.createCommand(scope, input, { ...key, key: "used", requestDigest: "other" })
        : store.createCommand(scope, input, { ...key, key: `k${n}` }),
    ),
  );
  const failed = done.flatMap((one, n) => (one.status === "rejected" ? [n] : []));
  t.same(failed, [5, 15, 25]);
  const stored = await Promise.all(inputs.map((input) => store.command(scope, input.id)));
  t.same(
    stored.flatMap((row, n) => (row === null ? [n] : [])),
    failed,
  );
  const { items } = await store.changesAfter(scope.workspace, 0, 1000);
  for (const [n, input] of inputs.entries())
    t.equal(
      items.some((change) => change.id === input.id),
      !failed.includes(n),
      `change of ${n}`,
    );
});

t.test("lists: pages meet without overlap or hole, oldest offer of a resource first", async (t) => {
  const { store, scope, pool } = await opened(t);
  const made: string[] = [];
  for (let i = 0; i < 25; i++) {
    const input = wish(pool, { createdAt: Math.floor(i / 3), resource: `r${i % 4}`, notBefore: i === 0 ? 100 : 0 });
    made.push(input.id);
    await store.createCommand(scope, input);
  }
  const seen: string[] = [];
  let cursor: string | undefined;
  do {
    const page = await store.commands(scope, { limit: 4, cursor });
    seen.push(...page.items.map((c) => c.id));
    cursor = page.nextCursor ?? undefined;
  } while (cursor !== undefined);
  t.same([...seen].sort(), [...made].sort());
  await t.rejects(store.commands(scope, { limit: 4, cursor: "nonsense" }), { code: "INPUT_INVALID" });
  const offers = await store.offerable(scope.workspace, pool, 50, 100);
  t.same(
    offers.map((c) => c.resource).sort(),
    ["r1", "r2", "r3"],
    "one a resource; r0 waits for its oldest, which is not due",
  );
  const replica = await join_(store, scope, pool);
  t.same(await store.nextDispatch(scope.workspace, offers[0]!.id, replica, 0, 55), { sequence: 1, attempt: 1 });
  t.same(await store.nextDispatch(scope.workspace, offers[0]!.id, replica, 40, 55), { sequence: 41, attempt: 2 });
  t.equal(await store.reserveDispatches(scope.workspace, replica, 0, 10), 42);
  t.same(await store.nextDispatch(scope.workspace, offers[0]!.id, replica, 0, 55), { sequence: 52, attempt: 3 });
  // Between the look and the offer it ended: no number, no offer, nothing to send.
  t.equal(await store.cancelQueued(scope, offers[1]!.id, 60), true);
  t.equal(await store.nextDispatch(scope.workspace, offers[1]!.id, replica, 0, 55), null);
  t.equal((await store.command(scope, offers[1]!.id))?.offers, 0);
});

t.test("the queue: order of commit whatever the clock says; what a refusal settles and what it does not", async (t) => {
  const { store, scope, pool } = await opened(t);
  const replica = await join_(store, scope, pool);
  const ask = async (resource: string, createdAt: number, priority = 0) => {
    const input = { ...wish(pool, { resource }), createdAt, priority };
    await store.createCommand(scope, input);
    return input.id;
  };
  const offerable = async (now: number) => (await store.offerable(scope.workspace, pool, now, 100)).map((c) => c.id);
  const offeredTo = async (id: CommandId) => (await store.command(scope, id))?.offeredTo ?? null;
  // The clock was set back a day between the two.
  const first = await ask("run:a", 86_400_000);
  const second = await ask("run:a", 10);
  const urgent = await ask("run:b", 86_400_000, 5);
  t.same(await offerable(50), [urgent, first]);
  t.match(
    (await store.queue(scope.workspace, pool, [first, second], 50)).items.toSorted((a, b) => a.position - b.position),
    [
      { id: first, behind: null, mayGo: true },
      { id: second, behind: first, mayGo: false },
    ],
  );
  await store.cancelQueued(scope, first, 60);
  t.same(await offerable(50), [urgent, second]);

  // Two offers without an answer, one that is refused a moment after the second: the second may be on its way to the disk.
  const offer = (now: number) => store.nextDispatch(scope.workspace, urgent, replica, 0, now);
  await offer(1_000);
  await offer(100_000);
  const third = (await offer(101_000))!;
  t.equal(await offeredTo(urgent), replica);
  const refused = { attempt: third.attempt, replica, code: "AT_CAPACITY" };
  t.equal(await store.markNotTaken(scope.workspace, urgent, refused, 101_000), replica, "the young one is open still");
  t.equal(await store.expireQueued(HOUR * 10), 1, "only the one that nobody was offered");
  t.same(await offerable(HOUR * 10), [urgent], "past its expiry it goes to the one that may have it");
  const fourth = (await offer(200_000))!;
  t.equal(
    await store.markNotTaken(scope.workspace, urgent, { ...refused, attempt: fourth.attempt }, 200_000),
    null,
    "by now the replica would have had it",
  );
  t.equal(await offeredTo(urgent), null);
  t.same(await offerable(HOUR * 10), []);
  t.equal(await store.expireQueued(HOUR * 10), 1);
  t.match(
    (await store.history(scope, urgent)).map(({ type, detail }) => [type, detail?.["refusal"]]),
    [
      ["queued"],
      ["offered", "AT_CAPACITY"],
      ["offered", "AT_CAPACITY"],
      ["offered", "AT_CAPACITY"],
      ["offered", "AT_CAPACITY"],
      ["expired"],
    ],
  );
});

t.test("enrolment: once, by whoever proves the same key, refusals kept", async (t) => {
  const { store, scope, pool } = await opened(t);
  const id = newId("enrollment");
  await store.addEnrollment(scope, { id, pool, name: null, secretHash: "s", createdAt: 1, expiresAt: 100 });
  const join = (over: object) =>
    store.redeemEnrollment({
      id,
      secretHash: "s",
      publicKey: "k1",
      fingerprint: "f",
      nameHint: null,
      remoteAddress: "10.0.0.1",
      now: 5,
      ...over,
    });
  t.same(await join({ secretHash: "wrong" }), { refused: "ENROLMENT_UNKNOWN" });
  t.same(await join({ now: 100 }), { refused: "ENROLMENT_EXPIRED" });
  const racing = await Promise.all([join({}), join({ publicKey: "k2" })]);
  t.equal(racing.filter((answer) => "replica" in answer).length, 1, "two keys, one secret: one joins");
  t.match(
    await join({ now: 6 }),
    { replica: { name: "lab-1", publicKey: "k1" } },
    "the same key again is the same join",
  );
  const row = await store.enrollment(scope, id);
  t.same(
    row?.refusals.map((refusal) => refusal.code),
    ["ENROLMENT_USED", "ENROLMENT_EXPIRED", "ENROLMENT_UNKNOWN"],
  );
  const replica = row!.replica!;
  t.equal(
    (
      await store.openSession(replica, {
        id: newId("session"),
        process: "p",
        instance: "i",
        journal: "j1",
        remoteAddress: null,
        now: 7,
      })
    ).epoch,
    1,
  );
  const session = newId("session");
  t.same(
    await store.openSession(replica, {
      id: session,
      process: "p",
      instance: "i",
      journal: "j2",
      remoteAddress: null,
      now: 8,
    }),
    { epoch: 2, journalChanged: true },
  );
  await t.rejects(store.deleteReplica(scope, replica, 9), { code: "CONFLICT" });
  await store.revokeReplica(scope, replica, 9);
  await t.rejects(
    store.openSession(replica, {
      id: session,
      process: "p",
      instance: "i",
      journal: "j2",
      remoteAddress: null,
      now: 8,
    }),
    { code: "IDENTITY_REVOKED" },
  );
  t.equal(await store.deleteReplica(scope, replica, 10), true);
  t.equal(await store.replicaByKey(replica), null);
});

t.test("connections of a replica: why each ended, bounded by number, nobody else's", async (t) => {
  const { store, scope, pool } = await opened(t);
  const replica = await join_(store, scope, pool);
  const page = async (limit: number, cursor?: string) =>
    (await store.connections(scope, replica, { limit, ...(cursor === undefined ? {} : { cursor }) }))!;
  const open = async (now: number) => {
    const id = newId("session");
    await store.openSession(replica, {
      id,
      process: "p",
      instance: "i",
      journal: "j",
      remoteAddress: "10.0.0.9",
      version: "1.2.3",
      now,
    });
    return id;
  };
  const first = await open(10);
  t.match((await page(10)).items, [{ session: first, at: 10, endedAt: null, code: null, version: "1.2.3" }]);
  await store.closeSession(replica, first, 20, { code: "LINK_LOST", message: "m".repeat(5_000) });
  await store.closeSession(replica, first, 30, { code: "GOING_AWAY", message: "later" });
  const second = await open(40);
  const third = await open(50);
  t.match((await page(10)).items[1], { session: second, code: "SESSION_SUPERSEDED", endedAt: 50 });
  await store.closeSession(replica, second, 60, { code: "LINK_LOST", message: "found dead" });
  const refusal = { at: 70, code: "IDENTITY_CLONED", message: "Another.", remoteAddress: "10.0.0.8" };
  await store.refuseConnection(scope.workspace, replica, refusal);
  await store.refuseConnection(scope.workspace, replica, { ...refusal, at: 80 });
  await store.releaseSessions("another process", 90);
  const all = (await page(10)).items;
  t.match(all, [
    { no: 4, session: null, code: "IDENTITY_CLONED", at: 70, endedAt: 80, times: 2, remoteAddress: "10.0.0.8" },
    { no: 3, session: third, code: "LINK_LOST", endedAt: 50, message: /ended without saying/ },
    { no: 2, session: second, code: "LINK_LOST", endedAt: 60, message: "found dead" },
    { no: 1, session: first, code: "LINK_LOST", at: 10, endedAt: 20 },
  ]);
  t.equal(all[3]!.message!.length, 400, "no sentence is longer");
  const top = await page(3);
  t.same([...top.items, ...(await page(3, top.nextCursor!)).items], all, "by pages as at once");

  for (let at = 100; at < 320; at++) await open(at);
  const kept = (await page(500)).items;
  t.equal(kept.length, 200);
  t.equal(kept.at(-1)!.no, 25);
  const other = await store.makeWorkspace("other", "otto", 1);
  const foreign = { ...scope, workspace: other.workspace };
  t.equal(await store.connections(foreign, replica, { limit: 10 }), null);
});

t.test("an agent's wish for a name becomes one that names may be", async (t) => {
  const { store, scope, pool } = await opened(t);
  const named = async (nameHint: string | null) => {
    const id = newId("enrollment");
    await store.addEnrollment(scope, { id, pool, name: null, secretHash: id, createdAt: 1, expiresAt: 100 });
    const joined = await store.redeemEnrollment({
      id,
      secretHash: id,
      publicKey: id,
      fingerprint: id,
      nameHint,
      remoteAddress: null,
      now: 5,
    });
    return "replica" in joined ? joined.replica.name : "";
  };
  for (const [hint, name] of [
    ["DESKTOP-7Q", "desktop-7q"],
    ["ip-10-0-0-1.ec2.internal", "ip-10-0-0-1.ec2.internal"],
    ["\u001b[2Jx\n<b>y</b>", "2jx-b-y-b"],
    ["日本", "lab-1"],
    [`-${"A".repeat(62)}`, "a".repeat(62)],
    [null, "lab-2"],
  ] as const) {
    const made = await named(hint);
    t.equal(made, name);
    t.ok(nameSchema.safeParse(made).success);
  }
  // A fleet made from one image: one name for all, and as many numbers as it takes.
  const fleet = new Set<string>();
  for (let n = 0; n < 70; n++) fleet.add(await named("Image"));
  t.same([...fleet], ["image", ...Array.from({ length: 69 }, (_, n) => `image-${n + 1}`)]);
});

t.test("reports: repeated, reordered and cut as they may be, each is applied once and no end flips", async (t) => {
  const { store, scope, pool } = await opened(t);
  const replica = await join_(store, scope, pool);
  const stranger = await join_(store, scope, pool);
  const pipeline = pipelineSchema.parse({
    name: "p",
    outputs: { store: "s" },
    steps: [{ name: "a", program: "x" }],
  } satisfies PipelineInput);
  type Said =
    | "running"
    | "succeeded"
    | "failed"
    | "cancelled"
    | "step-running"
    | "step-succeeded"
    | "step-failed"
    | "lost";
  const said = fc.constantFrom<Said>(
    "running",
    "succeeded",
    "failed",
    "cancelled",
    "step-running",
    "step-succeeded",
    "step-failed",
    "lost",
  );
  await fc.assert(
    fc.asyncProperty(
      fc.array(said, { minLength: 1, maxLength: 10 }),
      fc.array(fc.tuple(fc.nat(9), fc.nat(9)), { maxLength: 8 }),
      async (story, slices) => {
        const journal = newId("journal") as JournalId;
        const run = newId("run") as RunId;
        const command = wish(pool, {
          resource: `run:${run}`,
          run: { id: run, pool, pipeline: "p", spec: pipeline, params: {}, createdAt: 10 },
        });
        await store.createCommand(scope, command);
        await store.nextDispatch(scope.workspace, command.id, replica, 0, 55);
        const reports: (Report | "lost")[] = [];
        let sequence = 0;
        for (const word of story) {
          if (word === "lost") {
            reports.push("lost");
            continue;
          }
          const error = { code: "STEP_FAILED", message: "m" };
          const body = word.startsWith("step-")
            ? {
                type: "step" as const,
                run,
                step: "a",
                attempt: 1,
                state: word.slice(5) as StepState,
                error: null,
                exitCode: null,
                outputs: [],
                logSeq: sequence,
                adopted: false,
              }
            : word === "running"
              ? { type: "command.running" as const }
              : word === "succeeded"
                ? { type: "command.succeeded" as const, result: { n: sequence } }
                : word === "failed"
                  ? { type: "command.failed" as const, error }
                  : { type: "command.cancelled" as const, stopped: [] };
          reports.push({ journal, sequence: ++sequence, at: 20 + sequence, command: command.id, body: jsonBody(body) });
        }
        // The model: the story told once, in order.
        let state = "queued";
        let step: string | null = null;
        for (const entry of reports) {
          if (entry === "lost") {
            // Queued too: it was offered, and nothing but the agent's word says that it did not take it.
            if (state === "queued" || state === "accepted" || state === "running") state = "lost";
            continue;
          }
          const body = JSON.parse(entry.body.data) as { type: string; state?: string };
          if (state === "queued") state = "accepted";
          if (body.type === "step") {
            if (state !== "lost" && step !== "succeeded" && step !== "failed") step = body.state!;
          } else if (state === "accepted" || state === "running") state = body.type.slice(8);
        }
        // What happens: stretches of it again, late, before their time, in any cut; a stranger's word in between.
        let told = 0;
        const all = reports.filter((entry): entry is Report => entry !== "lost");
        for (const entry of reports) {
          for (const [from, length] of slices) {
            const slice = all
              .slice(from, from + length)
              .filter((report) => report.sequence <= told || report.sequence > told + 1);
            await store.commitReports(scope.workspace, replica, journal, [...slice].reverse(), 1000);
          }
          if (entry === "lost") {
            await store.declareLost(scope, command.id, 900);
            continue;
          }
          await store.commitReports(scope.workspace, stranger, journal, [entry], 1000);
          const { committedThrough } = await store.commitReports(scope.workspace, replica, journal, [entry], 1000);
          told = entry.sequence;
          if (committedThrough !== told) throw new Error(`committed through ${committedThrough}, not ${told}`);
        }
        const found = await store.run(scope, run);
        if (found?.command.state !== state) throw new Error(`state ${found?.command.state}, not ${state}`);
        if ((found.attempts[0]?.state ?? null) !== step)
          throw new Error(`step ${found.attempts[0]?.state}, not ${step}`);
      },
    ),
    { numRuns: 60 },
  );
  const journal = newId("journal");
  t.same(
    await store.commitReports(scope.workspace, replica, journal, [], 1, 50),
    { committedThrough: 49 },
    "a restored cloud does not wait for what the agent has dropped",
  );
});

t.test("deployments: of changes made at once one wins; revisions count content, not generations", async (t) => {
  const { store, scope, pool } = await opened(t);
  const step = fc.record({ replicas: fc.integer({ min: 0, max: 3 }), level: fc.constantFrom("a", "b", "c") });
  let n = 0;
  await fc.assert(
    fc.asyncProperty(fc.array(fc.array(step, { minLength: 1, maxLength: 3 }), { maxLength: 8 }), async (rounds) => {
      const id = newId("deployment");
      const name = `d${n++}`;
      await store.commitDeployment(scope, change(pool, id, 0, 1, { name, spec: specWith({ level: "a" }) }));
      let revisions = 1;
      for (const [round, rivals] of rounds.entries()) {
        const { deployment: before } = (await store.deployment(scope, id))!;
        const tries = rivals.map((rival) => {
          const spec = specWith(rival);
          const revision = before.revision + (revisionText(spec) === revisionText(before.spec) ? 0 : 1);
          const input = change(pool, id, before.generation, revision, { name, spec, at: 20 + round });
          return store.commitDeployment(scope, input).then(
            () => ({ spec, revision }),
            (error: unknown) => code(error),
          );
        });
        const ends = await Promise.all(tries);
        const won = ends.filter((end) => typeof end !== "string");
        if (won.length !== 1 || ends.some((end) => typeof end === "string" && end !== "PRECONDITION_FAILED"))
          throw new Error(`winners: ${JSON.stringify(ends)}`);
        const { deployment: now, command } = (await store.deployment(scope, id))!;
        if (now.revision !== before.revision) revisions++;
        t.same([now.generation, now.revision, now.spec], [before.generation + 1, won[0]!.revision, won[0]!.spec]);
        t.equal(command.state, "queued");
        const queued = (await store.commands(scope, { limit: 500, state: "queued" })).items;
        t.equal(queued.filter((one) => one.resource === `deployment:${id}`).length, 1, "older ones are superseded");
      }
      const all = (await store.deploymentRevisions(scope, id, { limit: 100 })).toReversed();
      t.same(
        all.map((one) => one.revision),
        Array.from({ length: revisions }, (_, at) => at + 1),
      );
      for (const one of all) {
        const same = all.filter(
          (other) => other.revision < one.revision && revisionText(other.spec) === revisionText(one.spec),
        );
        t.equal(one.from, same.at(-1)?.revision ?? null);
      }
      await store.commitDeployment(scope, change(pool, id, rounds.length + 1, 1, { name, removing: true, at: 50 }));
      t.ok((await store.deployment(scope, id))!.deployment.removedAt, "no agent can have it: removed at once");
    }),
    { numRuns: 20 },
  );
});

t.test("deployments: a change that is sent again changes nothing again", async (t) => {
  const { store, scope, pool } = await opened(t);
  const id = newId("deployment");
  const key = {
    key: "k",
    method: "POST",
    route: "/v1/deployments",
    requestDigest: "d",
    answer: { status: 201, body: 1 },
  };
  const input = change(pool, id, 0, 1);
  const first = await store.commitDeployment(scope, input, key);
  t.equal(first.replayed, null);
  t.match(await store.commitDeployment(scope, change(pool, newId("deployment"), 0, 1), key), {
    replayed: { status: 201 },
    command: { id: input.command.id },
  });
  t.match(await store.commitDeployment(scope, input), { command: { id: input.command.id } }, "the same command id");
  t.equal((await store.deployment(scope, id))!.deployment.generation, 1);
  await t.rejects(store.commitDeployment(scope, change(pool, newId("deployment"), 0, 1)), {
    code: "CONFLICT",
    message: /named d already/,
    details: { deployment: id },
  });
  t.equal((await store.commands(scope, { limit: 10 })).items.length, 1, "what was refused left no command");
});

t.test("credentials: a sign-in link works once, tokens and sessions end", async (t) => {
  const { store, user, scope } = await opened(t);
  t.equal(await store.hasSignedIn(user.id), false);
  await store.addSignIn(user.id, "h1", 100);
  await store.addSignIn(user.id, "h2", 100);
  t.equal(await store.redeemSignIn("h2", 100), null, "too late");
  const both = await Promise.all([store.redeemSignIn("h1", 50), store.redeemSignIn("h1", 50)]);
  t.equal(both.filter((row) => row !== null).length, 1);
  t.equal(await store.hasSignedIn(user.id), true);
  await store.addWebSession(user, "w", 0, 1000);
  t.ok(await store.useWebSession("w", 99, 100));
  t.equal(await store.useWebSession("w", 101, 100), null, "idle for too long");
  await store.addToken(scope, {
    id: "tok_x",
    user: user.id,
    label: "l",
    hint: "h",
    hash: "th",
    createdAt: 0,
    expiresAt: 10 ** 6,
  });
  t.ok(await store.useToken("th", 70_000));
  t.equal((await store.tokens(scope))[0]?.lastUsedAt, 70_000);
  t.equal(await store.useToken("th", 10 ** 6), null);
  t.ok(await store.useToken("th", 80_000), "and is kept for a moment");
  const beside = store.useToken("th", 80_500);
  await store.revokeToken(scope, "tok_x", 80_000);
  await beside;
  t.equal(await store.useToken("th", 80_001), null, "revoked: nothing that was kept lets it in again");
  await store.setPassword(scope, user.id, "p");
  t.equal(await store.useWebSession("w", 50, 100), null, "a new password ends sessions");
});
