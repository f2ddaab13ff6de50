// Why a command waits, and whether what became of it is known: derived when read, from the sessions that live now.
// Pure but for `agentOffline`, which looks up who was last seen.
import { ConnectorError, pipelineRun, type AgentStatus, type PoolId, type ReplicaId } from "@sallyport/protocol";
import type { CloudSession, Sessions } from "../link/sessions.ts";
import type { CommandRow, PoolQueue, ReplicaRow, RunHolder, Scope, Store } from "../store/store.ts";
import { limitReached } from "./limits.ts";

export type WaitingCode =
  | "NOT_BEFORE"
  | "NO_MATCHING_AGENT"
  | "AGENT_OFFLINE"
  | "AGENT_PAUSED"
  | "AGENT_DRAINING"
  | "AGENT_UNREADY"
  | "CAPABILITY_MISSING"
  | "CONCURRENCY_LIMIT"
  | "AT_CAPACITY"
  | "UPSTREAM_PENDING"
  | "RETRY_BACKOFF"
  | "OFFERED";
/** What an agent can answer to an offer. */
export type RefusalCode = "AGENT_PAUSED" | "AGENT_DRAINING" | "AGENT_UNREADY" | "AT_CAPACITY";

/** One machine-readable reason, one sentence, one thing to do. */
export interface Waiting {
  code: WaitingCode;
  text: string;
  fix: string;
  /** Where it stands (1 = next) and which runs have the slots that it waits for; with the codes of slots only. */
  queue?: { position: number; of: number; holders: { command: string; run: string; text: string }[] };
}

/** What the last offer of a command came to, if the agent did not take it. */
export interface Refusal {
  /** Null: no answer that says why; it is tried again after a while. */
  code: RefusalCode | null;
  /** The agent's own sentence. */
  message: string;
  /** Who said so. */
  replica: ReplicaId;
}

export interface WaitingEvidence {
  /** ms since the epoch. */
  now: number;
  /** Live sessions of the pool, or of the one replica that must take it; labels not yet regarded. */
  sessions: CloudSession[];
  /** Replicas of the pool (or the one that must take it), whether connected or not. */
  replicas: ReplicaRow[];
  /** Name of the one replica that must take it; null = any of the pool. */
  only: string | null;
  /** For how long its OPEN has been out and not answered, ms; null = it is not out. */
  inFlightMs: number | null;
  /** Until it is offered again, ms; 0 = at any moment. */
  retryInMs: number;
  queue: PoolQueue;
  refusal: Refusal | null;
}

/** An earlier answer is shown on while the next one is not late. */
const FRESH_OFFER_MS = 2_000;

export const at = (ms: number): string => `${new Date(ms).toISOString().slice(0, 19).replace("T", " ")} UTC`;
const and = (words: string[]): string =>
  words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
const labelWords = (labels: Readonly<Record<string, string>>): string =>
  and(Object.entries(labels).map(([name, value]) => `${name}=${value}`));

/** Labels that are asked for and that an agent does not have, or has with another value. */
export const missingLabels = (
  requires: Readonly<Record<string, string>>,
  status: AgentStatus | null,
): Record<string, string> =>
  Object.fromEntries(Object.entries(requires).filter(([name, value]) => status?.labels[name] !== value));

const stands = (replica: ReplicaRow): boolean => replica.revokedAt === null && replica.deletedAt === null;

/** By what it last said: its labels and its policy would let it take this. */
export const couldTake = (command: Pick<CommandRow, "kind" | "requires">, replica: ReplicaRow): boolean =>
  stands(replica) &&
  replica.status !== null &&
  replica.status.commands.includes(command.kind) &&
  Object.keys(missingLabels(command.requires, replica.status)).length === 0;

function lastSeen(replicas: ReplicaRow[]): { text: string; details: Record<string, unknown> } {
  let newest: ReplicaRow | null = null;
  for (const replica of replicas) {
    if (!stands(replica) || replica.lastSeenAt === null) continue;
    if (newest === null || replica.lastSeenAt > newest.lastSeenAt!) newest = replica;
  }
  return newest === null
    ? { text: "none was ever seen", details: { lastSeenAt: null } }
    : {
        text: `${newest.name} was last seen at ${at(newest.lastSeenAt!)}`,
        details: { lastSeenAt: newest.lastSeenAt, agent: newest.id, agentName: newest.name },
      };
}

/** Exactly one reason for each queued command: the first of these that holds, from what must change first to what comes by itself. */
export function waitingOf(command: CommandRow, evidence: WaitingEvidence): Waiting | null {
  if (command.state !== "queued") return null;
  const { refusal } = evidence;
  const asked = evidence.inFlightMs !== null;
  if (asked && (refusal === null || evidence.inFlightMs! >= FRESH_OFFER_MS))
    return {
      code: "OFFERED",
      text: `It was offered to an agent of pool ${command.poolName}, which has not answered yet.`,
      fix: "Nothing to do: the answer comes within seconds, or it is offered again.",
    };
  return (
    notBefore(command, evidence) ??
    offline(command, evidence) ??
    behind(command, evidence) ??
    unable(command, evidence) ??
    limited(command, evidence) ??
    refused(command, evidence) ?? {
      code: "OFFERED",
      text: `It is being offered to pool ${command.poolName}.`,
      fix: "Nothing to do: it is offered again every few seconds until it is taken.",
    }
  );
}

function notBefore(command: CommandRow, { now }: WaitingEvidence): Waiting | null {
  if (command.notBefore <= now) return null;
  return {
    code: "NOT_BEFORE",
    text: `It is not to begin before ${at(command.notBefore)}.`,
    fix: "Nothing to do: it is offered then. To have it at once, cancel it and ask again without that time.",
  };
}

function offline(command: CommandRow, evidence: WaitingEvidence): Waiting | null {
  const { sessions, replicas, only, now } = evidence;
  const pool = command.poolName;
  if (sessions.length === 0 && only !== null) {
    const gone = replicas.every((replica) => !stands(replica));
    const may = (command.offeredTo ?? null) !== null;
    const end = `sallyport command lost ${command.id} --reason TEXT`;
    return {
      code: "AGENT_OFFLINE",
      text: gone
        ? `Agent ${only} of pool ${pool}, which alone can take it, was revoked or removed.`
        : `Agent ${only} of pool ${pool}, which alone can take it, is not connected: ${lastSeen(replicas).text}.${
            command.expires <= now ? ` It has expired, but ${only} may have taken it in time.` : ""
          }`,
      fix: gone
        ? `It may hold this work still. If it will never answer: ${end}`
        : `Start agent ${only} again: it may hold this work already, so no other agent is asked.${may ? ` If it will never answer: ${end}` : ""}`,
    };
  }
  const lacking = (status: AgentStatus | null) => Object.keys(missingLabels(command.requires, status)).length > 0;
  const wanted = Object.keys(command.requires).length === 0 ? "" : ` with ${labelWords(command.requires)}`;
  if (sessions.length === 0)
    return {
      code: "AGENT_OFFLINE",
      text: `No agent of pool ${pool} is connected: ${lastSeen(replicas).text}.`,
      fix: `Start an agent of pool ${pool}${wanted}; the command begins by itself until ${at(command.expires)}.`,
    };
  // An agent that has not said yet what it has may have it.
  if (!sessions.every((session) => session.status() !== null && lacking(session.status()))) return null;
  const away = replicas.filter((replica) => stands(replica) && replica.status !== null && !lacking(replica.status));
  if (away.length > 0)
    return {
      code: "AGENT_OFFLINE",
      text: `Of pool ${pool} only ${and(away.map((replica) => replica.name))} has what it needs (${labelWords(command.requires)}), and is not connected: ${lastSeen(away).text}.`,
      fix: `Start ${away[0]!.name}, or another agent of pool ${pool}${wanted}.`,
    };
  const names = new Map(replicas.map((replica) => [replica.id, replica.name]));
  const lacks = sessions.map((session) => {
    const has = session.status()!.labels;
    const missing = Object.keys(missingLabels(command.requires, session.status()));
    return `${names.get(session.replica) ?? session.replica} has ${and(missing.map((label) => (has[label] === undefined ? `no ${label}` : `${label}=${has[label]}`)))}`;
  });
  return {
    code: "NO_MATCHING_AGENT",
    text: `It needs ${labelWords(command.requires)}; of the connected agents of pool ${pool} ${and(lacks.slice(0, 5))}${lacks.length > 5 ? `, and ${lacks.length - 5} more lack it` : ""}.`,
    fix: `Start an agent of pool ${pool}${wanted} (\`labels\` in its configuration), or ask again without that.`,
  };
}

function behind(command: CommandRow, { queue }: WaitingEvidence): Waiting | null {
  const first = queue.items.find((item) => item.id === command.id)?.behind ?? null;
  if (first === null) return null;
  return {
    code: "UPSTREAM_PENDING",
    text: `Command ${first} on the same ${resourceKind(command.resource)} comes first.`,
    fix: `See why that one waits: sallyport command explain ${first}`,
  };
}

/** The matching agents that are connected, all of them paused, stopping or without the kind: the nearest to ability is told. */
function unable(command: CommandRow, { sessions, replicas }: WaitingEvidence): Waiting | null {
  const pool = command.poolName;
  const statuses = sessions
    .map((session) => session.status())
    .filter((status) => status === null || Object.keys(missingLabels(command.requires, status)).length === 0);
  if (statuses.some((status) => status === null)) return null;
  const capable = statuses.filter((status) => status!.commands.includes(command.kind));
  if (capable.length === 0) {
    const away = replicas.find(
      (replica) => couldTake(command, replica) && !sessions.some((session) => session.replica === replica.id),
    );
    return {
      code: "CAPABILITY_MISSING",
      text: `No connected agent of pool ${pool} takes commands of kind ${command.kind}${away === undefined ? "" : `; ${away.name}, which did, is not connected`}.`,
      fix: `${away === undefined ? "Allow" : `Start ${away.name} again, or allow`} ${command.kind} in the policy of one that is connected.`,
    };
  }
  if (capable.some((status) => status!.paused === null && !status!.draining)) return null;
  const pause = capable.find((status) => status!.paused !== null && !status!.draining)?.paused;
  if (pause != null) {
    return {
      code: "AGENT_PAUSED",
      text: `The customer paused the intake of pool ${pool} ${pause.until === null ? "until it is resumed" : `until ${at(pause.until)}`}: ${sentence(pause.reason)}`,
      fix: "Wait, or run on the agent's host: sallyport-agent resume",
    };
  }
  return {
    code: "AGENT_DRAINING",
    text: `The agent of pool ${pool} is stopping and takes no new commands.`,
    fix: "Nothing to do if it restarts; else start an agent of the pool.",
  };
}

function limited(command: CommandRow, { queue, now }: WaitingEvidence): Waiting | null {
  const reached = limitReached(command, queue);
  if (reached === null) return null;
  const one = reached.limit === 1;
  return {
    code: "CONCURRENCY_LIMIT",
    text:
      reached.of === "pipeline"
        ? `Pipeline ${command.pipeline} lets ${reached.limit} of its runs go at a time in pool ${command.poolName}, and ${one ? "that one is taken" : "all are taken"}. ${place(command, queue)}`
        : `Pool ${command.poolName} takes ${reached.limit} ${one ? "run" : "runs"} at a time, and ${one ? "that one is taken" : "all are taken"}. ${place(command, queue)}`,
    fix:
      reached.of === "pipeline"
        ? "Wait until one of them ends, or cancel one; `concurrency` in the pipeline is the limit of later runs."
        : `Wait until one of them ends, or raise the limit: sallyport pool limit ${command.poolName} --max-runs N`,
    ...slots(command, queue, reached.holders, now),
  };
}

function refused(command: CommandRow, evidence: WaitingEvidence): Waiting | null {
  const { refusal, retryInMs, queue, now } = evidence;
  // What another than those who may be asked now said of itself is no reason.
  if (refusal === null || !evidence.sessions.some((session) => session.replica === refusal.replica)) return null;
  if (refusal.code === null) {
    if (retryInMs <= 0) return null;
    const s = Math.max(1, Math.round(retryInMs / 1000));
    return {
      code: "RETRY_BACKOFF",
      text: `The last offer came to nothing: ${sentence(refusal.message)} It is offered again in ${s} s.`,
      fix: "Nothing to do at first. When it goes on, look at the agent's log and at the link.",
    };
  }
  if (refusal.code === "AT_CAPACITY" && command.kind === pipelineRun.kind)
    return {
      code: "AT_CAPACITY",
      text: `${sentence(refusal.message)} ${place(command, queue)}`.trim(),
      fix: REFUSAL_FIX.AT_CAPACITY,
      ...slots(command, queue, queue.holders, now),
    };
  return { code: refusal.code, text: refusal.message, fix: REFUSAL_FIX[refusal.code] };
}

const REFUSAL_FIX: Record<RefusalCode, string> = {
  AGENT_PAUSED: "Wait, or run on the agent's host: sallyport-agent resume",
  AGENT_DRAINING: "Nothing to do if it restarts; else start an agent of the pool.",
  AT_CAPACITY: "Wait until running work ends, or raise the ceiling in the agent's policy.",
  AGENT_UNREADY:
    "Look at the agent's log: its journal or audit disk needs room or repair. It is offered again by itself.",
};

const place = (command: CommandRow, queue: PoolQueue): string => {
  const standing = queue.items.find((item) => item.id === command.id);
  return standing === undefined ? "" : `It is number ${standing.position} of ${standing.of} in the queue.`;
};

function slots(
  command: CommandRow,
  queue: PoolQueue,
  holders: RunHolder[],
  now: number,
): { queue?: NonNullable<Waiting["queue"]> } {
  const standing = queue.items.find((item) => item.id === command.id);
  if (standing === undefined) return {};
  return {
    queue: {
      position: standing.position,
      of: standing.of,
      holders: holders.map((holder) => ({
        command: holder.command,
        run: holder.run,
        text: `${holder.pipeline}, ${holder.state === "queued" ? "offered to an agent that has not answered" : `${holder.state} ${holder.replicaName === null ? "" : `on ${holder.replicaName} `}for ${duration(now - holder.since)}`}`,
      })),
    },
  };
}

export function duration(ms: number): string {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 120) return `${s} s`;
  if (s < 2 * 3600) return `${Math.round(s / 60)} min`;
  return s < 48 * 3600 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} days`;
}

const resourceKind = (resource: string): string => resource.slice(0, Math.max(0, resource.indexOf(":"))) || "resource";

/**
 * The silent replica that has a command, or may have it: nobody knows what became of it until its journal answers. Null:
 * none has it, or it can be asked.
 */
export function silentHolder(command: CommandRow, sessions: Sessions): ReplicaId | null {
  const open = command.state === "queued" || command.state === "accepted" || command.state === "running";
  const holder = command.state === "queued" ? (command.offeredTo ?? null) : command.replica;
  if (!open || holder === null) return null;
  return sessions.ofReplica(command.workspace, holder) === null ? holder : null;
}

export const unknownOf = (command: CommandRow, sessions: Sessions): boolean => silentHolder(command, sessions) !== null;

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
