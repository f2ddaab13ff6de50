// One deployment: its desired record, its seats, and the loop that makes the second agree with the first.
import { channel } from "node:diagnostics_channel";
import {
  ConnectorError,
  replicaName,
  type Condition,
  type DeploymentId,
  type DeploymentStatus,
} from "@sallyport/protocol";
import type { ReplicaTarget } from "../../router/router.ts";
import {
  applied,
  DEPLOYMENTS,
  nameOf,
  newReplicaRecord,
  REMOVED,
  replicaKey,
  REPLICAS,
  type Apply,
  type DesiredRecord,
  type RemovedRecord,
  type ReplicaRecord,
} from "./desired.ts";
import { insist } from "./insist.ts";
import { statusOf } from "./deployment-status.ts";
import type { ReplicaParts } from "./launch.ts";
import { plan, type Action } from "./plan.ts";
import { Replica } from "./replica.ts";
import type { Room } from "./room.ts";

const boundary = {
  applied: channel("sallyport:deployment.applied"),
  removing: channel("sallyport:deployment.removing"),
  removed: channel("sallyport:deployment.removed"),
};
/** Records of replicas of earlier revisions that are kept, for their logs. */
const OLD_RECORDS = 200;

export interface DeploymentShared extends ReplicaParts {
  room: Room;
  /** Deployments beside this one. */
  others: (id: DeploymentId) => number;
  /** What is said of it may have changed. */
  changed: () => void;
  /** Those that wait for room should look again. */
  roomFreed: () => void;
  life: AbortSignal;
}

export class Deployment {
  readonly id: DeploymentId;
  readonly #shared: DeploymentShared;
  #record: DesiredRecord;
  #key = "";
  /** All that were ever begun, by name; those with a seat have a Replica too. */
  readonly #records: Map<string, ReplicaRecord>;
  readonly #seats = new Map<string, Replica>();
  #saving: Promise<unknown> = Promise.resolve();
  #routed = "";
  #scheduled = false;
  #timer: { cancel(): void } | null = null;
  #short: { name: string; revision: number; number: number }[] = [];
  #shortSince = 0;
  #conditions: Condition[] = [];
  readonly #gone = Promise.withResolvers<void>();

  constructor(shared: DeploymentShared, record: DesiredRecord, records: readonly ReplicaRecord[]) {
    this.#shared = shared;
    this.#record = record;
    this.id = record.deployment;
    this.#records = new Map(records.map((one) => [nameOf(one), one]));
    shared.deps.logs.hold(this.id);
  }

  get record(): DesiredRecord {
    return this.#record;
  }
  get key(): string {
    return this.#key;
  }
  /** Resolves when nothing of it is left. */
  get gone(): Promise<void> {
    return this.#gone.promise;
  }
  get seats(): readonly Replica[] {
    return [...this.#seats.values()];
  }
  /** Of a replica that is or was there. */
  replicaRecord(name: string): ReplicaRecord | null {
    return this.#seats.get(name)?.record ?? this.#records.get(name) ?? null;
  }

  /** Takes over what the journal says is there, gives it its route, begins to look after it. */
  async open(): Promise<void> {
    const { deps, keys, life } = this.#shared;
    this.#key = await insist(deps, "key", life, () => keys.endpoint(this.id));
    for (const record of this.#records.values()) {
      const spec = this.#record.revisions[String(record.revision)];
      if (!record.seat || spec === undefined) continue;
      this.#sit(record).adopt();
    }
    this.#setRoute(true);
    this.wake();
  }

  /** Journals what is wanted now. */
  async apply(apply: Apply): Promise<void> {
    await this.#update((record) => applied(record, null, apply));
    boundary.applied.publish({ deployment: this.id, generation: apply.generation });
    for (const seat of this.#seats.values()) seat.retryNow();
    this.wake();
  }

  /** Journals that it goes; resolves with what was stopped, when it is gone. */
  async remove(generation: number): Promise<string[]> {
    await this.#update((record) =>
      record.removing !== null
        ? record
        : {
            ...record,
            removing: {
              generation,
              at: this.#shared.deps.clock.now(),
              stopped: [...this.#seats.values()].filter((one) => one.phase !== "down").map((one) => one.name),
            },
          },
    );
    boundary.removing.publish({ deployment: this.id });
    const stopped = this.#record.removing?.stopped ?? [];
    this.wake();
    await this.gone;
    return stopped;
  }

  /** At the agent's host: nothing of it runs until the next apply. Resolves with what was stopped. */
  async hold(by: string): Promise<string[]> {
    await this.#update((record) => ({ ...record, held: { at: this.#shared.deps.clock.now(), by } }));
    const seats = this.seats.filter((one) => one.phase !== "down");
    for (const seat of this.seats) this.#leave(seat);
    await Promise.all(seats.map((seat) => seat.leave()));
    this.wake();
    return seats.map((seat) => seat.name);
  }

  /** Looks at everything once more, soon. */
  wake(): void {
    if (this.#scheduled || this.#shared.life.aborted) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      if (!this.#shared.life.aborted) this.#pass();
    });
  }

  /** The policy or the configuration may allow now what was in the way. */
  retryNow(): void {
    for (const seat of this.#seats.values()) seat.retryNow();
    this.wake();
  }

  suspect(replica: string): void {
    this.#seats.get(replica)?.probe();
  }

  async close(): Promise<void> {
    this.#timer?.cancel();
    await Promise.all([...this.#seats.values()].map((one) => one.close()));
    await this.#saving.catch(() => undefined);
  }

  status(): DeploymentStatus {
    const said = statusOf({
      deps: this.#shared.deps,
      room: this.#shared.room,
      record: this.#record,
      seats: this.seats,
      short: this.#short.map((one) => ({ ...one, record: this.#records.get(one.name) ?? null })),
      shortSince: this.#shortSince,
      conditions: this.#conditions,
    });
    this.#conditions = said.conditions;
    return said;
  }

  // -- the loop

  #pass(): void {
    const { deps, room } = this.#shared;
    const { removing, held, spec, revision, serving } = this.#record;
    const made = plan({
      wanted: removing === null && held === null ? spec.replicas : 0,
      revision,
      serving,
      seats: this.seats.map((one) => one.observe()),
      now: deps.clock.monotonic(),
      room: room.forMore(this.id, spec.resources),
    });
    if (made.short.length > 0 && this.#short.length === 0) this.#shortSince = deps.clock.now();
    this.#short = made.short.map((one) => ({ ...one, name: replicaName(one.revision, one.number) }));
    if (made.short.length > 0) room.waits(this.id, spec.resources);
    else if (room.waiting.includes(this.id)) {
      room.served(this.id);
      this.#shared.roomFreed();
    }
    const drained: Replica[] = [];
    for (const action of made.actions) this.#do(action, drained);
    this.#setRoute();
    for (const seat of drained)
      void deps.router.drained(this.id, seat.name, deps.timings.drainMs).then(
        () => seat.drainOver(),
        () => seat.drainOver(),
      );
    if (made.complete && serving !== revision) this.#tidy({ serving: revision });
    if (removing !== null && this.#seats.size === 0) void this.#forget();
    this.#timer?.cancel();
    this.#timer = null;
    if (made.wakeAt !== null && Number.isFinite(made.wakeAt))
      this.#timer = deps.clock.after(Math.max(0, made.wakeAt - deps.clock.monotonic()), () => this.wake());
    if (made.actions.length > 0) this.wake();
    this.#shared.changed();
  }

  #do(action: Action, drained: Replica[]): void {
    const name = replicaName(action.revision, action.number);
    const seat = this.#seats.get(name);
    switch (action.do) {
      case "start": {
        const known = this.#records.get(name) ?? newReplicaRecord(action.revision, action.number);
        return (seat ?? this.#sit({ ...known, crashes: 0 })).begin();
      }
      case "route":
        return seat?.route(true);
      case "unroute":
        return seat?.route(false);
      case "drain":
        if (seat === undefined) return;
        drained.push(seat);
        return seat.drain();
      case "stop":
      case "forget":
        if (seat !== undefined) this.#leave(seat);
    }
  }

  #sit(record: ReplicaRecord): Replica {
    const { deps, models, keys, places, room, life } = this.#shared;
    const spec = this.#record.revisions[String(record.revision)] ?? this.#record.spec;
    const name = nameOf(record);
    const seat = new Replica({
      deps,
      models,
      keys,
      places,
      deployment: { id: this.id, name: this.#record.name },
      spec,
      record,
      life,
      others: () => this.#shared.others(this.id),
      changed: () => {
        this.wake();
        this.#shared.changed();
      },
      write: (next) => deps.journal.put(REPLICAS, replicaKey(this.id, name), next),
    });
    this.#seats.set(name, seat);
    room.take(`${this.id}/${name}`, spec.resources);
    return seat;
  }

  #leave(seat: Replica): void {
    if (seat.phase === "stopping") return;
    const { room, deps, life } = this.#shared;
    seat.leave().then(
      () => {
        this.#seats.delete(seat.name);
        this.#records.set(seat.name, seat.record);
        room.release(`${this.id}/${seat.name}`);
        this.#tidy({});
        this.#shared.roomFreed();
        this.wake();
      },
      (error: unknown) => {
        if (!life.aborted) deps.log.error({ err: error, work: seat.work }, "a replica could not be taken away");
      },
    );
  }

  #setRoute(always = false): void {
    const { deps } = this.#shared;
    const replicas = this.seats.flatMap((one): ReplicaTarget[] =>
      one.routed && one.target !== null ? [one.target] : [],
    );
    const text = JSON.stringify(replicas);
    if (!always && text === this.#routed) return;
    this.#routed = text;
    deps.router.set({
      deployment: this.id,
      name: this.#record.name,
      key: this.#key,
      replicas,
      holdMs: deps.timings.holdMs,
    });
  }

  // -- the record

  /** One after the other; the record changes when the journal has it. */
  async #update(change: (record: DesiredRecord) => DesiredRecord): Promise<void> {
    const next = this.#saving
      .catch(() => undefined)
      .then(async () => {
        const record = change(this.#record);
        // Its record goes: nothing may bring it back.
        if (record === this.#record || this.#forgetting !== null) return;
        await this.#shared.deps.journal.put(DEPLOYMENTS, this.id, record);
        this.#record = record;
      });
    this.#saving = next;
    return next;
  }

  /** Notes what serves, drops revisions that nothing needs any more, and old records of replicas. One at a time. */
  #tidy(change: { serving?: number }): void {
    this.#servesNow = change.serving ?? this.#servesNow;
    this.#untidy = true;
    if (!this.#tidying) void this.#tidyAll().catch(() => undefined);
  }
  #servesNow: number | null = null;
  #untidy = false;
  #tidying = false;

  async #tidyAll(): Promise<void> {
    const { deps, life } = this.#shared;
    this.#tidying = true;
    try {
      while (this.#untidy) {
        this.#untidy = false;
        await insist(deps, "journal", life, () =>
          this.#update((record) => {
            const serving = this.#servesNow ?? record.serving;
            const used = new Set(
              [record.revision, serving, ...this.seats.map((one) => one.record.revision)].map(String),
            );
            const revisions = Object.fromEntries(
              Object.entries(record.revisions).filter(([number]) => used.has(number)),
            );
            const same =
              serving === record.serving && Object.keys(revisions).length === Object.keys(record.revisions).length;
            return same ? record : { ...record, serving, revisions };
          }),
        );
        const old = [...this.#records.keys()].filter((name) => !this.#seats.has(name));
        for (const name of old.slice(0, Math.max(0, old.length - OLD_RECORDS))) {
          await deps.journal.commit({ remove: [{ namespace: REPLICAS, key: replicaKey(this.id, name) }] });
          this.#records.delete(name);
        }
      }
    } finally {
      this.#tidying = false;
    }
  }

  #forgetting: Promise<void> | null = null;
  async #forget(): Promise<void> {
    this.#forgetting ??= (async () => {
      const { deps, keys, life } = this.#shared;
      deps.router.remove(this.id);
      await insist(deps, "key", life, () => keys.forget(this.id));
      await this.#saving.catch(() => undefined);
      const { generation } = this.#record.removing ?? this.#record;
      const removed: RemovedRecord = { generation, at: deps.clock.now() };
      await insist(deps, "journal", life, async () => {
        const keysOf = (await deps.journal.entries(REPLICAS, replicaKey(this.id, ""))).map(({ key }) => key);
        await deps.journal.commit({
          put: [{ namespace: REMOVED, key: this.id, value: removed }],
          remove: [{ namespace: DEPLOYMENTS, key: this.id }, ...keysOf.map((key) => ({ namespace: REPLICAS, key }))],
        });
      });
      boundary.removed.publish({ deployment: this.id });
      deps.logs.letGo(this.id);
      this.#shared.room.served(this.id);
      this.#gone.resolve();
    })();
    await this.#forgetting.catch(() => {
      this.#forgetting = null;
    });
  }
}

export const unknownDeployment = (id: string): ConnectorError =>
  new ConnectorError("DEPLOYMENT_UNKNOWN", `This agent has no deployment ${id}.`, {
    fix: "It may be another replica's, not applied yet, or removed.",
  });
