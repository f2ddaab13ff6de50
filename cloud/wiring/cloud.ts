// Puts the parts of one control plane together, starts them in order and stops them in the reverse. main.ts calls it;
// nothing else does.
import { randomBytes } from "node:crypto";
import { readFileSync, rmSync } from "node:fs";
import { hostname, uptime } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { ConnectorError, systemClock } from "@sallyport/protocol";
import type { Logger } from "pino";
import { collectDefaultMetrics, Counter, Registry } from "prom-client";
import { Authenticator, signInUrl } from "../auth/index.ts";
import { publicUrlOf, type CloudConfig } from "../config/index.ts";
import { makeDispatch } from "../dispatch/index.ts";
import { agentRoutes } from "../http/routes/agents.ts";
import { artifactRoutes } from "../http/routes/artifacts.ts";
import { commandRoutes } from "../http/routes/commands.ts";
import { deploymentTrafficRoutes } from "../http/routes/deployment-traffic.ts";
import { deploymentRoutes } from "../http/routes/deployments.ts";
import { enrollmentRoutes } from "../http/routes/enrollments.ts";
import { processRoutes } from "../http/routes/processes.ts";
import { runRoutes } from "../http/routes/runs.ts";
import { sessionRoutes } from "../http/routes/session.ts";
import { tokenRoutes } from "../http/routes/tokens.ts";
import { makeApiServer } from "../http/server.ts";
import { loadKeyRing, ownTls, writePrivateFile, type ServerTls } from "../keys/index.ts";
import { askKeyChange, LinkGateway, revoked } from "../link/index.ts";
import { listenOnNats } from "./nats-links.ts";
import { lockDatabase, openStore } from "../store/index.ts";
import { lockData } from "./data-lock.ts";
import { linkDirectory } from "./link-directory.ts";
import { linkMetrics } from "./link-metrics.ts";
import { startRetention } from "./retention.ts";
import { backplaneOf, several, shareAuthority, type Several } from "./several.ts";
import { openSpans } from "./spans.ts";
import { steadyClock } from "./steady-clock.ts";

/** Files in the data directory, beside the database. */
export const SIGN_IN_FILE = "sign-in-url";
export const PUBLIC_URL_FILE = "public-url";

/** Of several processes: how long an idle agent is given to make its session at another one. */
const HANDOVER_MS = 5_000;

export interface RunningCloud {
  url: string;
  /** The one-time link for the first admin, until somebody signed in; null after. */
  signInUrl: string | null;
  /** Path of the CA certificate that clients need; null when there is none of ours. */
  caFile: string | null;
  routes: readonly { method: string; url: string; public: boolean }[];
  stop(): Promise<void>;
}

async function tlsOf(config: CloudConfig, now: number): Promise<ServerTls | null> {
  if (config.tls.kind === "none") return null;
  if (config.tls.kind === "own") {
    if (config.peers !== null && config.keys !== null) shareAuthority(config.keys, join(config.data, "tls"));
    return ownTls(join(config.data, "tls"), config.hosts, now);
  }
  try {
    return {
      cert: readFileSync(config.tls.cert, "utf8"),
      key: readFileSync(config.tls.key, "utf8"),
      caFingerprint: null,
      caFile: null,
    };
  } catch (cause) {
    throw new ConnectorError(
      "CONFIG_INVALID",
      `The certificate ${config.tls.cert} or its key ${config.tls.key} cannot be read.`,
      { fix: "Check both paths and the rights.", cause },
    );
  }
}

export async function startCloud(
  config: CloudConfig,
  version: string,
  log: Logger,
  onFatal: (error: ConnectorError) => void,
  environment: NodeJS.ProcessEnv = {},
): Promise<RunningCloud> {
  const clock = steadyClock({
    machine: systemClock,
    uptimeMs: () => uptime() * 1000,
    onJump: (byMs) =>
      log.warn(
        { byMs: Math.round(byMs) },
        `the machine's clock was set: it is ${Math.abs(byMs / 3600_000).toFixed(2)} h ${byMs > 0 ? "ahead of" : "behind"} what this process goes by. Lifetimes and expiries go on as durations; restart the control plane to take the new time at once`,
      ),
  });
  // Undone from the last to the first when the start fails, and when it stops.
  const undo: (() => unknown)[] = [];
  const unwind = async (): Promise<void> => {
    for (const step of undo.splice(0).reverse()) {
      try {
        await step();
      } catch (error) {
        log.warn({ err: error }, "a part did not stop cleanly");
      }
    }
  };
  try {
    const lock = lockData(config.data);
    undo.push(() => lock.release());
    const keys = config.keys ?? join(config.data, "keys");
    const identity = loadKeyRing(join(keys, "identity.json"), "identity", clock.now(), config.keys !== null);
    const command = loadKeyRing(join(keys, "command.json"), "command", clock.now(), config.keys !== null);
    const tls = await tlsOf(config, clock.now());

    if (config.database !== null) {
      const one = await lockDatabase(config.database, {
        patient: true,
        shared: config.peers !== null,
        onLost: onFatal,
      });
      undo.push(() => one.release());
    }
    const store = await openStore({
      dir: config.data,
      database: config.database,
      onDeath: onFatal,
      onOutage: (error) =>
        error === null
          ? log.info("the database is back")
          : log.error({ err: error }, `${error.message} Until it is back nothing new is taken`),
    });
    undo.push(() => store.close());
    const incarnation = await store.incarnation();
    const processId = `${hostname()}:${process.pid}:${randomBytes(4).toString("hex")}`;
    const startedAt = clock.now();
    // Before its keys are written down: one with other keys than the rest is refused.
    if (config.peers !== null) await store.checkIdentity(identity.publicRows.map((row) => row.kid));
    await store.putCloudKeys([...identity.publicRows, ...command.publicRows]);
    const admin = await store.ensureAdmin(config.admin, config.workspace);
    if (config.peers === null) {
      const orphans = await store.releaseSessions(processId, clock.now());
      if (orphans > 0) log.info({ sessions: orphans }, "sessions of a process that is gone were closed");
    }
    const backplane = backplaneOf(config, incarnation, processId, clock);
    undo.push(() => backplane.close());

    const registry = new Registry();
    collectDefaultMetrics({ register: registry });
    const links = linkMetrics(registry);
    const traces = openSpans(environment, { version, clock, log, registry });
    undo.push(() => traces.close());
    const foreignDeployments = new Counter({
      name: "sallyport_cloud_foreign_deployments_total",
      help: "Status entries of deployments that the agent which sent them does not own",
      registers: [registry],
    });
    /** Null: this process is alone. */
    let group: Several | null = null;
    const gateway = new LinkGateway({
      directory: linkDirectory(
        store,
        clock,
        processId,
        (count) => foreignDeployments.inc(count),
        (replica) => backplane.announce({ type: "presence", replica }),
      ),
      elsewhere: async (replica) => (await group?.membership.elsewhere(replica)) ?? null,
      identity: identity.signer,
      identityPublicKey: identity.publicKey,
      commandKeys: () => command.ring,
      incarnation,
      clock,
      deadMs: config.linkDeadMs,
      observe(event) {
        links.note(event);
        switch (event.type) {
          case "refused":
            return log.warn(
              { code: event.error.code, replica: event.replica, from: event.remoteAddress, why: event.error.message },
              "link refused",
            );
          case "enrolled":
            return log.info(
              {
                replica: event.replica.id,
                name: event.replica.names.replica,
                pool: event.replica.names.pool,
                from: event.remoteAddress,
              },
              "agent enrolled",
            );
          case "online":
            return log.info(
              {
                replica: event.session.replica,
                session: event.session.id,
                epoch: event.session.epoch,
                from: event.session.remoteAddress,
              },
              "agent connected",
            );
          case "offline":
            return log.info(
              {
                replica: event.session.replica,
                session: event.session.id,
                code: event.reason.code,
                why: event.reason.message,
              },
              "agent disconnected",
            );
          case "failed":
            return log.error({ err: event.error.cause ?? event.error }, event.error.message);
          case "roundTrip":
            return;
        }
      },
    });
    if (config.peers !== null)
      group = await several({
        config: { ...config, peers: config.peers },
        process: processId,
        incarnation,
        identity,
        store,
        gateway,
        backplane,
        clock,
        log,
        registry,
        headFor: (session, head) => dispatch.headFor(session, head),
        onGap: () => api.endStreams(),
      });
    const sessions = group?.sessions ?? gateway.sessions;
    undo.push(() => group?.stop());
    const dispatch = makeDispatch({
      store,
      sessions,
      ...(group === null ? {} : { others: group.others }),
      clock,
      signer: command.signer,
      incarnation,
      log,
      registry,
      spans: traces.spans,
    });
    dispatch.start();
    undo.push(() => dispatch.stop());
    const retention = startRetention({ store, clock, log, limits: { keepMs: config.keepDays * 24 * 3600_000 } });
    undo.push(() => retention.stop());

    const authenticator = new Authenticator(store, clock);
    let ready = false;
    let url = config.url ?? "";
    const secureCookies = tls !== null || config.url?.startsWith("https://") === true;
    const followed = group?.feed;
    const api = await makeApiServer({
      store: followed === undefined ? store : { ...store, onChange: (listener) => followed.onChange(listener) },
      authenticator,
      clock,
      log,
      registry,
      spans: traces.spans,
      version,
      tls,
      secureCookies,
      hosts: config.hosts,
      publicOrigin: config.url ?? undefined,
      pageFolder: fileURLToPath(new URL("../web/dist", import.meta.url)),
      ready: () => ready,
      routes: [
        sessionRoutes({ store, authenticator, clock, version, secureCookies }),
        tokenRoutes({ store, clock }),
        enrollmentRoutes({
          store,
          clock,
          trust: { identityFingerprint: identity.fingerprint, caFingerprint: tls?.caFingerprint ?? null },
          publicUrl: () => url,
          agentImage: config.agentImage,
        }),
        agentRoutes({
          store,
          clock,
          links: {
            ofReplica: (workspace, replica) => sessions.ofReplica(workspace, replica),
            async changeKey(workspace, replica) {
              const known = sessions.ofReplica(workspace, replica);
              // Another process may have taken it a moment ago.
              if (known === null) await sessions.refresh?.();
              const session = known ?? sessions.ofReplica(workspace, replica);
              if (session !== null) await askKeyChange(session, clock);
              return session !== null;
            },
            revoke(replica) {
              gateway.revoke(replica);
              group?.membership.revoked(replica, revoked());
            },
          },
          poke: (workspace, pool) => dispatch.poke(workspace, pool),
        }),
        artifactRoutes({ store, dispatch }),
        runRoutes({ store, dispatch }),
        deploymentRoutes({ store, dispatch }),
        deploymentTrafficRoutes({ store, dispatch }),
        commandRoutes({ store, dispatch }),
        processRoutes({
          processes: () =>
            group?.processes() ?? [
              {
                id: processId,
                self: true,
                startedAt,
                state: "here",
                problem: null,
                way: null,
                sessions: sessions.all().length,
              },
            ],
          health: () => backplane.health,
        }),
      ],
    });
    // Among the others before the first agent comes.
    await group?.start();
    gateway.attach(api.server);
    // Links and answers end together: a download needs both.
    undo.push(async () => {
      ready = false;
      await group?.membership.leaving();
      await Promise.all([gateway.drain(config.drainMs, group === null ? 0 : HANDOVER_MS), api.close(config.drainMs)]);
    });
    if (config.nats !== null) undo.push(listenOnNats(config.nats, gateway, clock, log));
    const port = await api.listen(config.listen.host, config.listen.port);
    url = publicUrlOf(config, port);
    writePrivateFile(join(config.data, PUBLIC_URL_FILE), `${url}\n`);

    const signInFile = join(config.data, SIGN_IN_FILE);
    let signIn: string | null = null;
    if (await store.hasSignedIn(admin.id)) {
      rmSync(signInFile, { force: true });
    } else {
      signIn = signInUrl(url, await authenticator.offerSignIn(admin));
      writePrivateFile(signInFile, `${signIn}\n`);
    }
    ready = true;
    log.info({ url, data: config.data, tls: config.tls.kind, version }, "control plane is ready");
    return { url, signInUrl: signIn, caFile: tls?.caFile ?? null, routes: api.routes, stop: unwind };
  } catch (error) {
    await unwind();
    throw error;
  }
}
