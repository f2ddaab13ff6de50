// An agent and a pool as the API shows them: derived when read, from the last evidence and its age. Stores nothing.
import type { AgentStatus, Clock, MuxFigures } from "@sallyport/protocol";
import type { PoolRow, ReplicaRow } from "../../store/index.ts";

/** Silence after which a link counts as dead, and after which a replica counts as lost. */
export const LINK_DEAD_MS = 12_000;
export const LOST_MS = 90_000;

export type AgentState = "waiting" | "connected" | "paused" | "draining" | "disconnected" | "lost" | "revoked";

/** What is known of a live session. */
export interface LiveSession {
  readonly rttMs: number | null;
  readonly remoteAddress: string;
  lastSeenMs(): number;
  status(): AgentStatus | null;
  /** Absent: another process holds the link. */
  figures?(): MuxFigures;
  roundTrips?(): { p50Ms: number; p95Ms: number; samples: number } | null;
}

export interface AgentView {
  id: string;
  name: string;
  pool: { id: string; name: string };
  state: AgentState;
  stateReason: string;
  lastSeenAt: number | null;
  connectedAt: number | null;
  remoteAddress: string | null;
  rttMs: number | null;
  link: (MuxFigures & { roundTrip: { p50Ms: number; p95Ms: number; samples: number } | null }) | null;
  sessions: number;
  version: string | null;
  fingerprint: string;
  createdAt: number;
  revokedAt: number | null;
  status: AgentStatus | null;
  statusAt: number | null;
  alarms: { at: number; code: string; message: string }[];
}

const ago = (ms: number): string => {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 120) return `${s} s`;
  if (s < 2 * 3600) return `${Math.round(s / 60)} min`;
  if (s < 48 * 3600) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} days`;
};

/** `upSinceMs`: monotonic, since when agents could reach this process. Its absence before that is not their silence. */
export function agentView(row: ReplicaRow, live: LiveSession | null, clock: Clock, upSinceMs: number): AgentView {
  const now = clock.now();
  const liveSilenceMs = live === null ? null : clock.monotonic() - live.lastSeenMs();
  const lastSeenAt =
    liveSilenceMs === null ? row.lastSeenAt : Math.max(row.lastSeenAt ?? 0, Math.round(now - liveSilenceMs));
  const connected = row.revokedAt === null && liveSilenceMs !== null && liveSilenceMs < LINK_DEAD_MS;
  const status = live?.status() ?? row.status;
  const { state, stateReason } = judge(row, connected, status, lastSeenAt, now, clock.monotonic() - upSinceMs);
  return {
    id: row.id,
    name: row.name,
    pool: { id: row.pool, name: row.poolName },
    state,
    stateReason,
    lastSeenAt,
    connectedAt: row.connectedAt,
    remoteAddress: live?.remoteAddress ?? row.remoteAddress,
    rttMs: connected ? live!.rttMs : null,
    link: connected ? linkOf(live!) : null,
    sessions: row.epoch,
    version: status?.version ?? null,
    fingerprint: row.fingerprint,
    createdAt: row.createdAt,
    revokedAt: row.revokedAt,
    status,
    statusAt: row.statusAt,
    alarms: row.alarms,
  };
}

function linkOf(live: LiveSession): AgentView["link"] {
  const figures = live.figures?.();
  return figures === undefined ? null : { ...figures, roundTrip: live.roundTrips?.() ?? null };
}

function judge(
  row: ReplicaRow,
  connected: boolean,
  status: AgentStatus | null,
  lastSeenAt: number | null,
  now: number,
  upForMs: number,
): { state: AgentState; stateReason: string } {
  if (row.revokedAt !== null)
    return {
      state: "revoked",
      stateReason: `Revoked ${ago(now - row.revokedAt)} ago: its key is not accepted any more.`,
    };
  if (connected) {
    const since = row.connectedAt === null ? "" : ` for ${ago(now - row.connectedAt)}`;
    if (status?.draining === true)
      return { state: "draining", stateReason: "It is stopping: it finishes what runs and takes nothing new." };
    if (status !== null && status.paused !== null)
      return {
        state: "paused",
        stateReason: `Its owner paused it${status.paused.reason === "" ? "" : `: ${status.paused.reason}`}. What runs goes on; nothing new begins.`,
      };
    return { state: "connected", stateReason: `Connected${since}.` };
  }
  if (lastSeenAt === null) return { state: "waiting", stateReason: "It has joined and has not connected yet." };
  const silence = now - lastSeenAt;
  if (upForMs < Math.min(silence, LOST_MS))
    return {
      state: "disconnected",
      stateReason: `This control plane started ${ago(upForMs)} ago and has not heard it since; before that it was last seen ${ago(silence)} ago. It dials again by itself; what runs there goes on.`,
    };
  if (silence < LOST_MS)
    return {
      state: "disconnected",
      stateReason: `No sign of life for ${ago(silence)}. It dials again by itself; what runs there goes on.`,
    };
  return {
    state: "lost",
    stateReason: `No sign of life for ${ago(silence)}. What runs there may go on; it is shown as unknown until the agent is back.`,
  };
}

export interface PoolView {
  id: string;
  name: string;
  agents: { total: number; connected: number };
  stores: AgentStatus["stores"];
  programs: string[];
  engines: string[];
  maxRuns: number | null;
  serving: AgentStatus["serving"];
  ceilings: AgentStatus["ceilings"];
  stale: boolean;
}

const NO_CEILINGS: AgentStatus["ceilings"] = { deployments: 0, replicas: 0, cpus: 0, memoryBytes: 0 };
const smallest = (all: readonly AgentStatus["ceilings"][]): AgentStatus["ceilings"] => {
  const least = (of: keyof AgentStatus["ceilings"]): number => Math.min(...all.map((one) => one[of]));
  if (all.length === 0) return NO_CEILINGS;
  return {
    deployments: least("deployments"),
    replicas: least("replicas"),
    cpus: least("cpus"),
    memoryBytes: least("memoryBytes"),
  };
};

/** `agents`: the pool's. What connected ones say counts; when none is, what the newest said before. */
export function poolView(row: PoolRow, agents: readonly AgentView[]): PoolView {
  const online = agents.filter(
    (agent) => agent.state === "connected" || agent.state === "paused" || agent.state === "draining",
  );
  const remembered = agents
    .filter((agent) => agent.state !== "revoked" && agent.status !== null)
    .sort((a, b) => (b.statusAt ?? 0) - (a.statusAt ?? 0));
  const speakers = online.length > 0 ? online : remembered.slice(0, 1);
  const statuses = speakers.flatMap((agent) => (agent.status === null ? [] : [agent.status]));
  const stores = new Map<string, AgentStatus["stores"][number]>();
  for (const store of statuses.flatMap((status) => status.stores))
    if (!stores.has(store.id)) stores.set(store.id, store);
  return {
    id: row.id,
    name: row.name,
    agents: { total: agents.filter((agent) => agent.state !== "revoked").length, connected: online.length },
    stores: [...stores.values()],
    programs: [...new Set(statuses.flatMap((status) => status.programs))].sort(),
    engines: [...new Set(statuses.flatMap((status) => status.engines))].sort(),
    maxRuns: row.maxRuns,
    serving: [...new Map(statuses.flatMap((status) => status.serving ?? []).map((one) => [one.engine, one])).values()],
    ceilings: smallest(statuses.map((status) => status.ceilings ?? NO_CEILINGS)),
    stale: online.length === 0,
  };
}
