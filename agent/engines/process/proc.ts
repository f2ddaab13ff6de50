// Processes as Linux shows them in /proc. A pid alone names nothing for long: a process is known by boot id, pid and
// start time. Used by the process host only.
import { readFileSync, readdirSync } from "node:fs";

export interface ProcInfo {
  pid: number;
  comm: string;
  /** `Z` = dead and not yet waited for. */
  state: string;
  parent: number;
  group: number;
  session: number;
  /** Clock ticks since boot (field 22 of /proc/PID/stat). */
  startTime: string;
}

/** Null when there is no such process. */
export function readProc(pid: number): ProcInfo | null {
  let text: string;
  try {
    text = readFileSync(`/proc/${pid}/stat`, "latin1");
  } catch {
    return null;
  }
  // The name is in brackets and may hold anything, also brackets and spaces.
  const open = text.indexOf("(");
  const close = text.lastIndexOf(")");
  const rest = text.slice(close + 2).split(" ");
  return {
    pid,
    comm: text.slice(open + 1, close),
    state: rest[0]!,
    parent: Number(rest[1]),
    group: Number(rest[2]),
    session: Number(rest[3]),
    startTime: rest[19]!,
  };
}

export function allProcs(): ProcInfo[] {
  const found: ProcInfo[] = [];
  for (const entry of readdirSync("/proc")) {
    if (!/^[0-9]+$/.test(entry)) continue;
    const info = readProc(Number(entry));
    if (info !== null) found.push(info);
  }
  return found;
}

/** The environment that a process was started with; empty when it is another user's, or gone. */
function environOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/environ`, "latin1");
  } catch {
    return "";
  }
}

export const alive = (info: ProcInfo | null): info is ProcInfo =>
  info !== null && info.state !== "Z" && info.state !== "X";

/**
 * The living processes that belong to a piece of work: those in its session (`session` null = its leader's pid may be
 * another's by now, so the session says nothing), those that carry `marker` in their environment, and the children of
 * all these. `except` is left out.
 */
export function workTree(marker: string, session: number | null, except: ReadonlySet<number> = new Set()): ProcInfo[] {
  const procs = allProcs().filter((p) => alive(p));
  const own = new Map<number, ProcInfo>();
  const needle = `${marker}\0`;
  for (const p of procs) {
    if (p.pid === process.pid) continue;
    if (session !== null && p.session === session) own.set(p.pid, p);
    else {
      const environ = environOf(p.pid);
      if (environ.startsWith(needle) || environ.includes(`\0${needle}`)) own.set(p.pid, p);
    }
  }
  for (let grown = true; grown;) {
    grown = false;
    for (const p of procs) {
      if (!own.has(p.pid) && own.has(p.parent) && p.pid !== process.pid) {
        own.set(p.pid, p);
        grown = true;
      }
    }
  }
  return [...own.values()].filter((p) => !except.has(p.pid));
}

/** Signals one process, unless its pid is another's by now. */
export function signalProc(p: ProcInfo, signal: NodeJS.Signals): void {
  if (readProc(p.pid)?.startTime !== p.startTime) return;
  try {
    process.kill(p.pid, signal);
  } catch {
    // gone between the look and the signal
  }
}

/** Changes with each boot of the machine. */
export function bootId(): string {
  return readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
}
