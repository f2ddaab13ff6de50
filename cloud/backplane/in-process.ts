// The backplane without a server: for a process that is alone, and for several in one program, as tests have them.
import type { Backplane, BackplaneHealth, Note } from "./backplane.ts";

/** Those who hear each other. */
export type Hub = Set<(note: Note) => void>;

/** `hub` absent: there is nobody else. */
export function inProcessBackplane(hub?: Hub): Backplane {
  const listeners = new Set<(note: Note) => void>();
  const deliver = (note: Note): void => {
    for (const listener of listeners) listener(note);
  };
  hub?.add(deliver);
  const health: BackplaneHealth =
    hub === undefined
      ? { kind: "alone", connected: true, text: "This process is alone." }
      : { kind: "in-process", connected: true, text: "The processes tell each other within one program." };
  return {
    announce(note) {
      // As over a network: never within the call.
      for (const other of hub ?? [])
        if (other !== deliver) queueMicrotask(() => hub?.has(other) === true && other(note));
    },
    onNote: (listener) => void listeners.add(listener),
    health,
    onHealth() {},
    async close() {
      hub?.delete(deliver);
      listeners.clear();
    },
  };
}

/** Several processes with nothing between them but SQL and their links: they find out by the sweep. */
export const sweepBackplane = (): Backplane => ({
  announce() {},
  onNote() {},
  health: {
    kind: "sweep",
    connected: false,
    text: "No NATS server is configured: what other processes do is noticed within 5 s.",
  },
  onHealth() {},
  async close() {},
});
