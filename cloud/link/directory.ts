// What the gateway asks of the rest: who is known, who may join, and where presence is written down. The store's
// adapter implements it; tests hold it in memory.
import type {
  AgentStatus,
  ConnectorError,
  EnrollmentId,
  JournalId,
  PoolId,
  ReplicaId,
  SessionId,
  WorkspaceId,
} from "@sallyport/protocol";

export interface LinkReplica {
  readonly workspace: WorkspaceId;
  readonly pool: PoolId;
  readonly id: ReplicaId;
  /** Raw Ed25519 key, base64url. */
  readonly publicKey: string;
  /** The key that it has offered and not used yet; null: none. Either opens the door. */
  readonly nextKey: string | null;
  readonly names: { readonly replica: string; readonly pool: string; readonly workspace: string };
  readonly revoked: boolean;
}

export interface LinkDirectory {
  /** Null: never known, or deleted. */
  findReplica(id: ReplicaId): Promise<LinkReplica | null>;
  /**
   * Single use, in one transaction. The same secret with the same key again is the same replica: its first answer was
   * lost. Throws ConnectorError ENROLMENT_UNKNOWN, _USED, _EXPIRED, _REVOKED. Only called once the key was proved.
   */
  redeemEnrollment(request: {
    readonly id: EnrollmentId;
    /** Hex sha-256 of the secret's bytes. */
    readonly secretHash: string;
    readonly publicKey: string;
    readonly nameHint: string | null;
    readonly remoteAddress: string;
  }): Promise<LinkReplica>;
  /** The replica has offered a key, and proved that it holds it and its present one. Takes the place of an earlier offer. */
  keyOffered(replica: ReplicaId, publicKey: string): Promise<void>;
  /** It was used: from now on it is the only one. */
  keyUsed(replica: ReplicaId, publicKey: string): Promise<void>;
  /** Before READY. Answers the session's epoch, which rises with each session of the replica. */
  opened(session: {
    readonly id: SessionId;
    readonly workspace: WorkspaceId;
    readonly replica: ReplicaId;
    readonly instance: string;
    readonly journal: JournalId;
    readonly remoteAddress: string;
    readonly version: string;
    readonly startCounter: number;
    readonly lastSession: SessionId | null;
    readonly dispatchSequence: Readonly<Record<string, number>>;
    readonly generations: Readonly<Record<string, number>>;
  }): Promise<{ readonly epoch: number }>;
  closed(
    session: { readonly id: SessionId; readonly workspace: WorkspaceId; readonly replica: ReplicaId },
    reason: ConnectorError,
  ): Promise<void>;
  /** It proved who it is, and was refused before a session was opened. */
  refused(workspace: WorkspaceId, replica: ReplicaId, error: ConnectorError, remoteAddress: string): Promise<void>;
  /** Signs of life since the last call, gathered; `status` null = unchanged. */
  seen(
    updates: readonly {
      readonly session: SessionId;
      readonly workspace: WorkspaceId;
      readonly replica: ReplicaId;
      readonly status: AgentStatus | null;
    }[],
  ): Promise<void>;
  /** Something that a person should look at, such as IDENTITY_CLONED. */
  alarm(workspace: WorkspaceId, replica: ReplicaId, error: ConnectorError): Promise<void>;
}
