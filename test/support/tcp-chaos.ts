// Breaks the connections of a TCP proxy again and again: cuts most of all, now and then silence, delay or a link that is
// refused for a while. Choices come from `random`, so a run can be repeated as far as time allows.
import type { Teardown } from "./launcher.ts";
import type { TcpProxy } from "./tcp-proxy.ts";

export interface ChaosOptions {
  /** Uniform in [0, 1). */
  random: () => number;
  /** From one act to the next, uniform between these. */
  everyMs: readonly [number, number];
}

export interface TcpChaos {
  /** How often each was done. */
  readonly acts: Readonly<Record<"cut" | "stall" | "swallow" | "delay" | "refuse", number>>;
  /** No further acts; everything flows again. What was cut stays cut. */
  calm(): void;
}

export function startTcpChaos(
  t: Teardown,
  proxy: TcpProxy,
  { random, everyMs: [least, most] }: ChaosOptions,
): TcpChaos {
  const acts = { cut: 0, stall: 0, swallow: 0, delay: 0, refuse: 0 };
  const timers = new Set<NodeJS.Timeout>();
  const after = (ms: number, act: () => void): void => {
    const timer = setTimeout(() => {
      timers.delete(timer);
      act();
    }, ms);
    timers.add(timer);
  };
  const flow = (): void => {
    proxy.setMode("flow");
    proxy.setDelay(0);
    proxy.refuse(false);
  };
  const act = (): void => {
    const chosen = random();
    const forMs = 100 + random() * 900;
    if (chosen < 0.6) {
      acts.cut++;
      proxy.cut();
    } else if (chosen < 0.7) {
      // One way alone: the other end goes on talking.
      acts.stall++;
      proxy.setMode("stall", [random() < 0.5 ? "up" : "down"]);
      after(forMs, flow);
    } else if (chosen < 0.8) {
      // What was swallowed leaves a hole, which no frame survives: the connection ends with it.
      acts.swallow++;
      proxy.setMode("swallow", [random() < 0.5 ? "up" : "down"]);
      after(forMs, () => {
        proxy.cut();
        flow();
      });
    } else if (chosen < 0.9) {
      acts.delay++;
      proxy.setDelay(random() * 100);
      after(forMs, flow);
    } else {
      acts.refuse++;
      proxy.refuse(true);
      proxy.cut();
      after(forMs, flow);
    }
    after(least + random() * (most - least), act);
  };
  after(least + random() * (most - least), act);
  const calm = (): void => {
    for (const timer of timers) clearTimeout(timer);
    timers.clear();
    flow();
  };
  t.teardown(calm);
  return { acts, calm };
}
