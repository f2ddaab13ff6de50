// A proxy that breaks TCP connections on command: cut, stall, swallow, delay with jitter, drip, flip a bit; all of them
// or one. Loopback only.
import { connect, createServer } from "node:net";
import type { AddressInfo, Socket } from "node:net";
import type { Teardown } from "./launcher.ts";

/**
 * What happens to bytes that arrive.
 * - flow: handed on.
 * - stall: not read, so the sender meets a full window. Both peers see a silent, open connection.
 * - swallow: read and thrown away, so the sender believes that they are on their way.
 */
export type Mode = "flow" | "stall" | "swallow";

/** up: client to target. down: target to client. */
export type Direction = "up" | "down";

/** Acts in the order of arrival, each not before its time. */
class DelayLine {
  readonly #waiting: { readonly dueMs: number; readonly act: () => void }[] = [];
  #timer: NodeJS.Timeout | undefined;

  push(delayMs: number, act: () => void): void {
    if (delayMs === 0 && this.#waiting.length === 0) return act();
    this.#waiting.push({ dueMs: performance.now() + delayMs, act });
    this.#arm();
  }

  #arm(): void {
    const first = this.#waiting[0];
    if (!first || this.#timer) return;
    this.#timer = setTimeout(
      () => {
        this.#timer = undefined;
        // Timers may fire a little early by performance.now(): half a millisecond is on time.
        while (this.#waiting[0] && this.#waiting[0].dueMs <= performance.now() + 0.5) this.#waiting.shift()?.act();
        this.#arm();
      },
      Math.max(0, first.dueMs - performance.now()),
    );
    this.#timer.unref();
  }
}

/** One client's connection and its other half. */
export class ProxiedConnection {
  /** Bytes that arrived from the client and from the target, whether handed on or not. */
  readonly bytes: Record<Direction, number> = { up: 0, down: 0 };
  readonly #ends: Record<Direction, { readonly from: Socket; readonly to: Socket; mode: Mode }>;
  readonly #delayMs: () => number;
  readonly #rate: () => number | null;
  /** Directions whose next byte is handed on wrong. */
  readonly #flips = new Set<Direction>();

  constructor(client: Socket, target: Socket, delayMs: () => number, rate: () => number | null) {
    this.#delayMs = delayMs;
    this.#rate = rate;
    this.#ends = { up: { from: client, to: target, mode: "flow" }, down: { from: target, to: client, mode: "flow" } };
    for (const direction of ["up", "down"] as const) this.#carry(direction);
  }

  /** One bit of the next bytes of that way arrives wrong. */
  flip(direction: Direction): void {
    this.#flips.add(direction);
  }

  setMode(mode: Mode, directions: readonly Direction[] = ["up", "down"]): void {
    for (const direction of directions) {
      const end = this.#ends[direction];
      end.mode = mode;
      if (mode === "stall") end.from.pause();
      else end.from.resume();
    }
  }

  /** Both halves end at once, with a reset. */
  cut(): void {
    for (const { from } of Object.values(this.#ends)) {
      if (from.connecting) from.destroy();
      else from.resetAndDestroy();
    }
  }

  #carry(direction: Direction): void {
    const end = this.#ends[direction];
    const { from, to } = end;
    const line = new DelayLine();
    let full = false;
    from.setNoDelay(true);
    from.on("data", (bytes: Buffer) => {
      this.bytes[direction] += bytes.length;
      if (end.mode === "swallow") return;
      if (this.#flips.delete(direction)) bytes[bytes.length >>> 1]! ^= 0x10;
      const rate = this.#rate();
      if (rate !== null) return drip(bytes, rate);
      line.push(this.#delayMs(), () => {
        if (!to.writable || to.write(bytes) || full) return;
        full = true;
        from.pause();
        to.once("drain", () => {
          full = false;
          if (end.mode !== "stall") from.resume();
        });
      });
    });
    /** Twenty pieces a second; nothing more is read until the last has left, or the rate has gone. */
    const drip = (bytes: Buffer, rate: number): void => {
      from.pause();
      const piece = Math.max(1, Math.round(rate / 20));
      let at = 0;
      const timer = setInterval(() => {
        const until = this.#rate() === null ? bytes.length : at + piece;
        if (to.writable) to.write(bytes.subarray(at, until));
        at = until;
        if (at < bytes.length && to.writable) return;
        clearInterval(timer);
        if (end.mode !== "stall") from.resume();
      }, 50);
    };
    from.on("end", () => {
      if (end.mode === "flow") line.push(this.#delayMs(), () => to.end());
    });
    from.on("error", () => to.destroy());
    from.on("close", () => {
      // A peer behind a stalled or swallowing way does not learn that the other one is gone.
      if (end.mode === "flow") line.push(this.#delayMs(), () => to.destroy());
    });
  }
}

export interface TcpProxy {
  readonly host: string;
  readonly port: number;
  /** Those that are open now, oldest first. */
  readonly connections: ReadonlySet<ProxiedConnection>;
  /** How many there were since the start. */
  readonly accepted: number;
  /** Resets every open connection; new ones are still accepted. */
  cut(): void;
  /** For the open connections and those to come. */
  setMode(mode: Mode, directions?: readonly Direction[]): void;
  /**
   * Added to each chunk's way in each direction, with up to `jitterMs` more; order and throughput are kept. Chunks already
   * on their way keep their time.
   */
  setDelay(delayMs: number, jitterMs?: number): void;
  /** Bytes a second in each direction; null: as they come. */
  setRate(bytesPerSecond: number | null): void;
  /** Where connections to come lead; those open stay where they are. */
  retarget(port: number): void;
  /** While set, new connections are reset at once. */
  refuse(refused: boolean): void;
  close(): Promise<void>;
}

/** Listens on a free loopback port, or the one given, and passes each connection to `target`. */
export async function startTcpProxy(
  t: Teardown,
  target: { host?: string; port: number },
  listenPort = 0,
): Promise<TcpProxy> {
  const connections = new Set<ProxiedConnection>();
  let accepted = 0;
  let refused = false;
  let delayMs = 0;
  let jitterMs = 0;
  let rate: number | null = null;
  let port = target.port;
  let modes: { mode: Mode; directions: readonly Direction[] | undefined }[] = [];

  // Half-open, so that one direction may end before the other, as peers that shut down in turn expect.
  const server = createServer({ allowHalfOpen: true }, (client) => {
    accepted += 1;
    if (refused) return client.resetAndDestroy();
    const upstream = connect({ host: target.host ?? "127.0.0.1", port, allowHalfOpen: true });
    const connection = new ProxiedConnection(
      client,
      upstream,
      () => delayMs + Math.random() * jitterMs,
      () => rate,
    );
    for (const { mode, directions } of modes) connection.setMode(mode, directions);
    connections.add(connection);
    let open = 2;
    for (const socket of [client, upstream]) {
      socket.on("close", () => {
        open -= 1;
        if (open === 0) connections.delete(connection);
      });
    }
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(listenPort, "127.0.0.1", resolve);
  });

  const cut = () => {
    for (const connection of connections) connection.cut();
  };
  const close = async () => {
    cut();
    if (server.listening) await new Promise((resolve) => server.close(resolve));
  };
  t.teardown(close);
  return {
    host: "127.0.0.1",
    port: (server.address() as AddressInfo).port,
    connections,
    get accepted() {
      return accepted;
    },
    cut,
    setMode(mode, directions) {
      modes = directions === undefined ? [{ mode, directions }] : [...modes, { mode, directions }];
      for (const connection of connections) connection.setMode(mode, directions);
    },
    setDelay(ms, jitter = 0) {
      delayMs = ms;
      jitterMs = jitter;
    },
    setRate(bytesPerSecond) {
      rate = bytesPerSecond;
    },
    retarget(next) {
      port = next;
    },
    refuse(value) {
      refused = value;
    },
    close,
  };
}
