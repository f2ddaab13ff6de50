// How late the event loop is. One histogram of the runtime, read and emptied each quarter of a minute.
import { monitorEventLoopDelay } from "node:perf_hooks";
import type { AgentStatus, Clock, Timer } from "@sallyport/protocol";

type Delay = NonNullable<NonNullable<AgentStatus["process"]>["loopDelayMs"]>;

/** A timer this often measures its own lateness: rare enough to cost an idle agent nothing that can be seen. */
const RESOLUTION_MS = 50;
const WINDOW_MS = 15_000;

export class LoopDelay {
  readonly #clock: Clock;
  #histogram: ReturnType<typeof monitorEventLoopDelay> | null = null;
  #timer: Timer | null = null;
  #last: Delay | null = null;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  start(): void {
    this.#histogram = monitorEventLoopDelay({ resolution: RESOLUTION_MS });
    this.#histogram.enable();
    this.#arm();
  }

  stop(): void {
    this.#timer?.cancel();
    this.#histogram?.disable();
  }

  /** Of the last whole window; null before the first has passed. */
  get last(): Delay | null {
    return this.#last;
  }

  #arm(): void {
    this.#timer = this.#clock.after(WINDOW_MS, () => {
      const histogram = this.#histogram!;
      if (histogram.count > 0)
        this.#last = {
          p50: late(histogram.percentile(50)),
          p99: late(histogram.percentile(99)),
          max: late(histogram.max),
        };
      histogram.reset();
      this.#arm();
    });
  }
}

/** What was measured, ns, is from one firing to the next. */
const late = (ns: number): number => Math.max(0, Math.round((ns / 1e6 - RESOLUTION_MS) * 100) / 100);
