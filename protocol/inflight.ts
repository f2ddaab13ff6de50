// How much DATA may be on its way over one link in one direction: a window steered by delay.
//
// The window is what the path itself holds (its rate times its shortest round trip) and a small standing queue on top, so
// the path never runs dry and a small frame never waits long behind bulk. The queue is at most 25 ms of the rate and at
// most 1 MiB: on a fast path 25 ms would be megabytes, which buy nothing and make commands wait.
import type { Clock } from "./clock.ts";

/** Standing queue that is aimed at. */
export const QUEUE_TARGET_MS = 25;
/**
 * On a long path the queue may be this part of the round trip: there a host that is late by more than 25 ms, as busy ones
 * are, would be taken for a queue, and the window shrink below what the path carries.
 */
const LONG_PATH_QUEUE = 4;
const QUEUE_MAX_BYTES = 1024 * 1024;
const START_BYTES = 256 * 1024;
const MIN_BYTES = 64 * 1024;
const MAX_BYTES = 16 * 1024 * 1024;
/** The shortest round trip seen is believed for so long; then the queue is let run empty once to measure it anew. */
const BASE_WINDOW_MS = 10_000;

const PROBING = { no: 0, draining: 1, measuring: 2 } as const;

export class InFlight {
  readonly #clock: Clock;
  #windowBytes = START_BYTES;
  #sentBytes = 0;
  #ackedBytes = 0;

  #baseMs = Infinity;
  #baseAtMs = 0;
  /** Doubling each round trip until the queue is first felt. */
  #starting = true;

  // One epoch is about one round trip: from the sending of a byte to the ACK that covers it.
  #epochEnd = 0;
  /** Only the second half of an epoch counts: its beginning still saw the queue of before. */
  #epochHalf = 0;
  #epochMinMs = Infinity;
  /** Did the window hold anything back in this epoch? If not, something else bounds what is on its way: a stream's credit. */
  #limited = false;
  /** On its way when this epoch began: what the path took in one round trip. */
  #epochBytes = 0;

  #probing: (typeof PROBING)[keyof typeof PROBING] = PROBING.no;
  #probeEnd = 0;
  #probeMinMs = Infinity;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  get windowBytes(): number {
    return this.#probing === PROBING.no ? this.#windowBytes : MIN_BYTES;
  }

  get inFlightBytes(): number {
    return this.#sentBytes - this.#ackedBytes;
  }

  /** Shortest round trip of the window, ms; null before the first ACK. */
  get baseMs(): number | null {
    return this.#baseMs === Infinity ? null : this.#baseMs;
  }

  /** May one more DATA frame leave? Marks the window as the limit when not. */
  admits(): boolean {
    if (this.#sentBytes - this.#ackedBytes < this.windowBytes) return true;
    this.#limited = true;
    return false;
  }

  /** The clock as it travels: µs modulo 2^32. */
  timestampUs(): number {
    return Math.floor(this.#clock.monotonic() * 1000) % 0x1_0000_0000;
  }

  sent(bytes: number): void {
    if (this.#sentBytes === this.#ackedBytes) {
      // After idling nothing is known of the next round trip: begin a fresh epoch.
      this.#epochEnd = this.#sentBytes + bytes;
      this.#epochHalf = this.#sentBytes;
      this.#epochMinMs = Infinity;
      this.#limited = false;
      this.#epochBytes = 0;
    }
    this.#sentBytes += bytes;
  }

  /** `bytes` received by the peer in all, the timestamp it echoes, and how long it held that back. False: an impossible ACK. */
  acked(bytes: number, echoUs: number, holdUs: number): boolean {
    if (bytes < this.#ackedBytes || bytes > this.#sentBytes) return false;
    this.#ackedBytes = bytes;
    const elapsedUs = (this.timestampUs() - echoUs + 0x1_0000_0000) % 0x1_0000_0000;
    const rttMs = Math.max(0.01, (elapsedUs - holdUs) / 1000);
    const now = this.#clock.monotonic();

    if (rttMs <= this.#baseMs) {
      this.#baseMs = rttMs;
      this.#baseAtMs = now;
    }
    if (this.#ackedBytes >= this.#epochHalf) this.#epochMinMs = Math.min(this.#epochMinMs, rttMs);

    if (this.#probing === PROBING.no) {
      if (now - this.#baseAtMs > BASE_WINDOW_MS) this.#probing = PROBING.draining;
    } else if (this.#probing === PROBING.draining) {
      if (this.inFlightBytes <= MIN_BYTES) {
        this.#probing = PROBING.measuring;
        this.#probeEnd = this.#sentBytes + MIN_BYTES / 2;
        this.#probeMinMs = Infinity;
      }
    } else {
      this.#probeMinMs = Math.min(this.#probeMinMs, rttMs);
      if (this.#ackedBytes >= this.#probeEnd || this.inFlightBytes === 0) {
        this.#baseMs = this.#probeMinMs;
        this.#baseAtMs = now;
        this.#probing = PROBING.no;
        this.#beginEpoch();
      }
      return true;
    }

    if (this.#ackedBytes >= this.#epochEnd) {
      if (this.#limited) this.#steer(this.#epochMinMs, this.#windowBytes);
      else this.#shrink(this.#epochMinMs);
      this.#beginEpoch();
    }
    return true;
  }

  #beginEpoch(): void {
    this.#epochEnd = this.#sentBytes;
    this.#epochHalf = (this.#ackedBytes + this.#sentBytes) / 2;
    this.#epochMinMs = Infinity;
    this.#limited = this.inFlightBytes >= this.#windowBytes;
    this.#epochBytes = this.inFlightBytes;
  }

  /**
   * The window held nothing back, so nobody knows whether it could be larger; but what was on its way may stand in a queue,
   * for which less is enough. Otherwise a window that was once too large would leave the queue to the streams' credit.
   */
  #shrink(rttMs: number): void {
    const targetMs = Math.max(QUEUE_TARGET_MS, this.#baseMs / LONG_PATH_QUEUE);
    if (this.#epochBytes > MIN_BYTES && rttMs - this.#baseMs > targetMs) {
      this.#windowBytes = Math.min(this.#windowBytes, Math.max(MIN_BYTES, this.#epochBytes));
      this.#steer(rttMs, this.#windowBytes);
    }
  }

  /** `heldBytes`: on the way for one round trip of `rttMs`. */
  #steer(rttMs: number, heldBytes: number): void {
    const bytesPerMs = heldBytes / rttMs;
    const queueMs = rttMs - this.#baseMs;
    const targetMs = Math.max(QUEUE_TARGET_MS, this.#baseMs / LONG_PATH_QUEUE);
    const queueTargetBytes = Math.min(bytesPerMs * targetMs, QUEUE_MAX_BYTES);
    if (this.#starting && queueMs > targetMs / 4 && queueMs * bytesPerMs > queueTargetBytes / 4) this.#starting = false;
    const wanted = this.#starting ? this.#windowBytes * 2 : bytesPerMs * this.#baseMs + queueTargetBytes;
    // At most doubled or halved per round trip: one odd sample does not starve the link.
    const next = Math.min(Math.max(wanted, this.#windowBytes / 2), this.#windowBytes * 2);
    this.#windowBytes = Math.min(MAX_BYTES, Math.max(MIN_BYTES, Math.round(next)));
  }
}
