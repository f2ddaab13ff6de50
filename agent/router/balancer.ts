// The replicas of one deployment: which one gets the next request, who waits while there is none, and the end of those
// that were taken out. Knows nothing of HTTP.
import type { Clock, DeploymentId, Timer } from "@sallyport/protocol";
import { MinuteFigures } from "./minute.ts";
import type { ReplicaTarget, Route } from "./router.ts";
import { Upstream, type UpstreamLimits } from "./upstream.ts";

export interface BalancerLimits extends UpstreamLimits {
  /** A replica whose connection failed is passed over so long; doubled each time it fails again, up to `suspectMaxMs`. */
  suspectMs: number;
  suspectMaxMs: number;
  /** Requests that wait, and bytes of their bodies; those beyond are answered at once. */
  heldRequests: number;
  heldBytes: number;
}

/** A request that waits for a replica. */
export interface Waiter {
  readonly heldBytes: number;
  /** The replica that just failed it: taken only when there is no other. */
  readonly avoid: Upstream | null;
  go(upstream: Upstream): void;
  /** The router closes, or the deployment is gone. */
  dismissed(): void;
}

export class Balancer {
  readonly deployment: DeploymentId;
  readonly figures = new MinuteFigures();
  route: Route;
  readonly #clock: Clock;
  readonly #limits: BalancerLimits;
  readonly #suspect: (replica: string) => void;
  #upstreams: Upstream[] = [];
  /** Taken out, with requests under way. */
  readonly #leaving = new Set<Upstream>();
  readonly #waiters = new Set<Waiter>();
  #heldBytes = 0;
  #turn = 0;
  #removed = false;
  #wake: Timer | null = null;
  readonly #drains = new Set<() => void>();

  constructor(route: Route, clock: Clock, limits: BalancerLimits, suspect: (replica: string) => void) {
    this.deployment = route.deployment;
    this.route = route;
    this.#clock = clock;
    this.#limits = limits;
    this.#suspect = suspect;
    this.set(route);
  }

  /** Replicas that stay keep their connections and counts. */
  set(route: Route): void {
    this.route = route;
    const before = new Map(this.#upstreams.map((upstream) => [identity(upstream.target), upstream]));
    this.#upstreams = route.replicas.map((target) => {
      const kept = before.get(identity(target));
      before.delete(identity(target));
      // Told again = held to be ready: it is tried at once.
      if (kept !== undefined) kept.refusedUntil = 0;
      return kept ?? new Upstream(target, this.#limits, this.#clock);
    });
    for (const upstream of before.values()) this.#leave(upstream);
    this.#pump();
  }

  /** Of all that are free: those without a recent failure first, then the least busy, then the next in turn. */
  pick(avoid: Upstream | null): Upstream | null {
    const all = this.#upstreams;
    const now = this.#clock.monotonic();
    let best: Upstream | null = null;
    let bestRank = 0;
    let bestAt = 0;
    for (let k = 0; k < all.length; k++) {
      const at = (this.#turn + k) % all.length;
      const one = all[at]!;
      if (one.inFlight >= this.#limits.connections || one.refusedUntil > now) continue;
      const rank = one === avoid || one.avoidedUntil > now ? 1 : 0;
      if (best === null || rank < bestRank || (rank === bestRank && one.inFlight < best.inFlight)) {
        best = one;
        bestRank = rank;
        bestAt = at;
      }
    }
    if (best !== null) this.#turn = bestAt + 1;
    return best;
  }

  /** False: too many wait already. */
  wait(waiter: Waiter): boolean {
    if (
      this.#removed ||
      this.#waiters.size >= this.#limits.heldRequests ||
      this.#heldBytes + waiter.heldBytes > this.#limits.heldBytes
    )
      return false;
    this.#waiters.add(waiter);
    this.#heldBytes += waiter.heldBytes;
    this.#armWake();
    return true;
  }

  leave(waiter: Waiter): void {
    if (this.#waiters.delete(waiter)) this.#heldBytes -= waiter.heldBytes;
  }

  get hasWork(): boolean {
    return this.#leaving.size > 0;
  }

  /** A request to it is over, well or not. */
  released(upstream: Upstream): void {
    upstream.inFlight -= 1;
    if (upstream.inFlight === 0 && this.#leaving.delete(upstream)) upstream.destroy();
    if (this.#drains.size > 0) for (const check of [...this.#drains]) check();
    if (this.#waiters.size > 0) this.#pump();
  }

  /** It answered: earlier failures do not count any more. */
  answered(upstream: Upstream): void {
    upstream.refusals = 0;
    upstream.avoidedUntil = 0;
  }

  /** No connection could be made. */
  refused(upstream: Upstream): void {
    const now = this.#clock.monotonic();
    if (upstream.refusedUntil <= now) {
      const forMs = Math.min(this.#limits.suspectMaxMs, this.#limits.suspectMs * 2 ** upstream.refusals);
      upstream.refusals = Math.min(16, upstream.refusals + 1);
      upstream.refusedUntil = now + forMs;
      this.#suspect(upstream.target.name);
    }
  }

  /** The connection broke before an answer. It may have been an old one that the replica had closed. */
  broke(upstream: Upstream): void {
    const now = this.#clock.monotonic();
    const told = upstream.avoidedUntil > now;
    upstream.avoidedUntil = now + this.#limits.suspectMs;
    if (!told) this.#suspect(upstream.target.name);
  }

  busy(replica: string): number {
    let count = 0;
    for (const one of this.#upstreams) if (one.target.name === replica) count += one.inFlight;
    for (const one of this.#leaving) if (one.target.name === replica) count += one.inFlight;
    return count;
  }

  drained(replica: string, withinMs: number): Promise<void> {
    return new Promise((resolve) => {
      const check = () => {
        if (this.busy(replica) > 0) return;
        over();
      };
      const over = () => {
        timer.cancel();
        this.#drains.delete(check);
        resolve();
      };
      const timer = this.#clock.after(withinMs, over, { keepAlive: true });
      this.#drains.add(check);
      check();
    });
  }

  /** Takes all replicas out and sends those that wait away. */
  remove(): void {
    this.#removed = true;
    for (const upstream of this.#upstreams) this.#leave(upstream);
    this.#upstreams = [];
    for (const waiter of [...this.#waiters]) {
      this.leave(waiter);
      waiter.dismissed();
    }
    this.#wake?.cancel();
    this.#wake = null;
  }

  /** Ends what is under way, too. */
  destroy(): void {
    this.remove();
    for (const upstream of this.#leaving) upstream.destroy();
  }

  #leave(upstream: Upstream): void {
    if (upstream.inFlight === 0) upstream.destroy();
    else this.#leaving.add(upstream);
  }

  #pump(): void {
    for (const waiter of [...this.#waiters]) {
      const upstream = this.pick(waiter.avoid);
      if (upstream === null) break;
      this.leave(waiter);
      waiter.go(upstream);
    }
    this.#armWake();
  }

  /** When all that are left were refused: the first of them is tried again when its time is over. */
  #armWake(): void {
    if (this.#wake !== null || this.#waiters.size === 0) return;
    const now = this.#clock.monotonic();
    const times = this.#upstreams.map((one) => one.refusedUntil).filter((at) => at > now);
    if (times.length === 0) return;
    this.#wake = this.#clock.after(
      Math.max(1, Math.ceil(Math.min(...times) - now)),
      () => {
        this.#wake = null;
        this.#pump();
      },
      { keepAlive: true },
    );
  }
}

const identity = ({ name, address, token }: ReplicaTarget): string =>
  JSON.stringify([name, address.kind === "socket" ? address.path : [address.host, address.port], token]);
