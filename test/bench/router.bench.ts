// The router beside a direct call and beside HAProxy: the same two replicas, the same load by wrk, interleaved rounds,
// medians. Throughput with 32 connections, each asking again as soon as it is answered; latency with 4. Load generator,
// replicas and router share the machine's cores: on two of them the figures are of a machine that is full in all rows.
import { execFile, fork, spawn, type ChildProcess } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { entryUrl } from "@sallyport/protocol";
import { atLeast, atMost, median, type BarResult, type Row } from "./report.ts";

const ROUNDS = Number(process.env["BENCH_ROUNDS"] ?? 5);
const SECONDS = Number(process.env["BENCH_SECONDS"] ?? 3);
const KEY = "k".repeat(43);
const run = promisify(execFile);

interface Load {
  rps: number;
  /** Of the measured process alone, for one request: says the same on a machine that others use, too. Linux only. */
  cpuUs: number;
  p50Ms: number;
  p99Ms: number;
}

interface Target {
  name: string;
  pid: number;
  port: number;
  path: string;
}

function cpuUsOf(pid: number): number {
  if (process.platform !== "linux") return Number.NaN;
  const fields = readFileSync(`/proc/${pid}/stat`, "latin1").split(") ")[1]!.split(" ");
  // User and system time, in ticks of 10 ms.
  return (Number(fields[11]) + Number(fields[12])) * 10_000;
}

const find = (...paths: string[]): string | null => paths.find((path) => existsSync(path)) ?? null;

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

async function child(args: string[]): Promise<ChildProcess> {
  const profile = process.env["BENCH_PROFILE"];
  const started = fork(entryUrl(import.meta.url, "./router-process"), args, {
    stdio: ["ignore", "inherit", "inherit", "ipc"],
    execArgv: args[0] === "router" && profile !== undefined ? ["--cpu-prof", `--cpu-prof-dir=${profile}`] : [],
  });
  await new Promise<void>((resolve, reject) => {
    started.once("message", () => resolve());
    started.once("exit", (code) => reject(new Error(`A process of the bench ended with ${code}.`)));
  });
  return started;
}

/** HAProxy as Debian has it: as many threads as cores, checks the same key, sends the same token. */
const haproxyConfig = (port: number, replicas: number[], threads: number | null): string => `global
  maxconn 4000
${threads === null ? "" : `  nbthread ${threads}\n`}defaults
  mode http
  http-reuse always
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend f
  bind 127.0.0.1:${port}
  http-request deny status 401 unless { req.hdr(authorization) -m str "Bearer ${KEY}" }
  http-request replace-path /m(/.*) \\1
  http-request set-header authorization "Bearer token"
  default_backend b
backend b
  balance leastconn
${replicas.map((replica, i) => `  server r${i} 127.0.0.1:${replica}`).join("\n")}
`;

const LUA = `wrk.method = "POST"
wrk.body = '{"inputs":[{"name":"x","shape":[1,64],"datatype":"FP32","data":[' .. string.rep("0.1234,", 63) .. '0.1]}]}'
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer ${KEY}"
done = function(summary, latency)
  local e = summary.errors
  print(string.format("RESULT %f %d %d %d", summary.requests / summary.duration * 1e6, latency:percentile(50), latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
`;

export async function benchRouter(): Promise<{ rows: Row[]; bars: BarResult[] }> {
  const wrk = find("/usr/bin/wrk", "/usr/local/bin/wrk");
  const haproxy = find("/usr/sbin/haproxy", "/usr/local/sbin/haproxy");
  if (wrk === null || haproxy === null) {
    const missing = `not run: ${wrk === null ? "wrk" : "haproxy"} is not installed (Debian: apt-get install wrk haproxy)`;
    if (process.env["CI"]) throw new Error(`Bench router ${missing}.`);
    return { rows: [{ what: missing, value: "", unit: "" }], bars: [] };
  }
  const dir = mkdtempSync(join(tmpdir(), "bench-router-"));
  const children: ChildProcess[] = [];
  try {
    const lua = join(dir, "load.lua");
    writeFileSync(lua, LUA);
    const load = async ({ port, path, pid }: Target, connections: number): Promise<Load> => {
      const before = cpuUsOf(pid);
      const { stdout } = await run(wrk, [
        "-t1",
        `-c${connections}`,
        `-d${SECONDS}s`,
        "-s",
        lua,
        `http://127.0.0.1:${port}${path}`,
      ]);
      const [, rps, p50, p99, failed] = /RESULT (\S+) (\d+) (\d+) (\d+)/.exec(stdout) ?? [];
      if (failed !== "0") throw new Error(`${failed} requests failed at port ${port}.`);
      const cpuUs = (cpuUsOf(pid) - before) / (Number(rps) * SECONDS);
      return { rps: Number(rps), cpuUs, p50Ms: Number(p50) / 1000, p99Ms: Number(p99) / 1000 };
    };

    const replicas = [await freePort(), await freePort()];
    for (const port of replicas) children.push(await child(["replica", String(port)]));
    const routerPort = await freePort();
    children.push(await child(["router", `127.0.0.1:${routerPort}`, KEY, ...replicas.map(String)]));
    const targets: Target[] = [
      { name: "direct, one replica", pid: children[0]!.pid!, port: replicas[0]!, path: "/v2/models/m/infer" },
      { name: "router", pid: children[2]!.pid!, port: routerPort, path: "/m/v2/models/m/infer" },
    ];
    for (const [name, threads] of [
      ["HAProxy", null],
      ["HAProxy, one thread", 1],
    ] as const) {
      const port = await freePort();
      const config = join(dir, `haproxy-${threads}.cfg`);
      writeFileSync(config, haproxyConfig(port, replicas, threads));
      children.push(spawn(haproxy, ["-db", "-q", "-f", config], { stdio: ["ignore", "ignore", "inherit"] }));
      targets.push({ name, pid: children.at(-1)!.pid!, port, path: "/m/v2/models/m/infer" });
    }

    const busy = new Map<string, Load[]>();
    const calm = new Map<string, Load[]>();
    const add = (to: Map<string, Load[]>, name: string, one: Load) => void to.set(name, [...(to.get(name) ?? []), one]);
    // The first round warms up, HAProxy's sockets included.
    for (let round = 0; round <= ROUNDS; round++) {
      for (const target of targets) {
        const wide = await load(target, 32);
        const few = await load(target, 4);
        if (round === 0) continue;
        add(busy, target.name, wide);
        add(calm, target.name, few);
      }
    }
    // Best round against best round for the tail: one moment of another program on the machine is a p99 by itself.
    const best = (name: string) => Math.min(...calm.get(name)!.map((one) => one.p99Ms));
    const of = (from: Map<string, Load[]>, name: string, key: keyof Load) =>
      median(from.get(name)!.map((one) => one[key]));
    const rows: Row[] = [];
    for (const { name } of targets) {
      rows.push({ what: `${name}: 32 connections`, value: of(busy, name, "rps").toFixed(0), unit: "requests/s" });
      rows.push({ what: `${name}: 32 connections, p99`, value: of(busy, name, "p99Ms").toFixed(2), unit: "ms" });
      rows.push({ what: `${name}: its CPU`, value: of(busy, name, "cpuUs").toFixed(1), unit: "us a request" });
      rows.push({ what: `${name}: 4 connections`, value: of(calm, name, "rps").toFixed(0), unit: "requests/s" });
      rows.push({ what: `${name}: 4 connections, p50`, value: of(calm, name, "p50Ms").toFixed(3), unit: "ms" });
      rows.push({ what: `${name}: 4 connections, p99`, value: of(calm, name, "p99Ms").toFixed(3), unit: "ms" });
      rows.push({ what: `${name}: 4 connections, best p99`, value: best(name).toFixed(3), unit: "ms" });
    }
    return {
      rows,
      bars: [
        atLeast("router throughput", of(busy, "router", "rps") / of(busy, "HAProxy", "rps"), 0.4, "x HAProxy"),
        atMost("router p99 over direct", best("router") - best("direct, one replica"), 2, "ms"),
        atMost("router p99 over HAProxy", best("router") - best("HAProxy"), 2, "ms"),
      ],
    };
  } finally {
    for (const one of children) {
      const over = new Promise((resolve) => one.once("exit", resolve));
      if (one.exitCode !== null || one.signalCode !== null) continue;
      if (one.connected) one.disconnect();
      else one.kill();
      await over;
    }
    rmSync(dir, { recursive: true, force: true });
  }
}
