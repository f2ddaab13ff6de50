// A network namespace that plays the customer's network: its only way out is one host and port, nothing comes in, and
// what lies inside may talk among itself. Linux, root, iproute2 and nftables. All of it goes with the test.
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import type { Teardown } from "./launcher.ts";

export interface Enclosure {
  readonly name: string;
  /** How the inside reaches the one allowed port of this machine's loopback. */
  readonly outside: string;
  /** Address of the inside; nothing reaches it. */
  readonly inside: string;
  /** Put before a command to run it inside. */
  readonly enter: readonly string[];
  /** Packets that the firewalls dropped or refused, by counter. */
  dropped(): Record<string, number>;
}

/** For tap's `skip`. */
export function needsEnclosure(): string | false {
  const missing = [
    process.platform === "linux" ? null : "Linux",
    process.getuid?.() === 0 ? null : "root",
    ...["ip", "nft", "nsenter", "sysctl"].map((tool) =>
      ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].some((dir) => existsSync(`${dir}/${tool}`)) ? null : tool,
    ),
  ].filter((what) => what !== null);
  if (missing.length === 0) return false;
  const reason = `needs ${missing.join(", ")}. Run as root: apt-get install iproute2 nftables util-linux procps`;
  if (process.env["CI"]) throw new Error(reason);
  return reason;
}

const run = (command: string, args: readonly string[], input?: string): string =>
  execFileSync(command, [...args], { encoding: "utf8", ...(input === undefined ? {} : { input }) });

/** `port`: on this machine's loopback; all that the inside may reach. */
export function enclose(t: Teardown, port: number): Enclosure {
  // A subnet and names of its own, so that several test runs do not meet.
  const tag = process.pid % 16_000;
  const name = `sp${tag}`;
  const veth = `spv${tag}`;
  const base = `10.77.${Math.floor(tag / 64)}`;
  const low = (tag % 64) * 4;
  const outside = `${base}.${low + 1}`;
  const inside = `${base}.${low + 2}`;
  const enter = ["nsenter", `--net=/run/netns/${name}`];
  t.teardown(() => {
    for (const [command, ...args] of [
      ["nft", "delete", "table", "inet", `only_${name}`],
      // takes the pair of interfaces with it
      ["ip", "netns", "del", name],
    ] as [string, ...string[]][]) {
      try {
        run(command, args);
      } catch {
        // never made, or gone already
      }
    }
  });
  run("ip", ["netns", "add", name]);
  run("ip", ["link", "add", veth, "type", "veth", "peer", "name", "e0", "netns", name]);
  run("ip", ["addr", "add", `${outside}/30`, "dev", veth]);
  run("ip", ["link", "set", veth, "up"]);
  run("ip", ["-n", name, "addr", "add", `${inside}/30`, "dev", "e0"]);
  run("ip", ["-n", name, "link", "set", "e0", "up"]);
  run("ip", ["-n", name, "link", "set", "lo", "up"]);
  run("ip", ["-n", name, "route", "add", "default", "via", outside]);
  // The redirect below ends at 127.0.0.1.
  run("sysctl", ["-qw", `net.ipv4.conf.${veth}.route_localnet=1`]);
  run(
    "nft",
    ["-f", "-"],
    `table inet only_${name} {
  chain to_loopback { type nat hook prerouting priority -100; iifname "${veth}" ip daddr ${outside} tcp dport ${port} dnat ip to 127.0.0.1:${port}; }
  chain from_inside { type filter hook input priority 0; iifname "${veth}" ct state established,related accept; iifname "${veth}" tcp dport ${port} accept; iifname "${veth}" counter drop comment "from inside"; }
  chain beyond { type filter hook forward priority 0; iifname "${veth}" counter drop comment "beyond"; oifname "${veth}" drop; }
}\n`,
  );
  run(
    "nsenter",
    [`--net=/run/netns/${name}`, "nft", "-f", "-"],
    `table inet only {
  chain to_outside { type filter hook output priority 0; oifname "e0" ct state established accept; oifname "e0" ip daddr ${outside} tcp dport ${port} accept; oifname "e0" counter reject comment "to outside"; }
  chain from_outside { type filter hook input priority 0; iifname "e0" ct state established accept; iifname "e0" counter drop comment "from outside"; }
  chain through { type filter hook forward priority 0; iifname "e0" drop; oifname "e0" counter drop comment "through"; }
}\n`,
  );
  return {
    name,
    outside,
    inside,
    enter,
    dropped() {
      const text = `${run("nft", ["list", "table", "inet", `only_${name}`])}\n${run(enter[0]!, [...enter.slice(1), "nft", "list", "table", "inet", "only"])}`;
      const counts: Record<string, number> = {};
      for (const [, packets, what] of text.matchAll(
        /counter packets (\d+) bytes \d+ (?:drop|reject[^"]*) comment "([^"]+)"/g,
      ))
        counts[what!] = Number(packets);
      return counts;
    },
  };
}
