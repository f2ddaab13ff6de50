// The link over slow paths: 100 Mbit/s in a network namespace of its own (`tc tbf`, a token bucket in each direction),
// and the same with 80 ms more each way by a proxy. Raw TCP on the same path says what the path carries. Linux, root.
import { execFileSync, fork, type ChildProcess } from "node:child_process";
import { createServer, type AddressInfo } from "node:net";
import { fileURLToPath } from "node:url";
import { setTimeout as sleep } from "node:timers/promises";
import { startCloudEnd } from "../contract/link/cloud-end.ts";
import type { CloudSession } from "../../cloud/link/index.ts";
import type { Teardown } from "../support/launcher.ts";
import { startTcpProxy } from "../support/tcp-proxy.ts";
import { atLeast, atMost, median, quantile, row, type BenchResult } from "./report.ts";
import { withTeardown } from "./world.ts";

const RATE = "100mbit";
const SECONDS = Number(process.env["BENCH_SECONDS"] ?? 6);
const ROUNDS = Number(process.env["BENCH_ROUNDS"] ?? 3);
const DELAY_MS = 80;
const PATH_BYTES_PER_S = 12.5e6;

const ip = (...args: string[]) => void execFileSync("ip", args);

/** A namespace whose 127.0.0.1:port is this machine's, over a shaped pair of interfaces. */
function shapedNamespace(t: Teardown, ports: readonly number[]): string[] {
  const tag = process.pid % 16_000;
  const name = `sb${tag}`;
  const veth = `sbv${tag}`;
  const base = `10.79.${Math.floor(tag / 64)}.`;
  const outside = base + ((tag % 64) * 4 + 1);
  const inside = base + ((tag % 64) * 4 + 2);
  const enter = ["nsenter", `--net=/run/netns/${name}`];
  t.teardown(() => {
    for (const args of [
      ["nft", "delete", "table", "ip", `bench_${name}`],
      ["ip", "netns", "del", name],
    ]) {
      try {
        execFileSync(args[0]!, args.slice(1));
      } catch {
        // never made
      }
    }
  });
  ip("netns", "add", name);
  ip("link", "add", veth, "type", "veth", "peer", "name", "e0", "netns", name);
  ip("addr", "add", `${outside}/30`, "dev", veth);
  ip("link", "set", veth, "up");
  ip("-n", name, "addr", "add", `${inside}/30`, "dev", "e0");
  ip("-n", name, "link", "set", "e0", "up");
  ip("-n", name, "link", "set", "lo", "up");
  const set = ["ports", "{", ports.join(", "), "}"].slice(1).join(" ");
  execFileSync("sysctl", ["-qw", `net.ipv4.conf.${veth}.route_localnet=1`]);
  execFileSync("nft", ["-f", "-"], {
    input: `table ip bench_${name} {\nchain pre { type nat hook prerouting priority -100; iifname "${veth}" ip daddr ${outside} tcp dport ${set} dnat to 127.0.0.1; }\n}\n`,
  });
  const within = (command: string, args: string[], input?: string) =>
    execFileSync(enter[0]!, [enter[1]!, command, ...args], input === undefined ? {} : { input });
  within("sysctl", ["-qw", "net.ipv4.conf.e0.route_localnet=1"]);
  within(
    "nft",
    ["-f", "-"],
    `table ip bench {\nchain out { type nat hook output priority -100; ip daddr 127.0.0.1 tcp dport ${set} dnat to ${outside}; }
chain post { type nat hook postrouting priority 100; oifname "e0" ip saddr 127.0.0.1 snat to ${inside}; }\n}\n`,
  );
  // Half a second of the rate before it drops: what a slow router keeps, and what TCP alone would fill.
  const shape = ["root", "tbf", "rate", RATE, "burst", "16kb", "latency", "500ms"];
  execFileSync("tc", ["qdisc", "add", "dev", veth, ...shape]);
  within("tc", ["qdisc", "add", "dev", "e0", ...shape]);
  return enter;
}

interface Read {
  bytesPerS: number;
  idle: number[];
  beside: number[];
}

/** Bytes per second of an endless bulk stream once it flows, and commands beside it. */
async function measure(session: CloudSession): Promise<Read> {
  const trip = async (): Promise<number> => {
    const from = performance.now();
    await session.open({ type: "echo", text: "a".repeat(175) }, { lane: "interactive", end: true }).answer;
    return performance.now() - from;
  };
  const idle: number[] = [];
  for (let n = 0; n < 10; n++) idle.push(await trip());
  const stop = new AbortController();
  const stream = session.open({ type: "bulk", bytes: 1e12 }, { lane: "bulk", end: true, signal: stop.signal });
  await stream.answer;
  let bytes = 0;
  const reading = (async () => {
    for await (const chunk of stream.bytes) bytes += chunk.length;
  })().catch(() => undefined);
  await sleep(2_000);
  const [from, began] = [bytes, performance.now()];
  const beside: number[] = [];
  while (performance.now() - began < SECONDS * 1000) {
    beside.push(await trip());
    await sleep(20);
  }
  const bytesPerS = ((bytes - from) / (performance.now() - began)) * 1000;
  stop.abort(new Error("measured"));
  await reading;
  await sleep(1_000);
  return { bytesPerS, idle, beside };
}

/** What raw TCP carries on the way, bytes per second. */
function rawTcp(enter: string[], port: number, server: ReturnType<typeof createServer>): Promise<number> {
  return new Promise((resolve, reject) => {
    const child: ChildProcess = fork(fileURLToPath(new URL("shaped-source.ts", import.meta.url)), [String(port)], {
      execPath: enter[0]!,
      execArgv: [...enter.slice(1), process.execPath],
      stdio: ["ignore", "inherit", "inherit", "ipc"],
    });
    child.once("error", reject);
    server.once("connection", (socket) => {
      let bytes = 0;
      socket.on("data", (chunk) => (bytes += chunk.length)).on("error", () => undefined);
      setTimeout(() => {
        const [from, began] = [bytes, performance.now()];
        setTimeout(
          () => {
            const bytesPerS = ((bytes - from) / (performance.now() - began)) * 1000;
            child.once("exit", () => setTimeout(resolve, 1_000, bytesPerS));
            child.kill();
            socket.destroy();
          },
          (SECONDS * 1000) / 2,
        );
      }, 1_500);
    });
  });
}

async function linkRound(t: Teardown, delayMs: number): Promise<{ reads: Read[]; tcp: number[] }> {
  const cloud = await startCloudEnd();
  t.teardown(() => cloud.stop());
  const sink = createServer();
  await new Promise<void>((resolve) => sink.listen(0, "127.0.0.1", resolve));
  t.teardown(() => void sink.close());
  const sinkPort = (sink.address() as AddressInfo).port;
  // Whatever the namespace sends is delayed on its way on; what the token bucket does stays TCP's own.
  const ways = await Promise.all(
    [cloud.port, sinkPort].map(async (port) => {
      if (delayMs === 0) return port;
      const proxy = await startTcpProxy(t, { port });
      proxy.setDelay(delayMs);
      return proxy.port;
    }),
  );
  const enter = shapedNamespace(t, ways);
  const online = new Promise<CloudSession>((resolve) => cloud.gateway.sessions.onOnline(resolve));
  const child = fork(
    fileURLToPath(new URL("link/process.ts", import.meta.url)),
    ["far", "link", `http://127.0.0.1:${ways[0]}`, cloud.enrolment().text, "true"],
    {
      execPath: enter[0]!,
      execArgv: [...enter.slice(1), process.execPath],
      stdio: ["ignore", "inherit", "inherit", "ipc"],
    },
  );
  const exited = new Promise((resolve) => child.once("exit", resolve));
  t.teardown(async () => {
    child.kill();
    await exited;
  });
  const session = await online;
  const reads: Read[] = [];
  const tcp: number[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    reads.push(await measure(session));
    tcp.push(await rawTcp(enter, ways[1]!, sink));
  }
  return { reads, tcp };
}

export async function benchShaped(): Promise<BenchResult> {
  const slow = await withTeardown((t) => linkRound(t, 0));
  const far = await withTeardown((t) => linkRound(t, DELAY_MS));
  const rate = ({ reads }: { reads: Read[] }) => median(reads.map((read) => read.bytesPerS));
  const p = ({ reads }: { reads: Read[] }, key: "idle" | "beside", q: number) =>
    median(reads.map((read) => quantile(read[key], q)));
  const ofTcp = ({ reads, tcp }: { reads: Read[]; tcp: number[] }) =>
    median(reads.map((read, i) => read.bytesPerS / tcp[i]!));
  return {
    rows: [
      row("100 Mbit/s: link, bulk", rate(slow) / 1e6, "MB/s"),
      row("100 Mbit/s: raw TCP", median(slow.tcp) / 1e6, "MB/s"),
      row("100 Mbit/s: link, of the rate with all headers", (100 * rate(slow)) / PATH_BYTES_PER_S, "%"),
      row("100 Mbit/s: command, idle, p50", p(slow, "idle", 0.5), "ms"),
      row("100 Mbit/s: command beside bulk, p99", p(slow, "beside", 0.99), "ms"),
      row("with 80 ms: link, bulk", rate(far) / 1e6, "MB/s"),
      row("with 80 ms: raw TCP", median(far.tcp) / 1e6, "MB/s"),
      row("with 80 ms: command, idle, p50", p(far, "idle", 0.5), "ms"),
      row("with 80 ms: command beside bulk, p50", p(far, "beside", 0.5), "ms"),
    ],
    bars: [
      atLeast("100 Mbit/s: bulk, of what raw TCP carries", ofTcp(slow), 0.95, "x"),
      atMost("100 Mbit/s: command beside bulk, p50", p(slow, "beside", 0.5), 40, "ms"),
      atLeast("100 Mbit/s and 80 ms: bulk, of what raw TCP carries", ofTcp(far), 0.9, "x"),
    ],
  };
}
