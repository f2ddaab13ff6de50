// A session whose link ends in this process. A class for its memory: there are 10,000 of them.
import type {
  AgentStatus,
  ConnectorError,
  LinkStream,
  Mux,
  MuxFigures,
  OpenOptions,
  PoolId,
  ReplicaId,
  SessionId,
  WorkspaceId,
} from "@sallyport/protocol";
import type { RoundTripRing, RoundTrips } from "./round-trips.ts";
import type { CloudSession } from "./sessions.ts";

type Facts = Required<
  Pick<
    CloudSession,
    | "id"
    | "epoch"
    | "workspace"
    | "pool"
    | "replica"
    | "journal"
    | "dispatchSequence"
    | "instance"
    | "takesTrace"
    | "remoteAddress"
  >
>;

export class HeldCloudSession implements CloudSession {
  readonly id: SessionId;
  readonly epoch: number;
  readonly workspace: WorkspaceId;
  readonly pool: PoolId;
  readonly replica: ReplicaId;
  readonly journal: string;
  readonly dispatchSequence: number;
  readonly instance: string;
  readonly takesTrace: boolean;
  readonly remoteAddress: string;
  readonly closed: Promise<ConnectorError>;
  /** JSON of the newest status: as an object an idle agent's takes three times as much, and most are never asked for. */
  #status: string | null = null;
  #clockSkewMs: number | null = null;
  /** The same as an object, while somebody asks. */
  #read: AgentStatus | null = null;
  #asked = false;
  readonly #mux: Mux;
  readonly #roundTrips: RoundTripRing;

  constructor(mux: Mux, roundTrips: RoundTripRing, facts: Facts) {
    this.id = facts.id;
    this.epoch = facts.epoch;
    this.workspace = facts.workspace;
    this.pool = facts.pool;
    this.replica = facts.replica;
    this.journal = facts.journal;
    this.dispatchSequence = facts.dispatchSequence;
    this.instance = facts.instance;
    this.takesTrace = facts.takesTrace;
    this.remoteAddress = facts.remoteAddress;
    this.closed = mux.closed;
    this.#mux = mux;
    this.#roundTrips = roundTrips;
  }

  get rttMs(): number | null {
    return this.#mux.rttMs;
  }
  lastSeenMs(): number {
    return this.#mux.lastSeenMs;
  }
  status(): AgentStatus | null {
    if (this.#read === null && this.#status !== null) this.#read = JSON.parse(this.#status) as AgentStatus;
    this.#asked = true;
    return this.#read;
  }
  clockSkewMs(): number | null {
    return this.#clockSkewMs;
  }
  setStatus(status: AgentStatus): void {
    this.#status = JSON.stringify(status);
    this.#clockSkewMs = status.process?.clockSkewMs ?? null;
    this.#read = null;
  }
  /** Now and then: what nobody asked for since the last time is text again. */
  rest(): void {
    if (!this.#asked) this.#read = null;
    this.#asked = false;
  }
  open(head: unknown, options: OpenOptions): LinkStream {
    return this.#mux.open(head, options);
  }
  close(reason: ConnectorError): void {
    this.#mux.close(reason);
  }
  figures(): MuxFigures {
    return this.#mux.figures();
  }
  roundTrips(): RoundTrips | null {
    return this.#roundTrips.summary();
  }
}
