// The backplane over NATS core: one subject a control plane, no streams, nothing kept. What cannot be said at once is not
// said: the sweep of whoever should have heard it comes sooner than a queue would.
import type { NatsConnection } from "@nats-io/nats-core";
import { NATS_PREFIX, type Clock, type Timer } from "@sallyport/protocol";
import { connectNats, type NatsAccess } from "../nats/index.ts";
import { noteSchema, type Backplane, type BackplaneHealth, type Note } from "./backplane.ts";

export interface NatsBackplaneOptions {
  readonly access: NatsAccess;
  /** Of this control plane: no other one on the same servers hears it. */
  readonly incarnation: string;
  readonly process: string;
  readonly clock: Clock;
}

/** Between dials; also what a server that is back waits for at most. */
const AGAIN_MS = 1_000;
const MAX_NOTE_BYTES = 4 * 1024;

export function natsBackplane({ access, incarnation, process, clock }: NatsBackplaneOptions): Backplane {
  const where = access.servers.join(", ");
  const subject = `${access.prefix ?? NATS_PREFIX}.${incarnation.replace(/[^A-Za-z0-9_-]/g, "_")}.note`;
  const listeners = new Set<(note: Note) => void>();
  const healthListeners = new Set<(health: BackplaneHealth) => void>();
  let connection: NatsConnection | null = null;
  let timer: Timer | null = null;
  let closed = false;
  let dialled = false;
  let health: BackplaneHealth = { kind: "nats", connected: false, text: `The NATS server ${where} is being dialled.` };

  function say(connected: boolean): void {
    const changed = connected !== health.connected || !dialled;
    dialled = true;
    health = {
      kind: "nats",
      connected,
      text: connected
        ? `Notes between the processes go over NATS (${where}).`
        : `NATS (${where}) is not reached: what other processes do is noticed within 5 s, not at once. Nothing is lost.`,
    };
    if (changed) for (const listener of healthListeners) listener(health);
  }

  function received(data: Uint8Array): void {
    if (data.length > MAX_NOTE_BYTES) return;
    let value: { from?: unknown; note?: unknown } | null;
    try {
      value = JSON.parse(Buffer.from(data).toString("utf8")) as typeof value;
    } catch {
      return;
    }
    if (value?.from === process) return;
    const note = noteSchema.safeParse(value?.note);
    if (note.success) for (const listener of listeners) listener(note.data);
  }

  async function dial(): Promise<void> {
    timer = null;
    try {
      const made = await connectNats(access, `sallyport-cloud ${process}`);
      if (closed) {
        await made.close();
        return;
      }
      connection = made;
      made.subscribe(subject, {
        callback: (error, message) => {
          if (error === null) received(message.data);
        },
      });
      say(true);
      await made.closed();
    } catch {
      // Said below, and told apart by nobody: the answer to each failure is to dial again.
    }
    connection = null;
    if (closed) return;
    say(false);
    timer = clock.after(AGAIN_MS, () => void dial());
  }
  void dial();

  return {
    announce(note) {
      if (connection === null || connection.isClosed()) return;
      try {
        connection.publish(subject, JSON.stringify({ from: process, note }));
      } catch {
        // It is closing: `closed` tells.
      }
    },
    onNote: (listener) => void listeners.add(listener),
    get health() {
      return health;
    },
    onHealth: (listener) => void healthListeners.add(listener),
    async close() {
      closed = true;
      timer?.cancel();
      listeners.clear();
      await connection?.close();
    },
  };
}
