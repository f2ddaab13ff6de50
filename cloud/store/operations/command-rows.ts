// Rows of commands with the names that belong to them, and the plain data that is made of them.
import type { Body, CommandId, ErrorBody, PoolId, ReplicaId, RunId } from "@sallyport/protocol";
import { sql } from "kysely";
import type { CommandRow, CommandState, Scope } from "../store.ts";
import type { Tables } from "../tables.ts";
import { deploymentOf } from "./deployment-status.ts";
import { prepared, type Prepared } from "./prepared.ts";
import { parseJson, toJson, ws, type Tx } from "./tx.ts";

export const commandRows = ({ db }: Pick<Tx, "db">, workspace: string) =>
  db
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

export type JoinedCommand = Tables["commands"] & {
  pool_name: string;
  replica_name: string | null;
  offered_to: string | null;
  pipeline: string | null;
  concurrency: number | null;
};
export const toCommand = (row: JoinedCommand): CommandRow => ({
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
  trace: row.trace,
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

const insertEvent = prepared((db, later: Omit<Tables["command_events"], "event_no">) =>
  db.insertInto("command_events").values({
    workspace_id: later.workspace_id,
    command_id: later.command_id,
    event_no: (eb) =>
      eb
        .selectFrom("command_events as e")
        .select((e) => sql<number>`coalesce(${e.fn.max("e.event_no")}, 0) + 1`.as("n"))
        .where("e.workspace_id", "=", later.workspace_id)
        .where("e.command_id", "=", later.command_id),
    at: later.at,
    type: later.type,
    replica_id: later.replica_id,
    applied: later.applied,
    detail: later.detail,
  }),
);
export async function addEvent(
  tx: Tx,
  workspace: string,
  command: string,
  event: { at: number; type: string; replica?: string | null; applied?: boolean; detail?: unknown },
): Promise<void> {
  await insertEvent.run(tx, {
    workspace_id: workspace,
    command_id: command,
    at: event.at,
    type: event.type,
    replica_id: event.replica ?? null,
    applied: event.applied === false ? 0 : 1,
    detail: toJson(event.detail),
  });
}

/** A command without what only its agent reads. */
export type BareCommand = Omit<
  Tables["commands"],
  "intent" | "body" | "actor_id" | "actor_name" | "actor_via" | "not_before" | "error" | "result" | "requires" | "trace"
>;
const bareCommand = prepared((db, later: { workspace: string; id: string }) =>
  db
    .selectFrom("commands")
    .select(["workspace_id", "command_id", "pool_id", "kind", "resource", "state", "replica_id", "run_id"])
    .select(["created_at", "expires_at", "accepted_at", "started_at", "ended_at", "offers", "priority", "commit_no"])
    .where("workspace_id", "=", later.workspace)
    .where("command_id", "=", later.id),
);
export const bare = (tx: Tx, workspace: string, id: string): Promise<BareCommand | undefined> =>
  bareCommand.first(tx, { workspace, id });

/** By the names of the columns that are set: few, and known when they were first used. */
const moves = new Map<string, Prepared<Partial<Tables["commands"]>, unknown>>();
export async function move(tx: Tx, row: BareCommand, set: Partial<Tables["commands"]>): Promise<void> {
  const columns = Object.keys(set) as (keyof typeof set)[];
  const shape = columns.join();
  let update = moves.get(shape);
  if (update === undefined)
    moves.set(
      shape,
      (update = prepared((db, later: Partial<Tables["commands"]>) =>
        db
          .updateTable("commands")
          .set(Object.fromEntries(columns.map((column) => [column, later[column]])))
          .where("workspace_id", "=", later.workspace_id!)
          .where("command_id", "=", later.command_id!),
      )),
    );
  await update.run(tx, { workspace_id: row.workspace_id, command_id: row.command_id, ...set });
  touch(tx, row);
}
