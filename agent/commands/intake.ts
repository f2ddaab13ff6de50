// Whether new commands are taken: open, paused by the customer, or closed because the agent stops. Pausing never
// touches what runs. Keeping the pause over a restart is the control socket's part.
import { ConnectorError, type Clock, type Timer } from "@sallyport/protocol";

export interface Pause {
  reason: string;
  /** ms since the epoch; null = until resumed. */
  until: number | null;
}

export class Intake {
  readonly #clock: Clock;
  readonly #changed: () => void;
  #pause: Pause | null = null;
  #timer: Timer | null = null;
  #draining = false;

  /** `changed` is told of every change, also of a pause that ran out. */
  constructor(clock: Clock, changed: () => void = () => undefined) {
    this.#clock = clock;
    this.#changed = changed;
  }

  get paused(): Pause | null {
    if (this.#pause !== null && this.#pause.until !== null && this.#pause.until <= this.#clock.now())
      this.#pause = null;
    return this.#pause;
  }

  get draining(): boolean {
    return this.#draining;
  }

  pause(pause: Pause): void {
    this.#timer?.cancel();
    this.#pause = pause;
    // Timers above 2^31 ms fire at once; a pause that long ends when it is next looked at.
    if (pause.until !== null)
      this.#timer = this.#clock.after(
        Math.min(Math.max(0, pause.until - this.#clock.now()), 2 ** 31 - 1),
        this.#changed,
      );
    this.#changed();
  }

  resume(): void {
    this.#timer?.cancel();
    this.#pause = null;
    this.#changed();
  }

  drain(): void {
    this.#timer?.cancel();
    this.#draining = true;
    this.#changed();
  }

  /** Throws AGENT_DRAINING or AGENT_PAUSED. */
  require(): void {
    if (this.#draining) {
      throw new ConnectorError("AGENT_DRAINING", "The agent is stopping and takes no new commands.", {
        fix: "Try again when it is back.",
      });
    }
    const { paused } = this;
    if (paused !== null) {
      const until = paused.until === null ? "until it is resumed" : `until ${new Date(paused.until).toISOString()}`;
      throw new ConnectorError(
        "AGENT_PAUSED",
        `The customer paused the intake of this agent ${until}: ${paused.reason}`,
        {
          fix: "Wait, or ask the customer to run: sallyport-agent resume",
          details: { until: paused.until },
        },
      );
    }
  }
}
