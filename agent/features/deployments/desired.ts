// What the journal remembers of deployments. In `deployments`: `<deployment>`, what is wanted. In `deployment-replicas`:
// `<deployment>/<replica>`, how often each was started and how it last ended; it outlives the seat, so that no start
// number comes twice. In `deployments-removed`: the generation at which one went.
import {
  ConnectorError,
  replicaName,
  revisionText,
  type DeploymentId,
  type DeploymentSpec,
  type ReplicaExit,
} from "@sallyport/protocol";
import type { ReplicaAddress } from "../../router/router.ts";

export const DEPLOYMENTS = "deployments";
export const REPLICAS = "deployment-replicas";
export const REMOVED = "deployments-removed";

export interface DesiredRecord {
  format: 1;
  deployment: DeploymentId;
  name: string;
  generation: number;
  revision: number;
  spec: DeploymentSpec;
  /** By revision: the wanted one, the one that serves, and all that have a seat. */
  revisions: Record<string, DeploymentSpec>;
  /** The last revision that was there in full; null = none yet. */
  serving: number | null;
  /** Stopped at the agent's host: nothing runs until the next apply. */
  held: { at: number; by: string } | null;
  /** Written before anything is stopped; `stopped` = what ran then. */
  removing: { generation: number; at: number; stopped: string[] } | null;
}

export interface ReplicaRecord {
  revision: number;
  number: number;
  /** The seat is taken: something of it may be in the engine. */
  seat: boolean;
  /** Number of the newest start; written before the engine is asked. */
  starts: number;
  /** The engine has begun that start: when it knows nothing of it later, somebody removed it. */
  begun: boolean;
  startedAt: number | null;
  /** Where it answers, so that it is found again also while the engine is gone. */
  address: ReplicaAddress | null;
  /** In a row. */
  crashes: number;
  lastExit: ReplicaExit | null;
}

export interface RemovedRecord {
  generation: number;
  at: number;
}
/** No intent lives longer than 7 days. */
export const REMOVED_KEPT_MS = 8 * 24 * 3600_000;

export const replicaKey = (deployment: DeploymentId, replica: string): string => `${deployment}/${replica}`;
export const newReplicaRecord = (revision: number, number: number): ReplicaRecord => ({
  revision,
  number,
  seat: true,
  starts: 0,
  begun: false,
  startedAt: null,
  address: null,
  crashes: 0,
  lastExit: null,
});
export const nameOf = (record: Pick<ReplicaRecord, "revision" | "number">): string =>
  replicaName(record.revision, record.number);

export interface Apply {
  deployment: DeploymentId;
  name: string;
  generation: number;
  revision: number;
  spec: DeploymentSpec;
}

/** What is held after an apply; the same object when it says nothing new. Throws GENERATION_STALE or CONFLICT. */
export function applied(held: DesiredRecord | null, removed: RemovedRecord | null, apply: Apply): DesiredRecord {
  const { deployment, name, generation, revision, spec } = apply;
  const goneAt = held?.removing?.generation ?? removed?.generation;
  if (goneAt !== undefined) {
    if (generation <= goneAt)
      throw new ConnectorError(
        "GENERATION_STALE",
        `Deployment ${name} was removed at generation ${goneAt}; this is ${generation}.`,
        {
          fix: "Deploy it anew.",
          details: { held: goneAt, generation },
        },
      );
    if (held !== null)
      throw new ConnectorError("CONFLICT", `Deployment ${name} is being removed.`, {
        fix: "Deploy it when it is gone.",
      });
  }
  const fresh: DesiredRecord = {
    format: 1,
    deployment,
    name,
    generation,
    revision,
    spec,
    revisions: { [revision]: spec },
    serving: null,
    held: null,
    removing: null,
  };
  if (held === null) return fresh;
  const conflict = (message: string, details: Record<string, unknown> = {}): ConnectorError =>
    new ConnectorError("CONFLICT", message, {
      fix: "Read the deployment's state and apply a newer generation.",
      details: { generation: held.generation, revision: held.revision, ...details },
    });
  if (held.name !== name) throw conflict(`Deployment ${deployment} is named ${held.name} here; a name never changes.`);
  if (generation < held.generation)
    throw new ConnectorError(
      "GENERATION_STALE",
      `The agent holds generation ${held.generation} of deployment ${name}; this is ${generation}.`,
      { fix: "Nothing is to be done: the newer one stands.", details: { held: held.generation, generation } },
    );
  if (revision < held.revision)
    throw conflict(`Revision ${revision} of deployment ${name} is older than ${held.revision}, which the agent holds.`);
  if (revision === held.revision && revisionText(spec) !== revisionText(held.spec))
    throw conflict(`Revision ${revision} of deployment ${name} is held with another content.`);
  if (generation === held.generation) {
    if (revision === held.revision && spec.replicas === held.spec.replicas) return held;
    throw conflict(`Generation ${generation} of deployment ${name} is held with another content.`);
  }
  return {
    ...held,
    generation,
    revision,
    spec,
    revisions: { ...held.revisions, [revision]: spec },
    held: null,
  };
}

export const nameTaken = (name: string, by: DeploymentId): ConnectorError =>
  new ConnectorError("CONFLICT", `The name ${name} is another deployment's of this agent, ${by}.`, {
    fix: "Choose another name, or remove the other one first.",
    details: { name, deployment: by },
  });
