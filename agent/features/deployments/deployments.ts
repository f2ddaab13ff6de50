// The feature's door: all deployments of this agent, what is said of them, and what the agent's own tools may ask.
import { toConnectorError, wait, type DeploymentId, type DeploymentStatus } from "@sallyport/protocol";
import type { AnyCommandKind } from "../../commands/command.ts";
import { replicaWorkName, type WorkName } from "../../engines/engine.ts";
import { Deployment, type DeploymentShared } from "./deployment.ts";
import { DEFAULT_TIMINGS, type Deps, type DeploymentsDeps } from "./deps.ts";
import {
  applied,
  DEPLOYMENTS,
  nameTaken,
  REMOVED,
  REMOVED_KEPT_MS,
  REPLICAS,
  type Apply,
  type DesiredRecord,
  type RemovedRecord,
  type ReplicaRecord,
} from "./desired.ts";
import { EndpointKeys } from "./keys.ts";
import { deploymentKinds } from "./kinds.ts";
import { Models } from "./models.ts";
import { Places } from "./places.ts";
import { Room } from "./room.ts";

export type { DeploymentsDeps, Serving, ServingLimits, Timings } from "./deps.ts";

export interface Deployments {
  readonly kinds: AnyCommandKind[];
  /** Reads the journal, takes over what runs, begins to look after it. Before the runner resumes and the link starts. */
  start(): Promise<void>;
  statuses(): DeploymentStatus[];
  /** Called at most once a second when `statuses` may say something else. */
  onChange(listener: () => void): void;
  /** Highest generation held of each deployment, also of those that were removed last; as many as a hello has room for. */
  generations(): Record<string, number>;
  /** Policy or configuration were exchanged: what was refused is tried again. */
  policyChanged(): void;
  /** For the customer's own tools at the agent's host. */
  endpoints(): { deployment: DeploymentId; name: string; url: string; key: string }[];
  /** Whether it answers for work of that name at an engine, so that nobody else need stop or show it. */
  owns(work: string): boolean;
  /**
   * At the agent's host: `id` is a deployment's id or name (nothing of it runs until the next apply), or
   * `<id or name>/<replica>` (it comes back). Null = there is none.
   */
  stop(id: string, who: string): Promise<{ stopped: string[] } | null>;
  /** Lets go of everything; replicas run on. */
  close(): Promise<void>;
}

/** What the kinds ask of it. */
export interface DeploymentsInside {
  started: Promise<void>;
  find(id: DeploymentId): Deployment | null;
  named(name: string): Deployment | null;
  count(): number;
  removed(id: DeploymentId): RemovedRecord | null;
  apply(apply: Apply): Promise<void>;
  remove(id: DeploymentId, generation: number): Promise<string[]>;
}

/** A hello is small and comes before anything else: what does not fit in it would keep the agent out for ever. */
const MOST_GENERATIONS = 500;
const WORK = /^(dep_[0-9a-f]{32})\.(r[0-9]+\.[0-9]+)$/;

export function createDeployments(given: DeploymentsDeps): Deployments {
  const deps: Deps = { ...given, timings: { ...DEFAULT_TIMINGS, ...given.timings } };
  const { clock, journal, router, log, timings } = deps;
  const closing = new AbortController();
  const all = new Map<DeploymentId, Deployment>();
  const gone = new Map<DeploymentId, RemovedRecord>();
  const listeners: (() => void)[] = [];
  const started = Promise.withResolvers<void>();
  started.promise.catch(() => undefined);
  const room = new Room(deps.limits);
  const places = new Places(deps.stateDir);
  const models = new Models({
    stateDir: deps.stateDir,
    stores: deps.stores,
    policy: deps.policy,
    capBytes: () => deps.limits().modelBytes,
    needed: () =>
      new Set(
        [...all.values()].flatMap(({ record }) =>
          [record.spec, ...Object.values(record.revisions)].map((spec) => spec.model.digest),
        ),
      ),
  });

  // -- changes, at most one a second: the first at once, the last for certain
  let toldAt = Number.NEGATIVE_INFINITY;
  let telling: { cancel(): void } | null = null;
  const changed = (): void => {
    if (telling !== null || closing.signal.aborted) return;
    telling = clock.after(Math.max(0, toldAt + timings.changeMs - clock.monotonic()), () => {
      telling = null;
      toldAt = clock.monotonic();
      for (const listener of listeners) listener();
    });
  };

  const shared: DeploymentShared = {
    deps,
    models,
    keys: new EndpointKeys(deps.stateDir, deps.redactor),
    places,
    room,
    life: closing.signal,
    others: (id) => [...all.keys()].filter((other) => other !== id).length,
    changed,
    roomFreed: () => {
      for (const id of room.waiting) all.get(id as DeploymentId)?.wake();
    },
  };

  function add(record: DesiredRecord, records: readonly ReplicaRecord[]): Deployment {
    const one = new Deployment(shared, record, records);
    all.set(one.id, one);
    void one.gone.then(() => {
      wentAway(one.id, { generation: one.record.removing?.generation ?? one.record.generation, at: clock.now() });
      all.delete(one.id);
      changed();
      void models.collect().catch((error: unknown) => log.warn({ err: error }, "unused models could not be collected"));
    });
    return one;
  }

  /** Newest last. Those that no command can come for any more are dropped, here and in the journal. */
  function wentAway(id: DeploymentId, record: RemovedRecord): void {
    gone.delete(id);
    gone.set(id, record);
    const over = [...gone].filter(([, { at }]) => clock.now() - at > REMOVED_KEPT_MS).map(([key]) => key);
    if (over.length === 0) return;
    for (const key of over) gone.delete(key);
    journal
      .commit({ remove: over.map((key) => ({ namespace: REMOVED, key })) })
      .catch((error: unknown) => log.warn({ err: error }, "what was removed long ago could not be forgotten"));
  }

  /** Asked when nothing else can enter: what was said at acceptance may have been said to two. */
  function mayEnter({ name }: Apply): void {
    const other = inside.named(name);
    if (other !== null) throw nameTaken(name, other.id);
    deps.policy.require({ kind: "ceiling", ceiling: "deployments", value: all.size + 1 });
  }

  /** Applies to ids that are not held come one by one: they race for names. */
  let entering: Promise<unknown> = Promise.resolve();
  const inside: DeploymentsInside = {
    started: started.promise,
    find: (id) => all.get(id) ?? null,
    named: (name) => [...all.values()].find(({ record }) => record.name === name) ?? null,
    count: () => all.size,
    removed: (id) => gone.get(id) ?? null,
    async apply(apply) {
      const mine = entering
        .catch(() => undefined)
        .then(async () => {
          const held = all.get(apply.deployment);
          if (held !== undefined) return held.apply(apply);
          mayEnter(apply);
          const record = applied(null, gone.get(apply.deployment) ?? null, apply);
          await journal.commit({
            put: [{ namespace: DEPLOYMENTS, key: apply.deployment, value: record }],
            remove: [{ namespace: REMOVED, key: apply.deployment }],
          });
          gone.delete(apply.deployment);
          const one = add(record, []);
          await one.open();
        });
      entering = mine;
      await mine;
    },
    async remove(id, generation) {
      const held = all.get(id);
      if (held !== undefined) return held.remove(generation);
      const before = gone.get(id);
      const record: RemovedRecord = { generation: Math.max(generation, before?.generation ?? 0), at: clock.now() };
      // An apply that comes late must not bring it back.
      await journal.put(REMOVED, id, record);
      wentAway(id, record);
      return [];
    },
  };

  /** Ends what runs at an engine and belongs to no seat: of a deployment that was removed, or whose record was lost. */
  async function sweep(engineName: string): Promise<void> {
    const engine = deps.engines.get(engineName);
    for (let tries = 0; ; tries++) {
      try {
        for (const { name, status } of await engine.list()) {
          if (!WORK.test(name) || owns(name)) continue;
          log.warn({ work: name }, "a replica that belongs to no deployment is ended");
          if (status.state === "running") await engine.stop(name, timings.graceMs);
          await engine.forget(name);
          await places.remove(name);
        }
        return;
      } catch (caught) {
        if (closing.signal.aborted) return;
        log.warn({ err: toConnectorError(caught), engine: engineName }, "the engine cannot say yet what runs");
        await wait(clock, Math.min(30_000, timings.retryMs * 2 ** Math.min(tries, 5)), closing.signal);
      }
    }
  }

  function owns(work: string): boolean {
    const [, id, replica] = WORK.exec(work) ?? [];
    const one = id === undefined ? undefined : all.get(id as DeploymentId);
    return one?.seats.some((seat) => seat.name === replica) === true;
  }

  async function start(): Promise<void> {
    const now = clock.now();
    const stale: { namespace: string; key: string }[] = [];
    const removed = (await journal.entries(REMOVED)).map(({ key, value }) => ({ key, record: value as RemovedRecord }));
    for (const { key, record } of removed.toSorted((a, b) => a.record.at - b.record.at)) {
      if (now - record.at > REMOVED_KEPT_MS) stale.push({ namespace: REMOVED, key });
      else gone.set(key as DeploymentId, record);
    }
    if (stale.length > 0) await journal.commit({ remove: stale });
    const records = new Map<string, ReplicaRecord[]>();
    for (const { key, value } of await journal.entries(REPLICAS)) {
      const id = key.slice(0, key.indexOf("/"));
      records.set(id, [...(records.get(id) ?? []), value as ReplicaRecord]);
    }
    for (const { key, value } of await journal.entries(DEPLOYMENTS))
      add(value as DesiredRecord, records.get(key) ?? []);
    router.onSuspect((id, replica) => all.get(id)?.suspect(replica));
    router.onChange(changed);
    router.onRollup(changed);
    await Promise.all([...all.values()].map((one) => one.open()));
    started.resolve();
    // Not waited for: an engine that does not answer holds up nothing else.
    void Promise.all(deps.engines.names.map(sweep))
      .then(() => places.sweep(() => [...all.values()].flatMap((one) => one.seats.map((seat) => seat.work))))
      .catch((error: unknown) => {
        if (!closing.signal.aborted) log.warn({ err: error }, "what earlier starts left could not be cleared away");
      });
    changed();
  }

  return {
    kinds: deploymentKinds(deps, inside),
    start: () =>
      start().catch((error: unknown) => {
        started.reject(error);
        throw error;
      }),
    statuses: () => [...all.values()].map((one) => one.status()),
    onChange: (listener) => void listeners.push(listener),
    generations: () =>
      Object.fromEntries(
        [
          ...[...gone].map(([id, { generation }]) => [id, generation] as const),
          ...[...all.values()].map(
            ({ id, record }) => [id, Math.max(record.generation, record.removing?.generation ?? 0)] as const,
          ),
        ].slice(-MOST_GENERATIONS),
      ),
    policyChanged() {
      for (const one of all.values()) one.retryNow();
    },
    endpoints: () =>
      [...all.values()].map((one) => ({
        deployment: one.id,
        name: one.record.name,
        url: router.endpoint(one.record.name),
        key: one.key,
      })),
    owns,
    async stop(id, who) {
      const [first = "", replica, ...rest] = id.split("/");
      const one = all.get(first as DeploymentId) ?? inside.named(first);
      if (one === null || rest.length > 0) return null;
      if (replica === undefined) return { stopped: await one.hold(who) };
      const seat = one.seats.find((s) => s.name === replica);
      if (seat === undefined || seat.phase === "down") return null;
      const { stopped } = await seat.restart({
        code: "REPLICA_UNREADY",
        message: `Replica ${seat.name} was stopped at the agent's host by ${who}. It is started again.`,
        fix: null,
        details: { replica: seat.name },
        soft: true,
      });
      return stopped.length === 0 ? null : { stopped };
    },
    async close() {
      closing.abort();
      telling?.cancel();
      await Promise.all([...all.values()].map((one) => one.close()));
      places.close();
    },
  };
}

/** The work of a replica, for whoever shows what runs. */
export const replicaWork = (status: DeploymentStatus, replica: DeploymentStatus["replicas"][number]): WorkName =>
  replicaWorkName(status.deployment, replica.revision, replica.number);
