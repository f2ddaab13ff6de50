// A deployment as the API shows it: derived when read, from what is wanted, its newest command, and what its agent last
// said and whether that agent is there now. Stores nothing.
import {
  ConnectorError,
  type AgentStatus,
  type DeploymentState,
  type DeploymentStatus,
  type ErrorBody,
  type PoolId,
  type ReplicaId,
} from "@sallyport/protocol";
import type { CommandView, Dispatch, Waiting } from "../../dispatch/index.ts";
import type { DeploymentRow, Scope, Store } from "../../store/store.ts";
import type { KnownLimits } from "./diff.ts";

export type DeploymentViewState = "queued" | "refused" | "unknown" | DeploymentState;
export interface DeploymentView {
  id: string;
  name: string;
  pool: { id: string; name: string };
  agent: { id: string; name: string } | null;
  state: DeploymentViewState;
  stateReason: string;
  generation: number;
  appliedGeneration: number | null;
  revision: number;
  spec: DeploymentRow["spec"];
  replicasReady: number | null;
  endpoint: string | null;
  command: string;
  waiting: Waiting | null;
  error: ErrorBody | null;
  actor: DeploymentRow["actor"];
  createdAt: number;
  updatedAt: number;
  removedAt: number | null;
  rollup: DeploymentStatus["rollup"];
}

/** Whether the agent that holds it is there now. Without that, what it said is from memory. */
export const ownerLinked = (dispatch: Dispatch, row: DeploymentRow): boolean =>
  row.replica !== null && dispatch.sessions.ofReplica(row.workspace, row.replica) !== null;

export function deploymentView(
  row: DeploymentRow,
  command: CommandView,
  linked: boolean,
  nowMs: number,
): DeploymentView {
  const { observed } = row;
  const about = command.row;
  // A removal that needed no agent made no command: the newest one then tells nothing of it.
  const failed = row.removedAt === null && FAILED.has(about.state);
  return {
    id: row.id,
    name: row.name,
    pool: { id: row.pool, name: row.poolName },
    agent: row.replica === null ? null : { id: row.replica, name: row.replicaName ?? row.replica },
    ...judge(row, command, linked, nowMs),
    generation: row.generation,
    appliedGeneration: observed?.generation ?? null,
    revision: row.revision,
    spec: row.spec,
    replicasReady: linked && observed !== null ? observed.replicasReady : null,
    endpoint: observed?.endpoint ?? null,
    command: row.command,
    waiting: row.removedAt === null ? command.waiting : null,
    error: failed ? (about.error ?? { code: "INTERNAL", message: `Its newest command is ${about.state}.` }) : null,
    actor: row.actor,
    createdAt: row.createdAt,
    updatedAt: row.updatedAt,
    removedAt: row.removedAt,
    rollup: observed?.rollup ?? null,
  };
}

const FAILED: ReadonlySet<string> = new Set(["refused", "failed", "expired", "cancelled", "lost"]);

interface Judgement {
  state: DeploymentViewState;
  stateReason: string;
}

function judge(row: DeploymentRow, { row: command, waiting }: CommandView, linked: boolean, now: number): Judgement {
  if (row.removedAt !== null) return { state: "removing", stateReason: `Removed ${ago(now - row.removedAt)} ago.` };
  const agent = `Agent ${row.replicaName ?? row.replica ?? ""}`;
  const verb = row.removing ? "Its removal" : `Generation ${row.generation}`;
  const wait = waiting === null ? "" : `${verb} waits: ${waiting.text}`;

  if (row.replica === null) {
    if (command.state === "refused")
      return { state: "refused", stateReason: `Pool ${row.poolName} refused it: ${messageOf(command.error)}` };
    if (FAILED.has(command.state)) return { state: "failed", stateReason: messageOf(command.error) };
    return row.removing
      ? { state: "removing", stateReason: wait || "It is being removed." }
      : { state: "queued", stateReason: waiting?.text ?? "No agent has taken it yet." };
  }
  if (row.ownerGone)
    return {
      state: "unknown",
      stateReason: `${agent}, which held it, was revoked or deleted; what it may still run is out of reach. ${wait || `The next apply goes to any agent of pool ${row.poolName}.`}`,
    };
  if (!linked) {
    const last = row.observed === null ? "" : ` It was ${row.observed.state} when last heard.`;
    return {
      state: "unknown",
      stateReason: `${agent}, which holds it, is not connected.${last} What runs there goes on.${wait === "" ? "" : ` ${verb} waits for it.`}`,
    };
  }

  const stands = standing(row, agent);
  if (command.state === "queued") {
    if (row.removing) return { state: "removing", stateReason: wait || "It is being removed." };
    return { state: "queued", stateReason: join(wait || "No agent has taken it yet.", meanwhile(row)) };
  }
  if (command.state === "refused")
    return {
      state: "refused",
      stateReason: join(`${agent} refused ${lower(verb)}: ${messageOf(command.error)}`, meanwhile(row)),
    };
  if (FAILED.has(command.state))
    return {
      state: row.observed?.state ?? "failed",
      stateReason: join(
        `${verb} ${row.removing ? "failed" : "was not applied"}: ${messageOf(command.error)}`,
        meanwhile(row),
      ),
    };
  if (row.removing) return { state: "removing", stateReason: `${agent} is stopping it.` };
  return stands;
}

/** As its agent, which is there, says. */
function standing(row: DeploymentRow, agent: string): Judgement {
  const { observed } = row;
  if (observed === null)
    return row.observedAt === null
      ? { state: "progressing", stateReason: `${agent} has taken it and has not said yet how it stands.` }
      : {
          state: "unknown",
          stateReason: `${agent} does not have it any more: its state directory was emptied or replaced. Apply it again.`,
        };
  if (observed.generation < row.generation)
    return {
      state: "progressing",
      stateReason: join(`${agent} is taking generation ${row.generation}.`, meanwhile(row)),
    };
  if (!row.revisionKnown || observed.replicasWanted !== row.spec.replicas)
    return {
      state: observed.state,
      stateReason: `${agent} holds a later state than this control plane remembers, which was restored from a backup. Apply what is wanted again.`,
    };
  const broken = observed.conditions.find((condition) => !condition.ok);
  if (broken !== undefined)
    return {
      state: observed.state,
      stateReason: `${sentence(broken.message)}${broken.fix === null ? "" : ` ${sentence(broken.fix)}`}`,
    };
  const { replicasReady: ready, replicasWanted: wanted } = observed;
  return {
    state: observed.state,
    stateReason:
      observed.state === "available"
        ? wanted === 0
          ? "No replica is wanted."
          : `${ready === 1 ? "1 replica" : `${ready} replicas`} of revision ${observed.revision} ${ready === 1 ? "is" : "are"} ready.`
        : `${ready} of ${wanted} replicas are ready.`,
  };
}

const meanwhile = ({ observed, generation }: DeploymentRow): string =>
  observed === null || observed.generation >= generation
    ? ""
    : `Generation ${observed.generation} goes on meanwhile (${observed.state}).`;
const messageOf = (error: ErrorBody | null): string => sentence(error?.message ?? "it is not known why");
const sentence = (words: string): string => (/[.!?]$/.test(words.trim()) ? words.trim() : `${words.trim()}.`);
const join = (...parts: string[]): string => parts.filter((part) => part !== "").join(" ");
const lower = (words: string): string => words.charAt(0).toLowerCase() + words.slice(1);
const ago = (ms: number): string => {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 120) return `${s} s`;
  if (s < 2 * 3600) return `${Math.round(s / 60)} min`;
  if (s < 48 * 3600) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} days`;
};

/** The replica to ask about it. Throws CONFLICT when none has taken it. */
export function heldBy(row: DeploymentRow): ReplicaId {
  if (row.removedAt !== null)
    throw new ConnectorError("CONFLICT", `Deployment ${row.name} was removed.`, { fix: "Make it anew." });
  if (row.replica === null || row.ownerGone)
    throw new ConnectorError(
      "CONFLICT",
      row.replica === null
        ? `No agent has taken deployment ${row.name} yet.`
        : `The agent that held deployment ${row.name} was revoked or deleted.`,
      {
        fix:
          row.replica === null
            ? "See why it waits: its waiting reason is in the deployment."
            : `Apply it again: another agent of pool ${row.poolName} takes it.`,
      },
    );
  return row.replica;
}

const NONE: AgentStatus["ceilings"] = { deployments: 0, replicas: 0, cpus: 0, memoryBytes: 0 };

/** What the agent that holds it last said of its limits; before one does, the roomiest of the pool. Null: nothing heard. */
export async function ceilingsFor(
  store: Store,
  scope: Scope,
  pool: { id: PoolId; name: string },
  owner: ReplicaId | null,
): Promise<KnownLimits | null> {
  const heardOf = (await store.replicas(scope)).filter(
    (replica) => replica.pool === pool.id && replica.revokedAt === null && replica.status !== null,
  );
  const one =
    heardOf.find((replica) => replica.id === owner) ??
    heardOf.toSorted((a, b) => (b.status!.ceilings?.replicas ?? 0) - (a.status!.ceilings?.replicas ?? 0))[0];
  if (one === undefined) return null;
  return {
    who: `Agent ${one.name}`,
    ceilings: one.status!.ceilings ?? NONE,
    serving: one.status!.serving ?? [],
  };
}
