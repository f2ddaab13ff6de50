// Durable commands: HTTP -> SQL -> link -> journal -> result -> SQL, one control plane, one agent, both as programs. Only
// the work is left out (instant-runs.ts). Beside it in the same run: an empty fastify POST under the same load, the disk's
// own rate of fsyncs, and the same path on a disk of memory. Rounds are interleaved, medians told.
//   rate       64 requests in flight; from the first request to the end of the last command, as SQL has it
//   single     one after the other, from the request to the end in SQL
//   beside     small reads of an artifact store through the link, quiet, and beside commands at a fixed rate (open loop)
import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import {
  accessSync,
  closeSync,
  constants,
  fdatasyncSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { Agent, request as httpRequest } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { setImmediate as turn, setTimeout as sleep } from "node:timers/promises";
import { DATABASE_FILE } from "../../cloud/store/index.ts";
import { repository, type Teardown } from "../support/launcher.ts";
import { connectAgent, TestCloud, type TestAgent } from "../support/stack.ts";
import { atLeast, atMost, median, type BarResult, type Row } from "./report.ts";

const ROUNDS = Number(process.env["BENCH_ROUNDS"] ?? 5);
const COMMANDS = Number(process.env["BENCH_COMMANDS"] ?? 3000);
const SINGLES = 200;
const IN_FLIGHT = 64;
const BESIDE = { commandsPerSecond: 500, readsPerSecond: 100, seconds: Number(process.env["BENCH_SECONDS"] ?? 10) };

const quantile = (values: readonly number[], q: number): number =>
  values.toSorted((a, b) => a - b)[Math.min(values.length - 1, Math.floor(values.length * q))] ?? Number.NaN;

class Caller {
  readonly #agent: Agent;
  readonly #port: number;
  readonly #token: string;

  constructor(port: number, token = "none") {
    this.#port = port;
    this.#token = token;
    this.#agent = new Agent({ keepAlive: true, maxSockets: IN_FLIGHT });
  }

  /** Rejects when the answer is not 2xx. */
  call(method: string, path: string, body?: string): Promise<string> {
    return new Promise((resolve, reject) => {
      const request = httpRequest(
        {
          host: "127.0.0.1",
          port: this.#port,
          method,
          path,
          agent: this.#agent,
          headers: {
            authorization: `Bearer ${this.#token}`,
            ...(body === undefined
              ? {}
              : {
                  "content-type": "application/json",
                  "content-length": Buffer.byteLength(body),
                  "idempotency-key": randomUUID(),
                }),
          },
        },
        (response) => {
          let text = "";
          response.setEncoding("utf8").on("data", (chunk: string) => (text += chunk));
          response.once("error", reject).once("end", () => {
            if (response.statusCode! >= 300) reject(new Error(`${path}: ${response.statusCode} ${text.slice(0, 300)}`));
            else resolve(text);
          });
        },
      );
      request.once("error", reject);
      request.end(body);
    });
  }

  close(): void {
    this.#agent.destroy();
  }
}

/** `total` of them, IN_FLIGHT at once. */
async function flood(total: number, one: () => Promise<unknown>): Promise<void> {
  let left = total;
  await Promise.all(
    Array.from({ length: IN_FLIGHT }, async () => {
      while (left-- > 0) await one();
    }),
  );
}

const RUN = JSON.stringify({
  pool: "lab",
  pipeline: { name: "noop", outputs: { store: "box" }, steps: [{ name: "one", program: "sh", args: ["-c", "true"] }] },
});

interface System {
  cloud: TestCloud;
  agent: TestAgent;
  api: Caller;
  submit(): Promise<{ command: string }>;
  read(): Promise<unknown>;
  /** Of all commands so far, as SQL has it. */
  ended(): number;
  endedOne(command: string): boolean;
}

/** `folder`: of the control plane's data and the agent's state. */
async function start(t: Teardown, folder: string): Promise<System> {
  const store = join(folder, "store");
  mkdirSync(store, { recursive: true });
  for (let n = 0; n < 10; n++) writeFileSync(join(store, `${n}.txt`), "small\n");
  const cloud = await TestCloud.start(t, { dir: join(folder, "cloud") });
  const agent = await connectAgent(t, cloud, "lab", {
    state: join(folder, "state"),
    nodeArgs: ["--import", join(repository, "test/bench/instant-runs.ts")],
    config: `
stores: [{ id: box, kind: fs, root: ${store} }]
programs: { sh: { path: /bin/sh } }
limits: { concurrentRuns: 64 }
policy:
  ceilings: { concurrentRuns: 64, concurrentSteps: 2, stepTimeoutMs: 3600000, stepsPerRun: 10, streams: 256 }
  commands: ["pipeline.run", "artifact.list"]
  engines: [process]
  programs: [sh]
  stores: [{ store: box, read: ["**"], write: ["runs/**"] }]
  release: { metadata: true }
`,
  });
  const api = new Caller(cloud.port, cloud.api.token!);
  const database = new DatabaseSync(join(cloud.dir, DATABASE_FILE), { readOnly: true });
  t.teardown(() => (api.close(), database.close()));
  const count = database.prepare("SELECT count(*) AS n FROM commands WHERE state = 'succeeded'");
  const state = database.prepare("SELECT state FROM commands WHERE command_id = ?");
  const failed = database.prepare(
    "SELECT command_id AS id, state, error FROM commands WHERE state NOT IN ('queued', 'accepted', 'running', 'succeeded') LIMIT 1",
  );
  return {
    cloud,
    agent,
    api,
    submit: async () => JSON.parse(await api.call("POST", "/v1/runs", RUN)) as { command: string },
    read: () => api.call("GET", "/v1/pools/lab/stores/box/artifacts"),
    ended: () => {
      const wrong = failed.get() as { id: string; state: string; error: string } | undefined;
      if (wrong !== undefined) throw new Error(`command ${wrong.id} is ${wrong.state}: ${wrong.error}`);
      return (count.get() as { n: number }).n;
    },
    endedOne: (command) => (state.get(command) as { state: string } | undefined)?.state === "succeeded",
  };
}

/** Commands per second, from the first request to the end of the last. */
async function rateOf(system: System, total: number): Promise<number> {
  const before = system.ended();
  const began = performance.now();
  await flood(total, system.submit);
  while (system.ended() < before + total) await sleep(5);
  return (total / (performance.now() - began)) * 1000;
}

async function single(system: System): Promise<number> {
  const began = performance.now();
  const { command } = await system.submit();
  while (!system.endedOne(command)) await turn();
  return performance.now() - began;
}

/** Begun at fixed instants, whatever the answers do; times from the instant that was meant, for ever where it was refused. */
async function openLoop(perSecond: number, seconds: number, one: () => Promise<unknown>): Promise<number[]> {
  const times: number[] = [];
  const under: Promise<void>[] = [];
  const began = performance.now();
  for (let n = 0; n < perSecond * seconds;) {
    const due = began + (n * 1000) / perSecond;
    if (performance.now() < due) {
      await sleep(1);
      continue;
    }
    n++;
    under.push(
      one().then(
        () => void times.push(performance.now() - due),
        () => void times.push(Infinity),
      ),
    );
  }
  await Promise.all(under);
  return times;
}

/** Of the disk that `folder` is on: appends of 4 KiB, each with its fdatasync. */
function fsyncsPerSecond(folder: string): number {
  const path = join(folder, "fsync");
  const file = openSync(path, "a");
  const began = performance.now();
  const page = Buffer.alloc(4096);
  for (let n = 0; n < 200; n++) {
    writeSync(file, page);
    fdatasyncSync(file);
  }
  const rate = (200 / (performance.now() - began)) * 1000;
  closeSync(file);
  rmSync(path);
  return rate;
}

/** Calls of fsync and fdatasync while `during` runs, of each process's first thread, where its event loop is, and of the others. Null: no strace. */
async function fsyncsOf(
  pids: readonly number[],
  during: () => Promise<void>,
): Promise<{ loop: number; others: number } | null> {
  try {
    accessSync("/usr/bin/strace", constants.X_OK);
  } catch {
    await during();
    return null;
  }
  const folder = mkdtempSync(join(tmpdir(), "bench-fsync-"));
  const tracers = pids.map((pid) =>
    spawn(
      "strace",
      ["-f", "-ff", "-qq", "-e", "trace=fsync,fdatasync", "-o", join(folder, String(pid)), "-p", String(pid)],
      {
        stdio: ["ignore", "ignore", "ignore"],
      },
    ),
  );
  await sleep(500);
  await during();
  for (const tracer of tracers) tracer.kill("SIGINT");
  await Promise.all(tracers.map((tracer) => once(tracer, "close")));
  const found = { loop: 0, others: 0 };
  for (const name of readdirSync(folder)) {
    const calls = (readFileSync(join(folder, name), "utf8").match(/^f(?:data)?sync\(/gm) ?? []).length;
    const [pid, thread] = name.split(".");
    if (pid === thread) found.loop += calls;
    else found.others += calls;
  }
  rmSync(folder, { recursive: true });
  return found;
}

/** The program below a start script, which only hands signals on. */
function programOf(pid: number): number {
  for (;;) {
    const children = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim().split(" ").filter(Boolean);
    const node = children
      .map(Number)
      .find((child) => /node/.test(readFileSync(`/proc/${child}/cmdline`, "utf8").split("\0")[0]!));
    if (node === undefined || /host-main/.test(readFileSync(`/proc/${node}/cmdline`, "utf8"))) return pid;
    pid = node;
  }
}

export async function benchCommands(): Promise<{ rows: Row[]; bars: BarResult[] }> {
  const ends: (() => unknown)[] = [];
  const t: Teardown = { teardown: (fn) => void ends.push(fn) };
  const folder = mkdtempSync(join(tmpdir(), "bench-commands-"));
  const memory = mkdtempSync("/dev/shm/bench-commands-");
  try {
    const peer = spawn(process.execPath, [join(repository, "test/bench/empty-post.ts")], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    t.teardown(() => peer.kill());
    const [port] = (await once(peer.stdout, "data")) as [Buffer];
    const empty = new Caller(Number(port.toString()));
    t.teardown(() => empty.close());
    const emptyOnce = () => empty.call("POST", "/v1/runs", RUN);
    const [ours, inMemory] = [await start(t, folder), await start(t, memory)];

    // Warm: what is compiled at its first use is not measured.
    await flood(2000, emptyOnce);
    for (const system of [ours, inMemory]) await rateOf(system, 1000);
    const rates = {
      ours: [] as number[],
      empty: [] as number[],
      memory: [] as number[],
      disk: [] as number[],
      ratio: [] as number[],
    };
    for (let round = 0; round < ROUNDS; round++) {
      const began = performance.now();
      await flood(COMMANDS * 4, emptyOnce);
      rates.empty.push(((COMMANDS * 4) / (performance.now() - began)) * 1000);
      rates.ours.push(await rateOf(ours, COMMANDS));
      rates.memory.push(await rateOf(inMemory, COMMANDS));
      rates.disk.push(fsyncsPerSecond(folder));
      rates.ratio.push(rates.ours.at(-1)! / rates.empty.at(-1)!);
    }
    const singles: number[] = [];
    for (let n = 0; n < SINGLES; n++) singles.push(await single(ours));

    const read = () => ours.read();
    for (let n = 0; n < 50; n++) await read();
    const quiet: number[][] = [];
    const beside: number[][] = [];
    for (let round = 0; round < 3; round++) {
      quiet.push(await openLoop(BESIDE.readsPerSecond, BESIDE.seconds / 2, read));
      const commands = openLoop(BESIDE.commandsPerSecond, BESIDE.seconds / 2, ours.submit);
      beside.push(await openLoop(BESIDE.readsPerSecond, BESIDE.seconds / 2, read));
      await commands;
    }
    const traced = await fsyncsOf(
      [ours.cloud, ours.agent].map(({ program }) => programOf(program.pid)),
      async () => {
        await Promise.all([
          openLoop(BESIDE.commandsPerSecond / 5, 3, ours.submit),
          openLoop(BESIDE.readsPerSecond / 2, 3, read),
        ]);
      },
    );
    const q = (all: number[][], which: number): number => median(all.map((times) => quantile(times, which)));
    const tail = q(beside, 0.99) / q(quiet, 0.99);
    const row = (what: string, value: number, unit: string): Row => ({
      what,
      value: value.toFixed(value < 100 ? 2 : 0),
      unit,
    });
    return {
      rows: [
        row("durable commands, 64 in flight", median(rates.ours), "1/s"),
        row("the same with data in memory", median(rates.memory), "1/s"),
        row("empty fastify POST, 64 in flight", median(rates.empty), "1/s"),
        row("the disk: append and fdatasync", median(rates.disk), "1/s"),
        row("single command, p50", quantile(singles, 0.5), "ms"),
        row("single command, p99", quantile(singles, 0.99), "ms"),
        row("read through the link, quiet, p50", q(quiet, 0.5), "ms"),
        row("read through the link, quiet, p99", q(quiet, 0.99), "ms"),
        row(`beside ${BESIDE.commandsPerSecond} commands/s, p50`, q(beside, 0.5), "ms"),
        row(`beside ${BESIDE.commandsPerSecond} commands/s, p99`, q(beside, 0.99), "ms"),
        ...(traced === null
          ? [{ what: "fsyncs on event loops", value: "no strace", unit: "" }]
          : [
              row("fsyncs on the event loops' threads", traced.loop, "calls"),
              row("fsyncs on the workers' threads", traced.others, "calls"),
            ]),
      ],
      bars: [
        atLeast("durable / empty POST, 64 in flight", median(rates.ratio), 0.15, "x"),
        atMost("single durable command, p50", quantile(singles, 0.5), 15, "ms"),
        atMost("read beside commands / quiet, p99", tail, 3, "x"),
        ...(traced === null ? [] : [atMost("fsyncs on event loops", traced.loop, 0, "calls")]),
      ],
    };
  } finally {
    for (const end of ends.toReversed()) await end();
    for (const path of [folder, memory]) rmSync(path, { recursive: true, force: true, maxRetries: 3 });
  }
}
