// The near end of one peer, which starts the far end, or that far end: `near PEER JSON` or `far PEER WORD...`. Told
// what to measure by messages, answers with figures. Ends when whoever started it goes.
import { fork, type ChildProcess } from "node:child_process";
import { fileURLToPath } from "node:url";
import { bareWs } from "./bare-ws.ts";
import { grpc } from "./grpc.ts";
import { http2OverWs } from "./http2.ts";
import { nats } from "./nats.ts";
import type { Near, NearOptions, Peer } from "./peer.ts";
import { sallyport } from "./sallyport.ts";
import { tcp } from "./tcp.ts";

export type PeerName = keyof typeof PEERS;
const PEERS = {
  "bare-ws": bareWs,
  link: sallyport(true),
  "link-without-mac": sallyport(false),
  tcp,
  http2: http2OverWs,
  grpc,
  nats,
} as const satisfies Record<string, Peer>;

export type Order = { trips: number } | { bulk: number };
export interface Trips {
  p50Us: number;
  p99Us: number;
}
export interface Bulk {
  mbPerS: number;
  /** CPU seconds per GiB, both ends. */
  cpuS: number;
  peakRssMiB: number;
}

async function trips(near: Near, count: number): Promise<Trips> {
  const took = new Float64Array(count);
  for (let i = 0; i < count; i++) {
    const from = performance.now();
    await near.trip();
    took[i] = (performance.now() - from) * 1000;
  }
  took.sort();
  return { p50Us: took[count >> 1]!, p99Us: took[Math.floor(count * 0.99)]! };
}

const cpuOf = (far: ChildProcess): Promise<number> =>
  new Promise((resolve) => {
    far.once("message", (us) => resolve(us as number));
    far.send("cpu");
  });

async function bulk(near: Near, far: ChildProcess, wanted: number): Promise<Bulk> {
  const before = await cpuOf(far);
  const own = process.cpuUsage();
  let peak = 0;
  const sampler = setInterval(() => (peak = Math.max(peak, process.memoryUsage.rss())), 20);
  const from = performance.now();
  const bytes = await near.bulk(wanted);
  const seconds = (performance.now() - from) / 1000;
  clearInterval(sampler);
  const used = process.cpuUsage(own);
  const after = await cpuOf(far);
  if (bytes !== wanted) throw new Error(`${bytes} of ${wanted} bytes came.`);
  return {
    mbPerS: bytes / 1e6 / seconds,
    cpuS: (used.user + used.system + after - before) / 1e6 / (wanted / 1024 ** 3),
    peakRssMiB: peak / 1024 ** 2,
  };
}

const [role, name, ...words] = process.argv.slice(2);
const peer: Peer = PEERS[name as PeerName];
process.on("disconnect", () => process.exit(0));
if (role === "far") {
  process.on("message", () => {
    const { user, system } = process.cpuUsage();
    process.send!(user + system);
  });
  await peer.far(words);
} else {
  let far: ChildProcess | undefined;
  const near = await peer.near(
    (...farWords) => {
      far = fork(fileURLToPath(new URL("process.mjs", import.meta.url)), ["far", name!, ...farWords], {
        stdio: ["ignore", "inherit", "inherit", "ipc"],
      });
    },
    JSON.parse(words[0] ?? "{}") as NearOptions,
  );
  process.on("message", (order: Order) => {
    const measured = "trips" in order ? trips(near, order.trips) : bulk(near, far!, order.bulk);
    measured.then(
      (figures) => process.send!(figures),
      (error: unknown) => {
        console.error(error);
        process.exit(1);
      },
    );
  });
  process.send!(far!.pid);
}
