// Facts of the host, sampled off the hot path: whoever asks gets the last sample at once. Only calls that read /proc or
// ask the kernel are used; none of them starts a process.
import { statfs } from "node:fs/promises";
import { cpus, freemem, hostname, totalmem } from "node:os";
import type { AgentStatus, Clock, Timer } from "@sallyport/protocol";

export type HostSample = AgentStatus["host"];

const EVERY_MS = 15_000;

export class HostFacts {
  readonly #folder: string;
  readonly #clock: Clock;
  #timer: Timer | null = null;
  #stopped = false;
  #sample: HostSample;

  /** `folder`: the disk that it lies on is the one whose space is told. */
  constructor(folder: string, clock: Clock) {
    this.#folder = folder;
    this.#clock = clock;
    this.#sample = {
      hostname: hostname(),
      platform: `${process.platform}-${process.arch}`,
      cpus: cpus().length,
      cpuLoad: null,
      memoryTotalBytes: totalmem(),
      memoryFreeBytes: freemem(),
      diskTotalBytes: null,
      diskFreeBytes: null,
    };
  }

  /** The last sample. Load and disk are null before the first has been taken. */
  get sample(): HostSample {
    return this.#sample;
  }

  async start(): Promise<void> {
    await this.#take();
  }

  stop(): void {
    this.#stopped = true;
    this.#timer?.cancel();
  }

  async #take(): Promise<void> {
    const [load, memory, disk] = await Promise.all([
      cpuLoad().catch(() => null),
      freeMemory().catch(() => null),
      statfs(this.#folder).catch(() => null),
    ]);
    this.#sample = {
      ...this.#sample,
      cpuLoad: load,
      memoryTotalBytes: totalmem(),
      memoryFreeBytes: memory ?? freemem(),
      diskTotalBytes: disk === null ? null : disk.blocks * disk.bsize,
      // What the agent's user may take, which is less than what is free.
      diskFreeBytes: disk === null ? null : disk.bavail * disk.bsize,
    };
    if (!this.#stopped) this.#timer = this.#clock.after(EVERY_MS, () => void this.#take());
  }
}

/** Share of all CPUs that was busy since the last call, 0 to 1. Loaded at the first sample, not with the program. */
async function cpuLoad(): Promise<number | null> {
  const { currentLoad } = (await import("systeminformation")).default;
  const load = (await currentLoad()).currentLoad / 100;
  return Number.isFinite(load) ? Math.min(1, Math.max(0, Math.round(load * 1000) / 1000)) : null;
}

/** Free and reclaimable bytes. */
async function freeMemory(): Promise<number | null> {
  const { mem } = (await import("systeminformation")).default;
  const { available } = await mem();
  return Number.isSafeInteger(available) ? available : null;
}
