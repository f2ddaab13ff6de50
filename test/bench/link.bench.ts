// The link beside bare `ws` and other ways: round trip of 200 bytes each way, and bulk from agent to cloud. Each peer is
// a pair of processes of its own, each on its core; all are up at once, and they take turns in short blocks.
import { execFileSync, fork, type ChildProcess } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { makeAuthority } from "../support/certificates.ts";
import { startNats } from "../support/nats.ts";
import { findServer } from "../support/skip.ts";
import type { NearOptions } from "./link/peer.ts";
import type { Bulk, Order, PeerName, Trips } from "./link/process.ts";
import { atLeast, atMost, median, ratios, row, type BenchResult, type Row } from "./report.ts";

const BLOCKS = Number(process.env["BENCH_BLOCKS"] ?? 25);
const BLOCK_TRIPS = 400;
const ROUNDS = Number(process.env["BENCH_ROUNDS"] ?? 5);
const BULK_BYTES = Number(process.env["BENCH_BYTES"] ?? 1024 ** 3);
/** All but the two that are held against each other carry less, so that a run stays short. */
const SLOW_BYTES = BULK_BYTES / 4;

interface Target {
  readonly name: string;
  readonly peer: PeerName;
  readonly options: NearOptions;
  readonly bulkBytes: number;
}

const versionOf = (name: string): string =>
  (createRequire(import.meta.url)(`${name}/package.json`) as { version: string }).version;

/**
 * Each end has a core of its own, as on two machines: left to the scheduler, the same pair of processes answers in 25 or
 * in 100 us, depending on where it happened to be put.
 */
function pin(pid: number, core: number): void {
  try {
    execFileSync("taskset", ["-a", "-c", "-p", String(core), String(pid)], { stdio: "ignore" });
  } catch {
    // one core, or no taskset
  }
}

class Ends {
  readonly #child: ChildProcess;

  private constructor(child: ChildProcess) {
    this.#child = child;
  }

  static async start({ peer, options }: Target): Promise<Ends> {
    const child = fork(
      fileURLToPath(new URL("link/process.mjs", import.meta.url)),
      ["near", peer, JSON.stringify(options)],
      {
        stdio: ["ignore", "inherit", "inherit", "ipc"],
      },
    );
    const ends = new Ends(child);
    const far = (await ends.#answer()) as number;
    pin(child.pid!, 0);
    pin(far, 1);
    return ends;
  }

  #answer(): Promise<unknown> {
    return new Promise((resolve, reject) => {
      const ended = () => reject(new Error("An end of the link bench broke off."));
      this.#child.once("exit", ended);
      this.#child.once("message", (message) => {
        this.#child.off("exit", ended);
        resolve(message);
      });
    });
  }

  async #ask(order: Order): Promise<unknown> {
    this.#child.send(order);
    return await this.#answer();
  }
  trips = async (count: number): Promise<Trips> => (await this.#ask({ trips: count })) as Trips;
  bulk = async (bytes: number): Promise<Bulk> => (await this.#ask({ bulk: bytes })) as Bulk;

  stop(): Promise<void> {
    return new Promise((resolve) => {
      if (this.#child.exitCode !== null) return resolve();
      this.#child.once("exit", () => resolve());
      this.#child.disconnect();
    });
  }
}

export async function benchLink(): Promise<BenchResult> {
  const only = process.env["BENCH_ONLY"]?.split(",");
  const ends: (() => unknown)[] = [];
  const folder = mkdtempSync(join(tmpdir(), "bench-link-"));
  ends.push(() => rmSync(folder, { recursive: true, force: true }));
  try {
    const files = makeAuthority(folder);
    const pem = (file: string) => readFileSync(file, "utf8");
    const tls = { key: pem(files.keyFile), cert: pem(files.certFile), ca: pem(files.caFile) };
    const natsServer = findServer("nats");
    const nats =
      natsServer === undefined
        ? null
        : {
            server: await startNats({ teardown: (fn) => void ends.push(fn) }),
            version: execFileSync(natsServer, ["--version"], { encoding: "utf8" })
              .trim()
              .replace(/^.* v?/, ""),
          };
    const all: Target[] = [
      { name: "bare ws", peer: "bare-ws", options: {}, bulkBytes: BULK_BYTES },
      { name: "link", peer: "link", options: {}, bulkBytes: BULK_BYTES },
      { name: "link without MAC", peer: "link-without-mac", options: {}, bulkBytes: SLOW_BYTES },
      { name: "bare wss", peer: "bare-ws", options: { tls }, bulkBytes: SLOW_BYTES },
      { name: "link over wss", peer: "link", options: { tls }, bulkBytes: SLOW_BYTES },
      { name: "TCP", peer: "tcp", options: {}, bulkBytes: SLOW_BYTES },
      { name: "HTTP/2 over ws", peer: "http2", options: {}, bulkBytes: SLOW_BYTES },
      { name: "grpc-js", peer: "grpc", options: {}, bulkBytes: SLOW_BYTES },
      ...(nats === null
        ? []
        : [
            {
              name: "NATS",
              peer: "nats" as const,
              options: { nats: { servers: nats.server.url, user: nats.server.user, pass: nats.server.password } },
              bulkBytes: SLOW_BYTES,
            },
          ]),
    ];
    const targets = all.filter(({ name }) => only === undefined || only.includes(name));
    const running = new Map<string, Ends>();
    for (const target of targets) {
      const one = await Ends.start(target);
      ends.push(() => one.stop());
      running.set(target.name, one);
    }
    const trips = new Map<string, Trips[]>(targets.map(({ name }) => [name, []]));
    const bulks = new Map<string, Bulk[]>(targets.map(({ name }) => [name, []]));
    // The first blocks compile.
    for (const { name } of targets) await running.get(name)!.trips(2 * BLOCK_TRIPS);
    for (let block = 0; block < BLOCKS; block++)
      for (const { name } of targets) trips.get(name)!.push(await running.get(name)!.trips(BLOCK_TRIPS));
    for (const { name } of targets) await running.get(name)!.bulk(BULK_BYTES / 16);
    for (let round = 0; round < ROUNDS; round++)
      for (const { name, bulkBytes } of targets) {
        if (bulkBytes === SLOW_BYTES && round >= 3) continue;
        bulks.get(name)!.push(await running.get(name)!.bulk(bulkBytes));
      }

    const tripsOf = (name: string, key: keyof Trips) => (trips.get(name) ?? []).map((one) => one[key]);
    const bulksOf = (name: string, key: keyof Bulk) => (bulks.get(name) ?? []).map((one) => one[key]);
    const rows: Row[] = targets.flatMap(({ name }) => [
      row(`${name}: round trip p50`, median(tripsOf(name, "p50Us")), "us"),
      row(`${name}: round trip p99`, median(tripsOf(name, "p99Us")), "us"),
      row(`${name}: bulk`, median(bulksOf(name, "mbPerS")), "MB/s"),
      row(`${name}: CPU, both ends`, median(bulksOf(name, "cpuS")), "s per GiB"),
      row(`${name}: peak RSS, cloud end`, median(bulksOf(name, "peakRssMiB")), "MiB"),
    ]);
    const overWss = median(ratios(bulksOf("link over wss", "mbPerS"), bulksOf("bare wss", "mbPerS")));
    rows.push(row("link over wss / bare wss: bulk", overWss, "x"));
    return {
      rows,
      bars: [
        atMost(
          "link round trip p50 / bare ws",
          median(ratios(tripsOf("link", "p50Us"), tripsOf("bare ws", "p50Us"))),
          1.5,
          "x",
        ),
        atLeast(
          "link bulk / bare ws",
          median(ratios(bulksOf("link", "mbPerS"), bulksOf("bare ws", "mbPerS"))),
          0.8,
          "x",
        ),
      ],
      versions: {
        ws: versionOf("ws"),
        bufferutil: versionOf("bufferutil"),
        "grpc-js": versionOf("@grpc/grpc-js"),
        "nats client": versionOf("@nats-io/transport-node"),
        ...(nats === null ? {} : { "nats-server": nats.version }),
      },
      missing: nats === null ? ["NATS (test/support/servers/nats install)"] : [],
    };
  } finally {
    for (const end of ends.toReversed()) await end();
  }
}
