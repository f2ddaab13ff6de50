// What nobody needs any more goes, in bounded batches: ended commands with all that hangs on them, keys, sessions, minutes.
// Never a command that has not ended or not expired, the one that a deployment stands on, or one that an agent replica
// has still to be told to let go of. Read-only history that has a cap of its own (alarms, refusals) is cut where it is written.
import { sql, type SqlBool } from "kysely";
import type { CollectLimits, Collected } from "../store.ts";
import { KEPT_CHANGES, KEPT_KEYS_MS } from "./changes.ts";
import type { Tables } from "../tables.ts";
import type { Tx } from "./tx.ts";

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
export const DEFAULT_LIMITS: Required<CollectLimits> = {
  keepMs: 30 * DAY_MS,
  keepRollupsMs: 2 * DAY_MS,
  revisions: 1_000,
  batch: 200,
};
/** An agent's record of a command goes at expiry and this much skew: until then the id must be known here. */
const SKEW_MS = HOUR_MS;

/** `workspace`: of that one alone. */
export async function collect(tx: Tx, now: number, limits: CollectLimits = {}, workspace?: string): Promise<Collected> {
  const wanted = { ...DEFAULT_LIMITS, ...limits };
  const ids =
    workspace === undefined
      ? (await tx.db.selectFrom("workspaces").select("workspace_id").execute()).map((row) => row.workspace_id)
      : [workspace];
  const sum: Collected = { commands: 0, rows: 0, more: false };
  for (const id of ids) {
    const part = await collectOf(tx, id, now, wanted);
    sum.commands += part.commands;
    sum.rows += part.rows;
    sum.more ||= part.more;
  }
  return sum;
}

async function collectOf(tx: Tx, workspace: string, now: number, limits: Required<CollectLimits>): Promise<Collected> {
  const old = now - limits.keepMs;
  let rows = 0;
  let more = false;
  const count = (found: { numDeletedRows: bigint }[]): void => {
    for (const one of found) rows += Number(one.numDeletedRows);
  };
  const full = (n: number): void => {
    more ||= n >= limits.batch;
  };
  /** All that hangs on these ids, in the order of the tables. */
  const drop = async (tables: readonly (keyof Tables)[], column: string, of: readonly string[]): Promise<void> => {
    if (of.length === 0) return;
    for (const table of tables) {
      const { numAffectedRows } = await sql`delete from ${sql.table(table)}
        where workspace_id = ${workspace} and ${sql.ref(column)} in (${sql.join(of)})`.execute(tx.db);
      rows += Number(numAffectedRows ?? 0);
    }
  };
  /** Rows at or below `limit`, the oldest of them first. */
  const dropOldest = async (...[table, column, limit]: [...Aged, number]): Promise<void> => {
    const upTo = await mark(tx, table, column, workspace, limit, limits.batch);
    if (upTo === null) return;
    const { numAffectedRows } = await sql`delete from ${sql.table(table)}
      where workspace_id = ${workspace} and ${sql.ref(column)} <= ${upTo}`.execute(tx.db);
    rows += Number(numAffectedRows ?? 0);
    full(Number(numAffectedRows ?? 0));
  };

  // -- deployments that were removed, so that their commands may go after them
  const gone = (
    await tx.db
      .selectFrom("deployments")
      .select("deployment_id")
      .where("workspace_id", "=", workspace)
      .where("removed_at", "<=", old)
      .limit(limits.batch)
      .execute()
  ).map((row) => row.deployment_id);
  await drop(["deployment_rollups", "deployment_revisions", "deployments"], "deployment_id", gone);
  full(gone.length);

  // -- commands, with their offers, events, runs and takeovers
  const commands = (
    await tx.db
      .selectFrom("commands as c")
      .select(["c.command_id", "c.ended_at"])
      .where("c.workspace_id", "=", workspace)
      .where("c.ended_at", "is not", null)
      .where("c.ended_at", "<=", old)
      .where("c.expires_at", "<=", now - SKEW_MS)
      .where("c.state", "not in", ["queued", "accepted", "running"])
      .where(
        sql<SqlBool>`not exists (select 1 from deployments as d where d.workspace_id = c.workspace_id
          and (d.command_id = c.command_id
            or (d.replica_id is null and d.removed_at is null and c.resource = 'deployment:' || d.deployment_id)))`,
      )
      .where(
        sql<SqlBool>`not exists (select 1 from takeovers as t
          join replicas as r on r.workspace_id = t.workspace_id and r.replica_id = t.from_replica
          where t.workspace_id = c.workspace_id and t.command_id = c.command_id
            and t.released_at is null and r.revoked_at is null and r.deleted_at is null)`,
      )
      .orderBy("c.ended_at")
      .limit(limits.batch)
      .execute()
  ).map((row) => row.command_id);
  if (commands.length > 0) {
    const runs = (
      await tx.db
        .selectFrom("runs")
        .select("run_id")
        .where("workspace_id", "=", workspace)
        .where("command_id", "in", commands)
        .execute()
    ).map((row) => row.run_id);
    await drop(["attempts", "runs"], "run_id", runs);
    await drop(["offers", "command_events", "takeovers", "idempotency_keys", "commands"], "command_id", commands);
    full(commands.length);
  }

  // -- answers to keys, numbers of changes, minutes: up to a mark that bounds how many go at once
  await dropOldest("idempotency_keys", "created_at", now - KEPT_KEYS_MS);
  const counter = await tx.db
    .selectFrom("change_counters")
    .select("n")
    .where("workspace_id", "=", workspace)
    .executeTakeFirst();
  await dropOldest("changes", "n", (counter?.n ?? 0) - KEPT_CHANGES);
  await dropOldest("deployment_rollups", "at", now - limits.keepRollupsMs);
  count(
    await tx.db
      .deleteFrom("deployment_revisions")
      .where("workspace_id", "=", workspace)
      .where(
        sql<SqlBool>`revision <= (select d.revision from deployments as d
          where d.workspace_id = deployment_revisions.workspace_id
            and d.deployment_id = deployment_revisions.deployment_id) - ${limits.revisions}`,
      )
      .execute(),
  );

  // -- credentials that are past their end
  count(
    await tx.db
      .deleteFrom("web_sessions")
      .where("workspace_id", "=", workspace)
      .where("expires_at", "<=", now)
      .execute(),
  );
  count(
    await tx.db
      .deleteFrom("signins")
      .where("workspace_id", "=", workspace)
      .where("expires_at", "<=", now - HOUR_MS)
      .where((eb) =>
        eb.or([
          eb("redeemed_at", "is", null),
          // That somebody ever got in is told by the newest one that was used.
          sql<SqlBool>`exists (select 1 from signins as s where s.workspace_id = signins.workspace_id
            and s.user_id = signins.user_id and s.redeemed_at > signins.redeemed_at)`,
        ]),
      )
      .execute(),
  );
  count(
    await tx.db
      .deleteFrom("api_tokens")
      .where("workspace_id", "=", workspace)
      .where((eb) => eb.or([eb("expires_at", "<=", old), eb("revoked_at", "<=", old)]))
      .execute(),
  );

  // -- enrolments that are over, then agent replicas that were removed and that nothing names any more
  const enrollments = (
    await tx.db
      .selectFrom("enrollments")
      .select("enrollment_id")
      .where("workspace_id", "=", workspace)
      .where("expires_at", "<=", old)
      .limit(limits.batch)
      .execute()
  ).map((row) => row.enrollment_id);
  await drop(["enrollment_refusals", "enrollments"], "enrollment_id", enrollments);
  full(enrollments.length);
  const replicas = (
    await tx.db
      .selectFrom("replicas as r")
      .select("r.replica_id")
      .where("r.workspace_id", "=", workspace)
      .where("r.deleted_at", "<=", old)
      .where(
        sql<SqlBool>`not exists (select 1 from commands as c where c.workspace_id = r.workspace_id and c.replica_id = r.replica_id)
          and not exists (select 1 from deployments as d where d.workspace_id = r.workspace_id and d.replica_id = r.replica_id)
          and not exists (select 1 from enrollments as e where e.workspace_id = r.workspace_id and e.replica_id = r.replica_id)
          and not exists (select 1 from takeovers as t where t.workspace_id = r.workspace_id
            and (t.from_replica = r.replica_id or t.to_replica = r.replica_id))`,
      )
      .limit(limits.batch)
      .execute()
  ).map((row) => row.replica_id);
  await drop(["alarms", "connections", "journals", "dispatch_counters", "replicas"], "replica_id", replicas);
  full(replicas.length);
  return { commands: commands.length, rows, more };
}

/** A table and the column by which its rows are old. */
type Aged = ["idempotency_keys", "created_at"] | ["changes", "n"] | ["deployment_rollups", "at"];

/** The value up to which about `batch` of the rows at or below `limit` lie; null when there are none. */
async function mark(
  tx: Tx,
  table: Aged[0],
  column: Aged[1],
  workspace: string,
  limit: number,
  batch: number,
): Promise<number | null> {
  const { rows } = await sql<{ value: number | null }>`select max(value) as value from (
    select ${sql.ref(column)} as value from ${sql.table(table)}
    where workspace_id = ${workspace} and ${sql.ref(column)} <= ${limit}
    order by ${sql.ref(column)} limit ${batch}) as oldest`.execute(tx.db);
  return rows[0]?.value ?? null;
}
