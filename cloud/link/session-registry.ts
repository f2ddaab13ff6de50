// The live sessions of this process.
import {
  agentStatusSchema,
  ConnectorError,
  NdjsonReader,
  toConnectorError,
  type AgentStatus,
  type BytesSink,
  type Clock,
  type LinkStream,
  type PoolId,
  type ReplicaId,
  type WorkspaceId,
} from "@sallyport/protocol";
import type { CloudSession, Sessions } from "./sessions.ts";
import { waitForSession } from "./wait-for-session.ts";

/** A session as its registry sees it. */
export interface HeldSession {
  readonly session: CloudSession;
  setStatus(status: AgentStatus): void;
}

type StreamHandler = (stream: LinkStream, session: CloudSession) => void;

export class SessionRegistry implements Sessions {
  readonly #clock: Clock;
  readonly #byReplica = new Map<ReplicaId, HeldSession>();
  readonly #online: ((session: CloudSession) => void)[] = [];
  readonly #offline: ((session: CloudSession) => void)[] = [];
  readonly #status: ((session: CloudSession, status: AgentStatus) => void)[] = [];
  readonly #streams = new Map<string, StreamHandler>();

  constructor(clock: Clock) {
    this.#clock = clock;
    this.#streams.set("status", (stream, session) => {
      stream.respond({}, { end: true });
      stream.bytes.pushTo(new StatusReader(stream, (status) => this.#takeStatus(session, status)));
    });
  }

  ofPool(workspace: WorkspaceId, pool: PoolId): CloudSession[] {
    return this.all().filter((session) => session.workspace === workspace && session.pool === pool);
  }
  ofReplica(workspace: WorkspaceId, replica: ReplicaId): CloudSession | null {
    const session = this.#byReplica.get(replica)?.session;
    return session !== undefined && session.workspace === workspace ? session : null;
  }
  all(): CloudSession[] {
    return [...this.#byReplica.values()].map((held) => held.session);
  }

  onOnline(listener: (session: CloudSession) => void): void {
    this.#online.push(listener);
  }
  onOffline(listener: (session: CloudSession) => void): void {
    this.#offline.push(listener);
  }
  onStatus(listener: (session: CloudSession, status: AgentStatus) => void): void {
    this.#status.push(listener);
  }
  onStream(type: string, handler: StreamHandler): void {
    this.#streams.set(type, handler);
  }

  waitForPool(
    workspace: WorkspaceId,
    pool: PoolId,
    withinMs: number,
    signal?: AbortSignal,
  ): Promise<CloudSession | null> {
    const live = this.ofPool(workspace, pool)[0];
    if (live !== undefined) return Promise.resolve(live);
    return waitForSession(this.#clock, this.#online, { workspace, id: pool }, withinMs, signal);
  }

  // For the gateway.

  held(replica: ReplicaId): CloudSession | null {
    return this.#byReplica.get(replica)?.session ?? null;
  }

  add(held: HeldSession): void {
    this.#byReplica.set(held.session.replica, held);
    for (const listener of [...this.#online]) listener(held.session);
  }

  /** False: a newer session of the replica stands in its place. */
  remove(session: CloudSession): boolean {
    const current = this.#byReplica.get(session.replica)?.session === session;
    if (current) this.#byReplica.delete(session.replica);
    for (const listener of [...this.#offline]) listener(session);
    return current;
  }

  accept(stream: LinkStream, session: CloudSession): void {
    const type = (stream.head as { type?: unknown } | null)?.type;
    const handler = typeof type === "string" ? this.#streams.get(type) : undefined;
    if (handler === undefined) {
      stream.reset(
        new ConnectorError("KIND_UNKNOWN", "The control plane takes no streams of that type.", {
          fix: "Update the control plane.",
        }),
      );
    } else handler(stream, session);
  }

  /** False: the session is over, or another one stands in its place. */
  #takeStatus(session: CloudSession, status: AgentStatus): boolean {
    const held = this.#byReplica.get(session.replica);
    if (held?.session !== session) return false;
    held.setStatus(status);
    for (const listener of this.#status) listener(session, status);
    return true;
  }
}

/** Reads one agent's status as it comes. */
class StatusReader implements BytesSink {
  readonly #stream: LinkStream;
  /** False: nobody wants more of it. */
  readonly #take: (status: AgentStatus) => boolean;
  readonly #lines = new NdjsonReader();

  constructor(stream: LinkStream, take: (status: AgentStatus) => boolean) {
    this.#stream = stream;
    this.#take = take;
  }

  bytes(chunk: Buffer): void {
    try {
      for (const value of this.#lines.read(chunk)) {
        const parsed = agentStatusSchema.safeParse(value);
        if (!parsed.success)
          throw new ConnectorError("PROTOCOL_ERROR", "The agent's status does not have the agreed shape.");
        if (!this.#take(parsed.data)) throw new ConnectorError("CANCELLED", "Another session took over.");
      }
    } catch (caught) {
      this.#stream.reset(toConnectorError(caught));
    }
  }

  over(error: ConnectorError | null): void {
    if (error !== null) return;
    try {
      this.#lines.end();
    } catch (caught) {
      this.#stream.reset(toConnectorError(caught));
    }
  }
}
