// Who may begin to greet now, who waits a moment for it, and when all others should ask again. Greetings cost work before
// anybody is known, so few are under way at a time; a fleet that comes back at once is let in as fast as that work goes.
import type { Clock, Timer } from "@sallyport/protocol";

/** Shorter than an agent waits for the answer to its dial. */
const WAIT_MS = 2_000;
/** Those who wait: a socket and a request's head each, and nothing that they send is read. */
const WAITING = 2_048;
const WAITING_PER_ADDRESS = 1_024;
/** Those sent away are asked to come back at this part of the rate at which greetings end: what comes anew has room. */
const BOOKED_SHARE = 0.8;
/** Per second. */
const LEAST_RATE = 20;
/** Of one greeting, until there are figures; then what the last ones took, each new one with this weight. */
const FIRST_TOOK_MS = 100;
const WEIGHT = 1 / 64;
const LEAST_RETRY_MS = 1_000;
const MOST_RETRY_MS = 60_000;

export interface DoorLimits {
  /** Greetings under way, in all and from one address. */
  readonly greeting: number;
  readonly greetingPerAddress: number;
}

interface Waiting {
  readonly untilMs: number;
  readonly begin: () => void;
  readonly refuse: (retryAfterMs: number) => void;
}

export class Door {
  readonly #clock: Clock;
  readonly #limits: DoorLimits;
  #greeting = 0;
  readonly #greetingFrom = new Map<string, number>();
  /** By address, each oldest first; addresses take turns. */
  readonly #waiting = new Map<string, Set<Waiting>>();
  #waitingCount = 0;
  #timer: Timer | null = null;
  #tookMs = FIRST_TOOK_MS;
  /** The time given to whoever was sent away last. */
  #bookedMs = 0;

  constructor(clock: Clock, limits: DoorLimits) {
    this.#clock = clock;
    this.#limits = limits;
  }

  /** Whether there is room for one more from there, nobody waiting before it. */
  free(address: string): boolean {
    return this.#hasRoom(address) && !this.#waiting.has(address);
  }

  /** Waits for its turn: one of the two is called later, unless `leave` is before. Null: too many wait. */
  wait(address: string, calls: Pick<Waiting, "begin" | "refuse">): { leave(): void } | null {
    const from = this.#waiting.get(address);
    const ahead = from?.size ?? 0;
    const tooMany = this.#waitingCount >= WAITING || ahead >= WAITING_PER_ADDRESS;
    if (tooMany || (ahead * 1000) / this.#rate > WAIT_MS) return null;
    const one: Waiting = { ...calls, untilMs: this.#clock.monotonic() + WAIT_MS };
    if (from === undefined) this.#waiting.set(address, new Set([one]));
    else from.add(one);
    this.#waitingCount++;
    this.#timer ??= this.#clock.after(WAIT_MS, () => this.#late());
    return { leave: () => void this.#remove(address, one) };
  }

  /** A greeting begins. `done`: it is over, whatever came of it. */
  begun(address: string): { done(): void } {
    const beganMs = this.#clock.monotonic();
    this.#greeting++;
    this.#greetingFrom.set(address, (this.#greetingFrom.get(address) ?? 0) + 1);
    return {
      done: () => {
        this.#greeting--;
        const left = this.#greetingFrom.get(address)! - 1;
        if (left === 0) this.#greetingFrom.delete(address);
        else this.#greetingFrom.set(address, left);
        this.#tookMs += (this.#clock.monotonic() - beganMs - this.#tookMs) * WEIGHT;
        this.#next();
      },
    };
  }

  /** Nobody comes in any more. */
  close(retryAfterMs: number): void {
    this.#timer?.cancel();
    this.#timer = null;
    const all = [...this.#waiting.values()].flatMap((from) => [...from]);
    this.#waiting.clear();
    this.#waitingCount = 0;
    for (const one of all) one.refuse(retryAfterMs);
  }

  #hasRoom(address: string): boolean {
    return (
      this.#greeting < this.#limits.greeting && (this.#greetingFrom.get(address) ?? 0) < this.#limits.greetingPerAddress
    );
  }

  #remove(address: string, one: Waiting): boolean {
    const from = this.#waiting.get(address);
    if (from?.delete(one) !== true) return false;
    this.#waitingCount--;
    if (from.size === 0) this.#waiting.delete(address);
    return true;
  }

  #next(): void {
    for (;;) {
      const found = [...this.#waiting].find(([address]) => this.#hasRoom(address));
      if (found === undefined) return;
      const [address, from] = found;
      const one = from.values().next().value!;
      this.#remove(address, one);
      if (from.size > 0) {
        // To the end: the next place is another address's.
        this.#waiting.delete(address);
        this.#waiting.set(address, from);
      }
      one.begin();
    }
  }

  /** Those whose time is over ask again later. */
  #late(): void {
    const now = this.#clock.monotonic();
    this.#timer = null;
    let nextMs = Infinity;
    for (const [address, from] of this.#waiting) {
      for (const one of from) {
        if (one.untilMs > now) {
          nextMs = Math.min(nextMs, one.untilMs);
          break;
        }
        this.#remove(address, one);
        one.refuse(this.book());
      }
    }
    if (nextMs < Infinity) this.#timer = this.#clock.after(Math.max(1, nextMs - now), () => this.#late());
  }

  /**
   * Greetings per second that one address can have. While there is room that is more than will be; then more come than
   * can be served, each takes longer, and it falls to what there is.
   */
  get #rate(): number {
    return Math.max(LEAST_RATE, (this.#limits.greetingPerAddress * 1000) / this.#tookMs);
  }

  /** When whoever is sent away should ask again, ms from now: one after the other, as fast as greetings end. */
  book(): number {
    const now = this.#clock.monotonic();
    this.#bookedMs = Math.max(this.#bookedMs, now + LEAST_RETRY_MS) + 1000 / (this.#rate * BOOKED_SHARE);
    return Math.min(MOST_RETRY_MS, this.#bookedMs - now);
  }
}
