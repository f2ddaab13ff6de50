// How often the kernel has killed for lack of memory where work runs. The exit status of such work is a plain SIGKILL:
// only this count tells it from one that an operator sent. Used by the process host only.
import { readFileSync } from "node:fs";
import { join } from "node:path";

/** What was counted, at one time. Counts of one `file` can be compared, since the machine's last start. */
export interface MemoryKills {
  file: string;
  count: number;
}

/** The line that counts. Version 2 has one name for both files, version 1's file has it beside two settings. */
const OOM_KILL = /^oom_kill (\d+)$/m;

/** Null: not counted (no longer). */
export function countIn(file: string): MemoryKills | null {
  try {
    const found = OOM_KILL.exec(readFileSync(file, "utf8"));
    return found === null ? null : { file, count: Number(found[1]) };
  } catch {
    return null;
  }
}

/**
 * Of this process's own memory cgroup, which work begins in: there it is this agent's work that is killed, not another
 * container's. Where that is not counted (the root of version 2) or not seen, of the machine. `root`: of the file system.
 */
export function memoryKills(root = "/"): MemoryKills | null {
  const at = (...parts: string[]): string => join(root, ...parts);
  const files: string[] = [];
  try {
    for (const line of readFileSync(at("proc/self/cgroup"), "utf8").split("\n")) {
      const [, controllers, path] = /^\d+:([^:]*):(.*)$/.exec(line) ?? [];
      if (controllers === undefined || path === undefined) continue;
      // A container may be told a path of the host, and have mounted its own part alone.
      const places = path.startsWith("/..") ? ["/"] : [path, "/"];
      if (controllers.split(",").includes("memory"))
        files.unshift(...places.map((place) => at("sys/fs/cgroup/memory", place, "memory.oom_control")));
      if (controllers === "") files.push(...places.map((place) => at("sys/fs/cgroup", place, "memory.events.local")));
    }
  } catch {
    // no cgroups here
  }
  for (const file of [...files, at("proc/vmstat")]) {
    const kills = countIn(file);
    if (kills !== null) return kills;
  }
  return null;
}
