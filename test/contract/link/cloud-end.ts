// A control plane's end of the link on loopback, with a directory held in memory: what link tests talk to.
import { generateKeyPairSync, randomBytes, type KeyObject } from "node:crypto";
import { createServer, type Server } from "node:http";
import { createServer as createTlsServer } from "node:https";
import type { AddressInfo } from "node:net";
import {
  ConnectorError,
  formatEnrolmentSecret,
  hashEnrolmentSecret,
  keyFingerprint,
  keySigner,
  newEnrolmentSecretBytes,
  newId,
  systemClock,
  type AgentStatus,
  type Clock,
  type EnrollmentId,
  type EnrolmentSecret,
  type PoolId,
  type ReplicaId,
  type Transport,
  type WorkspaceId,
} from "@sallyport/protocol";
import { dialNatsLink } from "../../../agent/link/nats-dial.ts";
import { dial } from "../../../agent/link/ws-dial.ts";
import { connectNats, natsAccess } from "../../../cloud/nats/index.ts";
import { nats, overNats } from "../../support/nats.ts";
import { natsRoute } from "./agent-end.ts";
import {
  LinkGateway,
  NatsListener,
  type GatewayEvent,
  type GatewayOptions,
  type LinkDirectory,
  type LinkReplica,
} from "../../../cloud/link/index.ts";

export class MemoryDirectory implements LinkDirectory {
  readonly workspace: WorkspaceId = newId("workspace");
  readonly pool: PoolId = newId("pool");
  readonly replicas = new Map<ReplicaId, LinkReplica & { epoch: number }>();
  readonly enrollments = new Map<
    EnrollmentId,
    { secretHash: string; expiresAt: number; revoked: boolean; usedBy: ReplicaId | null }
  >();
  readonly opens: Parameters<LinkDirectory["opened"]>[0][] = [];
  readonly closes: { session: string; reason: ConnectorError }[] = [];
  readonly statuses: AgentStatus[] = [];
  readonly alarms: ConnectorError[] = [];
  /** Called before `opened` answers. */
  beforeOpened: (() => Promise<void>) | null = null;

  addEnrollment(expiresInMs = 3_600_000): { id: EnrollmentId; secret: Buffer } {
    const id = newId("enrollment");
    const secret = newEnrolmentSecretBytes();
    this.enrollments.set(id, {
      secretHash: hashEnrolmentSecret(secret),
      expiresAt: Date.now() + expiresInMs,
      revoked: false,
      usedBy: null,
    });
    return { id, secret };
  }

  async findReplica(id: ReplicaId): Promise<LinkReplica | null> {
    return this.replicas.get(id) ?? null;
  }

  async redeemEnrollment(request: Parameters<LinkDirectory["redeemEnrollment"]>[0]): Promise<LinkReplica> {
    const enrollment = this.enrollments.get(request.id);
    const refuse = (code: "ENROLMENT_UNKNOWN" | "ENROLMENT_USED" | "ENROLMENT_EXPIRED" | "ENROLMENT_REVOKED") =>
      new ConnectorError(code, `The enrolment secret is refused (${code}).`, { fix: "Make a new one." });
    if (enrollment === undefined || enrollment.secretHash !== request.secretHash) throw refuse("ENROLMENT_UNKNOWN");
    if (enrollment.usedBy !== null) {
      const replica = this.replicas.get(enrollment.usedBy)!;
      if (replica.publicKey === request.publicKey) return replica;
      throw refuse("ENROLMENT_USED");
    }
    if (enrollment.revoked) throw refuse("ENROLMENT_REVOKED");
    if (enrollment.expiresAt < Date.now()) throw refuse("ENROLMENT_EXPIRED");
    const id = newId("replica");
    const replica = {
      workspace: this.workspace,
      pool: this.pool,
      id,
      publicKey: request.publicKey,
      nextKey: null,
      names: { replica: request.nameHint ?? "agent", pool: "default", workspace: "default" },
      revoked: false,
      epoch: 0,
    };
    this.replicas.set(id, replica);
    enrollment.usedBy = id;
    return replica;
  }

  /** Called when an offer was noted, before that is said. */
  afterOffer: (() => void) | null = null;
  async keyOffered(id: ReplicaId, nextKey: string): Promise<void> {
    this.replicas.set(id, { ...this.replicas.get(id)!, nextKey });
    this.afterOffer?.();
  }
  async keyUsed(id: ReplicaId, publicKey: string): Promise<void> {
    this.replicas.set(id, { ...this.replicas.get(id)!, publicKey, nextKey: null });
  }

  async opened(session: Parameters<LinkDirectory["opened"]>[0]): Promise<{ epoch: number }> {
    await this.beforeOpened?.();
    this.opens.push(session);
    const replica = this.replicas.get(session.replica)!;
    return { epoch: ++replica.epoch };
  }
  async closed(session: { id: string }, reason: ConnectorError): Promise<void> {
    this.closes.push({ session: session.id, reason });
  }
  readonly refusals: string[] = [];
  async refused(_workspace: WorkspaceId, _replica: ReplicaId, error: ConnectorError): Promise<void> {
    this.refusals.push(error.code);
  }
  async seen(updates: Parameters<LinkDirectory["seen"]>[0]): Promise<void> {
    for (const update of updates) if (update.status !== null) this.statuses.push(update.status);
  }
  async alarm(_workspace: WorkspaceId, _replica: ReplicaId, error: ConnectorError): Promise<void> {
    this.alarms.push(error);
  }
  revoke(id: ReplicaId): void {
    this.replicas.set(id, { ...this.replicas.get(id)!, revoked: true });
  }
}

export interface CloudEnd {
  readonly directory: MemoryDirectory;
  readonly gateway: LinkGateway;
  readonly events: GatewayEvent[];
  readonly server: Server;
  /** What agents dial: over NATS with user, password and prefix. */
  readonly url: string;
  /** Of the HTTP server, or of the NATS server. */
  readonly port: number;
  /** A transport to here, as an agent makes it. */
  dial(): Promise<Transport>;
  readonly identityKey: KeyObject;
  readonly identityFingerprint: string;
  readonly commandKey: KeyObject;
  readonly incarnation: string;
  enrolment(options?: {
    caFingerprint?: string;
    identityFingerprint?: string;
    expiresInMs?: number;
  }): EnrolmentSecret & { text: string };
  stop(): Promise<void>;
}

export interface CloudEndOptions {
  readonly clock?: Clock;
  readonly port?: number;
  readonly mac?: boolean;
  readonly directory?: MemoryDirectory;
  readonly identityKey?: { privateKey: KeyObject; publicKey: KeyObject };
  readonly limits?: NonNullable<GatewayOptions["limits"]>;
  readonly tls?: { key: string; cert: string };
  readonly deadMs?: number;
}

export async function startCloudEnd(options: CloudEndOptions = {}): Promise<CloudEnd> {
  const identity = options.identityKey ?? generateKeyPairSync("ed25519");
  const command = generateKeyPairSync("ed25519");
  const directory = options.directory ?? new MemoryDirectory();
  const events: GatewayEvent[] = [];
  const incarnation = randomBytes(8).toString("hex");
  const gateway = new LinkGateway({
    directory,
    identity: keySigner("identity-1", identity.privateKey),
    identityPublicKey: identity.publicKey,
    commandKeys: () => new Map([["command-1", command.publicKey]]),
    incarnation,
    clock: options.clock ?? systemClock,
    ...(options.mac === undefined ? {} : { mac: options.mac }),
    ...(options.limits === undefined ? {} : { limits: options.limits }),
    ...(options.deadMs === undefined ? {} : { deadMs: options.deadMs }),
    observe: (event) => events.push(event),
  });
  const server = options.tls === undefined ? createServer() : createTlsServer(options.tls);
  gateway.attach(server);
  await new Promise<void>((resolve) => server.listen(options.port ?? 0, "127.0.0.1", resolve));
  const { port: httpPort } = server.address() as AddressInfo;
  let url = `${options.tls === undefined ? "http" : "https"}://127.0.0.1:${httpPort}`;
  let listener: NatsListener | null = null;
  if (overNats && options.tls === undefined) {
    const { user, password, url: natsUrl } = await nats();
    const prefix = `test-${randomBytes(6).toString("hex")}`;
    const address = natsUrl.replace("://", `://${user}:${password}@`);
    const access = natsAccess(address, { ca: null, creds: null });
    url = `${address}/${prefix}`;
    listener = new NatsListener({
      gateway,
      connect: (name) => connectNats(access, name),
      prefix,
      clock: options.clock ?? systemClock,
      onState: () => {},
      onFailure: (error) => events.push({ type: "failed", error }),
    });
    await listener.start();
  }
  const port = Number(new URL(url).port);
  const identityFingerprint = keyFingerprint(identity.publicKey);
  return {
    directory,
    gateway,
    events,
    server,
    url,
    port,
    dial() {
      const { signal } = new AbortController();
      return listener === null
        ? dial({ cloudUrl: url, ca: null, clock: systemClock, signal })
        : dialNatsLink(natsRoute(url, "stranger"), systemClock, signal);
    },
    identityKey: identity.privateKey,
    identityFingerprint,
    commandKey: command.privateKey,
    incarnation,
    enrolment(wish = {}) {
      const secret: EnrolmentSecret = {
        ...directory.addEnrollment(wish.expiresInMs),
        identityFingerprint: wish.identityFingerprint ?? identityFingerprint,
        caFingerprint: wish.caFingerprint ?? null,
      };
      return { ...secret, text: formatEnrolmentSecret(secret) };
    },
    async stop() {
      await listener?.stop();
      await gateway.drain(0);
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
