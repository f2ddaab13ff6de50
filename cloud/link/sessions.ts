// The port of live sessions as dispatch and the API see it. Who holds a session is also in SQL (presence); this is the
// part that can open streams.
import type {
  AgentStatus,
  LinkSession,
  LinkStream,
  MuxFigures,
  PoolId,
  ReplicaId,
  SessionId,
  WorkspaceId,
} from "@sallyport/protocol";
import type { RoundTrips } from "./round-trips.ts";

export interface CloudSession extends LinkSession {
  readonly id: SessionId;
  readonly epoch: number;
  readonly workspace: WorkspaceId;
  readonly pool: PoolId;
  readonly replica: ReplicaId;
  /** Journal id that hello named. */
  readonly journal: string;
  /** Highest dispatch sequence that the replica holds of this incarnation, from hello; the next dispatch is above it. */
  readonly dispatchSequence: number;
  /** Per start of the agent process. */
  readonly instance: string;
  /** Its agent takes a trace context in the head of a command. Absent = no. */
  readonly takesTrace?: boolean;
  readonly remoteAddress: string;
  /** Another process holds it: streams go through that one. `lost`: that process is not reached any more. Absent: held here. */
  readonly elsewhere?: { readonly process: string; readonly lost: boolean };
  /** Monotonic ms of the last sign of life. */
  lastSeenMs(): number;
  /** Newest status; null until the first came. */
  status(): AgentStatus | null;
  /** Of the newest status: its clock minus this one's. Null: not known. Absent as `figures`. */
  clockSkewMs?(): number | null;
  /** What it has moved and what is on its way. Absent: another process holds the link. */
  figures?(): MuxFigures;
  /** Of its last beats; null before the first. Absent as `figures`. */
  roundTrips?(): RoundTrips | null;
  /** Ends the session with a reason the agent is told. */
  close(reason: import("@sallyport/protocol").ConnectorError): void;
}

export interface Sessions {
  /** Live sessions of a pool, in no order. */
  ofPool(workspace: WorkspaceId, pool: PoolId): CloudSession[];
  ofReplica(workspace: WorkspaceId, replica: ReplicaId): CloudSession | null;
  all(): CloudSession[];
  /** Called after the handshake, when streams may be opened. */
  onOnline(listener: (session: CloudSession) => void): void;
  onOffline(listener: (session: CloudSession) => void): void;
  onStatus(listener: (session: CloudSession, status: AgentStatus) => void): void;
  /** Streams that an agent opens, by `type` of their head ("reports", ...). */
  onStream(type: string, handler: (stream: LinkStream, session: CloudSession) => void): void;
  /** Looks whether there is a session that this process has not noticed yet. Absent: there cannot be. */
  refresh?(): Promise<void>;
  /** An agent of the pool is on its way from one process to another, as far as is known. Absent: it cannot be. */
  moving?(workspace: WorkspaceId, pool: PoolId, replica?: ReplicaId): boolean;
  /** Resolves with a live session of the pool, at once or as soon as one comes; null after `withinMs`. */
  waitForPool(
    workspace: WorkspaceId,
    pool: PoolId,
    withinMs: number,
    signal?: AbortSignal,
  ): Promise<CloudSession | null>;
}
