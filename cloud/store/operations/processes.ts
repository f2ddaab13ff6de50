// The cloud processes that share this database, and which of them holds which agent's session. Nothing here judges by a
// clock: who counts as gone is for whoever sees that its beat stands still.
import { ConnectorError, type AgentStatus, type PoolId, type ReplicaId, type SessionId } from "@sallyport/protocol";
import type { PresenceRow, ProcessRow } from "../store.ts";
import { resumeConnection } from "./connections.ts";
import { releaseHeld } from "./fleet.ts";
import { parseJson, ws, type Tx } from "./tx.ts";

/** Refused: none of these keys is one of those that this database belongs to. */
export async function checkIdentity(tx: Tx, kids: string[]): Promise<void> {
  const known = await tx.db.selectFrom("cloud_keys").select("kid").where("purpose", "=", "identity").execute();
  if (known.length > 0 && !known.some((row) => kids.includes(row.kid)))
    throw new ConnectorError("CONFIG_INVALID", "This process has other keys than those this database belongs to.", {
      fix: "Give every process of one control plane the same folder of keys, by --keys. Agents know the control plane by its identity key.",
    });
}

export async function joinProcess(
  tx: Tx,
  process: { id: string; peerUrl: string; identity: string; kids: string[]; now: number },
): Promise<void> {
  // Of two that start at once with different keys, the second.
  await checkIdentity(tx, process.kids);
  await tx.db
    .insertInto("processes")
    .values({
      process_id: process.id,
      peer_url: process.peerUrl,
      identity: process.identity,
      beat: 1,
      started_at: process.now,
      leaving: 0,
    })
    .onConflict((conflict) => conflict.column("process_id").doUpdateSet({ peer_url: process.peerUrl }))
    .execute();
}

/** False: somebody took it for gone. */
export async function beatProcess(tx: Tx, id: string): Promise<boolean> {
  const beaten = await tx.db
    .updateTable("processes")
    .set((eb) => ({ beat: eb("beat", "+", 1) }))
    .where("process_id", "=", id)
    .executeTakeFirst();
  return beaten.numUpdatedRows > 0n;
}

/** It takes no more agents, and those it has go to the others. */
export async function announceLeaving(tx: Tx, id: string): Promise<void> {
  await tx.db.updateTable("processes").set({ leaving: 1 }).where("process_id", "=", id).execute();
}

/** `beat`: only if it still stands there. False: it moved on, or is not there. */
export async function leaveProcess(tx: Tx, id: string, beat: number | null): Promise<boolean> {
  let removal = tx.db.deleteFrom("processes").where("process_id", "=", id);
  if (beat !== null) removal = removal.where("beat", "=", beat);
  return (await removal.executeTakeFirst()).numDeletedRows > 0n;
}

export async function processes(tx: Tx): Promise<ProcessRow[]> {
  const rows = await tx.db.selectFrom("processes").selectAll().orderBy("started_at").orderBy("process_id").execute();
  return rows.map((row) => ({
    id: row.process_id,
    peerUrl: row.peer_url,
    identity: row.identity,
    beat: row.beat,
    startedAt: row.started_at,
    leaving: row.leaving === 1,
  }));
}

/** Sessions of a process that is gone are over. `workspace`: of that one alone. Answers how many there were. */
export const releaseProcess = (tx: Tx, process: string, now: number, workspace?: string): Promise<number> =>
  releaseHeld(tx, { process, is: "=" }, now, workspace);

/** Its process was taken for gone and is not: the session goes on, unless there is a newer one. */
export async function holdSession(tx: Tx, id: ReplicaId, session: SessionId): Promise<void> {
  const row = await tx.db
    .updateTable("replicas")
    .set({ disconnected_at: null })
    .where("replica_id", "=", id)
    .where("session_id", "=", session)
    .where("disconnected_at", "is not", null)
    .returning(["workspace_id", "pool_id"])
    .executeTakeFirst();
  if (row === undefined) return;
  await resumeConnection(tx, row.workspace_id, id, session);
  tx.touch(row.workspace_id, "agent", id);
  tx.touch(row.workspace_id, "pool", row.pool_id);
}

const columns = [
  "workspace_id",
  "replica_id",
  "pool_id",
  "session_id",
  "epoch",
  "process",
  "instance",
  "journal_id",
  "remote_address",
  "disconnected_at",
  "last_seen_at",
  "status_at",
  "revoked_at",
  "deleted_at",
] as const;

/** Who is connected, and where; without their statuses. */
export async function presence(tx: Tx): Promise<PresenceRow[]> {
  const rows = await tx.db
    .selectFrom("replicas")
    .select(columns)
    .where("session_id", "is not", null)
    .where("disconnected_at", "is", null)
    .execute();
  return rows.map((row) => toPresence({ ...row, status: null }));
}

/** Of these, whether connected or not, deleted ones included. */
export async function presenceOf(tx: Tx, ids: ReplicaId[]): Promise<PresenceRow[]> {
  if (ids.length === 0) return [];
  const rows = await tx.db
    .selectFrom("replicas")
    .select([...columns, "status"])
    .where("replica_id", "in", ids)
    .execute();
  return rows.map(toPresence);
}

function toPresence(row: {
  workspace_id: string;
  replica_id: string;
  pool_id: string;
  session_id: string | null;
  epoch: number;
  process: string | null;
  instance: string | null;
  journal_id: string | null;
  remote_address: string | null;
  disconnected_at: number | null;
  last_seen_at: number | null;
  status_at: number | null;
  revoked_at: number | null;
  deleted_at: number | null;
  status: string | null;
}): PresenceRow {
  return {
    workspace: ws(row.workspace_id),
    replica: row.replica_id as ReplicaId,
    pool: row.pool_id as PoolId,
    session: row.session_id as SessionId | null,
    epoch: row.epoch,
    process: row.process,
    instance: row.instance,
    journal: row.journal_id,
    remoteAddress: row.remote_address,
    live: row.session_id !== null && row.disconnected_at === null,
    lastSeenAt: row.last_seen_at,
    statusAt: row.status_at,
    revoked: row.revoked_at !== null,
    deleted: row.deleted_at !== null,
    status: parseJson<AgentStatus>(row.status),
  };
}
