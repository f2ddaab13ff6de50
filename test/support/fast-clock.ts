// Time that runs faster, for whole programs: given to them with --import, it makes Date, performance.now, hrtime and the
// timers of everything loaded after it follow a file. All programs of a test that are given the same file share one time,
// wall and monotonic alike, workers included. What Node's own inside measures (sockets, TLS, AbortSignal.timeout), file
// times and programs without this module stay real. The file is written by `FastTime` (fast-time.ts).
import { readFileSync } from "node:fs";
import { createRequire, syncBuiltinESMExports } from "node:module";
import type * as timersModule from "node:timers";
import type * as promisesModule from "node:timers/promises";
import { fakeAt, parsePlan, type TimePlan } from "./time-plan.ts";

const file = process.env["SALLYPORT_TEST_TIME"];
if (file !== undefined) install(file);

function install(file: string): void {
  const require = createRequire(import.meta.url);
  const timers = require("node:timers") as { -readonly [K in keyof typeof timersModule]: (typeof timersModule)[K] };
  const promises = require("node:timers/promises") as {
    -readonly [K in keyof typeof promisesModule]: (typeof promisesModule)[K];
  };
  const real = {
    setTimeout: globalThis.setTimeout,
    clearTimeout: globalThis.clearTimeout,
    setInterval: globalThis.setInterval,
    hrtime: process.hrtime.bigint.bind(process.hrtime),
    Date,
  };
  /** A change of speed is announced long before it takes effect (fast-time.ts): who looks so often misses none. */
  const LOOK_MS = 15;
  const realMs = (): number => Number(real.hrtime()) / 1e6;

  let text = "";
  let plan: TimePlan = parsePlan(readFileSync(file, "utf8"));
  let lookedAt = realMs();
  let latest = 0;

  function look(now: number): void {
    lookedAt = now;
    let next: string;
    try {
      next = readFileSync(file, "utf8");
    } catch {
      return; // the test is over
    }
    if (next === text) return;
    text = next;
    plan = parsePlan(next);
  }
  /** Ms of fake time since the plan's origin. */
  function elapsed(): number {
    const now = realMs();
    if (now - lookedAt > LOOK_MS) look(now);
    latest = Math.max(latest, fakeAt(plan, now));
    return latest;
  }
  const startedAt = elapsed();
  const wall = (): number => Math.floor(plan.wallMs + elapsed());

  // ---- Date

  real.Date.now = wall;
  globalThis.Date = new Proxy(real.Date, {
    construct: (target, args: unknown[], newTarget) =>
      Reflect.construct(target, args.length === 0 ? [wall()] : args, newTarget) as object,
    apply: () => new real.Date(wall()).toString(),
  });

  // ---- monotonic

  Object.defineProperty(performance, "now", { value: () => elapsed() - startedAt, configurable: true, writable: true });
  const bigint = (): bigint => BigInt(Math.round(elapsed() * 1e6));
  process.hrtime = Object.assign(
    (before?: [number, number]): [number, number] => {
      const ns = bigint() - (before === undefined ? 0n : BigInt(before[0]) * 1_000_000_000n + BigInt(before[1]));
      return [Number(ns / 1_000_000_000n), Number(ns % 1_000_000_000n)];
    },
    { bigint },
  );

  // ---- timers

  /** Armed ones: a change of speed arms them anew. */
  const armed = new Set<FastTimer>();
  /** The longest that a timer of Node's takes. */
  const MOST_MS = 2 ** 31 - 1;

  class FastTimer {
    readonly #fn: (...args: unknown[]) => void;
    readonly #args: unknown[];
    readonly #everyMs: number;
    readonly #repeats: boolean;
    #dueMs = 0;
    #refed = true;
    #inner: NodeJS.Timeout | null = null;

    constructor(fn: (...args: unknown[]) => void, delayMs: number | undefined, args: unknown[], repeats: boolean) {
      this.#fn = fn;
      this.#args = args;
      const ms = Number(delayMs);
      // As Node: what is no delay, or is above the most, is 1 ms.
      this.#everyMs = ms >= 1 && ms <= MOST_MS ? ms : 1;
      this.#repeats = repeats;
      this.refresh();
    }

    arm(): void {
      real.clearTimeout(this.#inner ?? undefined);
      const now = realMs();
      const leftMs = (this.#dueMs - elapsed()) / speedAt(now);
      this.#inner = real.setTimeout(() => this.#fire(), Math.min(Math.max(leftMs, 0), MOST_MS));
      if (!this.#refed) this.#inner.unref();
    }

    #fire(): void {
      if (elapsed() + 0.5 < this.#dueMs) return this.arm();
      if (this.#repeats) {
        this.#dueMs = elapsed() + this.#everyMs;
        this.arm();
      } else this.#drop();
      this.#fn(...this.#args);
    }

    #drop(): void {
      armed.delete(this);
      byId.delete(this[Symbol.toPrimitive]());
      real.clearTimeout(this.#inner ?? undefined);
    }

    refresh(): this {
      this.#dueMs = elapsed() + this.#everyMs;
      armed.add(this);
      this.arm();
      return this;
    }
    close(): this {
      this.#drop();
      return this;
    }
    ref(): this {
      this.#refed = true;
      this.#inner?.ref();
      return this;
    }
    unref(): this {
      this.#refed = false;
      this.#inner?.unref();
      return this;
    }
    hasRef(): boolean {
      return this.#refed;
    }
    readonly #id = ++ids;
    [Symbol.toPrimitive](): number {
      byId.set(this.#id, this);
      return this.#id;
    }
    [Symbol.dispose](): void {
      this.#drop();
    }
  }
  let ids = 0;
  /** Timers that somebody took the number of. */
  const byId = new Map<number, FastTimer>();

  function speedAt(now: number): number {
    return plan.segments.findLast((one) => one.atMs <= now)?.speed ?? 1;
  }
  const clear = (timer: unknown): void => {
    if (timer instanceof FastTimer) timer.close();
    else if (typeof timer === "number" || typeof timer === "string") byId.get(Number(timer))?.close();
    else real.clearTimeout(timer as NodeJS.Timeout | undefined); // made before this module was loaded
  };
  type Fn = (...args: unknown[]) => void;
  const checked = (fn: unknown): Fn => {
    if (typeof fn === "function") return fn as Fn;
    throw Object.assign(new TypeError("The callback must be a function"), { code: "ERR_INVALID_ARG_TYPE" });
  };
  const setTimeoutFast = (fn: Fn, ms?: number, ...args: unknown[]) => new FastTimer(checked(fn), ms, args, false);
  const setIntervalFast = (fn: Fn, ms?: number, ...args: unknown[]) => new FastTimer(checked(fn), ms, args, true);

  function pause<T>(
    delayMs?: number,
    value?: T,
    { signal, ref = true }: { signal?: AbortSignal; ref?: boolean } = {},
  ): Promise<T> {
    return new Promise((resolve, reject) => {
      const aborted = (): Error =>
        Object.assign(new Error("The operation was aborted", { cause: signal?.reason }), {
          name: "AbortError",
          code: "ABORT_ERR",
        });
      if (signal?.aborted) return reject(aborted());
      const onAbort = (): void => {
        timer.close();
        reject(aborted());
      };
      const timer = setTimeoutFast(() => {
        signal?.removeEventListener("abort", onAbort);
        resolve(value as T);
      }, delayMs);
      if (!ref) timer.unref();
      signal?.addEventListener("abort", onAbort, { once: true });
    });
  }
  async function* ticks<T>(delayMs?: number, value?: T, options?: { signal?: AbortSignal; ref?: boolean }) {
    for (;;) yield await pause(delayMs, value, options);
  }

  const callbacks = {
    setTimeout: setTimeoutFast,
    setInterval: setIntervalFast,
    clearTimeout: clear,
    clearInterval: clear,
  } as unknown as Pick<typeof timers, "setTimeout" | "setInterval" | "clearTimeout" | "clearInterval">;
  const { promisify } = require("node:util") as typeof import("node:util");
  Object.defineProperty(callbacks.setTimeout, promisify.custom, { value: pause });
  Object.assign(timers, callbacks);
  Object.assign(globalThis, callbacks);
  promises.setTimeout = pause as typeof promises.setTimeout;
  promises.setInterval = ticks as typeof promises.setInterval;
  promises.scheduler.wait = (delayMs, options) => pause(delayMs, undefined, options as { signal?: AbortSignal });
  syncBuiltinESMExports();

  let speed = speedAt(realMs());
  real
    .setInterval(() => {
      const now = realMs();
      look(now);
      const next = speedAt(now);
      if (next === speed) return;
      speed = next;
      for (const timer of armed) timer.arm();
    }, LOOK_MS)
    .unref();
}
