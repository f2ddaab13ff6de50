// Resident memory of a process over time, from /proc (Linux only).
import { readFileSync } from "node:fs";

export interface RssReport {
  readonly peakBytes: number;
  readonly samples: number;
}

function residentBytes(pid: number): number | undefined {
  try {
    const match = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"));
    return match ? Number(match[1]) * 1024 : undefined;
  } catch {
    return undefined; // it has ended
  }
}

/** Samples until `stop` is called or the process is gone. Does not keep the test alive. */
export function sampleRss(pid: number, { everyMs = 100 }: { everyMs?: number } = {}): { stop(): RssReport } {
  let peakBytes = 0;
  let samples = 0;
  const sample = () => {
    const bytes = residentBytes(pid);
    if (bytes === undefined) return clearInterval(timer);
    samples += 1;
    peakBytes = Math.max(peakBytes, bytes);
  };
  const timer = setInterval(sample, everyMs);
  timer.unref();
  sample();
  return {
    stop() {
      clearInterval(timer);
      sample();
      return { peakBytes, samples };
    },
  };
}
