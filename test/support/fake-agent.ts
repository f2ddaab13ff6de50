// A far end for tests of the control plane's dispatch: a real multiplexer over a real loopback WebSocket, joined to a real
// session registry, but no handshake and no agent behind it. What it answers is the test's. It checks each dispatch as
// an agent must: signature, digests, addressee, rising numbers.
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import {
  ConnectorError,
  DEFAULT_MAX_STREAMS,
  DEFAULT_WINDOWS,
  DOMAIN,
  FrameReader,
  FrameWriter,
  Mux,
  bodyBytes,
  commandOpenSchema,
  dispatchSchema,
  intentSchema,
  jsonBody,
  ndjsonLine,
  newId,
  readJsonBody,
  readNdjson,
  sha256,
  systemClock,
  toConnectorError,
  verifySignature,
  webSocketTransport,
  type AgentStatus,
  type Dispatch,
  type Intent,
  type JournalId,
  type KeyRing,
  type LinkStream,
  type PoolId,
  type ReplicaId,
  type ReportBody,
  type WorkspaceId,
} from "@sallyport/protocol";
import { WebSocket, WebSocketServer } from "ws";
import type { SessionRegistry } from "../../cloud/link/session-registry.ts";
import type { CloudSession } from "../../cloud/link/sessions.ts";

export interface Command {
  intent: Intent;
  dispatch: Dispatch;
  input: never;
  stream: LinkStream;
}
/** Interactive: answers, and writes content if any. Throw a ConnectorError to refuse. */
export type Handler = (command: Command) => Promise<void> | void;

export const answer = (stream: LinkStream, result: unknown, options?: { end?: boolean }): void =>
  stream.respond({ type: "result", body: jsonBody(result) }, options ?? { end: true });
export const accept = (stream: LinkStream, known = false): void =>
  stream.respond({ type: "accepted", known }, { end: true });

export interface FakeIdentity {
  workspace: WorkspaceId;
  pool: PoolId;
  replica: ReplicaId;
}

/** Makes the pair of ends; both close with `cut`. */
async function joined(): Promise<[WebSocket, WebSocket, () => void]> {
  const http = createServer();
  await new Promise<void>((resolve) => http.listen(0, "127.0.0.1", resolve));
  const server = new WebSocketServer({ server: http, perMessageDeflate: false });
  const accepted = new Promise<WebSocket>((resolve) => server.once("connection", resolve));
  const client = new WebSocket(`ws://127.0.0.1:${(http.address() as AddressInfo).port}`, { perMessageDeflate: false });
  await new Promise((resolve, reject) => client.once("open", resolve).once("error", reject));
  const far = await accepted;
  http.close();
  server.close();
  return [far, client, () => (far.terminate(), client.terminate())];
}

export class FakeAgent {
  readonly handlers = new Map<string, Handler>();
  readonly journal: JournalId = newId("journal");
  /** Numbers and kinds of all dispatches, in order of arrival. */
  readonly seen: { kind: string; sequence: number; command: string; attempt: number }[] = [];
  /** What a real agent would have refused. */
  readonly faults: string[] = [];
  status: AgentStatus | null = null;
  session: CloudSession | null = null;
  mux: Mux | null = null;
  readonly #sessions: SessionRegistry;
  readonly #identity: FakeIdentity;
  readonly #keys: KeyRing;
  readonly #journaled = new Map<string, number>();
  #epoch: number;
  #cut: () => void = () => {};
  #reports = 0;

  constructor(sessions: SessionRegistry, identity: FakeIdentity, keys: KeyRing, epoch = 0) {
    this.#sessions = sessions;
    this.#identity = identity;
    this.#keys = keys;
    this.#epoch = epoch;
  }

  get identity(): FakeIdentity {
    return this.#identity;
  }

  async connect(): Promise<CloudSession> {
    const [far, near, cut] = await joined();
    this.#cut = cut;
    const epoch = ++this.#epoch;
    const id = newId("session");
    const common = {
      id,
      clock: systemClock,
      windows: DEFAULT_WINDOWS,
      peerWindows: DEFAULT_WINDOWS,
      maxStreams: DEFAULT_MAX_STREAMS,
      peerMaxStreams: DEFAULT_MAX_STREAMS,
      checksums: true,
    };
    const ends = [far, near].map((socket) => ({
      transport: webSocketTransport(socket, (socket as unknown as { _socket: import("node:net").Socket })._socket),
      writer: new FrameWriter(null),
      reader: new FrameReader(null),
    }));
    const cloud = new Mux({
      ...common,
      ...ends[0]!,
      side: "cloud",
      onStream: (stream) => this.#sessions.accept(stream, session),
    });
    const agent = new Mux({
      ...common,
      ...ends[1]!,
      side: "agent",
      onStream: (stream) => void this.#serve(stream, session),
    });
    const { workspace, pool, replica } = this.#identity;
    const status = () => this.status;
    const session: CloudSession = {
      id,
      epoch,
      workspace,
      pool,
      replica,
      journal: this.journal,
      dispatchSequence: Math.max(0, ...this.#journaled.values()),
      instance: "test",
      remoteAddress: "127.0.0.1",
      closed: cloud.closed,
      get rttMs() {
        return cloud.rttMs;
      },
      figures: () => cloud.figures(),
      roundTrips: () => (cloud.rttMs === null ? null : { p50Ms: cloud.rttMs, p95Ms: cloud.rttMs, samples: 1 }),
      takesTrace: true,
      open: (head, options) => cloud.open(head, options),
      lastSeenMs: () => cloud.lastSeenMs,
      status,
      close: (reason) => cloud.close(reason),
    };
    this.session = session;
    this.mux = agent;
    void cloud.closed.then(() => this.#sessions.remove(session));
    this.#sessions.add({ session, setStatus: (status) => (this.status = status) });
    return session;
  }

  /** Cuts the TCP connection; resolves when the control plane knows. */
  async cut(): Promise<void> {
    const closed = this.session?.closed;
    this.#cut();
    await closed;
    await this.mux?.closed;
  }

  async #serve(stream: LinkStream, session: CloudSession): Promise<void> {
    try {
      const open = commandOpenSchema.parse(stream.head);
      if (!verifySignature(this.#keys, DOMAIN.dispatch, Buffer.from(open.dispatch.text), open.dispatch.signature))
        this.faults.push("signature");
      const dispatch = dispatchSchema.parse(JSON.parse(open.dispatch.text));
      const intent = intentSchema.parse(JSON.parse(open.intent.text));
      if (sha256(open.intent.text) !== dispatch.intentDigest) this.faults.push("intent digest");
      if (sha256(bodyBytes(open.body)) !== intent.bodyDigest) this.faults.push("body digest");
      if (dispatch.session !== session.id || dispatch.replica !== session.replica || dispatch.epoch !== session.epoch)
        this.faults.push("addressee");
      const last = this.seen.at(-1)?.sequence ?? 0;
      if (dispatch.sequence <= last) this.faults.push(`number ${dispatch.sequence} after ${last}`);
      this.seen.push({
        kind: intent.kind,
        sequence: dispatch.sequence,
        command: intent.command,
        attempt: dispatch.attempt,
      });
      const handler = this.handlers.get(intent.kind);
      if (handler === undefined) throw new ConnectorError("KIND_UNKNOWN", `The agent knows no ${intent.kind}.`);
      await handler({ intent, dispatch, input: readJsonBody(open.body) as never, stream });
    } catch (error) {
      stream.reset(toConnectorError(error));
    }
  }

  /** Sends reports and resolves when all of them are committed. */
  async report(reports: { command: string; body: ReportBody }[]): Promise<void> {
    const stream = this.mux!.open({ type: "reports", journal: this.journal }, { lane: "interactive" });
    await stream.answer;
    for (const { command, body } of reports)
      await stream.write(
        ndjsonLine({ journal: this.journal, sequence: ++this.#reports, at: Date.now(), command, body: jsonBody(body) }),
      );
    for await (const line of readNdjson(stream.bytes)) {
      if ((line as { committedThrough: number }).committedThrough >= this.#reports) break;
    }
    await stream.end().catch(() => {});
  }
}
