// A session that another process holds, as this one sees it: SQL says that there is one, the link to that process opens
// its streams.
import type {
  AgentStatus,
  ConnectorError,
  LinkStream,
  OpenOptions,
  PoolId,
  ReplicaId,
  SessionId,
  WorkspaceId,
} from "@sallyport/protocol";
import type { CloudSession } from "../link/sessions.ts";
import type { PresenceRow } from "../store/store.ts";
import type { PeerLink } from "./peer-link.ts";

export class RemoteSession implements CloudSession {
  readonly id: SessionId;
  readonly epoch: number;
  readonly workspace: WorkspaceId;
  readonly pool: PoolId;
  readonly replica: ReplicaId;
  readonly journal: string;
  readonly dispatchSequence = 0;
  readonly instance: string;
  readonly remoteAddress: string;
  readonly rttMs = null;
  readonly closed: Promise<ConnectorError>;
  readonly elsewhere: { readonly process: string; lost: boolean };
  readonly link: PeerLink;
  statusAt: number | null = null;
  #status: AgentStatus | null = null;
  #seenMs: number;
  #over!: (reason: ConnectorError) => void;

  constructor(row: PresenceRow & { session: SessionId; process: string }, link: PeerLink, nowMs: number) {
    this.id = row.session;
    this.epoch = row.epoch;
    this.workspace = row.workspace;
    this.pool = row.pool;
    this.replica = row.replica;
    this.journal = row.journal ?? "";
    this.instance = row.instance ?? "";
    this.remoteAddress = row.remoteAddress ?? "";
    this.elsewhere = { process: row.process, lost: false };
    this.link = link;
    this.#seenMs = nowMs;
    this.closed = new Promise((resolve) => {
      this.#over = resolve;
    });
  }

  /** When SQL last said that it lives: its holder takes it out when the agent is silent. */
  lastSeenMs(): number {
    return this.#seenMs;
  }
  status(): AgentStatus | null {
    return this.#status;
  }
  open(head: unknown, options: OpenOptions): LinkStream {
    return this.link.open(
      { type: "open", replica: this.replica, session: this.id, lane: options.lane, end: options.end === true, head },
      options,
    );
  }
  close(reason: ConnectorError): void {
    const { code, message, fix } = reason;
    try {
      const stream = this.link.open(
        {
          type: "close",
          replica: this.replica,
          session: this.id,
          reason: { code, message, ...(fix === undefined ? {} : { fix }) },
        },
        { lane: "interactive", end: true },
      );
      stream.answer.catch(() => {});
    } catch {
      // Not reached: its holder finds it out by itself, from SQL.
    }
  }

  // For the mirror.

  confirm(nowMs: number): void {
    this.#seenMs = nowMs;
  }
  say(status: AgentStatus | null, at: number | null): void {
    this.#status = status;
    this.statusAt = at;
  }
  end(reason: ConnectorError): void {
    this.#over(reason);
  }
}
