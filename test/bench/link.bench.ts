// The link beside bare `ws` (with masking, like the link): round trip of 200 bytes each way, and 1 GiB from agent to
// cloud. The two ends are separate processes; link and bare alternate, medians count.
import { fork, type ChildProcess } from "node:child_process";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { entryUrl } from "@sallyport/protocol";
import { WebSocketServer } from "ws";
import { startCloudEnd } from "../contract/link/cloud-end.ts";
import { atLeast, atMost, median, type BarResult, type Row } from "./report.ts";

const ROUNDS = Number(process.env["BENCH_ROUNDS"] ?? 3);
const TRIPS = 3_000;
const WARM_TRIPS = 500;
export const BULK_BYTES = Number(process.env["BENCH_BYTES"] ?? 1024 ** 3);

interface Measured {
  tripUs: number;
  tripP99Us: number;
  bulkMBps: number;
  /** CPU seconds per GiB, this end and the far one. */
  cpuS: number;
  peakRssMiB: number;
}

const percentile = (values: number[], p: number): number =>
  values.sort((a, b) => a - b)[Math.floor(values.length * p)]!;

async function trips(once: () => Promise<void>): Promise<{ tripUs: number; tripP99Us: number }> {
  for (let i = 0; i < WARM_TRIPS; i++) await once();
  const took: number[] = [];
  for (let i = 0; i < TRIPS; i++) {
    const from = performance.now();
    await once();
    took.push((performance.now() - from) * 1000);
  }
  return { tripUs: percentile(took, 0.5), tripP99Us: percentile(took, 0.99) };
}

function farEnd(args: string[]): ChildProcess {
  return fork(entryUrl(import.meta.url, "./link-far-end"), args, { stdio: ["ignore", "inherit", "inherit", "ipc"] });
}
const usage = (child: ChildProcess): Promise<{ cpuUs: number }> =>
  new Promise((resolve) => {
    child.once("message", (message) => resolve(message as { cpuUs: number }));
    child.send("usage");
  });
const ended = (child: ChildProcess): Promise<void> => new Promise((resolve) => child.once("exit", () => resolve()));

async function bulk(
  child: ChildProcess,
  receive: () => Promise<number>,
): Promise<{ bulkMBps: number; cpuS: number; peakRssMiB: number }> {
  const before = await usage(child);
  const own = process.cpuUsage();
  let peak = 0;
  const sampler = setInterval(() => (peak = Math.max(peak, process.memoryUsage.rss())), 20);
  const from = performance.now();
  const bytes = await receive();
  const seconds = (performance.now() - from) / 1000;
  clearInterval(sampler);
  const used = process.cpuUsage(own);
  const after = await usage(child);
  if (bytes !== BULK_BYTES) throw new Error(`${bytes} of ${BULK_BYTES} bytes came.`);
  return {
    bulkMBps: bytes / 1e6 / seconds,
    cpuS: (used.user + used.system + after.cpuUs - before.cpuUs) / 1e6 / (BULK_BYTES / 1024 ** 3),
    peakRssMiB: peak / 1024 ** 2,
  };
}

async function bare(): Promise<Measured> {
  const server = createServer();
  const webSockets = new WebSocketServer({ server, perMessageDeflate: false, maxPayload: 1 << 20 });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const connected = new Promise<import("ws").WebSocket>((resolve) => webSockets.once("connection", resolve));
  const child = farEnd(["bare", String((server.address() as AddressInfo).port)]);
  const webSocket = await connected;
  const request = Buffer.alloc(200, "a");
  let onMessage: (data: Buffer) => void = () => {};
  webSocket.on("message", (data: Buffer) => onMessage(data));
  const trip = await trips(
    () =>
      new Promise<void>((resolve) => {
        onMessage = () => resolve();
        webSocket.send(request);
      }),
  );
  const rate = await bulk(
    child,
    () =>
      new Promise<number>((resolve) => {
        let bytes = 0;
        onMessage = (data) => {
          bytes += data.length;
          if (bytes >= BULK_BYTES) resolve(bytes);
        };
        webSocket.send("bulk");
      }),
  );
  const over = ended(child);
  webSocket.terminate();
  await over;
  webSockets.close();
  server.close();
  return { ...trip, ...rate };
}

async function link(mac: boolean): Promise<Measured> {
  const cloud = await startCloudEnd({ mac });
  const online = new Promise<import("../../cloud/link/index.ts").CloudSession>((resolve) =>
    cloud.gateway.sessions.onOnline(resolve),
  );
  const child = farEnd(["link", cloud.url, cloud.enrolment().text, String(mac)]);
  const session = await online;
  const text = "a".repeat(180);
  const trip = await trips(async () => {
    const stream = session.open({ type: "echo", text }, { lane: "interactive", end: true });
    await stream.answer;
  });
  const rate = await bulk(child, async () => {
    const stream = session.open({ type: "bulk", bytes: BULK_BYTES }, { lane: "bulk", end: true });
    await stream.answer;
    let bytes = 0;
    for await (const chunk of stream.bytes) bytes += chunk.length;
    return bytes;
  });
  const over = ended(child);
  await cloud.stop();
  child.kill();
  await over;
  return { ...trip, ...rate };
}

export async function benchLink(): Promise<{ rows: Row[]; bars: BarResult[] }> {
  const all: Record<string, Measured[]> = { "bare ws": [], link: [], "link without MAC": [] };
  for (let round = 0; round < ROUNDS; round++) {
    all["bare ws"]!.push(await bare());
    all["link"]!.push(await link(true));
    all["link without MAC"]!.push(await link(false));
  }
  const of = (name: string, key: keyof Measured) => median(all[name]!.map((one) => one[key]));
  const best = (name: string) => Math.min(...all[name]!.map((one) => one.tripUs));
  const rows: Row[] = [];
  for (const name of Object.keys(all)) {
    rows.push({ what: `${name}: round trip p50`, value: of(name, "tripUs").toFixed(0), unit: "us" });
    rows.push({ what: `${name}: round trip p99`, value: of(name, "tripP99Us").toFixed(0), unit: "us" });
    rows.push({ what: `${name}: bulk`, value: of(name, "bulkMBps").toFixed(0), unit: "MB/s" });
    rows.push({ what: `${name}: CPU, both ends`, value: of(name, "cpuS").toFixed(2), unit: "s per GiB" });
    rows.push({ what: `${name}: peak RSS, cloud end`, value: of(name, "peakRssMiB").toFixed(0), unit: "MiB" });
  }
  return {
    rows,
    bars: [
      // Best round against best round: where the scheduler puts the two processes moves bare ws alone between 25 and 70 us.
      atMost("link round trip", best("link") / best("bare ws"), 3, "x bare ws"),
      atLeast("link bulk", of("link", "bulkMBps") / of("bare ws", "bulkMBps"), 0.4, "x bare ws"),
    ],
  };
}
