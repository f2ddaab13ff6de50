// The control plane's wall clock, which somebody's hand or a time server may set at any moment, made fit to judge by:
// expiries, lifetimes and "since when" hold as durations while the process lives. It starts as the machine's clock says
// and goes on by the monotonic one; a jump of the machine's clock is told, and followed so slowly that no lifetime is
// wrong by more than one part in a hundred. The next start takes the machine's clock as it is.
import type { Clock } from "@sallyport/protocol";

/** Most that is made up per ms: below what anybody notices in a lifetime, above what clocks drift by. */
const FOLLOW = 0.01;
/** A difference that grows by so much at once is a jump. */
const JUMP_MS = 5_000;
/** Machines set their clock by the network in their first minutes: what jumps then was wrong before. */
const BOOTING_MS = 10 * 60_000;
/** How often, while there is a difference, the machine is asked whether it slept. */
const ASK_MS = 1_000;

export interface SteadyClockOptions {
  machine: Clock;
  /** Ms since the machine's start, sleep included. */
  uptimeMs: () => number;
  /** The machine's clock is `byMs` ahead of this one (behind: negative). */
  onJump: (byMs: number) => void;
}

export function steadyClock({ machine, uptimeMs, onJump }: SteadyClockOptions): Clock {
  let atMs = machine.monotonic();
  let now = machine.now();
  /** Machine's clock less this one, as last told. */
  let toldMs = 0;
  let askedAtMs = atMs;
  /** `uptimeMs` less the monotonic clock: it grows while the machine sleeps. */
  let sleptMs = uptimeMs() - atMs;

  function read(): number {
    const monotonic = machine.monotonic();
    const passedMs = monotonic - atMs;
    atMs = monotonic;
    now += passedMs;
    let aheadMs = machine.now() - now;
    if (Math.abs(aheadMs) > ASK_MS && monotonic - askedAtMs >= (Math.abs(aheadMs - toldMs) > ASK_MS ? 0 : ASK_MS)) {
      askedAtMs = monotonic;
      const uptime = uptimeMs();
      const slept = uptime - monotonic - sleptMs;
      if (slept > ASK_MS) {
        sleptMs += slept;
        now += slept;
        aheadMs -= slept;
      }
      if (Math.abs(aheadMs - toldMs) > JUMP_MS) {
        if (uptime < BOOTING_MS) {
          now += aheadMs;
          aheadMs = 0;
        } else onJump(aheadMs);
        toldMs = aheadMs;
      }
    }
    const step = Math.max(-FOLLOW * passedMs, Math.min(FOLLOW * passedMs, aheadMs));
    now += step;
    if (Math.abs(toldMs) > Math.abs(aheadMs)) toldMs = aheadMs;
    return now;
  }

  return {
    now: () => Math.floor(read()),
    monotonic: () => machine.monotonic(),
    after: (delayMs, fn, options) => machine.after(delayMs, fn, options),
  };
}
