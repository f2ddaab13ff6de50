// Invariant 1: the agent listens on no TCP or UDP port, and one connection to the control plane is all that leaves for it.
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import t from "tap";
import { tempDir } from "../support/launcher.ts";
import { connectAgent, TestCloud } from "../support/stack.ts";

interface Socket {
  protocol: string;
  state: string;
  remotePort: number;
}

/** The internet sockets of a process, as the kernel has them. */
function socketsOf(pid: number): Socket[] {
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
      .map((field) => ({ protocol, state: field[3]!, remotePort: Number.parseInt(field[2]!.split(":")[1]!, 16) })),
  );
}

/** A process and all that it started, by parent. */
function family(pid: number): number[] {
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

t.test(
  "one outbound connection, nothing that listens",
  { skip: process.platform === "linux" ? false : "reads /proc, which only Linux has", timeout: 60_000 },
  async (t) => {
    const cloud = await TestCloud.start(t);
    const agent = await connectAgent(t, cloud, "lab", {
      config: `stores: [{ id: box, kind: fs, root: ${tempDir(t, "store")} }]\npolicy: { commands: ["artifact.*"], stores: [{ store: box, read: ["**"] }], release: { metadata: true }, ceilings: { streams: 8 } }\n`,
    });
    for (let n = 0; n < 20; n++) await cloud.api.json("/v1/pools/lab/stores/box/artifacts?path=");
    const sockets = family(agent.program.pid).flatMap(socketsOf);
    t.same(
      sockets.filter((socket) => socket.state === "0A" || socket.protocol.startsWith("udp")),
      [],
      "nothing listens",
    );
    t.same(
      sockets.map((socket) => socket.remotePort),
      [cloud.port],
      "one connection, to the control plane",
    );
    t.ok(
      socketsOf(cloud.program.pid).some((socket) => socket.state === "0A"),
      "the same look finds the control plane's listener",
    );
  },
);
