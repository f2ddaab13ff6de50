// Why a command waits, and whether what became of it is known: derived when read, from the sessions that live now.
// Pure but for `agentOffline`, which looks up who was last seen.
import { ConnectorError, type CommandId, type PoolId, type ReplicaId } from "@sallyport/protocol";
import type { CloudSession, Sessions } from "../link/sessions.ts";
import type { CommandRow, ReplicaRow, Scope, Store } from "../store/store.ts";

export type WaitingCode =
  | "AGENT_OFFLINE"
  | "AGENT_PAUSED"
  | "AT_CAPACITY"
  | "AGENT_DRAINING"
  | "AGENT_UNREADY"
  | "CAPABILITY_MISSING"
  | "UPSTREAM_PENDING"
  | "OFFERED";
/** One machine-readable reason, one sentence, one thing to do. */
export interface Waiting {
  code: WaitingCode;
  text: string;
  fix: string;
}

/** What the last offer of a command came to, if the agent did not take it. */
export interface Refusal {
  code: WaitingCode;
  /** The agent's own sentence. */
  message: string;
}

export interface WaitingEvidence {
  /** Live sessions that may take it. */
  sessions: CloudSession[];
  /** Replicas of the pool (or the one that must take it), whether connected or not. */
  replicas: ReplicaRow[];
  /** Name of the one replica that must take it; null = any of the pool. */
  only: string | null;
  /** Its OPEN is out and not answered. */
  inFlight: boolean;
  /** An older queued command of the same resource. */
  behind: CommandId | null;
  refusal: Refusal | null;
}

const at = (ms: number): string => `${new Date(ms).toISOString().slice(0, 19).replace("T", " ")} UTC`;

function lastSeen(replicas: ReplicaRow[]): { text: string; details: Record<string, unknown> } {
  let newest: ReplicaRow | null = null;
  for (const replica of replicas) {
    if (replica.revokedAt !== null || replica.deletedAt !== null || replica.lastSeenAt === null) continue;
    if (newest === null || replica.lastSeenAt > newest.lastSeenAt!) newest = replica;
  }
  return newest === null
    ? { text: "none was ever seen", details: { lastSeenAt: null } }
    : {
        text: `${newest.name} was last seen at ${at(newest.lastSeenAt!)}`,
        details: { lastSeenAt: newest.lastSeenAt, agent: newest.id, agentName: newest.name },
      };
}

export function waitingOf(command: CommandRow, evidence: WaitingEvidence): Waiting | null {
  if (command.state !== "queued") return null;
  const { sessions } = evidence;
  const pool = command.poolName;
  if (evidence.inFlight)
    return {
      code: "OFFERED",
      text: `It was offered to an agent of pool ${pool}, which has not answered yet.`,
      fix: "Nothing: the answer comes within seconds, or it is offered again.",
    };
  if (sessions.length === 0) {
    const only = evidence.only;
    const seen = lastSeen(evidence.replicas).text;
    return only === null
      ? {
          code: "AGENT_OFFLINE",
          text: `No agent of pool ${pool} is connected: ${seen}.`,
          fix: `Start an agent of pool ${pool}; the command begins by itself until ${at(command.expires)}.`,
        }
      : {
          code: "AGENT_OFFLINE",
          text: `Agent ${only} of pool ${pool}, which alone can take it, is not connected: ${seen}.`,
          fix: `Start agent ${only} again: it may hold this work already, so no other agent is asked.`,
        };
  }
  if (evidence.behind !== null) {
    return {
      code: "UPSTREAM_PENDING",
      text: `Command ${evidence.behind} on the same ${resourceKind(command.resource)} comes first.`,
      fix: `See why that one waits: sallyport command show ${evidence.behind}`,
    };
  }
  const statuses = sessions.map((session) => session.status());
  const paused = statuses.map((status) => status?.paused ?? null);
  if (paused.every((pause) => pause !== null)) {
    const pause = paused[0]!;
    return {
      code: "AGENT_PAUSED",
      text: `The customer paused the intake of pool ${pool} ${pause.until === null ? "until it is resumed" : `until ${at(pause.until)}`}: ${sentence(pause.reason)}`,
      fix: "Wait, or run on the agent's host: sallyport-agent resume",
    };
  }
  if (statuses.every((status) => status !== null && (status.draining || status.paused !== null))) {
    return {
      code: "AGENT_DRAINING",
      text: `The agent of pool ${pool} is stopping and takes no new commands.`,
      fix: "Nothing if it restarts; else start an agent of the pool.",
    };
  }
  if (statuses.every((status) => status !== null && !status.commands.includes(command.kind))) {
    return {
      code: "CAPABILITY_MISSING",
      text: `No connected agent of pool ${pool} takes commands of kind ${command.kind}.`,
      fix: `Allow ${command.kind} in the agent's policy, or update the agent.`,
    };
  }
  const { refusal } = evidence;
  if (refusal !== null && refusal.code !== "AGENT_OFFLINE" && refusal.code !== "OFFERED")
    return { code: refusal.code, text: refusal.message, fix: REFUSAL_FIX[refusal.code] };
  return {
    code: "OFFERED",
    text: `It is being offered to pool ${pool}.`,
    fix: "Nothing: it is offered again every few seconds until it is taken.",
  };
}

const REFUSAL_FIX: Record<Exclude<WaitingCode, "AGENT_OFFLINE" | "OFFERED">, string> = {
  AGENT_PAUSED: "Wait, or run on the agent's host: sallyport-agent resume",
  AGENT_DRAINING: "Nothing if it restarts; else start an agent of the pool.",
  AT_CAPACITY: "Wait until running work ends, or raise the ceiling in the agent's policy.",
  AGENT_UNREADY:
    "Look at the agent's log: its journal or audit disk needs room or repair. It is offered again by itself.",
  CAPABILITY_MISSING: "Allow the kind in the agent's policy, or update the agent.",
  UPSTREAM_PENDING: "Wait for the older command.",
};

const resourceKind = (resource: string): string => resource.slice(0, Math.max(0, resource.indexOf(":"))) || "resource";

/** Accepted work whose replica is silent: nobody knows what became of it until its journal answers. */
export function unknownOf(command: CommandRow, sessions: Sessions): boolean {
  if (command.state !== "accepted" && command.state !== "running") return false;
  return command.replica === null || sessions.ofReplica(command.workspace, command.replica) === null;
}

/** The error of an interactive command to a pool without a live session. */
export async function agentOffline(
  store: Store,
  scope: Scope,
  pool: { id: PoolId; name: string },
  replica: ReplicaId | null,
): Promise<ConnectorError> {
  const replicas = (await store.replicas(scope)).filter((row) =>
    replica === null ? row.pool === pool.id : row.id === replica,
  );
  const seen = lastSeen(replicas);
  return new ConnectorError(
    "AGENT_OFFLINE",
    replica === null
      ? `No agent of pool ${pool.name} is connected: ${seen.text}.`
      : `The agent that holds it is not connected: ${seen.text}.`,
    {
      fix: "Start the agent on its host (sallyport-agent run), then try again.",
      details: { pool: pool.name, ...seen.details },
    },
  );
}

/** Somebody's words, with an end. */
const sentence = (words: string): string => (/[.!?]$/.test(words.trim()) ? words.trim() : `${words.trim()}.`);
