// Rows of commands with the names that belong to them, and the plain data that is made of them.
import type { Body, CommandId, ErrorBody, PoolId, ReplicaId, RunId } from "@sallyport/protocol";
import type { CommandRow, CommandState, Scope } from "../store.ts";
import type { Tables } from "../tables.ts";
import { deploymentOf } from "./deployment-status.ts";
import { nextNumber, parseJson, toJson, ws, type Tx } from "./tx.ts";

export const commandRows = (tx: Tx, workspace: string) =>
  tx.db
    .selectFrom("commands as c")
    .innerJoin("pools as p", (join) =>
      join.onRef("p.workspace_id", "=", "c.workspace_id").onRef("p.pool_id", "=", "c.pool_id"),
    )
    .leftJoin("replicas as r", (join) =>
      join.onRef("r.workspace_id", "=", "c.workspace_id").onRef("r.replica_id", "=", "c.replica_id"),
    )
    .leftJoin("runs as u", (join) =>
      join.onRef("u.workspace_id", "=", "c.workspace_id").onRef("u.command_id", "=", "c.command_id"),
    )
    .selectAll("c")
    .select(["p.name as pool_name", "r.name as replica_name", "u.pipeline", "u.concurrency"])
    .select((eb) =>
      eb
        .selectFrom("offers as o")
        .select("o.replica_id")
        .whereRef("o.workspace_id", "=", "c.workspace_id")
        .whereRef("o.command_id", "=", "c.command_id")
        .where("o.refusal", "is", null)
        .orderBy("o.attempt", "desc")
        .limit(1)
        .as("offered_to"),
    )
    .where("c.workspace_id", "=", workspace);

type Joined = Tables["commands"] & {
  pool_name: string;
  replica_name: string | null;
  offered_to: string | null;
  pipeline: string | null;
  concurrency: number | null;
};
export const toCommand = (row: Joined): CommandRow => ({
  workspace: ws(row.workspace_id),
  id: row.command_id as CommandId,
  pool: row.pool_id as PoolId,
  poolName: row.pool_name,
  kind: row.kind,
  resource: row.resource,
  state: row.state as CommandState,
  intent: row.intent,
  body: JSON.parse(row.body) as Body,
  actor: { id: row.actor_id, name: row.actor_name, via: row.actor_via as Scope["actor"]["via"] },
  replica: row.replica_id as ReplicaId | null,
  replicaName: row.replica_name,
  run: row.run_id as RunId | null,
  pipeline: row.pipeline,
  concurrency: row.concurrency,
  priority: row.priority,
  requires: parseJson<Record<string, string>>(row.requires) ?? {},
  createdAt: row.created_at,
  notBefore: row.not_before,
  expires: row.expires_at,
  acceptedAt: row.accepted_at,
  startedAt: row.started_at,
  endedAt: row.ended_at,
  offers: row.offers,
  offeredTo: row.offered_to as ReplicaId | null,
  error: parseJson<ErrorBody>(row.error),
  result: parseJson<unknown>(row.result),
});

export function touch(
  tx: Tx,
  row: { workspace_id: string; command_id: string; run_id: string | null; resource: string },
): void {
  tx.touch(row.workspace_id, "command", row.command_id);
  const deployment = deploymentOf(row.resource);
  if (deployment !== null) tx.touch(row.workspace_id, "deployment", deployment);
  if (row.run_id !== null) tx.touch(row.workspace_id, "run", row.run_id);
}

export async function addEvent(
  tx: Tx,
  workspace: string,
  command: string,
  event: { at: number; type: string; replica?: string | null; applied?: boolean; detail?: unknown },
): Promise<void> {
  const n = await nextNumber(
    tx.db
      .selectFrom("command_events")
      .select((eb) => eb.fn.max("event_no").as("n"))
      .where("workspace_id", "=", workspace)
      .where("command_id", "=", command)
      .executeTakeFirst(),
  );
  await tx.db
    .insertInto("command_events")
    .values({
      workspace_id: workspace,
      command_id: command,
      event_no: n,
      at: event.at,
      type: event.type,
      replica_id: event.replica ?? null,
      applied: event.applied === false ? 0 : 1,
      detail: toJson(event.detail),
    })
    .execute();
}

export const bare = (tx: Tx, workspace: string, id: string) =>
  tx.db
    .selectFrom("commands")
    .selectAll()
    .where("workspace_id", "=", workspace)
    .where("command_id", "=", id)
    .executeTakeFirst();

export async function move(tx: Tx, row: Tables["commands"], set: Partial<Tables["commands"]>): Promise<void> {
  await tx.db
    .updateTable("commands")
    .set(set)
    .where("workspace_id", "=", row.workspace_id)
    .where("command_id", "=", row.command_id)
    .execute();
  touch(tx, row);
}
