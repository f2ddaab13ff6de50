// Pools, enrolments, agent replicas and their presence.
import {
  ConnectorError,
  newId,
  type AgentStatus,
  type EnrollmentId,
  type PoolId,
  type ReplicaId,
  type SessionId,
  type WorkspaceId,
} from "@sallyport/protocol";
import type { EnrollmentRow, IdempotencyEntry, Page, PageQuery, PoolRow, ReplicaRow, Scope } from "../store.ts";
import type { Tables } from "../tables.ts";
import { rememberKey } from "./changes.ts";
import { beginConnection, endConnection } from "./connections.ts";
import { fastForward, observe } from "./deployment-status.ts";
import { afterCursor, nextNumber, pageOf, parseJson, ws, type Tx } from "./tx.ts";

/** Newest alarms of a replica, and refusals of an enrolment, that are kept. */
const KEPT_ALARMS = 50;
const KEPT_REFUSALS = 20;

const toPool = (row: Tables["pools"]): PoolRow => ({
  id: row.pool_id as PoolId,
  name: row.name,
  createdAt: row.created_at,
  maxRuns: row.max_runs,
});

export async function ensurePool(tx: Tx, scope: Scope, name: string, now: number): Promise<PoolRow> {
  const known = await poolByName(tx, scope, name);
  if (known !== null) return known;
  const row = { workspace_id: scope.workspace, pool_id: newId("pool", now), name, created_at: now, max_runs: null };
  await tx.db.insertInto("pools").values(row).execute();
  tx.touch(scope.workspace, "pool", row.pool_id);
  return toPool(row);
}

/** Null: there is no such pool. */
export async function limitPool(
  tx: Tx,
  scope: Scope,
  id: PoolId,
  limits: { maxRuns: number | null },
): Promise<PoolRow | null> {
  const row = await tx.db
    .updateTable("pools")
    .set({ max_runs: limits.maxRuns })
    .where("workspace_id", "=", scope.workspace)
    .where("pool_id", "=", id)
    .returningAll()
    .executeTakeFirst();
  if (row === undefined) return null;
  tx.touch(scope.workspace, "pool", id);
  return toPool(row);
}

export async function pools(tx: Tx, scope: Scope): Promise<PoolRow[]> {
  return (
    await tx.db.selectFrom("pools").selectAll().where("workspace_id", "=", scope.workspace).orderBy("name").execute()
  ).map(toPool);
}

export async function poolByName(tx: Tx, scope: Scope, name: string): Promise<PoolRow | null> {
  const row = await tx.db
    .selectFrom("pools")
    .selectAll()
    .where("workspace_id", "=", scope.workspace)
    .where("name", "=", name)
    .executeTakeFirst();
  return row === undefined ? null : toPool(row);
}

// -- enrolments
export async function addEnrollment(
  tx: Tx,
  scope: Scope,
  enrollment: {
    id: EnrollmentId;
    pool: PoolId;
    name: string | null;
    secretHash: string;
    createdAt: number;
    expiresAt: number;
  },
  idempotency?: IdempotencyEntry,
): Promise<EnrollmentRow> {
  if (enrollment.name !== null) await nameIsFree(tx, scope.workspace, enrollment.name);
  if (idempotency !== undefined) await rememberKey(tx, scope, idempotency, enrollment.createdAt);
  await tx.db
    .insertInto("enrollments")
    .values({
      workspace_id: scope.workspace,
      enrollment_id: enrollment.id,
      pool_id: enrollment.pool,
      name: enrollment.name,
      secret_hash: enrollment.secretHash,
      created_at: enrollment.createdAt,
      expires_at: enrollment.expiresAt,
      used_at: null,
      withdrawn_at: null,
      replica_id: null,
    })
    .execute();
  tx.touch(scope.workspace, "enrollment", enrollment.id);
  return (await enrollmentOf(tx, scope, enrollment.id))!;
}

async function nameIsFree(tx: Tx, workspace: string, name: string, except?: ReplicaId): Promise<void> {
  const taken = await replicaNamed(tx, workspace, name);
  if (taken !== undefined && taken !== except)
    throw new ConnectorError("CONFLICT", `An agent of this workspace is named ${name} already.`, {
      fix: "Choose another name, or rename or delete that agent first.",
    });
}

async function replicaNamed(tx: Tx, workspace: string, name: string): Promise<string | undefined> {
  const row = await tx.db
    .selectFrom("replicas")
    .select("replica_id")
    .where("workspace_id", "=", workspace)
    .where("name", "=", name)
    .where("deleted_at", "is", null)
    .executeTakeFirst();
  return row?.replica_id;
}

const enrollmentRows = (tx: Tx, workspace: string) =>
  tx.db
    .selectFrom("enrollments as e")
    .innerJoin("pools as p", (join) =>
      join.onRef("p.workspace_id", "=", "e.workspace_id").onRef("p.pool_id", "=", "e.pool_id"),
    )
    .selectAll("e")
    .select("p.name as pool_name")
    .where("e.workspace_id", "=", workspace);

async function withRefusals(tx: Tx, row: Tables["enrollments"] & { pool_name: string }): Promise<EnrollmentRow> {
  const refusals = await tx.db
    .selectFrom("enrollment_refusals")
    .selectAll()
    .where("workspace_id", "=", row.workspace_id)
    .where("enrollment_id", "=", row.enrollment_id)
    .orderBy("refusal_no", "desc")
    .execute();
  return {
    workspace: ws(row.workspace_id),
    id: row.enrollment_id as EnrollmentId,
    pool: row.pool_id as PoolId,
    poolName: row.pool_name,
    name: row.name,
    createdAt: row.created_at,
    expiresAt: row.expires_at,
    usedAt: row.used_at,
    withdrawnAt: row.withdrawn_at,
    replica: row.replica_id as ReplicaId | null,
    refusals: refusals.map((r) => ({ at: r.at, code: r.code, message: r.message, remoteAddress: r.remote_address })),
  };
}

export async function enrollments(tx: Tx, scope: Scope, query: PageQuery): Promise<Page<EnrollmentRow>> {
  const rows = await enrollmentRows(tx, scope.workspace)
    .where(afterCursor("e.created_at", "e.enrollment_id", query.cursor))
    .orderBy("e.created_at", "desc")
    .orderBy("e.enrollment_id", "desc")
    .limit(query.limit + 1)
    .execute();
  const page = pageOf(
    rows,
    query,
    (row) => [row.created_at, row.enrollment_id],
    (row) => row,
  );
  const items: EnrollmentRow[] = [];
  for (const row of page.items) items.push(await withRefusals(tx, row));
  return { items, nextCursor: page.nextCursor };
}

export async function enrollmentOf(tx: Tx, scope: Scope, id: EnrollmentId): Promise<EnrollmentRow | null> {
  const row = await enrollmentRows(tx, scope.workspace).where("e.enrollment_id", "=", id).executeTakeFirst();
  return row === undefined ? null : withRefusals(tx, row);
}

export async function withdrawEnrollment(tx: Tx, scope: Scope, id: EnrollmentId, now: number): Promise<boolean> {
  const { numUpdatedRows } = await tx.db
    .updateTable("enrollments")
    .set({ withdrawn_at: now })
    .where("workspace_id", "=", scope.workspace)
    .where("enrollment_id", "=", id)
    .where("used_at", "is", null)
    .where("withdrawn_at", "is", null)
    .executeTakeFirst();
  if (numUpdatedRows > 0n) tx.touch(scope.workspace, "enrollment", id);
  return numUpdatedRows > 0n;
}

type Refusal = "ENROLMENT_UNKNOWN" | "ENROLMENT_USED" | "ENROLMENT_EXPIRED" | "ENROLMENT_REVOKED";
const REFUSALS: Record<Refusal, string> = {
  ENROLMENT_UNKNOWN: "The secret names this enrolment and does not match it.",
  ENROLMENT_USED: "The secret was used already, by another key.",
  ENROLMENT_EXPIRED: "The secret is past its hour.",
  ENROLMENT_REVOKED: "The enrolment was withdrawn.",
};

export async function redeemEnrollment(
  tx: Tx,
  input: {
    id: string;
    secretHash: string;
    publicKey: string;
    fingerprint: string;
    nameHint: string | null;
    remoteAddress: string | null;
    now: number;
  },
): Promise<{ replica: ReplicaRow } | { refused: Refusal }> {
  const row = await tx.db
    .selectFrom("enrollments")
    .selectAll()
    .where("enrollment_id", "=", input.id)
    .executeTakeFirst();
  if (row === undefined) return { refused: "ENROLMENT_UNKNOWN" };
  if (row.secret_hash !== input.secretHash) return refuse(tx, row, "ENROLMENT_UNKNOWN", input);
  if (row.replica_id !== null) {
    const joined = await replicaByKey(tx, row.replica_id);
    if (joined !== null && joined.publicKey === input.publicKey && joined.revokedAt === null)
      return { replica: joined };
    return refuse(tx, row, "ENROLMENT_USED", input);
  }
  if (row.withdrawn_at !== null) return refuse(tx, row, "ENROLMENT_REVOKED", input);
  if (row.expires_at <= input.now) return refuse(tx, row, "ENROLMENT_EXPIRED", input);

  const pool = await tx.db
    .selectFrom("pools")
    .select("name")
    .where("workspace_id", "=", row.workspace_id)
    .where("pool_id", "=", row.pool_id)
    .executeTakeFirstOrThrow();
  const replica = newId("replica", input.now);
  await tx.db
    .insertInto("replicas")
    .values({
      workspace_id: row.workspace_id,
      replica_id: replica,
      pool_id: row.pool_id,
      name: await freeName(tx, row.workspace_id, row.name ?? nameFrom(input.nameHint), pool.name),
      public_key: input.publicKey,
      next_key: null,
      fingerprint: input.fingerprint,
      created_at: input.now,
      revoked_at: null,
      deleted_at: null,
      session_id: null,
      epoch: 0,
      process: null,
      instance: null,
      connected_at: null,
      disconnected_at: null,
      last_seen_at: null,
      remote_address: input.remoteAddress,
      journal_id: null,
      status: null,
      status_at: null,
    })
    .execute();
  await tx.db
    .insertInto("dispatch_counters")
    .values({ workspace_id: row.workspace_id, replica_id: replica, sequence: 0 })
    .execute();
  await tx.db
    .updateTable("enrollments")
    .set({ used_at: input.now, replica_id: replica })
    .where("workspace_id", "=", row.workspace_id)
    .where("enrollment_id", "=", row.enrollment_id)
    .execute();
  tx.touch(row.workspace_id, "enrollment", row.enrollment_id);
  tx.touch(row.workspace_id, "agent", replica);
  tx.touch(row.workspace_id, "pool", row.pool_id);
  return { replica: (await replicaByKey(tx, replica))! };
}

async function refuse(
  tx: Tx,
  row: Tables["enrollments"],
  code: Refusal,
  input: { remoteAddress: string | null; now: number },
): Promise<{ refused: Refusal }> {
  const n = await nextNumber(
    tx.db
      .selectFrom("enrollment_refusals")
      .select((eb) => eb.fn.max("refusal_no").as("n"))
      .where("workspace_id", "=", row.workspace_id)
      .where("enrollment_id", "=", row.enrollment_id)
      .executeTakeFirst(),
  );
  await tx.db
    .insertInto("enrollment_refusals")
    .values({
      workspace_id: row.workspace_id,
      enrollment_id: row.enrollment_id,
      refusal_no: n,
      at: input.now,
      code,
      message: REFUSALS[code],
      remote_address: input.remoteAddress,
    })
    .execute();
  await tx.db
    .deleteFrom("enrollment_refusals")
    .where("workspace_id", "=", row.workspace_id)
    .where("enrollment_id", "=", row.enrollment_id)
    .where("refusal_no", "<=", n - KEPT_REFUSALS)
    .execute();
  tx.touch(row.workspace_id, "enrollment", row.enrollment_id);
  return { refused: code };
}

/** What an agent would like to be called (its host's name, as a rule), as a name can be. Null = nothing of it can. */
function nameFrom(hint: string | null): string | null {
  const made = (hint ?? "")
    .toLowerCase()
    .replace(/[^a-z0-9._-]+/g, "-")
    .slice(0, 63)
    .replace(/^[^a-z0-9]+|[^a-z0-9]+$/g, "");
  return made === "" ? null : made;
}

/** Numbers of a name that are tried one by one before they are searched for. */
const TRIED_NUMBERS = 8;

/**
 * The wished name, or the pool's name and a number that is free: the first, unless there are many. A fleet made from one
 * image has one name for all, so with many the end of the numbers is searched for, by doubling and halving.
 */
async function freeName(tx: Tx, workspace: string, wished: string | null, pool: string): Promise<string> {
  if (wished !== null && (await replicaNamed(tx, workspace, wished)) === undefined) return wished;
  const stem = (wished ?? pool).slice(0, 56);
  const isFree = async (n: number) => (await replicaNamed(tx, workspace, `${stem}-${n}`)) === undefined;
  for (let n = 1; n <= TRIED_NUMBERS; n++) if (await isFree(n)) return `${stem}-${n}`;
  let taken = TRIED_NUMBERS;
  let free = TRIED_NUMBERS * 2;
  while (!(await isFree(free))) {
    taken = free;
    free *= 2;
  }
  while (free - taken > 1) {
    const middle = Math.floor((taken + free) / 2);
    if (await isFree(middle)) free = middle;
    else taken = middle;
  }
  return `${stem}-${free}`;
}

// -- replicas
const replicaRows = (tx: Tx) =>
  tx.db
    .selectFrom("replicas as r")
    .innerJoin("pools as p", (join) =>
      join.onRef("p.workspace_id", "=", "r.workspace_id").onRef("p.pool_id", "=", "r.pool_id"),
    )
    .innerJoin("workspaces as w", "w.workspace_id", "r.workspace_id")
    .selectAll("r")
    .select(["p.name as pool_name", "w.name as workspace_name"]);

async function withAlarms(
  tx: Tx,
  row: Tables["replicas"] & { pool_name: string; workspace_name: string },
): Promise<ReplicaRow> {
  const alarms = await tx.db
    .selectFrom("alarms")
    .selectAll()
    .where("workspace_id", "=", row.workspace_id)
    .where("replica_id", "=", row.replica_id)
    .orderBy("alarm_no", "desc")
    .execute();
  return {
    workspace: ws(row.workspace_id),
    workspaceName: row.workspace_name,
    id: row.replica_id as ReplicaId,
    name: row.name,
    pool: row.pool_id as PoolId,
    poolName: row.pool_name,
    publicKey: row.public_key,
    nextKey: row.next_key,
    fingerprint: row.fingerprint,
    createdAt: row.created_at,
    revokedAt: row.revoked_at,
    deletedAt: row.deleted_at,
    session: row.session_id as SessionId | null,
    epoch: row.epoch,
    process: row.process,
    connectedAt: row.connected_at,
    disconnectedAt: row.disconnected_at,
    lastSeenAt: row.last_seen_at,
    remoteAddress: row.remote_address,
    journal: row.journal_id,
    status: parseJson<AgentStatus>(row.status),
    statusAt: row.status_at,
    alarms: alarms.map((a) => ({ at: a.at, code: a.code, message: a.message })),
  };
}

export async function replicas(tx: Tx, scope: Scope): Promise<ReplicaRow[]> {
  const rows = await replicaRows(tx)
    .where("r.workspace_id", "=", scope.workspace)
    .where("r.deleted_at", "is", null)
    .orderBy("r.name")
    .execute();
  const answer: ReplicaRow[] = [];
  for (const row of rows) answer.push(await withAlarms(tx, row));
  return answer;
}

export async function replica(tx: Tx, scope: Scope, id: ReplicaId): Promise<ReplicaRow | null> {
  const row = await replicaRows(tx)
    .where("r.workspace_id", "=", scope.workspace)
    .where("r.replica_id", "=", id)
    .where("r.deleted_at", "is", null)
    .executeTakeFirst();
  return row === undefined ? null : withAlarms(tx, row);
}

export async function replicaByKey(tx: Tx, id: string): Promise<ReplicaRow | null> {
  const row = await replicaRows(tx).where("r.replica_id", "=", id).where("r.deleted_at", "is", null).executeTakeFirst();
  return row === undefined ? null : withAlarms(tx, row);
}

export async function renameReplica(tx: Tx, scope: Scope, id: ReplicaId, name: string): Promise<ReplicaRow | null> {
  const row = await replica(tx, scope, id);
  if (row === null) return null;
  if (row.name === name) return row;
  await nameIsFree(tx, scope.workspace, name, id);
  await tx.db
    .updateTable("replicas")
    .set({ name })
    .where("workspace_id", "=", scope.workspace)
    .where("replica_id", "=", id)
    .execute();
  tx.touch(scope.workspace, "agent", id);
  return { ...row, name };
}

export async function offerKey(tx: Tx, id: ReplicaId, publicKey: string): Promise<void> {
  await tx.db
    .updateTable("replicas")
    .set((eb) => ({ next_key: eb.fn<string | null>("nullif", [eb.val(publicKey), "public_key"]) }))
    .where("replica_id", "=", id)
    .where("revoked_at", "is", null)
    .where("deleted_at", "is", null)
    .execute();
}

export async function takeKey(tx: Tx, id: ReplicaId, publicKey: string, fingerprint: string): Promise<void> {
  const taken = await tx.db
    .updateTable("replicas")
    .set({ public_key: publicKey, fingerprint, next_key: null })
    .where("replica_id", "=", id)
    .where("next_key", "=", publicKey)
    .returning("workspace_id")
    .executeTakeFirst();
  if (taken !== undefined) tx.touch(taken.workspace_id, "agent", id);
}

export async function revokeReplica(tx: Tx, scope: Scope, id: ReplicaId, now: number): Promise<ReplicaRow | null> {
  const row = await replica(tx, scope, id);
  if (row === null || row.revokedAt !== null) return row;
  await tx.db
    .updateTable("replicas")
    .set({ revoked_at: now })
    .where("workspace_id", "=", scope.workspace)
    .where("replica_id", "=", id)
    .execute();
  tx.touch(scope.workspace, "agent", id);
  tx.touch(scope.workspace, "pool", row.pool);
  return { ...row, revokedAt: now };
}

export async function deleteReplica(tx: Tx, scope: Scope, id: ReplicaId, now: number): Promise<boolean> {
  const row = await replica(tx, scope, id);
  if (row === null) return false;
  const connected = row.session !== null && row.disconnectedAt === null;
  if (connected && row.revokedAt === null) {
    throw new ConnectorError("CONFLICT", `Agent ${row.name} is connected.`, {
      fix: "Revoke it first, or stop it at the customer's side.",
    });
  }
  // Whoever still holds its key is unknown from here on: `replicaByKey` does not find it.
  await tx.db
    .updateTable("replicas")
    .set({ deleted_at: now, revoked_at: row.revokedAt ?? now })
    .where("workspace_id", "=", scope.workspace)
    .where("replica_id", "=", id)
    .execute();
  tx.touch(scope.workspace, "agent", id);
  tx.touch(scope.workspace, "pool", row.pool);
  return true;
}

// -- presence
export async function openSession(
  tx: Tx,
  id: ReplicaId,
  session: {
    id: SessionId;
    process: string;
    instance: string;
    journal: string;
    remoteAddress: string | null;
    version?: string;
    now: number;
    generations?: Readonly<Record<string, number>>;
  },
): Promise<{ epoch: number; journalChanged: boolean }> {
  const row = await tx.db
    .selectFrom("replicas")
    .select(["workspace_id", "pool_id", "epoch", "journal_id", "revoked_at"])
    .where("replica_id", "=", id)
    .where("deleted_at", "is", null)
    .executeTakeFirst();
  if (row === undefined)
    throw new ConnectorError("IDENTITY_UNKNOWN", "This agent replica was deleted.", { fix: "Enrol the agent anew." });
  if (row.revoked_at !== null)
    throw new ConnectorError("IDENTITY_REVOKED", "This agent replica was revoked.", { fix: "Enrol the agent anew." });
  const epoch = row.epoch + 1;
  await tx.db
    .updateTable("replicas")
    .set({
      session_id: session.id,
      epoch,
      process: session.process,
      instance: session.instance,
      connected_at: session.now,
      disconnected_at: null,
      last_seen_at: session.now,
      remote_address: session.remoteAddress,
      journal_id: session.journal,
    })
    .where("workspace_id", "=", row.workspace_id)
    .where("replica_id", "=", id)
    .execute();
  await beginConnection(tx, row.workspace_id, id, session);
  await fastForward(tx, { workspace: row.workspace_id, replica: id, pool: row.pool_id }, session.generations ?? {});
  tx.touch(row.workspace_id, "agent", id);
  tx.touch(row.workspace_id, "pool", row.pool_id);
  return { epoch, journalChanged: row.journal_id !== null && row.journal_id !== session.journal };
}

export async function closeSession(
  tx: Tx,
  id: ReplicaId,
  session: SessionId,
  now: number,
  reason?: { code: string; message: string },
): Promise<void> {
  const replica = await tx.db
    .selectFrom("replicas")
    .select("workspace_id")
    .where("replica_id", "=", id)
    .executeTakeFirst();
  if (replica === undefined) return;
  await endConnection(tx, replica.workspace_id, id, session, now, reason);
  const closed = await tx.db
    .updateTable("replicas")
    .set({ disconnected_at: now })
    .where("replica_id", "=", id)
    .where("session_id", "=", session)
    .where("disconnected_at", "is", null)
    .returning(["workspace_id", "pool_id"])
    .executeTakeFirst();
  if (closed === undefined) return;
  tx.touch(closed.workspace_id, "agent", id);
  tx.touch(closed.workspace_id, "pool", closed.pool_id);
}

/** `workspace`: of that one alone. */
export const releaseSessions = (tx: Tx, process: string, now: number, workspace?: string): Promise<number> =>
  releaseHeld(tx, { process, is: "!=" }, now, workspace);

/** Ends the sessions that a process holds, or all others do (`!=`). Answers how many there were. */
export async function releaseHeld(
  tx: Tx,
  by: { process: string; is: "=" | "!=" },
  now: number,
  workspace?: string,
): Promise<number> {
  let held = tx.db
    .updateTable("replicas")
    .set((eb) => ({ disconnected_at: eb.fn.coalesce("last_seen_at", eb.val(now)) }))
    .where("session_id", "is not", null)
    .where("disconnected_at", "is", null)
    .where("process", by.is, by.process);
  if (workspace !== undefined) held = held.where("workspace_id", "=", workspace);
  const released = await held
    .returning(["workspace_id", "replica_id", "pool_id", "session_id", "disconnected_at"])
    .execute();
  for (const row of released) {
    await endConnection(tx, row.workspace_id, row.replica_id, row.session_id!, row.disconnected_at!);
    tx.touch(row.workspace_id, "agent", row.replica_id);
    tx.touch(row.workspace_id, "pool", row.pool_id);
  }
  return released.length;
}

/** What people see of a status: without its time and the host's moving figures. Deployments tell their own changes. */
const spoken = (status: AgentStatus): string => {
  const { cpuLoad: _load, memoryFreeBytes: _memory, diskFreeBytes: _disk, ...host } = status.host;
  const deployments = (status.deployments ?? []).map((one) => [one.deployment, one.state]);
  return JSON.stringify({ ...status, at: 0, host, process: null, deployments });
};

export async function seen(
  tx: Tx,
  updates: { workspace: WorkspaceId; replica: ReplicaId; session: SessionId; at: number; status: AgentStatus | null }[],
): Promise<{ ignored: number }> {
  let ignored = 0;
  for (const update of updates) {
    const row = await tx.db
      .selectFrom("replicas")
      .select(["status", "pool_id", "last_seen_at"])
      .where("workspace_id", "=", update.workspace)
      .where("replica_id", "=", update.replica)
      .where("session_id", "=", update.session)
      .executeTakeFirst();
    if (row === undefined) continue;
    const at = Math.max(row.last_seen_at ?? 0, update.at);
    await tx.db
      .updateTable("replicas")
      .set(
        update.status === null
          ? { last_seen_at: at }
          : { last_seen_at: at, status: JSON.stringify(update.status), status_at: update.at },
      )
      .where("workspace_id", "=", update.workspace)
      .where("replica_id", "=", update.replica)
      .execute();
    const before = parseJson<AgentStatus>(row.status);
    if (update.status !== null)
      ignored += await observe(
        tx,
        { workspace: update.workspace, replica: update.replica, pool: row.pool_id },
        update.status.deployments ?? [],
        update.at,
      );
    if (update.status !== null && (before === null || spoken(before) !== spoken(update.status))) {
      tx.touch(update.workspace, "agent", update.replica);
      tx.touch(update.workspace, "pool", row.pool_id);
    }
  }
  return { ignored };
}

export async function addAlarm(
  tx: Tx,
  workspace: WorkspaceId,
  id: ReplicaId,
  alarm: { at: number; code: string; message: string },
): Promise<void> {
  const n = await nextNumber(
    tx.db
      .selectFrom("alarms")
      .select((eb) => eb.fn.max("alarm_no").as("n"))
      .where("workspace_id", "=", workspace)
      .where("replica_id", "=", id)
      .executeTakeFirst(),
  );
  await tx.db
    .insertInto("alarms")
    .values({
      workspace_id: workspace,
      replica_id: id,
      alarm_no: n,
      at: alarm.at,
      code: alarm.code,
      message: alarm.message,
    })
    .execute();
  await tx.db
    .deleteFrom("alarms")
    .where("workspace_id", "=", workspace)
    .where("replica_id", "=", id)
    .where("alarm_no", "<=", n - KEPT_ALARMS)
    .execute();
  tx.touch(workspace, "agent", id);
}
