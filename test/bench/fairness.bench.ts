// Small requests at 100 a second (open loop: they leave when they are due, whatever earlier ones do) while bulk flows:
// quiet, beside one download, beside ten and a reader that stalls. Ours, the S3 server itself, and tunnels to it, in
// turns. A small request of ours is the stat of a file through the API; of the others the S3 server's health route.
// Then downloads that are cancelled under the same load: from the client's leaving until the agent lets go of its own
// connection to the store, which a proxy of the bench sees.
import { spawn, type ChildProcess } from "node:child_process";
import { readFileSync } from "node:fs";
import { Agent, request as httpRequest } from "node:http";
import { connect, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import type { Teardown } from "../support/launcher.ts";
import { startTcpProxy, type TcpProxy } from "../support/tcp-proxy.ts";
import { startTunnels } from "./peers/tunnels.ts";
import { atLeast, atMost, median, quantile, row, type BenchResult, type Row } from "./report.ts";
import { GIB, MIB, curl, folderOf, ourCurl, s3Curl, startWorld, withTeardown, type World } from "./world.ts";

const ROUNDS = Number(process.env["BENCH_ROUNDS"] ?? 3);
const SECONDS = Number(process.env["BENCH_SECONDS"] ?? 4);
const PER_SECOND = 100;
const CANCELS = 60;
const WARM = 3_000;
/** Longer is lost. */
const LIMIT_MS = 5_000;

interface Way {
  readonly name: string;
  readonly small: { url: string; headers: Record<string, string> };
  readonly curl: string[];
}

interface Times {
  all: number[];
  lost: number;
}

function smallOnce(agent: Agent, { url, headers }: Way["small"]): Promise<void> {
  return new Promise((resolve, reject) => {
    const request = httpRequest(url, { agent, headers, timeout: LIMIT_MS }, (response) => {
      response
        .resume()
        .once("end", () => (response.statusCode === 200 ? resolve() : reject(new Error(`${response.statusCode}`))));
      response.once("error", reject);
    });
    request
      .once("timeout", () => request.destroy(new Error("late")))
      .once("error", reject)
      .end();
  });
}

async function openLoop(way: Way, seconds: number): Promise<Times> {
  const agent = new Agent({ keepAlive: true });
  const times: Times = { all: [], lost: 0 };
  const under: Promise<void>[] = [];
  const began = performance.now();
  for (let n = 0; n < PER_SECOND * seconds;) {
    const due = began + (n * 1000) / PER_SECOND;
    if (performance.now() < due) {
      await sleep(1);
      continue;
    }
    n++;
    // The loop's own lateness is not the way's.
    const from = performance.now();
    under.push(
      smallOnce(agent, way.small).then(
        () => void times.all.push(performance.now() - from),
        () => void times.lost++,
      ),
    );
  }
  await Promise.all(under);
  agent.destroy();
  return times;
}

interface Bulk {
  /** MB/s while `work` went on: without the start of the curls, and without what is done beside them later. */
  during<T>(work: () => Promise<T>): Promise<{ result: T; MBps: number }>;
  stop(): Promise<void>;
}

/** curls again and again until it is stopped. */
function bulk(args: string[], count: number): Bulk {
  let over = false;
  let throughBytes = 0;
  const children = new Set<ChildProcess>();
  const one = async () => {
    while (!over) {
      const child = spawn("curl", ["-sS", "--fail", "-o", "/dev/null", "-w", "%{size_download}", ...args], {
        stdio: ["ignore", "pipe", "ignore"],
      });
      children.add(child);
      let text = "";
      child.stdout.setEncoding("utf8").on("data", (chunk: string) => (text += chunk));
      await new Promise((resolve) => child.once("close", resolve));
      children.delete(child);
      throughBytes += Number(text) || 0;
    }
  };
  const all = Array.from({ length: count }, one);
  /** Of those that are not through: what they have written to nowhere. */
  const writtenBytes = (child: ChildProcess): number => {
    try {
      return Number(/^wchar: (\d+)$/m.exec(readFileSync(`/proc/${child.pid}/io`, "utf8"))?.[1] ?? 0);
    } catch {
      return GIB; // through just now, and not heard of yet
    }
  };
  const bytes = () => [...children].reduce((sum, child) => sum + writtenBytes(child), throughBytes);
  return {
    async during(work) {
      const [fromBytes, from] = [bytes(), performance.now()];
      const result = await work();
      return { result, MBps: (bytes() - fromBytes) / 1e3 / (performance.now() - from) };
    },
    async stop() {
      over = true;
      for (const child of children) child.kill("SIGKILL");
      await Promise.all(all);
    },
  };
}

/** Reads 1 MiB of the answer and then nothing any more. */
async function stalledReader(args: string[]): Promise<{ stop(): Promise<void> }> {
  const child = spawn("curl", ["-sS", "-o", "-", ...args], { stdio: ["ignore", "pipe", "ignore"] });
  const ended = new Promise((resolve) => child.once("close", resolve));
  let seen = 0;
  await new Promise<void>((resolve) => {
    child.once("close", () => resolve());
    child.stdout.on("data", (chunk: Buffer) => {
      seen += chunk.length;
      if (seen < MIB) return;
      child.stdout.pause();
      resolve();
    });
  });
  return {
    async stop() {
      child.kill("SIGKILL");
      child.stdout.destroy();
      await ended;
    },
  };
}

/** From the client's leaving to the end of the agent's connection to the store, ms. */
async function cancelOnce(world: World, toStore: TcpProxy): Promise<number> {
  const before = new Set(toStore.connections);
  const url = new URL(world.contentUrl.replace("/stores/lake/", "/stores/slowlake/"));
  const socket: Socket = connect({ port: Number(url.port), host: "127.0.0.1" });
  socket.write(
    `GET ${url.pathname}${url.search} HTTP/1.1\r\nhost: ${url.host}\r\nauthorization: Bearer ${world.cloud.api.token}\r\n\r\n`,
  );
  let seen = 0;
  await new Promise<void>((resolve, reject) => {
    socket.once("error", reject);
    socket.on("data", (chunk: Buffer) => {
      seen += chunk.length;
      if (seen > 256 * 1024) resolve();
    });
  });
  const mine = [...toStore.connections].filter((one) => !before.has(one));
  const from = performance.now();
  socket.destroy();
  while (mine.some((one) => toStore.connections.has(one))) {
    if (performance.now() - from > LIMIT_MS) return Infinity;
    await new Promise((resolve) => setImmediate(resolve));
  }
  return performance.now() - from;
}

export function benchFairness(): Promise<BenchResult> {
  return withTeardown(async (t: Teardown) => {
    let toStore: TcpProxy | undefined;
    const world = await startWorld(t, {
      objectBytes: GIB,
      otherEndpoint: async (s3) => {
        toStore = await startTcpProxy(t, { port: Number(new URL(s3.endpoint).port) });
        return `http://127.0.0.1:${toStore.port}`;
      },
    });
    const { s3 } = world;
    const { tunnels, missing } = await startTunnels(t, (name) => folderOf(t, name), Number(new URL(s3.endpoint).port));
    const other = (name: string, endpoint: string): Way => ({
      name,
      small: { url: `${endpoint}/health`, headers: {} },
      curl: s3Curl(world, endpoint),
    });
    const ways: Way[] = [
      {
        name: "ours",
        small: { url: world.statUrl, headers: { authorization: `Bearer ${world.cloud.api.token}` } },
        curl: ourCurl(world),
      },
      other("direct", s3.endpoint),
      ...tunnels.map(({ name, port }) => other(name, `http://127.0.0.1:${port}`)),
    ];
    const states = ["quiet", "one", "ten"] as const;
    const reads = new Map(
      ways.map(({ name }) => [
        name,
        {
          quiet: [] as Times[],
          one: [] as Times[],
          ten: [] as Times[],
          oneMBps: [] as number[],
          tenMBps: [] as number[],
        },
      ]),
    );
    const cancels: number[] = [];
    const aloneMBps: number[] = [];
    // Warm: a program answers its first thousand requests slower than all later ones.
    for (const way of ways) {
      const agent = new Agent({ keepAlive: true, maxSockets: 8 });
      await Promise.all(Array.from({ length: WARM }, () => smallOnce(agent, way.small)));
      agent.destroy();
      await curl(way.curl);
    }
    for (let round = 0; round < ROUNDS; round++) {
      for (const way of ways) {
        const read = reads.get(way.name)!;
        read.quiet.push(await openLoop(way, SECONDS / 2));
        const single = bulk(way.curl, 1);
        await sleep(500);
        if (way.name === "ours") aloneMBps.push((await single.during(() => sleep(SECONDS * 1000))).MBps);
        const one = await single.during(() => openLoop(way, SECONDS));
        read.one.push(one.result);
        read.oneMBps.push(one.MBps);
        await single.stop();
        const many = bulk(way.curl, 10);
        const stalled = await stalledReader(way.curl);
        await sleep(500);
        const ten = await many.during(() => openLoop(way, SECONDS));
        read.ten.push(ten.result);
        read.tenMBps.push(ten.MBps);
        if (way.name === "ours") for (let n = 0; n < CANCELS; n++) cancels.push(await cancelOnce(world, toStore!));
        await many.stop();
        await stalled.stop();
      }
    }
    const at = (name: string, state: (typeof states)[number], p: number) =>
      median((reads.get(name)?.[state] ?? []).map((times) => quantile(times.all, p)));
    const lost = (name: string) =>
      states.reduce((sum, state) => sum + reads.get(name)![state].reduce((n, times) => n + times.lost, 0), 0);
    const rows: Row[] = ways.flatMap(({ name }) => [
      ...states.flatMap((state) => [
        row(`${name}: ${words[state]}, p50`, at(name, state, 0.5), "ms"),
        row(`${name}: ${words[state]}, p99`, at(name, state, 0.99), "ms"),
      ]),
      row(`${name}: bulk beside, one`, median(reads.get(name)!.oneMBps), "MB/s"),
      row(`${name}: bulk beside, ten and a stalled one`, median(reads.get(name)!.tenMBps), "MB/s"),
      row(`${name}: small requests lost`, lost(name), ""),
    ]);
    rows.push(
      row("ours: bulk alone", median(aloneMBps), "MB/s"),
      row("cancel under that load, p50", median(cancels), "ms"),
    );
    const best = (state: "one" | "ten", p: number) =>
      Math.min(...tunnels.map(({ name }) => at(name, state, p)), Infinity);
    return {
      rows,
      bars: [
        atMost("small beside one bulk, p50 / best tunnel", at("ours", "one", 0.5) / best("one", 0.5), 1, "x"),
        atMost("small beside one bulk, p99 / best tunnel", at("ours", "one", 0.99) / best("one", 0.99), 1, "x"),
        atMost("small beside ten and a stalled one, p50 / best", at("ours", "ten", 0.5) / best("ten", 0.5), 1, "x"),
        atMost(
          "small beside ten and a stalled one, p99",
          at("ours", "ten", 0.99),
          Math.max(best("ten", 0.99), 3 * at("direct", "ten", 0.99)),
          "ms",
        ),
        atMost("small requests lost", lost("ours"), 0, ""),
        atLeast(
          "bulk of ten and a stalled one / one alone",
          median(reads.get("ours")!.tenMBps) / median(aloneMBps),
          0.8,
          "x",
        ),
        atMost("cancel under load, p99 / small requests", quantile(cancels, 0.99) / at("ours", "ten", 0.99), 1, "x"),
      ],
      versions: Object.fromEntries(tunnels.map(({ name, version }) => [name, version])),
      missing,
    };
  });
}
const words = { quiet: "quiet", one: "beside one bulk", ten: "beside ten and a stalled one" } as const;
