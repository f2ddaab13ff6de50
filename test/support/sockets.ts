// The internet sockets of a process and of all that it started, as the kernel has them. Linux.
import { readdirSync, readFileSync, readlinkSync } from "node:fs";

export interface Socket {
  protocol: string;
  state: string;
  /** As the kernel writes it: hex, little-endian. */
  remoteAddress: string;
  remotePort: number;
}

/** The internet sockets of a process, as the kernel has them. */
export function socketsOf(pid: number): Socket[] {
  const inodes = new Set<string>();
  for (const fd of readdirSync(`/proc/${pid}/fd`)) {
    try {
      const inode = /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/${pid}/fd/${fd}`))?.[1];
      if (inode !== undefined) inodes.add(inode);
    } catch {
      // closed meanwhile
    }
  }
  return ["tcp", "tcp6", "udp", "udp6"].flatMap((protocol) =>
    readFileSync(`/proc/${pid}/net/${protocol}`, "utf8")
      .trim()
      .split("\n")
      .slice(1)
      .map((line) => line.trim().split(/\s+/))
      .filter((field) => inodes.has(field[9]!))
      .map((field) => ({
        protocol,
        state: field[3]!,
        remoteAddress: field[2]!.split(":")[0]!,
        remotePort: Number.parseInt(field[2]!.split(":")[1]!, 16),
      })),
  );
}

/** A process and all that it started, by parent. */
export function family(pid: number): number[] {
  const children = readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((child) => {
      try {
        return (
          Number(
            readFileSync(`/proc/${child}/stat`, "utf8")
              .replace(/^.*\) /, "")
              .split(" ")[1],
          ) === pid
        );
      } catch {
        return false;
      }
    });
  return [pid, ...children.flatMap(family)];
}
