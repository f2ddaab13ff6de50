// Changes of a deployment: each is a whole spec under the next generation, with the command that carries it. Scaling and
// rolling back are applies too. What they are computed from is verified by the store's transaction.
import {
  ConnectorError,
  deploymentApply,
  deploymentRemove,
  newId,
  revisionText,
  type DeploymentId,
  type DeploymentSpec,
} from "@sallyport/protocol";
import type { Dispatch, PoolRef, SubmitKey } from "../../dispatch/index.ts";
import type {
  CommandRow,
  DeploymentCommit,
  DeploymentRow,
  IdempotentAnswer,
  RevisionRow,
  Scope,
  Store,
} from "../../store/store.ts";

/** How long a change may wait for its agent. */
const LIFETIME_MS = 7 * 24 * 3600_000;

interface Ports {
  store: Store;
  dispatch: Dispatch;
}
export interface ChangeKey {
  key: Omit<SubmitKey, "answer"> | null;
  /** Made from what will be committed; a repeated request with the same key gets the first one's. */
  answer: (deployment: DeploymentRow, command: CommandRow) => IdempotentAnswer;
}
interface Made {
  id: DeploymentId;
  command: CommandRow;
  replayed: IdempotentAnswer | null;
}

const resourceOf = (id: DeploymentId): string => `deployment:${id}`;

export async function createDeployment(
  { store, dispatch }: Ports,
  scope: Scope,
  wanted: { pool: PoolRef; name: string; spec: DeploymentSpec },
  key: ChangeKey,
): Promise<Made> {
  const id = newId("deployment", dispatch.clock.now());
  const now = dispatch.clock.now();
  const future: DeploymentRow = {
    workspace: scope.workspace,
    id,
    pool: wanted.pool.id,
    poolName: wanted.pool.name,
    name: wanted.name,
    replica: null,
    replicaName: null,
    ownerGone: false,
    generation: 1,
    revision: 1,
    revisionKnown: true,
    spec: wanted.spec,
    // Set from the command's row when the answer is made.
    command: "" as DeploymentRow["command"],
    actor: scope.actor,
    createdAt: now,
    updatedAt: now,
    removing: false,
    removedAt: null,
    observed: null,
    observedAt: null,
  };
  return submit({ store, dispatch }, scope, future, key);
}

/** `current`: what was read, and what If-Match named. `from`: the earlier revision that a rollback goes to. */
export async function applyDeployment(
  ports: Ports,
  scope: Scope,
  current: DeploymentRow,
  spec: DeploymentSpec,
  key: ChangeKey,
  from?: number,
): Promise<Made> {
  stays(current);
  if (current.removing)
    throw new ConnectorError("CONFLICT", `Deployment ${current.name} is being removed.`, {
      fix: "Wait until it is gone, then make a new one under that name.",
      details: { deployment: current.id },
    });
  const revision = nextRevision(current, spec);
  return submit(ports, scope, { ...current, spec, generation: current.generation + 1, revision }, key, from);
}

export const scaled = (current: DeploymentRow, replicas: number): DeploymentSpec => ({ ...current.spec, replicas });

/** The content of an earlier revision with as many replicas as are wanted now. */
export async function rollbackDeployment(
  ports: Ports,
  scope: Scope,
  current: DeploymentRow,
  revision: number,
  key: ChangeKey,
): Promise<Made> {
  const earlier: RevisionRow | null = await ports.store.deploymentRevision(scope, current.id, revision);
  if (earlier === null)
    throw new ConnectorError("NOT_FOUND", `Deployment ${current.name} has no revision ${revision}.`, {
      fix: `Choose one of its revisions: sallyport deployment revisions ${current.name}`,
    });
  const spec = { ...earlier.spec, replicas: current.spec.replicas };
  if (current.revisionKnown && revisionText(spec) === revisionText(current.spec))
    throw new ConnectorError(
      "CONFLICT",
      revision === current.revision
        ? `Deployment ${current.name} is at revision ${revision} already.`
        : `Revision ${revision} of ${current.name} has the same content as revision ${current.revision}, which is wanted already.`,
      { fix: "Choose an earlier revision with other content." },
    );
  return applyDeployment(ports, scope, current, spec, key, revision);
}

export async function removeDeployment(
  ports: Ports,
  scope: Scope,
  current: DeploymentRow,
  key: ChangeKey,
): Promise<Made> {
  stays(current);
  return submit(ports, scope, { ...current, generation: current.generation + 1, removing: true }, key);
}

/** The revision that an apply of this spec makes or keeps. */
export const nextRevision = (current: DeploymentRow, spec: DeploymentSpec): number =>
  current.revisionKnown && revisionText(current.spec) === revisionText(spec) ? current.revision : current.revision + 1;

function stays(current: DeploymentRow): void {
  if (current.removedAt !== null)
    throw new ConnectorError("NOT_FOUND", `Deployment ${current.name} was removed.`, {
      fix: "Make a new one under that name.",
    });
}

async function submit(
  { store, dispatch }: Ports,
  scope: Scope,
  next: DeploymentRow,
  { key, answer }: ChangeKey,
  from?: number,
): Promise<Made> {
  const change: Omit<DeploymentCommit, "command"> = {
    deployment: { id: next.id, pool: next.pool, name: next.name, spec: next.spec },
    expectedGeneration: next.generation - 1,
    revision: next.revision,
    ...(from === undefined ? {} : { from }),
    ...(next.removing ? { removing: true } : {}),
  };
  const common = {
    pool: { id: next.pool, name: next.poolName },
    resource: resourceOf(next.id),
    expiresInMs: LIFETIME_MS,
    commit: (command: DeploymentCommit["command"], idempotency?: Parameters<Store["commitDeployment"]>[2]) =>
      store.commitDeployment(scope, { ...change, command }, idempotency),
  };
  const submitKey =
    key === null
      ? undefined
      : { ...key, answer: (command: CommandRow) => answer({ ...next, command: command.id }, command) };
  const held = { deployment: next.id, generation: next.generation };
  const made = next.removing
    ? await dispatch.submit(scope, { ...common, spec: deploymentRemove, input: held }, submitKey)
    : await dispatch.submit(
        scope,
        {
          ...common,
          spec: deploymentApply,
          input: { ...held, name: next.name, revision: next.revision, spec: next.spec },
        },
        submitKey,
      );
  return { id: next.id, ...made };
}
