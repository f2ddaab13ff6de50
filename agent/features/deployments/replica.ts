// One seat: a replica's name and whatever is behind it. It is told to begin, to take requests or not, and to leave; what
// it notices by itself (ready, unready, ended) it says through `changed`. It is never begun twice: each start has a number
// that is in the journal before the engine is asked, and the engine knows the seat's name.
import { ConnectorError, toConnectorError, wait, type DeploymentId, type ReplicaStatus } from "@sallyport/protocol";
import { replicaWorkName, type WorkName, type WorkStatus } from "../../engines/engine.ts";
import type { ReplicaTarget } from "../../router/router.ts";
import { nameOf, type ReplicaRecord } from "./desired.ts";
import { exitOf, problemOfExit, type Problem } from "./exit.ts";
import { EngineWatch, type Ended } from "./engine-watch.ts";
import { Health, type Failing } from "./health.ts";
import { insist, Pause } from "./insist.ts";
import { boundary, launch, SERVING_PORT, type ReplicaParts, type Seated } from "./launch.ts";
import type { Phase, Seat } from "./plan.ts";
import { ReplicaLog } from "./replica-log.ts";

/** What keeps a replica from beginning is often mended elsewhere: it is looked at again at least so often. */
const LAUNCH_RETRY_MS = 60_000;
const CLOSE_MS = 1500;

export interface ReplicaOptions extends ReplicaParts {
  deployment: { id: DeploymentId; name: string };
  spec: Seated["spec"];
  record: ReplicaRecord;
  /** Deployments beside this one. */
  others: () => number;
  write: (record: ReplicaRecord) => Promise<void>;
  /** Something of it changed: what it says of itself, or what is to be done. */
  changed: () => void;
  /** The agent stops: everything is left as it is. */
  life: AbortSignal;
}

export class Replica {
  readonly name: string;
  readonly work: WorkName;
  readonly seat: Seated;
  readonly #o: ReplicaOptions;
  #record: ReplicaRecord;
  #phase: Phase = "down";
  #since: number;
  #routed = false;
  #drained = false;
  #settled = true;
  #adopted = false;
  #retryAt: number | null = null;
  /** Launches in a row that did not even begin. */
  #failures = 0;
  /** Of the last start; kept until it is ready again. */
  #problem: Problem | null = null;
  #step = "";
  #target: ReplicaTarget | null = null;
  #log: ReplicaLog | null = null;
  #life: Promise<void> = Promise.resolve();
  /** The engine feeds its log's files again. */
  #attached: Promise<void> = Promise.resolve();
  #left: Promise<void> | null = null;
  #restarting: Problem | null = null;
  readonly #engine: EngineWatch;
  readonly #health: Health;
  readonly #leaving = new AbortController();

  constructor(options: ReplicaOptions) {
    const { deployment, record, spec } = options;
    this.#o = options;
    this.#record = record;
    this.name = nameOf(record);
    this.work = replicaWorkName(deployment.id, record.revision, record.number);
    this.seat = { deployment: deployment.id, deploymentName: deployment.name, name: this.name, work: this.work, spec };
    this.#since = options.deps.clock.now();
    const { deps, life } = options;
    this.#engine = new EngineWatch({
      deps,
      life,
      engine: spec.engine,
      work: this.work,
      replica: this.name,
      changed: () => this.#o.changed(),
    });
    this.#health = new Health({
      deps,
      target: (signal) => this.#findTarget(signal),
      impatient: () => this.#phase === "starting",
      ready: (forMs) => this.#ready(forMs),
      failing: (failing) => this.#failing(failing),
    });
  }

  get record(): ReplicaRecord {
    return this.#record;
  }
  get routed(): boolean {
    return this.#routed;
  }
  /** Null until it is known where it answers. */
  get target(): ReplicaTarget | null {
    return this.#target;
  }
  get problem(): Problem | null {
    return this.#problem ?? this.#engine.problem;
  }
  /** Its engine does not answer; null when it does. */
  get engineProblem(): Problem | null {
    return this.#problem?.code === "ENGINE_UNREACHABLE" ? this.#problem : this.#engine.problem;
  }
  get phase(): Phase {
    return this.#phase;
  }

  observe(): Seat {
    const { revision, number, crashes } = this.#record;
    return {
      revision,
      number,
      crashes,
      phase: this.#phase,
      routed: this.#routed,
      drained: this.#drained,
      settled: this.#settled,
      retryAt: this.#retryAt,
    };
  }

  status(): ReplicaStatus {
    const { revision, number, starts, lastExit, startedAt } = this.#record;
    const runs = startedAt !== null && this.#phase !== "down";
    const ready = this.#phase === "ready";
    const why = ready ? this.#engine.problem : (this.problem ?? this.#waits());
    return {
      name: this.name,
      revision,
      number,
      state: this.#state(),
      code: why?.code ?? null,
      message: why?.message ?? null,
      since: this.#since,
      startedAt: runs ? startedAt : null,
      starts,
      adopted: runs && this.#adopted,
      lastExit,
    };
  }

  #state(): ReplicaStatus["state"] {
    switch (this.#phase) {
      case "down":
        return this.#record.crashes > 0 && this.#failures === 0 ? "crashed" : "waiting";
      case "starting":
        return this.#record.startedAt === null ? "waiting" : "starting";
      case "stopping":
        return "draining";
      default:
        return this.#phase;
    }
  }

  #waits(): Problem {
    const message =
      this.#phase === "starting" && this.#record.startedAt === null
        ? this.#step
        : this.#phase === "draining" || this.#phase === "stopping"
          ? "It is being taken away."
          : "It does not say that it is ready yet.";
    return { code: "REPLICA_UNREADY", message, fix: null, details: {}, soft: true };
  }

  // -- what it is told

  /** From a seat where nothing runs. */
  begin(): void {
    this.#to("starting");
    this.#retryAt = null;
    this.#adopted = false;
    this.#life = this.#whole(() => this.#begin());
  }

  /** After a restart of the agent: whatever the journal and the engine say of it. */
  adopt(): void {
    this.#settled = false;
    this.#to("starting");
    this.#life = this.#whole(() => this.#adopt());
  }

  route(on: boolean): void {
    this.#routed = on;
    if (on && this.#phase === "draining") this.#to("ready");
  }

  drain(): void {
    this.#routed = false;
    this.#drained = false;
    this.#to("draining");
  }
  /** Nothing is under way at it any more, or its time is over. */
  drainOver(): void {
    if (this.#phase !== "draining") return;
    this.#drained = true;
    this.#o.changed();
  }

  /** Ends it and frees the seat; resolves when nothing of it is left. */
  leave(): Promise<void> {
    this.#left ??= this.#leave();
    return this.#left;
  }

  /** Ends what runs now; the seat stays, so that it comes back. */
  async restart(problem: Problem): Promise<{ stopped: string[] }> {
    this.#restarting = problem;
    return this.#engine.engine.stop(this.work, this.#o.deps.timings.graceMs);
  }

  /** Ask it now whether it is ready, unless that was done a moment ago. */
  probe(): void {
    this.#health.poke();
  }
  /** What was in the way may be gone. */
  retryNow(): void {
    if (this.#phase !== "down" || this.#failures === 0) return;
    this.#retryAt = null;
    this.#o.changed();
  }

  /** After `life` was aborted: resolves when nothing is held any more. What runs goes on. */
  async close(): Promise<void> {
    const { clock } = this.#o.deps;
    // What waits for an engine or a store that does not answer is left to it.
    const over = new AbortController();
    const late = wait(clock, CLOSE_MS, over.signal).catch(() => undefined);
    await Promise.race([this.#life, late]);
    over.abort();
    await this.#log?.close();
  }

  // -- its life

  async #whole(part: () => Promise<void>): Promise<void> {
    const { life, deps } = this.#o;
    try {
      await part();
    } catch (caught) {
      if (life.aborted) return;
      const error = toConnectorError(caught);
      if (error.code === "INTERNAL") deps.log.error({ err: caught, work: this.work }, "a replica failed unexpectedly");
      this.#failed(error);
    }
  }

  #failed(error: ConnectorError): void {
    if (this.#phase === "stopping") return;
    const { timings, clock } = this.#o.deps;
    this.#problem = {
      code: error.code,
      message: error.message,
      fix: error.fix ?? null,
      details: { replica: this.name, ...error.details },
      soft: false,
    };
    const pauseMs = Math.min(
      timings.maxBackoffMs,
      LAUNCH_RETRY_MS,
      timings.backoffMs * 2 ** Math.min(this.#failures++, 20),
    );
    this.#retryAt = clock.monotonic() + pauseMs;
    this.#settled = true;
    this.#to("down");
  }

  async #begin(): Promise<void> {
    const { life, deps, write } = this.#o;
    const signal = AbortSignal.any([life, this.#leaving.signal]);
    const engine = this.#engine.engine;
    // An engine that did not answer may have begun the last start all the same.
    const there = this.#record.starts === 0 ? null : await engine.status(this.work);
    if (there?.state === "running") {
      await this.#reopen();
      return this.#live(there.startedAt);
    }
    const launched = await launch({
      ...this.#o,
      seat: this.seat,
      record: this.#record,
      others: this.#o.others(),
      signal,
      step: (text) => {
        this.#step = text;
        this.#o.changed();
      },
      write: (record) => this.#write(record),
    });
    this.#failures = 0;
    this.#log = launched.log;
    if (launched.status.state === "absent")
      throw new ConnectorError("ENGINE_FAILED", `Engine ${engine.name} did not begin a replica.`);
    this.#record = { ...this.#record, begun: true, startedAt: launched.status.startedAt };
    await insist(deps, "journal", life, () => write(this.#record));
    boundary.begun.publish({ work: this.work, start: this.#record.starts });
    await this.#live(launched.status.startedAt);
  }

  async #adopt(): Promise<void> {
    const { life, deps } = this.#o;
    const { begun, starts, lastExit, address } = this.#record;
    this.#step = "The engine is being asked what runs.";
    const accounted = starts === 0 || lastExit?.start === starts;
    let status: WorkStatus | null = null;
    // While the engine does not answer, a replica whose place is known is asked itself.
    if (begun && !accounted && address !== null)
      status = await this.#engine.ask((engine) => engine.status(this.work)).catch(() => null);
    else
      status = await this.#engine.insist(
        (engine) => engine.status(this.work),
        AbortSignal.any([life, this.#leaving.signal]),
      );
    if (status === null || status.state === "running") {
      this.#adopted = true;
      await this.#reopen();
      return this.#live(status?.startedAt ?? this.#record.startedAt ?? deps.clock.now());
    }
    if (accounted || (status.state === "absent" && !begun)) {
      if (status.state === "exited") await this.#engine.insist((engine) => engine.forget(this.work));
      this.#settled = true;
      return this.#to("down");
    }
    await this.#reopen();
    await this.#over(status);
  }

  /** Goes on with the log of what was begun earlier. */
  async #reopen(): Promise<void> {
    const { deps, life, keys } = this.#o;
    const { starts } = this.#record;
    await this.#log?.close();
    const log = await insist(deps, "log", life, () => ReplicaLog.open(deps, this.seat.deployment, this.name, starts));
    this.#log = log;
    const attached = Promise.withResolvers<void>();
    this.#attached = attached.promise;
    log.read(Object.values(this.seat.spec.secrets), life, async (stop) => {
      await insist(deps, "key", life, () => keys.token(this.work));
      // An engine that knows nothing of it any more: then what was written is all there is.
      await insist(deps, `log of ${this.work}`, stop, () => this.#engine.engine.attach(this.work, log.files)).catch(
        () => undefined,
      );
      attached.resolve();
    });
  }

  /** While it runs: until it has ended. */
  async #live(startedAt: number): Promise<void> {
    const { life } = this.#o;
    this.#record = { ...this.#record, begun: true, startedAt };
    this.#changed();
    const over = new AbortController();
    const signal = AbortSignal.any([life, over.signal]);
    const health = this.#health.watch(signal);
    health.catch(() => undefined);
    try {
      const ended = await this.#engine.end();
      over.abort();
      await health.catch(() => undefined);
      await this.#over(ended);
    } finally {
      over.abort();
    }
  }

  async #findTarget(signal: AbortSignal): Promise<ReplicaTarget | null> {
    if (this.#target !== null) return this.#target;
    const { keys, places } = this.#o;
    let { address } = this.#record;
    const engine = this.#engine.engine;
    if (engine.isolated) {
      const found = await engine.address(this.work, SERVING_PORT).catch(() => null);
      if (found !== null) address = { kind: "tcp", ...found };
    } else address = { kind: "socket", path: places.socket(this.work) };
    signal.throwIfAborted();
    if (address === null) return null;
    const token = await keys.token(this.work);
    if (JSON.stringify(address) !== JSON.stringify(this.#record.address))
      await this.#write({ ...this.#record, address });
    this.#target = { name: this.name, address, token };
    return this.#target;
  }

  async #ready(forMs: number): Promise<void> {
    if (forMs >= this.#o.deps.timings.healthyMs && this.#record.crashes > 0)
      await this.#write({ ...this.#record, crashes: 0 });
    this.#settled = true;
    if (this.#phase !== "starting" && this.#phase !== "unready") return;
    this.#problem = null;
    this.#to("ready");
  }

  async #failing({ times, forMs, sinceBeginMs, status }: Failing): Promise<void> {
    const { timings } = this.#o.deps;
    if (times < timings.unreadyAfter) return;
    this.#settled = true;
    if (this.#phase === "ready")
      this.#unready(status === null ? "does not answer" : `answers ${status} when it is asked whether it is ready`);
    else if (times === timings.unreadyAfter) this.#o.changed();
    const late = this.#phase === "starting" && sinceBeginMs > timings.startLimitMs;
    // By time, not by count: whoever suspects it has it asked more often.
    const deaf = this.#phase === "unready" && forMs >= timings.restartAfter * timings.probeMs;
    if (!late && !deaf) return;
    const why = late
      ? `was not ready within ${Math.round(timings.startLimitMs / 1000)} s`
      : `did not answer for ${Math.round(forMs / 1000)} s`;
    // An engine that does not answer cannot stop it either: the next look tries again.
    await this.restart({ ...this.#unreadyBecause(why), soft: false }).catch(() => undefined);
  }

  #unready(why: string): void {
    this.#problem = this.#unreadyBecause(why);
    this.#to("unready");
  }
  #unreadyBecause(why: string): Problem {
    const { starts } = this.#record;
    return {
      code: "REPLICA_UNREADY",
      message: `Replica ${this.name} ${why}.`,
      fix: "It is started again by itself when that goes on; its log may say why.",
      details: { replica: this.name, start: starts, logSeq: this.#log?.lastSeq ?? 0 },
      soft: true,
    };
  }

  /** It has ended: everything of that start is written down before its name is free again. */
  async #over(ended: Ended): Promise<void> {
    const { deps, places } = this.#o;
    const { timings, clock } = deps;
    const taken = this.#phase === "stopping" || this.#phase === "draining";
    this.#routed = false;
    this.#target = null;
    // Down from now on, and not begun again before the rest is done.
    this.#retryAt = Number.POSITIVE_INFINITY;
    this.#to("down");
    if (ended.state === "exited") await this.#engine.allWritten(this.#attached);
    const { logSeq, lastWords } = (await this.#log?.finish()) ?? { logSeq: 0, lastWords: null };
    this.#log = null;
    const exit = exitOf(ended, this.#record, logSeq, clock.now());
    const crashes = taken ? this.#record.crashes : this.#record.crashes + 1;
    await this.#write({ ...this.#record, begun: false, startedAt: null, address: null, lastExit: exit, crashes });
    boundary.ended.publish({ work: this.work, start: exit.start });
    await this.#engine.insist((engine) => engine.forget(this.work));
    await places
      .remove(this.work)
      .catch((error: unknown) =>
        deps.log.warn({ err: error, work: this.work }, "a replica's folder could not be removed"),
      );
    this.#settled = true;
    this.#drained = false;
    if (this.phase === "stopping") return;
    const pauseMs = Math.min(timings.maxBackoffMs, timings.backoffMs * 2 ** Math.min(Math.max(0, crashes - 1), 20));
    this.#retryAt = clock.monotonic() + pauseMs;
    const memoryBytes = this.#engine.engine.isolated ? this.seat.spec.resources.memoryBytes : null;
    this.#problem = taken
      ? null
      : problemOfExit(this.name, exit, crashes, lastWords, this.#restarting, pauseMs, memoryBytes);
    this.#restarting = null;
    this.#since = clock.now();
    this.#o.changed();
  }

  async #leave(): Promise<void> {
    const { deps, life, places } = this.#o;
    this.#routed = false;
    this.#to("stopping");
    this.#leaving.abort(new ConnectorError("CANCELLED", "The replica is not wanted any more."));
    let over = false;
    const ended = this.#life.then(() => {
      over = true;
    });
    // Its life ends with its work; a launch that is on its way ends by itself, or with work that is stopped then.
    while (!over) {
      if (this.#record.starts > 0) await this.#engine.insist((engine) => engine.stop(this.work, deps.timings.graceMs));
      if (!over) await Promise.race([ended, new Pause().of(deps, deps.timings.retryMs, life)]);
    }
    // What an agent before this one may have left.
    await this.#engine.insist(async (engine) => {
      if ((await engine.status(this.work)).state === "absent") return;
      await engine.stop(this.work, deps.timings.graceMs);
      await engine.forget(this.work);
    });
    if (this.#log !== null) {
      await this.#log.finish();
      this.#log = null;
    }
    await places.remove(this.work).catch(() => undefined);
    await this.#write({ ...this.#record, seat: false, begun: false, startedAt: null, address: null });
  }

  async #write(record: ReplicaRecord): Promise<void> {
    const { deps, life, write } = this.#o;
    await insist(deps, "journal", life, () => write(record));
    this.#record = record;
  }

  #to(phase: Phase): void {
    if (this.#phase === "stopping" || this.#phase === phase) return;
    const before = this.#state();
    this.#phase = phase;
    if (this.#state() !== before) this.#since = this.#o.deps.clock.now();
    this.#o.changed();
  }
  #changed(): void {
    this.#o.changed();
  }
}
