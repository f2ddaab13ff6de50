// Time since the machine's boot: the one measure of a duration that outlives the agent and that nobody sets.
import { readFileSync } from "node:fs";
import { uptime } from "node:os";

export interface MachineTime {
  /** Changes with each boot: moments of two boots cannot be compared. */
  boot: string;
  /** Sleep included. */
  uptimeMs: number;
}

/** Null where the kernel does not name its boot (not Linux). */
export function machineTime(): MachineTime | null {
  try {
    const boot = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
    return { boot, uptimeMs: Math.round(uptime() * 1000) };
  } catch {
    return null;
  }
}

/** Ms from then until now; null when that is not known: another boot, another machine, no such record. */
export function sinceThen(then: MachineTime | null | undefined, now = machineTime()): number | null {
  if (then == null || now === null || then.boot !== now.boot) return null;
  return Math.max(0, now.uptimeMs - then.uptimeMs);
}
