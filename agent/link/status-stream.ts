// Tells the control plane how this agent is: a line on every change, gathered for a moment, and at least each 15 s.
import { ndjsonLine, type Clock, type LinkSession, type Timer } from "@sallyport/protocol";
import type { HelloSource } from "./link.ts";

const EVERY_MS = 15_000;
/** Changes within this time go as one line. */
const GATHER_MS = 100;

export interface StatusStream {
  changed(): void;
  stop(): void;
}

export function sendStatus(session: LinkSession, source: HelloSource, clock: Clock): StatusStream {
  const stream = session.open({ type: "status" }, { lane: "interactive", background: true });
  let timer: Timer | null = null;
  let gathering = false;
  let stopped = false;
  const arm = (delayMs: number) => {
    timer?.cancel();
    if (!stopped) timer = clock.after(delayMs, send);
  };
  const send = () => {
    if (stopped) return;
    gathering = false;
    // A slow link gets the newest when the last one has left, never a queue of old ones.
    stream.write(ndjsonLine(source.status())).then(
      () => {
        if (!gathering) arm(EVERY_MS);
      },
      () => stop(),
    );
  };
  const stop = () => {
    if (stopped) return;
    stopped = true;
    timer?.cancel();
    stream.end().catch(() => {});
  };
  send();
  return {
    changed() {
      if (stopped || gathering) return;
      gathering = true;
      arm(GATHER_MS);
    },
    stop,
  };
}
