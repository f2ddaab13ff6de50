// Asks one running replica again and again whether it is ready. What follows from the answers, its replica decides.
import type { ReplicaTarget } from "../../router/router.ts";
import type { Deps } from "./deps.ts";
import { Pause } from "./insist.ts";

const READY_PATH = "/v2/health/ready";

export interface Failing {
  /** Answers in a row that were not a yes. */
  times: number;
  forMs: number;
  /** Since the replica is looked at. */
  sinceBeginMs: number;
  /** What it answered; null = nothing. */
  status: number | null;
}

export interface HealthOptions {
  deps: Deps;
  /** Null when it is not known yet where it answers. */
  target: (signal: AbortSignal) => Promise<ReplicaTarget | null>;
  /** Asked more often. */
  impatient: () => boolean;
  ready: (forMs: number) => Promise<void>;
  failing: (failing: Failing) => Promise<void>;
}

export class Health {
  readonly #o: HealthOptions;
  readonly #pause = new Pause();
  #askedAt = Number.NEGATIVE_INFINITY;

  constructor(options: HealthOptions) {
    this.#o = options;
  }

  /** Asks now, unless that was done a moment ago. */
  poke(): void {
    const { clock, timings } = this.#o.deps;
    if (clock.monotonic() - this.#askedAt >= timings.startProbeMs) this.#pause.poke();
  }

  /** Ends when the signal aborts, with its reason. */
  async watch(signal: AbortSignal): Promise<never> {
    const { deps, target, impatient, ready, failing } = this.#o;
    const { clock, router, timings } = deps;
    const began = clock.monotonic();
    let times = 0;
    let failingSince = began;
    let readySince: number | null = null;
    for (;;) {
      this.#askedAt = clock.monotonic();
      const place = await target(signal).catch(() => null);
      const answer =
        place === null ? null : await router.probe(place, READY_PATH, timings.probeTimeoutMs).catch(() => null);
      signal.throwIfAborted();
      const now = clock.monotonic();
      if (answer?.status === 200) {
        times = 0;
        readySince ??= now;
        await ready(now - readySince);
      } else {
        if (times++ === 0) failingSince = this.#askedAt;
        readySince = null;
        await failing({ times, forMs: now - failingSince, sinceBeginMs: now - began, status: answer?.status ?? null });
      }
      await this.#pause.of(deps, impatient() ? timings.startProbeMs : timings.probeMs, signal);
    }
  }
}
