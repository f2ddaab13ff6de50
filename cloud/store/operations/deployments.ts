// Deployments: what is wanted of them, generation by generation, each with its command. What agents say of them comes in
// by deployment-status.ts.
import {
  ConnectorError,
  deploymentSpecSchema,
  revisionText,
  type CommandId,
  type DeploymentId,
  type DeploymentSpec,
  type DeploymentStatus,
  type PoolId,
  type ReplicaId,
  type Rollup,
  type WorkspaceId,
} from "@sallyport/protocol";
import type {
  CommandRow,
  DeploymentCommit,
  DeploymentRow,
  IdempotencyEntry,
  IdempotentAnswer,
  Page,
  PageQuery,
  RevisionRow,
  Scope,
} from "../store.ts";
import type { Tables } from "../tables.ts";
import { findKey, rememberKey } from "./changes.ts";
import { command, createCommand, supersede } from "./commands.ts";
import { stands } from "./deployment-status.ts";
import { afterCursor, pageOf, parseJson, ws, type Tx } from "./tx.ts";

const rows = (tx: Tx, workspace: string) =>
  tx.db
    .selectFrom("deployments as d")
    .innerJoin("pools as p", (join) =>
      join.onRef("p.workspace_id", "=", "d.workspace_id").onRef("p.pool_id", "=", "d.pool_id"),
    )
    .leftJoin("replicas as r", (join) =>
      join.onRef("r.workspace_id", "=", "d.workspace_id").onRef("r.replica_id", "=", "d.replica_id"),
    )
    .leftJoin("deployment_revisions as v", (join) =>
      join
        .onRef("v.workspace_id", "=", "d.workspace_id")
        .onRef("v.deployment_id", "=", "d.deployment_id")
        .onRef("v.revision", "=", "d.revision"),
    )
    .selectAll("d")
    .select(["p.name as pool_name", "r.name as replica_name", "r.revoked_at", "r.deleted_at"])
    .select("v.revision as known_revision")
    .where("d.workspace_id", "=", workspace);

type Joined = Tables["deployments"] & {
  pool_name: string;
  replica_name: string | null;
  revoked_at: number | null;
  deleted_at: number | null;
  known_revision: number | null;
};

/** Defaults that came later are filled in. */
const specOf = (text: string): DeploymentSpec => deploymentSpecSchema.parse(JSON.parse(text));
const actorOf = (row: { actor_id: string; actor_name: string; actor_via: string }): Scope["actor"] => ({
  id: row.actor_id,
  name: row.actor_name,
  via: row.actor_via as Scope["actor"]["via"],
});

const toDeployment = (row: Joined): DeploymentRow => ({
  workspace: ws(row.workspace_id),
  id: row.deployment_id as DeploymentId,
  pool: row.pool_id as PoolId,
  poolName: row.pool_name,
  name: row.name,
  replica: row.replica_id as ReplicaId | null,
  replicaName: row.replica_name,
  ownerGone: row.replica_id !== null && (row.revoked_at !== null || row.deleted_at !== null),
  generation: row.generation,
  revision: row.revision,
  revisionKnown: row.known_revision !== null,
  spec: specOf(row.spec),
  command: row.command_id as CommandId,
  actor: actorOf(row),
  createdAt: row.created_at,
  updatedAt: row.updated_at,
  removing: row.removing === 1,
  removedAt: row.removed_at,
  observed: parseJson<DeploymentStatus>(row.status),
  observedAt: row.observed_at,
});

interface Whole {
  deployment: DeploymentRow;
  command: CommandRow;
}

const whole = async (tx: Tx, scope: Scope, row: Joined): Promise<Whole> => ({
  deployment: toDeployment(row),
  command: (await command(tx, scope, row.command_id as CommandId))!,
});

export async function deployment(tx: Tx, scope: Scope, id: DeploymentId): Promise<Whole | null> {
  const row = await rows(tx, scope.workspace).where("d.deployment_id", "=", id).executeTakeFirst();
  return row === undefined ? null : whole(tx, scope, row);
}

export async function deployments(
  tx: Tx,
  scope: Scope,
  query: PageQuery & { pool?: PoolId; name?: string; removed?: boolean },
): Promise<Page<Whole>> {
  let select = rows(tx, scope.workspace)
    .where(afterCursor("d.created_at", "d.deployment_id", query.cursor))
    .where("d.removed_at", query.removed === true ? "is not" : "is", null);
  if (query.pool !== undefined) select = select.where("d.pool_id", "=", query.pool);
  if (query.name !== undefined) select = select.where("d.name", "=", query.name);
  const found = await select
    .orderBy("d.created_at", "desc")
    .orderBy("d.deployment_id", "desc")
    .limit(query.limit + 1)
    .execute();
  const page = pageOf(
    found,
    query,
    (row) => [row.created_at, row.deployment_id],
    (row) => row,
  );
  const items: Whole[] = [];
  for (const row of page.items) items.push(await whole(tx, scope, row));
  return { items, nextCursor: page.nextCursor };
}

export async function commitDeployment(
  tx: Tx,
  scope: Scope,
  change: DeploymentCommit,
  idempotency?: IdempotencyEntry,
): Promise<{ command: CommandRow; replayed: IdempotentAnswer | null }> {
  const { id, pool, name, spec } = change.deployment;
  const now = change.command.createdAt;
  // A repetition is answered before anything is compared: the first request moved the generation.
  if (idempotency !== undefined && (await findKey(tx, scope, idempotency, now)) !== null)
    return createCommand(tx, scope, change.command, idempotency);
  const repeated = await command(tx, scope, change.command.id);
  if (repeated !== null) return createCommand(tx, scope, change.command);

  const before = await rows(tx, scope.workspace).where("d.deployment_id", "=", id).executeTakeFirst();
  if (before?.removed_at != null || (before === undefined && change.expectedGeneration > 0))
    throw new ConnectorError("NOT_FOUND", `There is no deployment ${id} in this workspace any more.`, {
      fix: "Look at the list; a removed deployment is made anew under its name.",
    });
  const generation = before?.generation ?? 0;
  if (generation !== change.expectedGeneration)
    throw new ConnectorError(
      "PRECONDITION_FAILED",
      `Deployment ${name} is at generation ${generation}, the change was made for generation ${change.expectedGeneration}.`,
      {
        fix: "Read it again and repeat the change on what it is now.",
        details: { generation, expected: change.expectedGeneration },
      },
    );
  if (before === undefined) await nameIsFree(tx, scope.workspace, pool, name);

  const removing = change.removing === true;
  const known = before !== undefined && before.known_revision !== null;
  const same = known && revisionText(specOf(before.spec)) === revisionText(spec);
  const revision = before === undefined ? 1 : same || removing ? before.revision : before.revision + 1;
  if (!removing && revision !== change.revision)
    throw new ConnectorError("PRECONDITION_FAILED", `Deployment ${name} has got another revision since it was read.`, {
      fix: "Read it again and repeat the change on what it is now.",
      details: { generation, revision },
    });

  await supersede(
    tx,
    scope.workspace,
    change.command.resource,
    `Generation ${generation + 1} of ${name} took its place before an agent took it.`,
    now,
  );
  const actor = { actor_id: scope.actor.id, actor_name: scope.actor.name, actor_via: scope.actor.via };
  // Nobody to tell: no agent was ever asked to have it, or the one that has it is out of reach for good.
  if (removing && before !== undefined && (await untouched(tx, before))) {
    const set = { generation: generation + 1, removing: 1, removed_at: now, updated_at: now, ...actor };
    await write(tx, before, set);
    tx.touch(scope.workspace, "deployment", id);
    if (idempotency !== undefined) await rememberKey(tx, scope, idempotency, now, before.command_id);
    return { command: (await command(tx, scope, before.command_id as CommandId))!, replayed: null };
  }

  const made = await createCommand(tx, scope, change.command, idempotency);
  const set = {
    generation: generation + 1,
    revision,
    spec: JSON.stringify(spec),
    command_id: change.command.id,
    updated_at: now,
    removing: removing ? 1 : 0,
    ...actor,
  };
  if (before === undefined)
    await tx.db
      .insertInto("deployments")
      .values({
        workspace_id: scope.workspace,
        deployment_id: id,
        pool_id: pool,
        name,
        replica_id: null,
        created_at: now,
        removed_at: null,
        status: null,
        observed_at: null,
        ...set,
      })
      .execute();
  else await write(tx, before, set);
  if (!removing && (before === undefined || revision !== before.revision))
    await tx.db
      .insertInto("deployment_revisions")
      .values({
        workspace_id: scope.workspace,
        deployment_id: id,
        revision,
        spec: JSON.stringify(spec),
        from_revision: change.from ?? (await repeats(tx, scope, id, spec)),
        created_at: now,
        ...actor,
      })
      .execute();
  tx.touch(scope.workspace, "deployment", id);
  return made;
}

const write = (tx: Tx, row: Tables["deployments"], set: Partial<Tables["deployments"]>) =>
  tx.db
    .updateTable("deployments")
    .set(set)
    .where("workspace_id", "=", row.workspace_id)
    .where("deployment_id", "=", row.deployment_id)
    .execute();

async function nameIsFree(tx: Tx, workspace: string, pool: PoolId, name: string): Promise<void> {
  const taken = await tx.db
    .selectFrom("deployments")
    .select(["deployment_id", "generation"])
    .where("workspace_id", "=", workspace)
    .where("pool_id", "=", pool)
    .where("name", "=", name)
    .where("removed_at", "is", null)
    .executeTakeFirst();
  if (taken === undefined) return;
  throw new ConnectorError("CONFLICT", `A deployment of this pool is named ${name} already.`, {
    fix: `Change that one (${taken.deployment_id}), choose another name, or remove it first.`,
    details: { deployment: taken.deployment_id, generation: taken.generation, name },
  });
}

/** True when no agent that is within reach can have it. */
async function untouched(tx: Tx, row: Joined): Promise<boolean> {
  if (row.replica_id !== null) return row.revoked_at !== null || row.deleted_at !== null;
  return (await mayHold(tx, row.workspace_id, row.deployment_id, "")) === null;
}

/** The newest replica that was offered a command about it and did not refuse: it may have journaled it. */
async function mayHold(tx: Tx, workspace: string, id: string, besides: string): Promise<string | null> {
  const offered = await tx.db
    .selectFrom("commands as c")
    .innerJoin("offers as o", (join) =>
      join.onRef("o.workspace_id", "=", "c.workspace_id").onRef("o.command_id", "=", "c.command_id"),
    )
    .select("o.replica_id")
    .where("c.workspace_id", "=", workspace)
    .where("c.resource", "=", `deployment:${id}`)
    .where("c.command_id", "!=", besides)
    .where("c.state", "!=", "refused")
    .where("o.refusal", "is", null)
    .orderBy("c.created_at", "desc")
    .orderBy("o.attempt", "desc")
    .limit(1)
    .executeTakeFirst();
  return offered !== undefined && (await stands(tx, workspace, offered.replica_id)) ? offered.replica_id : null;
}

export async function deploymentHolder(
  tx: Tx,
  workspace: WorkspaceId,
  id: DeploymentId,
  besides: CommandId,
): Promise<ReplicaId | null> {
  const row = await tx.db
    .selectFrom("deployments")
    .select("replica_id")
    .where("workspace_id", "=", workspace)
    .where("deployment_id", "=", id)
    .executeTakeFirst();
  if (row === undefined) return null;
  if (row.replica_id === null) return (await mayHold(tx, workspace, id, besides)) as ReplicaId | null;
  return (await stands(tx, workspace, row.replica_id)) ? (row.replica_id as ReplicaId) : null;
}

// -- revisions
/** The newest earlier revision with the same content. */
async function repeats(tx: Tx, scope: Scope, id: DeploymentId, spec: DeploymentSpec): Promise<number | null> {
  const text = revisionText(spec);
  for (const revision of await deploymentRevisions(tx, scope, id, { limit: 1000 }))
    if (revisionText(revision.spec) === text) return revision.revision;
  return null;
}

const toRevision = (row: Tables["deployment_revisions"]): RevisionRow => ({
  revision: row.revision,
  spec: specOf(row.spec),
  from: row.from_revision,
  actor: actorOf(row),
  createdAt: row.created_at,
});

export async function deploymentRevisions(
  tx: Tx,
  scope: Scope,
  id: DeploymentId,
  query: { limit: number; before?: number },
): Promise<RevisionRow[]> {
  let select = tx.db
    .selectFrom("deployment_revisions")
    .selectAll()
    .where("workspace_id", "=", scope.workspace)
    .where("deployment_id", "=", id);
  if (query.before !== undefined) select = select.where("revision", "<", query.before);
  return (await select.orderBy("revision", "desc").limit(query.limit).execute()).map(toRevision);
}

export async function deploymentRevision(
  tx: Tx,
  scope: Scope,
  id: DeploymentId,
  revision: number,
): Promise<RevisionRow | null> {
  const row = await tx.db
    .selectFrom("deployment_revisions")
    .selectAll()
    .where("workspace_id", "=", scope.workspace)
    .where("deployment_id", "=", id)
    .where("revision", "=", revision)
    .executeTakeFirst();
  return row === undefined ? null : toRevision(row);
}

export async function deploymentRollups(tx: Tx, scope: Scope, id: DeploymentId, since: number): Promise<Rollup[]> {
  const found = await tx.db
    .selectFrom("deployment_rollups")
    .selectAll()
    .where("workspace_id", "=", scope.workspace)
    .where("deployment_id", "=", id)
    .where("at", ">", since)
    .orderBy("at")
    .execute();
  return found.map((row) => ({
    at: row.at,
    requests: row.requests,
    errors: row.errors,
    retries: row.retries,
    p50Ms: row.p50_ms,
    p95Ms: row.p95_ms,
    p99Ms: row.p99_ms,
  }));
}
