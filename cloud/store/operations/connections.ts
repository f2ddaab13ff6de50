// What became of each connection of a replica: one row a session, and one for refusals in a row. Bounded by number.
import type { ReplicaId, SessionId, WorkspaceId } from "@sallyport/protocol";
import type { ConnectionRow, Page, PageQuery, Scope } from "../store.ts";
import type { Tables } from "../tables.ts";
import { afterCursor, pageOf, type Tx } from "./tx.ts";

const KEPT = 200;
const MESSAGE_CHARACTERS = 400;

/** Nobody wrote down how it ended. */
const UNTOLD = {
  code: "LINK_LOST",
  message: "The process of the control plane that held the link ended without saying how the link did.",
};
const SUPERSEDED = { code: "SESSION_SUPERSEDED", message: "A newer session of this agent took over." };
/** Only concluded: who knows better says so later. */
const CONCLUDED = [UNTOLD.message, SUPERSEDED.message];

const newest = (tx: Tx, workspace: string, replica: string) =>
  tx.db
    .selectFrom("connections")
    .select(["connection_no", "session_id", "code"])
    .where("workspace_id", "=", workspace)
    .where("replica_id", "=", replica)
    .orderBy("connection_no", "desc")
    .limit(1)
    .executeTakeFirst();

async function add(tx: Tx, row: Tables["connections"]): Promise<void> {
  await tx.db.insertInto("connections").values(row).execute();
  await tx.db
    .deleteFrom("connections")
    .where("workspace_id", "=", row.workspace_id)
    .where("replica_id", "=", row.replica_id)
    .where("connection_no", "<=", row.connection_no - KEPT)
    .execute();
}

/** Within the transaction that opens the session. */
export async function beginConnection(
  tx: Tx,
  workspace: string,
  replica: ReplicaId,
  session: { id: SessionId; remoteAddress: string | null; version?: string; now: number },
): Promise<void> {
  const last = await newest(tx, workspace, replica);
  // Its process may have died. If it lives, it says later how the session really ended: see `endConnection`.
  await tx.db
    .updateTable("connections")
    .set({ ended_at: session.now, ...SUPERSEDED })
    .where("workspace_id", "=", workspace)
    .where("replica_id", "=", replica)
    .where("ended_at", "is", null)
    .execute();
  await add(tx, {
    workspace_id: workspace,
    replica_id: replica,
    connection_no: (last?.connection_no ?? 0) + 1,
    session_id: session.id,
    at: session.now,
    ended_at: null,
    code: null,
    message: null,
    remote_address: session.remoteAddress,
    version: session.version ?? null,
    times: 1,
  });
}

/** The first word about its end holds, unless that was only concluded. */
export async function endConnection(
  tx: Tx,
  workspace: string,
  replica: string,
  session: string,
  now: number,
  reason: { code: string; message: string } = UNTOLD,
): Promise<void> {
  await tx.db
    .updateTable("connections")
    .set({ ended_at: now, code: reason.code, message: reason.message.slice(0, MESSAGE_CHARACTERS) })
    .where("workspace_id", "=", workspace)
    .where("replica_id", "=", replica)
    .where("session_id", "=", session)
    .where((eb) => eb.or([eb("ended_at", "is", null), eb("message", "in", CONCLUDED)]))
    .execute();
}

export async function refuseConnection(
  tx: Tx,
  workspace: WorkspaceId,
  replica: ReplicaId,
  refusal: { at: number; code: string; message: string; remoteAddress: string | null },
): Promise<void> {
  const last = await newest(tx, workspace, replica);
  if (last !== undefined && last.session_id === null && last.code === refusal.code) {
    await tx.db
      .updateTable("connections")
      .set((eb) => ({ ended_at: refusal.at, times: eb("times", "+", 1), remote_address: refusal.remoteAddress }))
      .where("workspace_id", "=", workspace)
      .where("replica_id", "=", replica)
      .where("connection_no", "=", last.connection_no)
      .execute();
  } else
    await add(tx, {
      workspace_id: workspace,
      replica_id: replica,
      connection_no: (last?.connection_no ?? 0) + 1,
      session_id: null,
      at: refusal.at,
      ended_at: refusal.at,
      code: refusal.code,
      message: refusal.message.slice(0, MESSAGE_CHARACTERS),
      remote_address: refusal.remoteAddress,
      version: null,
      times: 1,
    });
  tx.touch(workspace, "agent", replica);
}

export async function connections(
  tx: Tx,
  scope: Scope,
  replica: ReplicaId,
  query: PageQuery,
): Promise<Page<ConnectionRow> | null> {
  const known = await tx.db
    .selectFrom("replicas")
    .select("replica_id")
    .where("workspace_id", "=", scope.workspace)
    .where("replica_id", "=", replica)
    .where("deleted_at", "is", null)
    .executeTakeFirst();
  if (known === undefined) return null;
  const rows = await tx.db
    .selectFrom("connections")
    .selectAll()
    .where("workspace_id", "=", scope.workspace)
    .where("replica_id", "=", replica)
    .where(afterCursor("connection_no", "replica_id", query.cursor))
    .orderBy("connection_no", "desc")
    .limit(query.limit + 1)
    .execute();
  return pageOf(
    rows,
    query,
    (row) => [row.connection_no, row.replica_id],
    (row) => ({
      no: row.connection_no,
      session: row.session_id as SessionId | null,
      at: row.at,
      endedAt: row.ended_at,
      code: row.code,
      message: row.message,
      remoteAddress: row.remote_address,
      version: row.version,
      times: row.times,
    }),
  );
}

/** It was only taken for over. */
export async function resumeConnection(tx: Tx, workspace: string, replica: string, session: string): Promise<void> {
  await tx.db
    .updateTable("connections")
    .set({ ended_at: null, code: null, message: null })
    .where("workspace_id", "=", workspace)
    .where("replica_id", "=", replica)
    .where("session_id", "=", session)
    .where("message", "in", CONCLUDED)
    .execute();
}
