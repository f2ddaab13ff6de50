// The router beside a direct call and beside HAProxy: the same two replicas, interleaved rounds, medians. Two questions,
// asked apart:
//   throughput   a closed loop (wrk, 32 connections, each asks again as soon as it is answered), as much as goes through
//   latency      an open loop (router-load.ts) at a fixed rate, CALM of the most that the router can do, the same for all
// The tails of the closed loop are told as well, but judge nothing: load generator, replicas and proxy share the machine's
// cores there until all are full, and a tail is then the length of a queue. On a machine that others use, too, it waits
// for quiet moments, makes a measurement that others ran into once more, however it came out; rows say how far that went.
// BENCH_REALTIME=1 gives all its processes alike, wrk and HAProxy too, real-time priority. It needs root and takes nearly
// the whole machine away from everybody else for seconds.
import { execFile, fork, spawn, type ChildProcess } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type AddressInfo } from "node:net";
import { loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { entryUrl } from "@sallyport/protocol";
import { atLeast, atMost, median, type BarResult, type Row } from "./report.ts";
import type { Round, RoundResult } from "./router-load.ts";

const ROUNDS = Number(process.env["BENCH_ROUNDS"] ?? 7);
const SECONDS = Number(process.env["BENCH_SECONDS"] ?? 2);
/** The fixed rate, as a part of the router's own median rate at saturation in this very run. */
const CALM = 0.3;
/** The bar of the tail: p99 over a direct call. */
const ADDED_MS = 2;
/** Of one core, taken by programs that are none of the bench's. */
const OTHERS = 0.1;
/** Measurements made again, and time spent on waiting for quiet: over all. */
const AGAIN = Number(process.env["BENCH_AGAIN"] ?? 16);
const WAIT_MS = Number(process.env["BENCH_WAIT_SECONDS"] ?? 120) * 1000;
const KEY = "k".repeat(43);
const run = promisify(execFile);

interface Saturated {
  rps: number;
  /** Of the measured process alone, for one request: says the same on a machine that others use, too. Linux only. */
  cpuUs: number;
  p50Ms: number;
  p99Ms: number;
}

type Calm = RoundResult & { cpuUs: number };

interface Target {
  name: string;
  pid: number;
  port: number;
  path: string;
}

/** User and system time. Linux counts both in ticks of 10 ms. */
function cpuUsOf(pid: number | "self", andItsEnded = false): number {
  if (process.platform !== "linux") return Number.NaN;
  const fields = readFileSync(`/proc/${pid}/stat`, "latin1")
    .split(") ")[1]!
    .split(" ")
    .slice(11, andItsEnded ? 15 : 13);
  return fields.reduce((sum, ticks) => sum + Number(ticks) * 10_000, 0);
}

/** Of the whole machine: all but idle time, what the host took included. */
function machineCpuUs(): number {
  if (process.platform !== "linux") return Number.NaN;
  const ticks = readFileSync("/proc/stat", "latin1").split("\n", 1)[0]!.trim().split(/ +/).slice(1, 9).map(Number);
  return ticks.reduce((sum, one, i) => (i === 3 || i === 4 ? sum : sum + one * 10_000), 0);
}

/**
 * Ahead of other programs; what V8 does beside (it collects, compiles) a step behind the threads that it does it for.
 * False: not allowed, or not on this system.
 */
async function putAhead(pid: number, isNode: boolean): Promise<boolean> {
  try {
    await run("chrt", ["--all-tasks", "--rr", "--pid", isNode ? "1" : "2", String(pid)]);
    await run("chrt", ["--rr", "--pid", "2", String(pid)]);
    return true;
  } catch {
    return false;
  }
}
const putBack = (pid: number): Promise<unknown> =>
  run("chrt", ["--all-tasks", "--other", "--pid", "0", String(pid)]).catch(() => {});

const find = (...paths: string[]): string | null => paths.find((path) => existsSync(path)) ?? null;

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** The next message, or why none comes. */
function heard(from: ChildProcess): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const onExit = (code: number | null) => reject(new Error(`A process of the bench ended with ${code}.`));
    from.once("exit", onExit);
    from.once("message", (message) => {
      from.off("exit", onExit);
      resolve(message);
    });
  });
}

/** HAProxy as Debian has it: as many threads as cores, checks the same key, sends the same token. */
const haproxyConfig = (port: number, replicas: number[]): string => `global
  maxconn 4000
defaults
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
  const start = async (url: URL, args: string[], execArgv: string[] = []): Promise<ChildProcess> => {
    const child = fork(fileURLToPath(url), args, { stdio: ["ignore", "inherit", "inherit", "ipc"], execArgv });
    children.push(child);
    await heard(child);
    return child;
  };
  try {
    const process_ = new URL("./router-process.mjs", import.meta.url);
    const replicas = [await freePort(), await freePort()];
    const first = await start(process_, ["replica", String(replicas[0])]);
    await start(process_, ["replica", String(replicas[1])]);
    const profile = process.env["BENCH_PROFILE"];
    const routerPort = await freePort();
    const router = await start(
      process_,
      ["router", `127.0.0.1:${routerPort}`, KEY, ...replicas.map(String)],
      profile === undefined ? [] : ["--cpu-prof", `--cpu-prof-dir=${profile}`],
    );
    const targets: Target[] = [
      { name: "direct, one replica", pid: first.pid!, port: replicas[0]!, path: "/v2/models/m/infer" },
      { name: "router", pid: router.pid!, port: routerPort, path: "/m/v2/models/m/infer" },
    ];
    const port = await freePort();
    const config = join(dir, "haproxy.cfg");
    writeFileSync(config, haproxyConfig(port, replicas));
    const peer = spawn(haproxy, ["-db", "-q", "-f", config], { stdio: ["ignore", "ignore", "inherit"] });
    children.push(peer);
    targets.push({ name: "HAProxy", pid: peer.pid!, port, path: "/m/v2/models/m/infer" });

    const lua = join(dir, "load.lua");
    writeFileSync(lua, LUA);
    const saturate = async ({ port, path, pid }: Target): Promise<Saturated> => {
      const before = cpuUsOf(pid);
      const url = `http://127.0.0.1:${port}${path}`;
      const { stdout } = await run(wrk, ["-t1", "-c32", `-d${SECONDS}s`, "-s", lua, url]);
      const [, rps, p50, p99, failed] = /RESULT (\S+) (\d+) (\d+) (\d+)/.exec(stdout) ?? [];
      if (failed !== "0") throw new Error(`${failed} requests failed at port ${port}.`);
      const cpuUs = (cpuUsOf(pid) - before) / (Number(rps) * SECONDS);
      return { rps: Number(rps), cpuUs, p50Ms: Number(p50) / 1000, p99Ms: Number(p99) / 1000 };
    };
    const client = await start(entryUrl(import.meta.url, "./router-load"), []);
    const ask = async ({ port, path, pid }: Target, rate: number, seed: number): Promise<Calm> => {
      const before = cpuUsOf(pid);
      const answer = heard(client);
      client.send({ port, path, key: KEY, rate, seconds: SECONDS, seed } satisfies Round);
      const result = (await answer) as RoundResult;
      if (result.failed > 0) throw new Error(`${result.failed} requests failed at port ${port}.`);
      return { ...result, cpuUs: (cpuUsOf(pid) - before) / result.requests };
    };
    const othersCpuUs = (): number =>
      machineCpuUs() - cpuUsOf("self", true) - children.reduce((sum, { pid }) => sum + cpuUsOf(pid!), 0);
    let again = 0;
    let disturbed = 0;
    let waitedMs = 0;
    /** What others take of one core meanwhile. */
    const othersDuring = async <T>(measure: () => Promise<T>): Promise<[T, number]> => {
      const [before, sinceMs] = [othersCpuUs(), performance.now()];
      const one = await measure();
      return [one, (othersCpuUs() - before) / 1000 / (performance.now() - sinceMs)];
    };
    const undisturbed = async <T>(measure: () => Promise<T>): Promise<T> => {
      for (;;) {
        // Also that others, if there are any, get their turn.
        while ((await othersDuring(() => sleep(500)))[1] > OTHERS && waitedMs < WAIT_MS) waitedMs += 500;
        const [one, others] = await othersDuring(measure);
        if (process.env["BENCH_VERBOSE"]) console.error(others.toFixed(3), JSON.stringify(one));
        // Where it cannot be told, every one counts.
        if (!(others > OTHERS)) return one;
        if (again === AGAIN) {
          disturbed += 1;
          return one;
        }
        again += 1;
      }
    };
    /** Each round begins with another target. The first one warms up and does not count. */
    const rounds = async <T>(measure: (target: Target, round: number) => Promise<T>): Promise<Map<string, T[]>> => {
      const all = new Map<string, T[]>(targets.map(({ name }) => [name, []]));
      for (let round = 0; round <= ROUNDS; round++) {
        for (let k = 0; k < targets.length; k++) {
          const target = targets[(round + k) % targets.length]!;
          const one = await (round === 0 ? measure(target, round) : undisturbed(() => measure(target, round)));
          if (round > 0) all.get(target.name)!.push(one);
        }
      }
      return all;
    };

    const ahead =
      process.env["BENCH_REALTIME"] === "1"
        ? await Promise.all([process, ...children].map((one) => putAhead(one.pid!, one !== peer)))
        : [false];
    const loads = [loadavg()[0]!];
    const busy = await rounds(saturate);
    const most = (name: string) => median(busy.get(name)!.map((one) => one.rps));
    const rate = Math.round((CALM * most("router")) / 100) * 100;
    const calm = await rounds((target, round) => ask(target, rate, round));
    loads.push(loadavg()[0]!);

    // Within one round, close in time: what else the machine does moves both alike.
    const ofHaproxy = median(busy.get("router")!.map((one, i) => one.rps / busy.get("HAProxy")![i]!.rps));
    const overDirect = (name: string, key: "p50Ms" | "p99Ms") =>
      median(calm.get(name)!.map((one, i) => one[key] - calm.get("direct, one replica")![i]![key]));
    // Where even a direct call takes so long, no difference says anything: not met.
    const directMs = median(calm.get("direct, one replica")!.map((one) => one.p99Ms));
    const addedMs = directMs > ADDED_MS ? Number.NaN : overDirect("router", "p99Ms");
    const rows: Row[] = [];
    for (const { name } of targets) {
      const of = (key: keyof Saturated) => median(busy.get(name)!.map((one) => one[key]));
      rows.push({ what: `${name}: saturated`, value: of("rps").toFixed(0), unit: "requests/s" });
      rows.push({ what: `${name}: its CPU`, value: of("cpuUs").toFixed(1), unit: "us a request" });
      rows.push({ what: `${name}: saturated, p50`, value: of("p50Ms").toFixed(2), unit: "ms (information)" });
      rows.push({ what: `${name}: saturated, p99`, value: of("p99Ms").toFixed(2), unit: "ms (information)" });
    }
    rows.push({ what: `fixed rate, ${CALM * 100} % of the router`, value: String(rate), unit: "requests/s" });
    for (const { name } of targets) {
      const of = (key: keyof Calm) => median(calm.get(name)!.map((one) => one[key]));
      rows.push({ what: `${name}: p50`, value: of("p50Ms").toFixed(3), unit: "ms" });
      rows.push({ what: `${name}: p99`, value: of("p99Ms").toFixed(3), unit: "ms" });
      rows.push({ what: `${name}: p99.9`, value: of("p999Ms").toFixed(3), unit: "ms" });
      rows.push({ what: `${name}: its CPU then`, value: of("cpuUs").toFixed(1), unit: "us a request" });
      rows.push({ what: `${name}: client late by, p99`, value: of("lateP99Ms").toFixed(3), unit: "ms" });
      if (name === "direct, one replica") continue;
      rows.push({ what: `${name}: p50 over direct`, value: overDirect(name, "p50Ms").toFixed(3), unit: "ms" });
      rows.push({ what: `${name}: p99 over direct`, value: overDirect(name, "p99Ms").toFixed(3), unit: "ms" });
    }
    const version = /version (\S+)/.exec((await run(haproxy, ["-v"])).stdout)?.[1] ?? "unknown";
    rows.push({ what: "HAProxy's version", value: version.split("-")[0]!, unit: "" });
    rows.push({ what: "real-time priority", value: ahead.every(Boolean) ? "yes" : "no", unit: "" });
    rows.push({ what: "waited for quiet", value: (waitedMs / 1000).toFixed(0), unit: "s" });
    rows.push({ what: "made again, as others ran", value: String(again), unit: "measurements" });
    rows.push({ what: "taken although others ran", value: String(disturbed), unit: "measurements" });
    rows.push({ what: "load average before, after", value: loads.map((n) => n.toFixed(1)).join(", "), unit: "" });
    return {
      rows,
      bars: [
        atLeast("router throughput", ofHaproxy, 0.4, "x HAProxy"),
        atMost("router p99 over direct", addedMs, ADDED_MS, "ms"),
      ],
    };
  } finally {
    if (process.env["BENCH_REALTIME"] === "1") await putBack(process.pid);
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
