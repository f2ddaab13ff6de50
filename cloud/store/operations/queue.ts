// Which queued commands may go now, in which order, and who stands before the others: order of commit within a resource,
// priority between resources, and the limits of pools and pipelines. The dispatcher asks; `mayBegin` has the last word.
import {
  pipelineRun,
  type CommandId,
  type PoolId,
  type ReplicaId,
  type RunId,
  type WorkspaceId,
} from "@sallyport/protocol";
import { sql, type SqlBool } from "kysely";
import type { CommandRow, CommandState, PoolQueue, RunHolder } from "../store.ts";
import { commandRows, toCommand } from "./command-rows.ts";
import { prepared } from "./prepared.ts";
import type { Tx } from "./tx.ts";

const RUN = pipelineRun.kind;
/** Holders that are named; the others are counted. */
const NAMED_HOLDERS = 20;

/** There is an offer that was not refused: its replica may have the command. `of`: alias of the commands table. */
export const maybeTaken = (of: string) =>
  sql<SqlBool>`exists (select 1 from offers as o where o.workspace_id = ${sql.ref(`${of}.workspace_id`)}
    and o.command_id = ${sql.ref(`${of}.command_id`)} and o.refusal is null)`;

/** Runs of the pool that an agent has, or may have. */
const held = (tx: Tx, workspace: string, pool: string) =>
  tx.db
    .selectFrom("commands as h")
    .innerJoin("runs as hr", (join) =>
      join.onRef("hr.workspace_id", "=", "h.workspace_id").onRef("hr.command_id", "=", "h.command_id"),
    )
    .where("h.workspace_id", "=", workspace)
    .where("h.pool_id", "=", pool)
    .where("h.kind", "=", RUN)
    .where((eb) =>
      eb.or([
        eb("h.state", "in", ["accepted", "running"]),
        eb.and([eb("h.state", "=", "queued"), eb("h.offers", ">", 0), maybeTaken("h")]),
      ]),
    );

const maxRunsOf = prepared((db, later: { workspace: string; pool: string }) =>
  db
    .selectFrom("pools")
    .select("max_runs")
    .where("workspace_id", "=", later.workspace)
    .where("pool_id", "=", later.pool),
);
const poolLimit = async (tx: Tx, workspace: string, pool: string): Promise<number | null> =>
  (await maxRunsOf.first(tx, { workspace, pool }))?.max_runs ?? null;

/** Of one resource only the first to be committed. Past its expiry only what an agent may have: the answer settles it. */
const heads = (tx: Tx, workspace: string, pool: string, now: number) =>
  tx.db
    .selectFrom((qb) =>
      qb
        .selectFrom("commands as c")
        .leftJoin("runs as r", (join) =>
          join.onRef("r.workspace_id", "=", "c.workspace_id").onRef("r.command_id", "=", "c.command_id"),
        )
        .select([
          "c.command_id",
          "c.kind",
          "c.priority",
          "c.commit_no",
          "c.created_at",
          "c.not_before",
          "c.expires_at",
          "r.pipeline",
          "r.concurrency",
          sql<number>`case when c.offers > 0 and ${maybeTaken("c")} then 1 else 0 end`.as("maybe"),
          sql<number>`row_number() over (partition by c.resource order by c.commit_no, c.created_at, c.command_id)`.as(
            "place",
          ),
        ])
        .where("c.workspace_id", "=", workspace)
        .where("c.pool_id", "=", pool)
        .where("c.state", "=", "queued")
        .as("q"),
    )
    .where("q.place", "=", 1)
    .where("q.not_before", "<=", now)
    .where((eb) => eb.or([eb("q.expires_at", ">", now), eb("q.maybe", "=", 1)]));

const inOrder = sql`q.priority desc, q.commit_no, q.created_at, q.command_id`;

/** Ids that may be offered now, with their order, as a query to select from or to join with. */
async function open(tx: Tx, workspace: string, pool: string, now: number) {
  const maxRuns = await poolLimit(tx, workspace, pool);
  const counts = await held(tx, workspace, pool)
    .select((eb) => ["hr.pipeline", eb.fn.countAll<number>().as("n")])
    .groupBy("hr.pipeline")
    .execute();
  const heldOf = new Map(counts.map((row) => [row.pipeline, Number(row.n)]));
  const heldInAll = [...heldOf.values()].reduce((sum, n) => sum + n, 0);
  // A limited pipeline keeps its place only while it may begin: what waits for itself must not hold up the others.
  const allowed = tx.db
    .selectFrom(
      heads(tx, workspace, pool, now)
        .select([
          "q.command_id",
          "q.kind",
          "q.priority",
          "q.commit_no",
          "q.created_at",
          "q.pipeline",
          "q.concurrency",
          "q.maybe",
        ])
        .select(
          sql<number>`row_number() over (partition by q.pipeline, q.maybe order by ${inOrder})`.as("pipeline_place"),
        )
        .as("q"),
    )
    .select(["q.command_id", "q.kind", "q.priority", "q.commit_no", "q.created_at", "q.maybe"])
    .select(sql<number>`row_number() over (partition by q.kind, q.maybe order by ${inOrder})`.as("kind_place"))
    .where((eb) =>
      eb.or([
        eb("q.maybe", "=", 1),
        eb("q.concurrency", "is", null),
        ...[...heldOf].map(([pipeline, n]) =>
          eb.and([eb("q.pipeline", "=", pipeline), eb(sql<number>`q.concurrency - q.pipeline_place`, ">=", n)]),
        ),
        eb.and([
          ...(heldOf.size === 0 ? [] : [eb("q.pipeline", "not in", [...heldOf.keys()])]),
          eb(sql<number>`q.concurrency - q.pipeline_place`, ">=", 0),
        ]),
      ]),
    );
  return tx.db
    .selectFrom(allowed.as("q"))
    .select(["q.command_id", "q.priority", "q.commit_no", "q.created_at"])
    .where((eb) =>
      maxRuns === null
        ? eb.lit(true)
        : eb.or([
            eb("q.maybe", "=", 1),
            eb("q.kind", "!=", RUN),
            eb("q.kind_place", "<=", Math.max(0, maxRuns - heldInAll)),
          ]),
    );
}

export async function offerable(
  tx: Tx,
  workspace: WorkspaceId,
  pool: PoolId,
  now: number,
  limit: number,
): Promise<CommandRow[]> {
  return (await offersDue(tx, workspace, pool, now, limit)).rows;
}

const due = prepared((db, later: { workspace: string; pool: string; now: number }) =>
  db
    .selectFrom("commands")
    .select((eb) => eb.fn.countAll<number>().as("n"))
    .where("workspace_id", "=", later.workspace)
    .where("pool_id", "=", later.pool)
    .where("state", "=", "queued")
    .where("not_before", "<=", later.now),
);
/** `others`: queued ones whose time has come beside these, which may not go yet. */
export async function offersDue(
  tx: Tx,
  workspace: WorkspaceId,
  pool: PoolId,
  now: number,
  limit: number,
): Promise<{ rows: CommandRow[]; others: number }> {
  const first = (await open(tx, workspace, pool, now)).orderBy(inOrder).limit(limit).as("f");
  const rows = await commandRows(tx, workspace)
    .innerJoin(first, "f.command_id", "c.command_id")
    .orderBy("c.priority", "desc")
    .orderBy("c.commit_no")
    .orderBy("c.created_at")
    .orderBy("c.command_id")
    .execute();
  const queued = Number((await due.first(tx, { workspace, pool, now }))?.n ?? 0);
  return { rows: rows.map(toCommand), others: Math.max(0, queued - rows.length) };
}

const older = prepared((db, later: { workspace: string; pool: string; resource: string; commitNo: number }) =>
  db
    .selectFrom("commands")
    .select("command_id")
    .where("workspace_id", "=", later.workspace)
    .where("resource", "=", later.resource)
    .where("pool_id", "=", later.pool)
    .where("state", "=", "queued")
    .where("commit_no", "<", later.commitNo)
    .limit(1),
);
/** In the transaction that counts the offer: no older one of its resource waits. */
export async function comesFirst(
  tx: Tx,
  row: { workspace_id: string; pool_id: string; resource: string; commit_no: number },
): Promise<boolean> {
  const found = await older.first(tx, {
    workspace: row.workspace_id,
    pool: row.pool_id,
    resource: row.resource,
    commitNo: row.commit_no,
  });
  return found === undefined;
}

const runOf = prepared((db, later: { workspace: string; command: string }) =>
  db
    .selectFrom("runs")
    .select(["pipeline", "concurrency"])
    .where("workspace_id", "=", later.workspace)
    .where("command_id", "=", later.command),
);
/** In the transaction that counts the offer: whether the limits of its pool and pipeline still let it begin. */
export async function mayBegin(
  tx: Tx,
  row: { workspace_id: string; pool_id: string; command_id: string; kind: string; offers: number },
): Promise<boolean> {
  if (row.kind !== RUN) return true;
  const run = await runOf.first(tx, { workspace: row.workspace_id, command: row.command_id });
  const maxRuns = await poolLimit(tx, row.workspace_id, row.pool_id);
  if (maxRuns === null && (run?.concurrency ?? null) === null) return true;
  const others = await held(tx, row.workspace_id, row.pool_id)
    .where("h.command_id", "!=", row.command_id)
    .select((eb) => ["hr.pipeline", eb.fn.countAll<number>().as("n")])
    .groupBy("hr.pipeline")
    .execute();
  const inAll = others.reduce((sum, one) => sum + Number(one.n), 0);
  const ofPipeline = Number(others.find((one) => one.pipeline === run?.pipeline)?.n ?? 0);
  if ((maxRuns === null || inAll < maxRuns) && (run?.concurrency == null || ofPipeline < run.concurrency)) return true;
  // Its slot is its own already: an agent may have it, and only asking again tells.
  const own = await tx.db
    .selectFrom("commands as c")
    .select("c.command_id")
    .where("c.workspace_id", "=", row.workspace_id)
    .where("c.command_id", "=", row.command_id)
    .where(maybeTaken("c"))
    .executeTakeFirst();
  return own !== undefined;
}

/** Where queued commands stand, and who has the pool's slots. For showing: nothing here decides. */
export async function queue(
  tx: Tx,
  workspace: WorkspaceId,
  pool: PoolId,
  ids: CommandId[],
  now: number,
): Promise<PoolQueue> {
  const holders = await held(tx, workspace, pool)
    .leftJoin("replicas as p", (join) =>
      join.onRef("p.workspace_id", "=", "h.workspace_id").onRef("p.replica_id", "=", "h.replica_id"),
    )
    .select(["h.command_id", "h.state", "h.replica_id", "p.name", "h.accepted_at", "h.created_at"])
    .select(["hr.run_id", "hr.pipeline"])
    .orderBy("h.accepted_at")
    .orderBy("h.commit_no")
    .execute();
  const heldOf: Record<string, number> = {};
  for (const one of holders) heldOf[one.pipeline] = (heldOf[one.pipeline] ?? 0) + 1;
  const standing =
    ids.length === 0
      ? []
      : await tx.db
          .selectFrom((qb) =>
            qb
              .selectFrom("commands as c")
              .select("c.command_id")
              .select([
                sql<number>`row_number() over (partition by case when c.kind = ${RUN} then 1 else 0 end order by c.priority desc, c.commit_no, c.created_at, c.command_id)`.as(
                  "position",
                ),
                sql<number>`count(*) over (partition by case when c.kind = ${RUN} then 1 else 0 end)`.as("waiting"),
                sql<string>`first_value(c.command_id) over (partition by c.resource order by c.commit_no, c.created_at, c.command_id)`.as(
                  "first_of_resource",
                ),
              ])
              .where("c.workspace_id", "=", workspace)
              .where("c.pool_id", "=", pool)
              .where("c.state", "=", "queued")
              .as("s"),
          )
          .selectAll("s")
          .where("s.command_id", "in", ids)
          .execute();
  const mayGo = new Set(
    standing.length === 0
      ? []
      : (
          await tx.db
            .selectFrom((await open(tx, workspace, pool, now)).as("f"))
            .select("f.command_id")
            .where("f.command_id", "in", ids)
            .execute()
        ).map((row) => row.command_id),
  );
  return {
    maxRuns: await poolLimit(tx, workspace, pool),
    held: holders.length,
    heldOf,
    holders: holders.slice(0, NAMED_HOLDERS).map((one): RunHolder => ({
      command: one.command_id as CommandId,
      run: one.run_id as RunId,
      pipeline: one.pipeline,
      state: one.state as CommandState,
      replica: one.replica_id as ReplicaId | null,
      replicaName: one.name,
      since: one.accepted_at ?? one.created_at,
    })),
    items: standing.map((one) => ({
      id: one.command_id as CommandId,
      position: Number(one.position),
      of: Number(one.waiting),
      behind: one.first_of_resource === one.command_id ? null : (one.first_of_resource as CommandId),
      mayGo: mayGo.has(one.command_id),
    })),
  };
}
