// The port of the link as main.ts and the runner see it: sessions come and go, streams are opened and accepted.
import type {
  AgentStatus,
  ConnectorError,
  LinkSession,
  LinkStream,
  MuxFigures,
  PoolId,
  ReplicaId,
  SessionId,
  WorkspaceId,
  KeyRing,
} from "@sallyport/protocol";

export interface AgentSession extends LinkSession {
  readonly id: SessionId;
  readonly epoch: number;
  readonly incarnation: string;
  readonly workspace: WorkspaceId;
  readonly pool: PoolId;
  readonly replica: ReplicaId;
  /** The cloud's command keys, vouched for by its pinned identity key in the handshake. */
  readonly commandKeys: KeyRing;
  /** What it has moved and what is on its way. */
  figures(): MuxFigures;
  /** The cloud's time now, ms since the epoch: hello's time plus what has passed since, by the monotonic clock. */
  cloudNow(): number;
}

/** One observer gets all; log lines, readiness, metrics are listeners of these. */
export type LinkEvent =
  | { type: "state"; from: LinkStateKind; to: LinkStateKind; error: ConnectorError | null; retryInMs: number | null }
  | { type: "online"; session: AgentSession }
  /** Of a beat. */
  | { type: "roundTrip"; ms: number };
export const LINK_STATES = ["offline", "dialling", "greeting", "online", "draining", "closed"] as const;
export type LinkStateKind = (typeof LINK_STATES)[number];

export interface AgentLink {
  readonly state: LinkStateKind;
  readonly session: AgentSession | null;
  /** Streams that the cloud opens, on any session. Set before `start`. */
  onStream(handler: (stream: LinkStream, session: AgentSession) => void): void;
  observe(listener: (event: LinkEvent) => void): void;
  start(): void;
  /** Says goodbye: no new streams from the cloud, those open may end until `deadlineMs`, then closes. */
  drain(deadlineMs: number): Promise<void>;
  abort(reason: ConnectorError): void;
}

/** What the link asks of the rest at each dial. */
export interface HelloSource {
  journal(): { id: string; dispatchSequence: Record<string, number>; startCounter: number };
  /** Highest generation held per deployment. */
  generations(): Record<string, number>;
  status(): AgentStatus;
  /** Calls `listener` whenever `status()` would say something new. Absent: it is only sent every 15 s. */
  onStatusChange?(listener: () => void): void;
}
