// The open-loop client of the router's bench: requests leave at times that were drawn beforehand (exponential gaps, so
// also close together), whether earlier ones are answered or not, and a time counts from when a request was *to* leave.
// A slow answer so costs those behind it, too, as it does people. Told a round by a message, answers with its figures.
import { connect, type Socket } from "node:net";
import { Worker } from "node:worker_threads";

export interface Round {
  port: number;
  path: string;
  key: string;
  /** Requests a second. */
  rate: number;
  seconds: number;
  seed: number;
}

export interface RoundResult {
  requests: number;
  failed: number;
  p50Ms: number;
  p99Ms: number;
  p999Ms: number;
  maxMs: number;
  /** By how much requests left too late, for want of the client's own time or of a free connection. */
  lateP99Ms: number;
}

/** More than are ever busy at once, so that a request does not wait here; the last one used is the next one taken. */
const CONNECTIONS = 128;
/** A timer of Node is up to 1 ms late; a wait in a thread of its own about 0.1 ms. */
const PACER = `const { parentPort, workerData } = require("node:worker_threads");
const nothing = new Int32Array(new SharedArrayBuffer(4));
const { at, originMs } = workerData;
for (const due of at) {
  const left = originMs + due - (performance.timeOrigin + performance.now());
  if (left > 0) Atomics.wait(nothing, 0, 0, left);
  parentPort.postMessage(0);
}`;

const nowMs = (): number => performance.timeOrigin + performance.now();

class Connection {
  readonly socket: Socket;
  #dueMs = 0;
  #need = -1;
  #got = 0;
  #good = false;

  constructor(port: number, answered: (connection: Connection, tookMs: number, good: boolean) => void) {
    this.socket = connect({ port, host: "127.0.0.1", noDelay: true });
    this.socket.on("error", () => {});
    this.socket.on("close", () => {
      if (this.#dueMs !== 0) answered(this, Number.NaN, false);
    });
    this.socket.on("data", (chunk) => {
      if (this.#need === -1) {
        const end = chunk.indexOf("\r\n\r\n");
        const head = chunk.toString("latin1", 0, end);
        this.#good = head.startsWith("HTTP/1.1 200");
        this.#need = end + 4 + Number(/content-length: *(\d+)/i.exec(head)?.[1] ?? 0);
        this.#got = 0;
      }
      this.#got += chunk.length;
      if (this.#got < this.#need) return;
      const tookMs = nowMs() - this.#dueMs;
      this.#dueMs = 0;
      this.#need = -1;
      answered(this, tookMs, this.#good);
    });
  }

  send(bytes: Buffer, dueMs: number): void {
    this.#dueMs = dueMs;
    this.socket.write(bytes);
  }
}

async function play({ port, path, key, rate, seconds, seed }: Round): Promise<RoundResult> {
  const body = `{"inputs":[{"name":"x","shape":[1,64],"datatype":"FP32","data":[${"0.1234,".repeat(63)}0.1]}]}`;
  const bytes = Buffer.from(
    `POST ${path} HTTP/1.1\r\nhost: 127.0.0.1:${port}\r\nauthorization: Bearer ${key}\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
  );
  const at: number[] = [];
  let random = seed;
  for (let dueMs = 0; dueMs < seconds * 1000;) {
    // mulberry32: every target gets the same times.
    random = (random + 0x6d2b79f5) | 0;
    let mixed = Math.imul(random ^ (random >>> 15), 1 | random);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    at.push(dueMs);
    dueMs -= Math.log(((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32 + 2 ** -33) * (1000 / rate);
  }
  const times = new Float64Array(at.length);
  const late = new Float64Array(at.length);
  let over = 0;
  let failed = 0;
  let next = 0;
  let finish: () => void = () => {};
  const finished = new Promise<void>((resolve) => (finish = resolve));
  const free: Connection[] = [];
  const answered = (connection: Connection, tookMs: number, good: boolean) => {
    times[over++] = tookMs;
    if (!good) failed += 1;
    if (over === at.length) return finish();
    if (!connection.socket.destroyed) free.push(connection);
    leave();
  };
  const leave = () => {
    while (next < at.length) {
      const dueMs = originMs + at[next]!;
      const now = nowMs();
      if (dueMs > now) return;
      const connection = free.pop();
      if (connection === undefined) return;
      late[next++] = now - dueMs;
      connection.send(bytes, dueMs);
    }
  };
  const all = Array.from({ length: CONNECTIONS }, () => new Connection(port, answered));
  await Promise.all(
    all.map((one) => new Promise((resolve) => one.socket.once("connect", resolve).once("close", resolve))),
  );
  free.push(...all);
  // The pacer's start is not counted.
  const originMs = nowMs() + 200;
  const pacer = new Worker(PACER, { eval: true, workerData: { at, originMs } });
  pacer.on("message", leave);
  const stuck = setTimeout(
    () => {
      failed += at.length - over;
      finish();
    },
    seconds * 1000 + 10_000,
  );
  await finished;
  clearTimeout(stuck);
  await pacer.terminate();
  for (const { socket } of all) socket.destroy();
  times.sort();
  late.sort();
  const percentile = (of: Float64Array, p: number) => of[Math.ceil(p * of.length) - 1]!;
  return {
    requests: at.length,
    failed,
    p50Ms: percentile(times, 0.5),
    p99Ms: percentile(times, 0.99),
    p999Ms: percentile(times, 0.999),
    maxMs: times.at(-1)!,
    lateP99Ms: percentile(late, 0.99),
  };
}

process.on("disconnect", () => process.exit(0));
process.on("message", (round: Round) => void play(round).then((result) => process.send!(result)));
process.send?.("ready");
