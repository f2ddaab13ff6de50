// PostgreSQL goes away and comes back, connections break in the middle: what is answered is true, the rest is said to be
// unavailable, and nobody has to start anything again.
import { createServer, connect, type Socket } from "node:net";
import { ConnectorError, jsonBody, newCommandId, type CommandId } from "@sallyport/protocol";
import t, { type Test } from "tap";
import { tempDir, waitFor } from "../../test/support/launcher.ts";
import { startPostgres } from "../../test/support/servers.ts";
import { needs } from "../../test/support/skip.ts";
import { lockDatabase, openStore, postgresClientConfig, withoutPassword, type Scope, type Store } from "./index.ts";

const skip = needs("postgres");
const code = (error: unknown) => (error instanceof ConnectorError ? error.code : String(error));

async function ready(store: Store): Promise<{ scope: Scope; create(): Promise<CommandId> }> {
  const user = await store.ensureAdmin("admin", "default");
  const scope: Scope = { workspace: user.workspace, actor: { id: user.id, name: user.name, via: "session" } };
  const pool = (await store.ensurePool(scope, "lab", 1)).id;
  return {
    scope,
    async create() {
      const id = newCommandId();
      const times = { notBefore: 0, expires: 9e12, createdAt: 1 };
      await store.createCommand(scope, {
        id,
        pool,
        kind: "k.k",
        resource: id,
        intent: "{}",
        body: jsonBody({}),
        ...times,
      });
      return id;
    },
  };
}

/** A way to the server that a test can cut: every connection at once, at a moment of its choosing. */
async function way(test: Test, port: number): Promise<{ port: number; cut(): void }> {
  const sockets = new Set<Socket>();
  const server = createServer((from) => {
    const to = connect(port, "127.0.0.1");
    for (const [one, other] of [
      [from, to],
      [to, from],
    ] as const) {
      sockets.add(one);
      one.on("error", () => {}).on("close", () => (sockets.delete(one), other.destroy()));
      one.pipe(other);
    }
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const cut = () => sockets.forEach((socket) => void socket.resetAndDestroy());
  test.teardown(() => (cut(), server.close()));
  return { port: (server.address() as { port: number }).port, cut };
}

t.test("an outage is said at once and ends by itself", { skip, timeout: 120_000 }, async (t) => {
  const server = await startPostgres(t);
  const database = await server.database();
  const told: (string | null)[] = [];
  const store = await openStore({
    dir: tempDir(t, "store"),
    database,
    onOutage: (error) => told.push(error?.code ?? null),
  });
  t.teardown(() => store.close());
  const { scope, create } = await ready(store);
  const known = await create();
  await server.stop();
  const began = performance.now();
  const errors = await Promise.all([
    ...Array.from({ length: 50 }, () =>
      create().then(
        () => "made",
        (error: unknown) => error,
      ),
    ),
    store.command(scope, known).then(
      () => "read",
      (error: unknown) => error,
    ),
  ]);
  t.ok(performance.now() - began < 3_000, "nobody waits for a time-out");
  for (const error of errors) t.equal(code(error), "DATABASE_UNAVAILABLE");
  const error = errors[0] as ConnectorError;
  t.match(error, { status: 503, retry: "later", message: /127\.0\.0\.1:\d+\/test_/ });
  t.notMatch(error.message + error.fix, "app-secret");
  await server.resume();
  const made = await waitFor("the store to go on", create);
  t.ok(await store.command(scope, made));
  t.ok(await store.command(scope, known));
  t.same(told, ["DATABASE_UNAVAILABLE", null], "told once each way");
});

t.test(
  "connections that are cut at any moment lose nothing that was answered",
  { skip, timeout: 120_000 },
  async (t) => {
    const server = await startPostgres(t);
    const database = await server.database();
    const route = await way(t, Number(new URL(database).port));
    const url = new URL(database);
    url.port = String(route.port);
    const store = await openStore({ dir: tempDir(t, "store"), database: url.href });
    t.teardown(() => store.close());
    const { scope, create } = await ready(store);
    const answered: CommandId[] = [];
    let refused = 0;
    let rounds = 0;
    let over = false;
    const working = Array.from({ length: 16 }, async () => {
      while (!over) {
        try {
          answered.push(await create());
        } catch (error) {
          if (code(error) !== "DATABASE_UNAVAILABLE") throw error;
          refused++;
          await new Promise((resolve) => setTimeout(resolve, 20));
        }
      }
    });
    while (rounds < 12) {
      const at = answered.length;
      await waitFor("work between two cuts", () => answered.length > at + 10, { everyMs: 5 });
      route.cut();
      rounds++;
    }
    over = true;
    await Promise.all(working);
    const missing: CommandId[] = [];
    for (const id of answered) if ((await store.command(scope, id)) === null) missing.push(id);
    t.same(missing, []);
    // Only what broke at its commit is refused: what broke before was done again.
    t.comment(`${answered.length} answered, ${refused} refused in ${rounds} cuts`);
    const { items } = await store.changesAfter(scope.workspace, 0, 100_000);
    t.ok(items.length >= answered.length && items.every((change, n) => change.n > (items[n - 1]?.n ?? 0)));
  },
);

t.test(
  "TLS: its own CA is trusted by name, others are not; off loopback it is never given up silently",
  { skip },
  async (t) => {
    const server = await startPostgres(t, { tls: true });
    const database = await server.database();
    const open = async (parameters: string) => {
      const store = await openStore({ dir: tempDir(t, "store"), database: `${database}?${parameters}` });
      await store.incarnation();
      await store.close();
      return server.sql(
        database,
        "select count(*)::int as n from pg_stat_activity where application_name = 'sallyport-cloud'",
      );
    };
    const ca = encodeURIComponent(server.caFile!);
    await open(`sslmode=verify-full&sslrootcert=${ca}`);
    await open(`sslmode=verify-ca&sslrootcert=${ca}`);
    await open("sslmode=require");
    await t.rejects(open("sslmode=verify-full"), { code: "CONFIG_INVALID", fix: /sslrootcert/ });
    await t.rejects(open("sslmode=prefer"), { code: "CONFIG_INVALID", message: /leaves open/ });
    await t.rejects(open("sslmode=verify-ca"), { code: "CONFIG_INVALID" });
    await t.rejects(open("ssl_mode=require"), { code: "CONFIG_INVALID", message: /ssl_mode/ });
    t.match(postgresClientConfig("postgres://u:p%40@db.example/x").ssl, { rejectUnauthorized: undefined });
    t.equal(postgresClientConfig("postgres://u@db.example/x?sslmode=disable").ssl, false);
    t.equal(postgresClientConfig("postgres://u@localhost/x").ssl, false);
    t.equal(postgresClientConfig("postgres://u:p%40@db.example/x").password, "p@");
    t.notMatch(withoutPassword("postgres://u:very-secret@db.example/x?sslmode=disable"), "very-secret");
    t.equal(withoutPassword("very-secret"), "(not an address)");
    const wrong = database.replace("app-secret", "very-secret");
    await t.rejects(openStore({ dir: tempDir(t, "store"), database: wrong }), {
      code: "CONFIG_INVALID",
      message: /wrong user or password/,
    });
    await t.rejects(openStore({ dir: tempDir(t, "store"), database: `${database}x` }), {
      code: "CONFIG_INVALID",
      message: /no database/,
    });
  },
);

t.test(
  "one control plane a database; the lock is taken again after an outage",
  { skip, timeout: 120_000 },
  async (t) => {
    const server = await startPostgres(t);
    const database = await server.database();
    const lost: string[] = [];
    const lock = () => lockDatabase(database, { patient: false, onLost: (error) => lost.push(error.message) });
    const first = await lock();
    await t.rejects(lock(), { code: "CONFIG_INVALID", message: /Another control plane/ });
    await server.restart();
    await waitFor("the lock again", async () => {
      const held = "select 1 from pg_locks where locktype = 'advisory' and granted";
      return (await server.sql(database, held)).length > 0;
    });
    await t.rejects(lock(), { code: "CONFIG_INVALID" });
    t.same(lost, []);
    await first.release();
    const second = await lock();
    await second.release();
  },
);
