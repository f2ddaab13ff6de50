// The time of programs that were given fast-clock.ts, as the test that made it sees and sets it: a plan in a file, of
// stretches that each begin at a moment of the machine's monotonic clock, which all processes share, and have a speed.
import { renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { tempDir, type Teardown } from "./launcher.ts";
import { fakeAt, type TimePlan } from "./time-plan.ts";

/** Each program looks at the file well within this: no one's time has to run back. */
const NOTICE_MS = 120;
const realMs = (): number => Number(process.hrtime.bigint()) / 1e6;

export class FastTime {
  readonly #file: string;
  #plan: TimePlan;
  /** For a program: its Node arguments and environment. */
  readonly nodeArgs: string[];
  readonly env: Record<string, string>;

  constructor(t: Teardown) {
    this.#file = join(tempDir(t, "time"), "plan.json");
    this.#plan = { wallMs: Date.now(), segments: [{ atMs: realMs(), fakeMs: 0, speed: 1 }] };
    this.#write();
    this.nodeArgs = ["--import", fileURLToPath(new URL("fast-clock.ts", import.meta.url))];
    this.env = { SALLYPORT_TEST_TIME: this.#file };
  }

  #write(): void {
    writeFileSync(`${this.#file}.new`, JSON.stringify(this.#plan));
    renameSync(`${this.#file}.new`, this.#file);
  }

  /** Ms that have passed for the programs since this was made. */
  elapsed(): number {
    return fakeAt(this.#plan, realMs());
  }
  /** Their wall clock. */
  now(): number {
    return this.#plan.wallMs + this.elapsed();
  }

  /** From a moment from now on, which has come when this resolves, time runs `speed` times as fast. */
  async run(speed: number): Promise<void> {
    const atMs = realMs() + NOTICE_MS;
    this.#plan = {
      ...this.#plan,
      segments: [...this.#plan.segments.slice(-20), { atMs, fakeMs: fakeAt(this.#plan, atMs), speed }],
    };
    this.#write();
    await new Promise((resolve) => setTimeout(resolve, NOTICE_MS + 1));
  }

  /** Resolves when `elapsed()` has reached it. */
  async reach(fakeMs: number): Promise<void> {
    while (this.elapsed() < fakeMs) await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
