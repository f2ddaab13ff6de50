// The store over PostgreSQL: the operations of SQLite's writer, in process, over a pool. What makes them right is the
// same as there: within one workspace nothing else writes meanwhile. Here a transaction's first statement takes the
// workspace's advisory lock, and each later statement sees everything that was committed before the lock was had.
import { ConnectorError, type WorkspaceId } from "@sallyport/protocol";
import type pg from "pg";
import { numberChanges } from "./operations/changes.ts";
import { READS, WRITES } from "./operations/index.ts";
import type { Tx } from "./operations/tx.ts";
import { connect, databaseError, isOutage, kyselyOf, makePool, mayRepeat, query } from "./postgres-connection.ts";
import { lockNumber, migrate } from "./postgres-schema.ts";
import { shownDatabase } from "./postgres-url.ts";
import type { ChangeRow, Collected, Store } from "./store.ts";
import { storeOf, type Operations } from "./store-of.ts";

type Operation = (tx: Tx, ...args: unknown[]) => Promise<unknown>;
type WriteName = keyof typeof WRITES;
type ReadName = keyof typeof READS;

/** Of connections: some for writing, the rest for reading, so that neither waits for the other's burst. */
const WRITERS = 8;
const READERS = 8;
/** Waiting operations of one workspace that share a transaction: one commit for all, a savepoint each. */
const MAX_BATCH = 32;
const MAX_TRIES = 8;
/** After a failed connection nothing is tried for so long: callers hear it at once instead of each waiting for a time-out. */
const OUTAGE_MS = 500;
/** How long a start waits for the database. */
const START_MS = 15_000;
const MAX_LOOKUPS = 10_000;

/** Answers from one statement need no snapshot of their own; everything else reads in one. */
const ONE_STATEMENT: ReadonlySet<string> = new Set<ReadName>([
  "userByName",
  "peekWebSession",
  "peekToken",
  "pools",
  "poolByName",
  "idempotent",
  "command",
  "deploymentRevision",
  "deploymentRollups",
  "processes",
  "presence",
  "presenceOf",
  "changeNumbers",
]);

/**
 * Whose lock a write takes. Absent: that of the workspace its first argument is or has. `cloud`: what lies above
 * workspaces. `none`: one statement that is right by itself. `of`: the workspace is looked up first (it never changes).
 * `each`: one transaction a workspace, the answers put together.
 */
type Route =
  | { kind: "cloud" | "none" }
  | { kind: "of"; table: "enrollments" | "replicas"; id(args: readonly unknown[]): string }
  | {
      kind: "each";
      /** Arguments of each workspace's own call. */
      split(args: readonly unknown[], find: Find): Promise<Map<string, unknown[]>>;
      join(answers: unknown[]): unknown;
    };
type Find = (statement: string, values: readonly unknown[]) => Promise<string[]>;
const sum = (answers: unknown[]): number => (answers as number[]).reduce((total, one) => total + one, 0);

const ROUTES: Partial<Record<WriteName, Route>> = {
  incarnation: { kind: "cloud" },
  ensureAdmin: { kind: "cloud" },
  makeWorkspace: { kind: "cloud" },
  putCloudKeys: { kind: "cloud" },
  joinProcess: { kind: "cloud" },
  beatProcess: { kind: "none" },
  announceLeaving: { kind: "none" },
  leaveProcess: { kind: "none" },
  addSignIn: { kind: "none" },
  redeemSignIn: { kind: "none" },
  touchWebSession: { kind: "none" },
  removeWebSession: { kind: "none" },
  touchToken: { kind: "none" },
  redeemEnrollment: { kind: "of", table: "enrollments", id: ([input]) => (input as { id: string }).id },
  offerKey: { kind: "of", table: "replicas", id: ([id]) => id as string },
  takeKey: { kind: "of", table: "replicas", id: ([id]) => id as string },
  openSession: { kind: "of", table: "replicas", id: ([id]) => id as string },
  holdSession: { kind: "of", table: "replicas", id: ([id]) => id as string },
  closeSession: { kind: "of", table: "replicas", id: ([id]) => id as string },
  seen: {
    kind: "each",
    async split([updates]) {
      const groups = Map.groupBy(updates as { workspace: string }[], (update) => update.workspace);
      return new Map([...groups].map(([workspace, own]) => [workspace, [own]]));
    },
    join: (answers) => ({ ignored: sum(answers.map((answer) => (answer as { ignored: number }).ignored)) }),
  },
  releaseSessions: {
    kind: "each",
    async split(args, find) {
      const statement = `select distinct workspace_id as id from replicas
        where session_id is not null and disconnected_at is null and process <> $1`;
      return new Map((await find(statement, [args[0]])).map((workspace) => [workspace, [...args, workspace]]));
    },
    join: sum,
  },
  releaseProcess: {
    kind: "each",
    async split(args, find) {
      const statement = `select distinct workspace_id as id from replicas
        where session_id is not null and disconnected_at is null and process = $1`;
      return new Map((await find(statement, [args[0]])).map((workspace) => [workspace, [...args, workspace]]));
    },
    join: sum,
  },
  expireQueued: {
    kind: "each",
    async split(args, find) {
      const statement = `select distinct workspace_id as id from commands where state = 'queued' and expires_at <= $1`;
      return new Map((await find(statement, [args[0]])).map((workspace) => [workspace, [...args, workspace]]));
    },
    join: sum,
  },
  collect: {
    kind: "each",
    async split([now, limits], find) {
      const all = await find("select workspace_id as id from workspaces", []);
      return new Map(all.map((workspace) => [workspace, [now, limits, workspace]]));
    },
    join: (answers) => {
      const parts = answers as Collected[];
      return {
        commands: sum(parts.map((part) => part.commands)),
        rows: sum(parts.map((part) => part.rows)),
        more: parts.some((part) => part.more),
      } satisfies Collected;
    },
  },
};

const CLOUD_LOCK = lockNumber("cloud");

interface Job {
  name: WriteName;
  args: unknown[];
  resolve(value: unknown): void;
  reject(error: Error): void;
}
/** Writes that wait for the same lock, in order. */
interface Lane {
  lock: bigint;
  queue: Job[];
}

export interface PostgresStoreOptions {
  /** postgres://user:password@host:5432/database?sslmode=verify-full&sslrootcert=/path/ca.pem */
  url: string;
  /** Connections, writing and reading together. */
  connections?: number;
  /** Told when the database goes away and when it is back. Absent = nobody. */
  onOutage?: (error: ConnectorError | null) => void;
}

const pause = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));
export async function openPostgresStore(options: PostgresStoreOptions): Promise<Store> {
  const where = shownDatabase(options.url);
  const total = options.connections ?? WRITERS + READERS;
  const writers = Math.max(1, Math.floor(total / 2));
  const idleFailure = (error: Error) => down(error);
  const writing = makePool(options.url, writers, idleFailure);
  const reading = makePool(options.url, Math.max(1, total - writers), idleFailure);
  const listeners = new Set<(workspace: WorkspaceId, changes: ChangeRow[]) => void>();
  const lanes = new Map<string, Lane>();
  const workspaces = new Map<string, string>();
  const underWay = new Set<Promise<unknown>>();
  let closing = false;
  /** The outage that is on, and until when nobody asks again. */
  let outage: { error: ConnectorError; untilMs: number } | null = null;

  function down(cause: unknown): ConnectorError {
    const error = databaseError(cause, where);
    if (error.code === "DATABASE_UNAVAILABLE" && isOutage(cause)) {
      const first = outage === null;
      outage = { error, untilMs: performance.now() + OUTAGE_MS };
      if (first) options.onOutage?.(error);
    }
    return error;
  }
  function up(): void {
    if (outage === null) return;
    outage = null;
    options.onOutage?.(null);
  }
  const refuseMeanwhile = (): void => {
    if (outage !== null && performance.now() < outage.untilMs) throw outage.error;
  };

  /** A connection for `work`; one that broke is not used again. */
  async function withClient<T>(pool: pg.Pool, work: (client: pg.PoolClient) => Promise<T>): Promise<T> {
    refuseMeanwhile();
    let client: pg.PoolClient;
    try {
      client = await connect(pool);
    } catch (error) {
      throw down(error);
    }
    // Its failure reaches the statement that waits; between two statements nobody else would listen.
    const ignore = () => {};
    client.on("error", ignore);
    let failure: unknown;
    try {
      const value = await work(client);
      up();
      return value;
    } catch (error) {
      failure = error;
      throw error;
    } finally {
      client.off("error", ignore);
      // What failed otherwise was rolled back: the connection is as good as before.
      client.release(failure instanceof InDoubt || isOutage(failure));
    }
  }

  // -- reads
  async function read(name: ReadName, args: unknown[]): Promise<unknown> {
    const operation = READS[name] as unknown as Operation;
    for (let attempt = 1; ; attempt++) {
      try {
        return await withClient(reading, async (client) => {
          const tx: Tx = { db: kyselyOf(client), touch: () => {} };
          if (ONE_STATEMENT.has(name)) return operation(tx, ...args);
          const begun = query(client, "begin isolation level repeatable read read only");
          begun.catch(() => {});
          try {
            const value = await operation(tx, ...args);
            await query(client, "commit");
            return value;
          } catch (error) {
            await begun;
            await query(client, "rollback");
            throw error;
          }
        });
      } catch (error) {
        // A connection that died while it lay idle; reading twice does no harm.
        if (attempt >= 2 || error instanceof ConnectorError || !(isOutage(error) || mayRepeat(error)))
          throw isOutage(error) ? down(error) : databaseError(error, where);
      }
    }
  }

  // -- writes
  async function runJob(client: pg.PoolClient, job: Job): Promise<Outcome> {
    const touched = new Map<string, Map<string, { entity: ChangeRow["entity"]; id: string }>>();
    const tx: Tx = {
      db: kyselyOf(client),
      touch(workspace, entity, id) {
        let of = touched.get(workspace);
        if (of === undefined) touched.set(workspace, (of = new Map()));
        of.set(`${entity} ${id}`, { entity, id });
      },
    };
    const value = await (WRITES[job.name] as unknown as Operation)(tx, ...job.args);
    const changes: Outcome["changes"] = [];
    for (const [workspace, things] of touched)
      changes.push({ workspace, rows: await numberChanges(tx, workspace, [...things.values()]) });
    return { value, changes };
  }

  /** One transaction. What fails in the operation itself is its own outcome; what throws here holds for all of them. */
  async function transaction(client: pg.PoolClient, lock: bigint | null, jobs: readonly Job[]): Promise<Outcome[]> {
    // Sent without waiting: the operation's first statement follows on the heels of the lock.
    const begun = query(
      client,
      lock === null
        ? "begin isolation level read committed"
        : `begin isolation level read committed; select pg_advisory_xact_lock(${lock})`,
    );
    begun.catch(() => {});
    const outcomes: Outcome[] = [];
    let committing = false;
    try {
      for (const job of jobs) {
        const alone = jobs.length === 1;
        const savepoint = alone ? begun : query(client, "savepoint operation");
        savepoint.catch(() => {});
        try {
          outcomes.push(await runJob(client, job));
          if (!alone) void query(client, "release savepoint operation").catch(() => {});
        } catch (error) {
          await begun;
          await savepoint;
          if (isOutage(error) || mayRepeat(error)) throw error;
          await query(client, alone ? "rollback" : "rollback to savepoint operation; release savepoint operation");
          outcomes.push({ error: databaseError(error, where) });
          if (alone) return outcomes;
        }
      }
      committing = true;
      const { command } = await query(client, "commit");
      if (command !== "COMMIT") throw new Error(`The database answered ${command} to a commit.`);
      return outcomes;
    } catch (error) {
      if (isOutage(error)) {
        if (committing) throw new InDoubt(error);
        throw error;
      }
      await query(client, "rollback");
      throw error;
    }
  }

  async function runBatch(lock: bigint | null, jobs: readonly Job[]): Promise<void> {
    for (let attempt = 1; ; attempt++) {
      try {
        const outcomes = await withClient(writing, (client) => transaction(client, lock, jobs));
        // Changes first: whoever awaits the write finds that listeners were told already.
        for (const outcome of outcomes)
          if (!("error" in outcome))
            for (const { workspace, rows } of outcome.changes)
              for (const listener of listeners) listener(workspace as WorkspaceId, rows);
        for (const [at, job] of jobs.entries()) {
          const outcome = outcomes[at]!;
          if ("error" in outcome) job.reject(outcome.error);
          else job.resolve(outcome.value);
        }
        return;
      } catch (error) {
        const again = attempt < MAX_TRIES && !(error instanceof ConnectorError || error instanceof InDoubt);
        if (again && mayRepeat(error)) {
          await pause(Math.random() * 5 * 2 ** attempt);
          continue;
        }
        // A connection that died while it lay idle: nothing was committed, so a fresh one may do it, once.
        if (again && attempt === 1 && isOutage(error)) continue;
        const cause = error instanceof InDoubt ? error.cause : error;
        const known = isOutage(cause) ? down(cause) : databaseError(cause, where);
        for (const job of jobs) job.reject(known);
        return;
      }
    }
  }

  function submit(key: string, lock: bigint, job: Job): void {
    const lane = lanes.get(key);
    if (lane !== undefined) return void lane.queue.push(job);
    const made: Lane = { lock, queue: [job] };
    lanes.set(key, made);
    void (async () => {
      // One turn of the event loop: what is asked for together is written together.
      await new Promise(setImmediate);
      while (made.queue.length > 0) await runBatch(made.lock, made.queue.splice(0, MAX_BATCH));
      lanes.delete(key);
    })();
  }

  const inLane = (key: string, lock: bigint, name: WriteName, args: unknown[]): Promise<unknown> =>
    new Promise((resolve, reject) => {
      refuseMeanwhile();
      submit(key, lock, { name, args, resolve, reject });
    });
  const ofWorkspace = (workspace: unknown, name: WriteName, args: unknown[]): Promise<unknown> => {
    if (typeof workspace !== "string" || !workspace.startsWith("wsp_"))
      throw new Error(`The operation ${name} names no workspace: it needs a line in ROUTES.`);
    return inLane(workspace, lockNumber(`workspace/${workspace}`), name, args);
  };

  const find: Find = async (statement, values) => {
    try {
      const { rows } = await withClient(reading, (client) => query(client, statement, values));
      return rows.map((row) => row.id as string);
    } catch (error) {
      throw isOutage(error) ? down(error) : databaseError(error, where);
    }
  };
  async function workspaceOf(table: "enrollments" | "replicas", id: string): Promise<string | undefined> {
    const known = workspaces.get(id);
    if (known !== undefined) return known;
    const column = table === "replicas" ? "replica_id" : "enrollment_id";
    const [found] = await find(`select workspace_id as id from ${table} where ${column} = $1`, [id]);
    if (found === undefined) return undefined;
    if (workspaces.size >= MAX_LOOKUPS) workspaces.delete(workspaces.keys().next().value!);
    workspaces.set(id, found);
    return found;
  }

  async function write(name: WriteName, args: unknown[]): Promise<unknown> {
    const route = ROUTES[name];
    const alone = () =>
      new Promise((resolve, reject) => {
        refuseMeanwhile();
        void runBatch(null, [{ name, args, resolve, reject }]);
      });
    switch (route?.kind) {
      case "cloud":
        return inLane("cloud", CLOUD_LOCK, name, args);
      case "none":
        return alone();
      case "of": {
        const workspace = await workspaceOf(route.table, route.id(args));
        // Of nothing that there is: the operation says so, there is nothing to lock.
        return workspace === undefined ? alone() : ofWorkspace(workspace, name, args);
      }
      case "each": {
        const parts = await route.split(args, find);
        return route.join(await Promise.all([...parts].map(([workspace, own]) => ofWorkspace(workspace, name, own))));
      }
      case undefined: {
        const [first] = args;
        return ofWorkspace(
          typeof first === "string" ? first : (first as Partial<{ workspace: string }>).workspace,
          name,
          args,
        );
      }
    }
  }

  let closed: Promise<void> | undefined;
  const close = (): Promise<void> => (closed ??= finish());
  /** What was asked for before is done first. */
  async function finish(): Promise<void> {
    closing = true;
    while (underWay.size > 0) await Promise.allSettled(underWay);
    await Promise.all([writing.end(), reading.end()]);
  }

  const until = performance.now() + START_MS;
  for (;;) {
    try {
      await withClient(writing, (client) => migrate(client, where));
      break;
    } catch (caught) {
      const error = isOutage(caught) ? down(caught) : databaseError(caught, where);
      if (error.code !== "DATABASE_UNAVAILABLE" || performance.now() > until) {
        await close();
        throw error;
      }
      await pause(OUTAGE_MS);
    }
  }

  const whileOpen =
    <Name>(work: (name: Name, args: unknown[]) => Promise<unknown>, name: Name) =>
    async (...args: unknown[]) => {
      if (closing) throw new ConnectorError("GOING_AWAY", "The store is closed: the control plane is stopping.");
      const done = work(name, args);
      underWay.add(done);
      try {
        return await done;
      } finally {
        underWay.delete(done);
      }
    };
  const operations = Object.fromEntries([
    ...(Object.keys(WRITES) as WriteName[]).map((name) => [name, whileOpen(write, name)]),
    ...(Object.keys(READS) as ReadName[]).map((name) => [name, whileOpen(read, name)]),
  ]) as Operations;
  return storeOf(operations, listeners, close);
}

type Outcome =
  | { value: unknown; changes: { workspace: string; rows: ChangeRow[] }[] }
  | { error: ConnectorError; changes?: never };

/** The connection broke at COMMIT: whether it was written is not known, so it is not done again here. */
class InDoubt extends Error {
  constructor(cause: unknown) {
    super("The outcome of a commit is not known.", { cause });
  }
}
