// What a control plane of several processes has beside that of one: a backplane, a port for the others, links to them,
// and the sessions of all behind the port of one's own. Alone, nothing of this is made.
import { join } from "node:path";
import { ConnectorError, type Clock, type PoolId, type ReplicaId, type WorkspaceId } from "@sallyport/protocol";
import type { Logger } from "pino";
import { Gauge, type Registry } from "prom-client";
import {
  inProcessBackplane,
  natsBackplane,
  sweepBackplane,
  type Backplane,
  type BackplaneHealth,
} from "../backplane/index.ts";
import { peerUrlOf, type CloudConfig } from "../config/index.ts";
import type { Others } from "../dispatch/index.ts";
import { passingCertificate, readPrivateFile, writePrivateFile, type LoadedRing } from "../keys/index.ts";
import { NatsListener, type LinkGateway, type Sessions } from "../link/index.ts";
import { connectNats } from "../nats/index.ts";
import {
  changeFeed,
  dialPeerOverNats,
  Membership,
  peerHello,
  peerPrefix,
  PeerServer,
  type ChangeFeed,
  type PeerServerOptions,
  type PeerView,
} from "../peers/index.ts";
import type { Store } from "../store/index.ts";

export interface Several {
  /** Of all processes. */
  readonly sessions: Sessions;
  readonly others: Others;
  readonly feed: ChangeFeed;
  readonly membership: Membership;
  processes(): PeerView[];
  health(): BackplaneHealth;
  /** Takes part: last of all at the start. */
  start(): Promise<void>;
  /** Streams that other processes have here may end first. */
  stop(): Promise<void>;
}

export interface SeveralOptions {
  readonly config: CloudConfig & { peers: NonNullable<CloudConfig["peers"]> };
  readonly process: string;
  readonly incarnation: string;
  readonly identity: LoadedRing;
  readonly store: Store;
  readonly gateway: LinkGateway;
  readonly backplane: Backplane;
  readonly clock: Clock;
  readonly log: Logger;
  readonly registry: Registry;
  /** The head that goes to an agent from what another process sent. */
  readonly headFor: PeerServerOptions["headFor"];
  /** So many changes were missed that who follows them must begin anew. */
  readonly onGap: (workspace: WorkspaceId) => void;
}

/** What this process tells the others by. Alone: nobody. */
export function backplaneOf(config: CloudConfig, incarnation: string, process: string, clock: Clock): Backplane {
  if (config.peers === null) return inProcessBackplane();
  return config.nats === null ? sweepBackplane() : natsBackplane({ access: config.nats, incarnation, process, clock });
}

export async function several(options: SeveralOptions): Promise<Several> {
  const { config, identity, store, gateway, backplane, clock, registry } = options;
  const log = options.log.child({ component: "peers" });
  const peer = {
    process: options.process,
    incarnation: options.incarnation,
    signer: identity.signer,
    ring: identity.ring,
  };
  const tls = config.peers.tls ? await passingCertificate(clock.now()) : undefined;
  const server = new PeerServer({
    identity: peer,
    clock,
    ...(tls === undefined ? {} : { tls }),
    held: (replica) => gateway.held(replica),
    ping: (session) => gateway.ping(session),
    close(replica, _session, reason) {
      // Its agent has gone over to another process, as it was told to: what runs on the old link may end there.
      if (gateway.draining && reason.code === "SESSION_SUPERSEDED") return;
      gateway.disconnect(replica, reason);
    },
    headFor: options.headFor,
    refused: (error, from) =>
      log.warn({ code: error.code, from, why: error.message }, "link of another process refused"),
  });
  const port = await server.listen(config.peers.host, config.peers.port);
  const nats = config.nats;
  const prefix = peerPrefix(nats?.prefix ?? null, options.incarnation);
  const listener =
    nats === null
      ? null
      : new NatsListener({
          gateway: server,
          connect: () => connectNats(nats, `sallyport-cloud ${options.process} asked by others`),
          prefix,
          hello: peerHello(prefix, options.process),
          clock,
          // Whether NATS is there is said of the notes; that it forbids these subjects, nowhere else.
          onState: (problem) =>
            problem === null
              ? log.debug("other processes may come over NATS")
              : log.warn({ err: problem.cause ?? problem }, "no other process can come over NATS"),
          onFailure: (error) => log.warn({ err: error.cause ?? error }, "a process that came over NATS was not taken"),
        });
  const feed = changeFeed({
    store,
    backplane,
    clock,
    log,
    onGap(workspace) {
      membership.missed();
      options.onGap(workspace);
    },
  });
  const membership = new Membership({
    identity: peer,
    fingerprint: identity.fingerprint,
    kids: identity.publicRows.map((row) => row.kid),
    url: peerUrlOf(config.peers, port),
    ...(nats === null
      ? {}
      : {
          overNats: (process: string) =>
            dialPeerOverNats({
              connect: () => connectNats(nats, `sallyport-cloud ${options.process} asking ${process}`),
              prefix,
              process,
              clock,
            }),
        }),
    store,
    held: gateway.sessions,
    clock,
    log,
    backplane,
    catchUp: () => feed.catchUp(),
    ping: (session) => gateway.ping(session),
    revoke: (replica) => gateway.revoke(replica),
    draining: () => gateway.draining,
  });
  feed.onChange((_workspace, changes) =>
    membership.changed(changes.filter((one) => one.entity === "agent").map((one) => one.id as ReplicaId)),
  );

  const sayHealth = (health: BackplaneHealth): void =>
    health.connected ? log.info(health.text) : log.warn(health.text);
  sayHealth(backplane.health);
  backplane.onHealth(sayHealth);
  new Gauge({
    name: "sallyport_cloud_backplane_connected",
    help: "1 while the processes of the control plane can wake each other; 0 while they notice each other by the sweep alone",
    registers: [registry],
    collect() {
      this.set(backplane.health.connected ? 1 : 0);
    },
  });
  new Gauge({
    name: "sallyport_cloud_processes",
    help: "Processes of this control plane, by whether this one reaches them",
    labelNames: ["state"],
    registers: [registry],
    collect() {
      this.reset();
      for (const state of ["here", "reached", "unreachable"] as const)
        this.set({ state }, membership.view().filter((one) => one.state === state).length);
    },
  });

  const wakes: ((workspace: WorkspaceId, pool: PoolId) => void)[] = [];
  const tolds: ((workspace: WorkspaceId, replica: ReplicaId | null) => void)[] = [];
  backplane.onNote((note) => {
    if (note.type === "wake") for (const listener of wakes) listener(note.workspace, note.pool);
    else if (note.type === "told") for (const listener of tolds) listener(note.workspace, note.replica);
  });
  return {
    sessions: membership.sessions,
    others: {
      held: gateway.sessions,
      wake: (workspace, pool) => backplane.announce({ type: "wake", workspace, pool }),
      onWake: (listener) => void wakes.push(listener),
      told: (workspace, replica) => backplane.announce({ type: "told", workspace, replica }),
      onTold: (listener) => void tolds.push(listener),
    },
    feed,
    membership,
    processes: () => membership.view(),
    health: () => backplane.health,
    async start() {
      await listener?.start();
      // Before the first look: what changes after it is told.
      await feed.start();
      await membership.start();
    },
    async stop() {
      await membership.stop();
      feed.stop();
      await listener?.stop();
      await server.close();
    },
  };
}

/** The CA of the folder of keys is every process's own: agents that pinned it at one know the others by it. */
export function shareAuthority(keys: string, tlsFolder: string): void {
  for (const name of ["ca.key", "ca.crt"]) {
    const given = readPrivateFile(join(keys, name));
    if (given === null)
      throw new ConnectorError("CONFIG_INVALID", `The folder of keys ${keys} has no ${name}.`, {
        fix: "Make the folder with: sallyport-cloud keys FOLDER, or give each process a certificate by --tls-cert and --tls-key.",
      });
    const path = join(tlsFolder, name);
    if (readPrivateFile(path) !== given) writePrivateFile(path, given);
  }
}
