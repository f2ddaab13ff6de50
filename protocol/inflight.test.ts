// The in-flight window over a path that is computed: one bottleneck with a queue, and a way of a given length.
import t from "tap";
import type { Clock } from "./clock.ts";
import { InFlight, QUEUE_TARGET_MS } from "./inflight.ts";

const FRAME_BYTES = 16 * 1024;

class Path {
  #nowMs = 0;
  readonly #clock: Clock = {
    now: () => this.#nowMs,
    monotonic: () => this.#nowMs,
    after: () => {
      throw new Error("the window arms no timers");
    },
  };
  readonly window = new InFlight(this.#clock);
  /** Of the whole way there and back, without any queue. */
  roundTripMs: number;
  readonly #bytesPerMs: number;
  /** When the bottleneck has sent all that stands before it. */
  #freeAtMs = 0;
  #sentBytes = 0;
  readonly #acks: { atMs: number; bytes: number; echoUs: number }[] = [];
  /** Round trips as they were, with the queue. */
  rttMs = 0;
  smallestWindowBytes = Infinity;

  constructor(bytesPerMs: number, roundTripMs: number) {
    this.#bytesPerMs = bytesPerMs;
    this.roundTripMs = roundTripMs;
  }

  /** A sender that always has more, and `creditBytes` for it. Answers the bytes that arrived. */
  run(forMs: number, creditBytes = Infinity): number {
    const until = this.#nowMs + forMs;
    let arrived = 0;
    for (;;) {
      while (this.window.inFlightBytes < creditBytes && this.window.admits()) {
        this.window.sent(FRAME_BYTES);
        this.#sentBytes += FRAME_BYTES;
        this.#freeAtMs = Math.max(this.#freeAtMs, this.#nowMs) + FRAME_BYTES / this.#bytesPerMs;
        this.#acks.push({
          atMs: this.#freeAtMs + this.roundTripMs,
          bytes: this.#sentBytes,
          echoUs: this.window.timestampUs(),
        });
      }
      const ack = this.#acks[0]!;
      if (ack.atMs > until) break;
      this.#acks.shift();
      this.#nowMs = Math.max(this.#nowMs, ack.atMs);
      this.rttMs = this.#nowMs - ack.echoUs / 1000;
      if (!this.window.acked(ack.bytes, ack.echoUs, 0)) throw new Error("an ACK that cannot be");
      this.smallestWindowBytes = Math.min(this.smallestWindowBytes, this.window.windowBytes);
      arrived += FRAME_BYTES;
    }
    this.#nowMs = until;
    return arrived;
  }
}

// 100 Mbit/s.
const BYTES_PER_MS = 12_500;

t.test("a path is filled, and its queue stays near what is aimed at", async (t) => {
  const path = new Path(BYTES_PER_MS, 20);
  path.run(5_000);
  const share = path.run(4_000) / (4_000 * BYTES_PER_MS);
  t.ok(share > 0.95, `${(share * 100).toFixed(1)} % of the path`);
  t.ok(path.rttMs < 20 + 2 * QUEUE_TARGET_MS, `round trip ${path.rttMs.toFixed(1)} ms`);
  t.ok(Math.abs(path.window.baseMs! - 20) < 3, `base ${path.window.baseMs!} ms`);
});

t.test("a way that became longer is noticed by running the queue empty once, and is filled again", async (t) => {
  const path = new Path(BYTES_PER_MS, 20);
  path.run(5_000);
  path.roundTripMs = 80;
  path.run(1_000);
  t.ok(path.window.baseMs! < 30, "the shortest round trip of before is believed for a while");
  path.smallestWindowBytes = Infinity;
  path.run(15_000);
  t.equal(path.smallestWindowBytes, 64 * 1024, "it was run empty");
  t.ok(path.window.baseMs! >= 79 && path.window.baseMs! < 90, `base ${path.window.baseMs!} ms`);
  const share = path.run(4_000) / (4_000 * BYTES_PER_MS);
  t.ok(share > 0.9, `${(share * 100).toFixed(1)} % of the path`);
  t.ok(path.rttMs < 80 + 2 * QUEUE_TARGET_MS, `round trip ${path.rttMs.toFixed(1)} ms`);
});

t.test(
  "a way that became shorter, behind the queue that the longer one had asked for, is noticed within the same time",
  async (t) => {
    const path = new Path(BYTES_PER_MS, 80);
    path.run(5_000);
    path.roundTripMs = 20;
    path.run(12_000);
    t.ok(Math.abs(path.window.baseMs! - 20) < 8, `base ${path.window.baseMs!} ms`);
    t.ok(path.run(4_000) / (4_000 * BYTES_PER_MS) > 0.95);
    t.ok(path.rttMs < 20 + 2 * QUEUE_TARGET_MS, `round trip ${path.rttMs.toFixed(1)} ms`);
  },
);

t.test("a queue that the streams' credit bounds, and not the window, is shortened all the same", async (t) => {
  // A window that begins by doubling goes past 1 MiB at its last step, and is never what holds anything back.
  for (const roundTripMs of [0.2, 20]) {
    const path = new Path(BYTES_PER_MS, roundTripMs);
    path.run(3_000, 1024 * 1024);
    const share = path.run(4_000, 1024 * 1024) / (4_000 * BYTES_PER_MS);
    t.ok(share > 0.95, `${(share * 100).toFixed(1)} % of the path`);
    t.ok(path.rttMs < roundTripMs + 2 * QUEUE_TARGET_MS, `round trip ${path.rttMs.toFixed(1)} of ${roundTripMs} ms`);
  }
});

t.test("measuring the way costs little", async (t) => {
  const path = new Path(BYTES_PER_MS, 20);
  path.run(5_000);
  path.smallestWindowBytes = Infinity;
  const share = path.run(60_000) / (60_000 * BYTES_PER_MS);
  t.equal(path.smallestWindowBytes, 64 * 1024, "it was measured meanwhile");
  t.ok(share > 0.95, `${(share * 100).toFixed(1)} % of the path`);
});

t.test("an ACK of what was not sent, or of less than before, is refused", async (t) => {
  const window = new Path(BYTES_PER_MS, 1).window;
  window.sent(100);
  t.notOk(window.acked(101, 0, 0));
  t.ok(window.acked(100, 0, 0));
  t.notOk(window.acked(99, 0, 0));
});
