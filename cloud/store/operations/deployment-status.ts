// What becomes of a deployment by what agents do and say: who owns it, what was observed, minutes at its endpoint. Used by
// the operations of commands and of the fleet; nothing outside of cloud/store imports this.
import { deploymentRemove, type DeploymentStatus } from "@sallyport/protocol";
import type { Tables } from "../tables.ts";
import { parseJson, type Tx } from "./tx.ts";

/** Minutes at an endpoint are kept for a day, by the clock of the agent that counted them. */
const KEPT_ROLLUPS_MS = 24 * 3600_000;

/** The deployment that a command is about, by its resource. */
export const deploymentOf = (resource: string): string | null =>
  /^deployment:(dep_[0-9a-f]{32})$/.exec(resource)?.[1] ?? null;

const bare = (tx: Tx, workspace: string, id: string) =>
  tx.db
    .selectFrom("deployments")
    .selectAll()
    .where("workspace_id", "=", workspace)
    .where("deployment_id", "=", id)
    .where("removed_at", "is", null)
    .executeTakeFirst();

const update = (tx: Tx, row: Tables["deployments"], set: Partial<Tables["deployments"]>) =>
  tx.db
    .updateTable("deployments")
    .set(set)
    .where("workspace_id", "=", row.workspace_id)
    .where("deployment_id", "=", row.deployment_id)
    .execute();

/** Whether a replica may still hold anything: it is neither revoked nor deleted. */
export async function stands(tx: Tx, workspace: string, replica: string): Promise<boolean> {
  const row = await tx.db
    .selectFrom("replicas")
    .select("replica_id")
    .where("workspace_id", "=", workspace)
    .where("replica_id", "=", replica)
    .where("revoked_at", "is", null)
    .where("deleted_at", "is", null)
    .executeTakeFirst();
  return row !== undefined;
}

type CommandOf = Pick<Tables["commands"], "workspace_id" | "command_id" | "kind" | "resource">;

/** A replica has journaled a command about it. Ownership is sticky: it moves only from one that is gone. */
export async function deploymentTaken(tx: Tx, command: CommandOf, replica: string): Promise<void> {
  const id = deploymentOf(command.resource);
  const row = id === null ? undefined : await bare(tx, command.workspace_id, id);
  if (row === undefined || row.replica_id === replica) return;
  if (row.replica_id !== null && (await stands(tx, row.workspace_id, row.replica_id))) return;
  // What the earlier owner said is nothing that this one has.
  await update(tx, row, { replica_id: replica, status: null, observed_at: null });
  tx.touch(row.workspace_id, "deployment", row.deployment_id);
}

/** A command about it succeeded: after a removal nothing of it runs any more. */
export async function deploymentEnded(tx: Tx, command: CommandOf, at: number): Promise<void> {
  if (command.kind !== deploymentRemove.kind) return;
  const id = deploymentOf(command.resource);
  const row = id === null ? undefined : await bare(tx, command.workspace_id, id);
  if (row === undefined || row.removing === 0 || row.command_id !== command.command_id) return;
  await update(tx, row, { removed_at: at });
  tx.touch(row.workspace_id, "deployment", row.deployment_id);
}

interface Speaker {
  workspace: string;
  replica: string;
  pool: string;
}

/** True when the speaker owns it, or is the first of its pool to say that it holds it (the acceptance was lost). */
async function owns(tx: Tx, speaker: Speaker, row: Tables["deployments"]): Promise<boolean> {
  if (row.replica_id === speaker.replica) return true;
  if (row.replica_id !== null || row.pool_id !== speaker.pool) return false;
  await update(tx, row, { replica_id: speaker.replica });
  return true;
}

/** A database that was restored from a backup counts on from what agents hold, so that its next apply is not stale. */
export async function fastForward(
  tx: Tx,
  speaker: Speaker,
  generations: Readonly<Record<string, number>>,
): Promise<void> {
  for (const [id, generation] of Object.entries(generations)) {
    const row = await bare(tx, speaker.workspace, id);
    if (row === undefined || row.generation >= generation || !(await owns(tx, speaker, row))) continue;
    await update(tx, row, { generation });
    tx.touch(row.workspace_id, "deployment", id);
  }
}

/** What people see of it: without the minute that the rollup tells. */
const spoken = (status: DeploymentStatus): string => JSON.stringify({ ...status, rollup: null });

/** Writes down what an agent says of its deployments. Answers how many it is not the owner of. */
export async function observe(
  tx: Tx,
  speaker: Speaker,
  statuses: readonly DeploymentStatus[],
  at: number,
): Promise<number> {
  let ignored = 0;
  const said = new Set<string>();
  for (const status of statuses) {
    const row = await bare(tx, speaker.workspace, status.deployment);
    if (row === undefined || !(await owns(tx, speaker, row))) {
      ignored++;
      continue;
    }
    said.add(row.deployment_id);
    const before = parseJson<DeploymentStatus>(row.status);
    await update(tx, row, {
      status: JSON.stringify(status),
      observed_at: at,
      // Higher than ours: this database was restored. The revision's content is then unknown here.
      generation: Math.max(row.generation, status.generation),
      revision: Math.max(row.revision, status.revision),
    });
    const minute = await addRollup(tx, row, status);
    if (minute || before === null || spoken(before) !== spoken(status))
      tx.touch(row.workspace_id, "deployment", row.deployment_id);
  }
  // What it had and does not name any more is not there: its journal was emptied, or it was removed.
  const owned = await tx.db
    .selectFrom("deployments")
    .selectAll()
    .where("workspace_id", "=", speaker.workspace)
    .where("replica_id", "=", speaker.replica)
    .where("removed_at", "is", null)
    .where("status", "is not", null)
    .execute();
  for (const row of owned) {
    if (said.has(row.deployment_id)) continue;
    await update(tx, row, { status: null, observed_at: at });
    tx.touch(row.workspace_id, "deployment", row.deployment_id);
  }
  return ignored;
}

/** True when it is a minute that was not there yet. */
async function addRollup(tx: Tx, row: Tables["deployments"], { rollup }: DeploymentStatus): Promise<boolean> {
  if (rollup === null) return false;
  const added = await tx.db
    .insertInto("deployment_rollups")
    .values({
      workspace_id: row.workspace_id,
      deployment_id: row.deployment_id,
      at: rollup.at,
      requests: rollup.requests,
      errors: rollup.errors,
      retries: rollup.retries,
      p50_ms: rollup.p50Ms,
      p95_ms: rollup.p95Ms,
      p99_ms: rollup.p99Ms,
    })
    .onConflict((conflict) => conflict.columns(["workspace_id", "deployment_id", "at"]).doNothing())
    .executeTakeFirst();
  if ((added.numInsertedOrUpdatedRows ?? 0n) === 0n) return false;
  await tx.db
    .deleteFrom("deployment_rollups")
    .where("workspace_id", "=", row.workspace_id)
    .where("deployment_id", "=", row.deployment_id)
    .where((eb) => eb.or([eb("at", "<=", rollup.at - KEPT_ROLLUPS_MS), eb("at", ">", rollup.at + KEPT_ROLLUPS_MS)]))
    .execute();
  return true;
}
