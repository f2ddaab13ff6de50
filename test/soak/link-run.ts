// One agent and one control plane while the link between them flaps and the programs stand still. Downloads, uploads and
// looks go on all the time. What must hold: no byte is wrong, no answer is one that the fault does not explain, nothing
// hangs, both programs are those that were started, and after every fault the link is usable again by itself.
import { createHash, randomBytes, randomUUID } from "node:crypto";
import { readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Problem } from "../../cloud/http/api.ts";
import { tempDir, waitFor, type Program, type Teardown } from "../support/launcher.ts";
import { CEILINGS, connectAgent, TestCloud } from "../support/stack.ts";
import { startTcpProxy, type TcpProxy } from "../support/tcp-proxy.ts";
import { Chance } from "./random.ts";

const MIB = 2 ** 20;

export interface LinkRunOptions {
  readonly seed: number;
  /** How long faults are made for, at least: until each was made once, and the last one begun is ended. */
  readonly forMs: number;
  /** Flapping: the link is down, and then up, for so long each time. */
  readonly flapMs: readonly [number, number];
  /** How long a program stands still (SIGSTOP). */
  readonly frozenMs: number;
  /** Silence after which both ends call the link dead; absent: the usual. */
  readonly deadMs?: number;
}

const FAULTS = ["cut", "silence", "stall up", "stall down", "frozen agent", "frozen control plane"] as const;
type Fault = (typeof FAULTS)[number];

export interface LinkRunResult {
  readonly faults: Record<Fault, number>;
  /** From the end of a fault to the first look that is answered, ms, in the order of the faults. */
  readonly usableMs: number[];
  /** `resumed`: of the control plane's own count. `brokenOff`: ended with an error that says so, after a long outage. */
  readonly downloads: { whole: number; brokenOff: number; resumed: number };
  readonly uploads: { whole: number; refused: number; resumed: number };
  readonly looks: { answered: number; refused: Record<string, number> };
  /** The longest of each, s. */
  readonly longest: Record<string, number>;
  readonly connections: number;
  readonly violations: string[];
}

/** What a fault of the link explains. */
const EXPLAINED = new Set(["AGENT_OFFLINE", "LINK_LOST", "AGENT_DRAINING", "GOING_AWAY", "TIMED_OUT"]);
/** After the last fault everything under way ends within this: longer than any wait of either program. */
const CALM_MS = 150_000;
/** After a fault the agent may have to wait for its next dial: the longest window of its backoff. */
const USABLE_MS = 70_000;
export async function linkRun(t: Teardown, options: LinkRunOptions): Promise<LinkRunResult> {
  const chance = new Chance("link", options.seed);
  const { deadMs } = options;
  const cloud = await TestCloud.start(
    t,
    deadMs === undefined ? {} : { env: { SALLYPORT_CLOUD_LINK_DEAD_MS: String(deadMs) } },
  );
  const proxy = await startTcpProxy(t, { port: cloud.port });
  const folder = tempDir(t, "lake");
  const content = randomBytes(24 * MIB);
  const digest = createHash("sha256").update(content).digest("hex");
  writeFileSync(join(folder, "big.bin"), content);
  const agent = await connectAgent(t, cloud, "lab", {
    url: `http://127.0.0.1:${proxy.port}`,
    config: `
link: { stableAfterMs: 0${deadMs === undefined ? "" : `, deadAfterMs: ${deadMs}`} }
stores: [{ id: lake, kind: fs, root: ${folder} }]
policy:
  ${CEILINGS}
  commands: ["artifact.*"]
  stores: [{ store: lake, read: ["**"], write: ["**"], delete: ["**"] }]
  release: { metadata: true, raw: true }
`,
  });
  // A way that is not this machine's own.
  proxy.setDelay(10, 5);
  const programs = [agent.program, cloud.program];
  t.teardown(() => {
    for (const program of programs) if (program.exit === undefined) process.kill(program.pid, "SIGCONT");
  });
  const descriptors = (program: Program): number => readdirSync(`/proc/${program.pid}/fd`).length;
  const before = programs.map(descriptors);

  const result: LinkRunResult = {
    faults: Object.fromEntries(FAULTS.map((name) => [name, 0])) as Record<Fault, number>,
    usableMs: [],
    downloads: { whole: 0, brokenOff: 0, resumed: 0 },
    uploads: { whole: 0, refused: 0, resumed: 0 },
    looks: { answered: 0, refused: {} },
    longest: {},
    connections: 0,
    violations: [],
  };
  const wrong = (what: string): void => void result.violations.push(what);
  const at = (path: string): string => `/v1/pools/lab/stores/lake/content?path=${path}`;
  let going = true;

  async function download(): Promise<void> {
    const answer = await cloud.api.open(at("big.bin"));
    if (answer.statusCode !== 200) {
      answer.resume();
      if (answer.statusCode !== 503 && answer.statusCode !== 502) wrong(`a download was answered ${answer.statusCode}`);
      await sleep(200);
      return;
    }
    const hash = createHash("sha256");
    let bytes = 0;
    try {
      for await (const chunk of answer as AsyncIterable<Buffer>) {
        hash.update(chunk);
        bytes += chunk.length;
      }
    } catch {
      result.downloads.brokenOff++;
      return;
    }
    if (bytes === content.length && hash.digest("hex") === digest) result.downloads.whole++;
    else wrong(`a download of ${bytes} bytes ended well and is not what is stored`);
  }

  async function upload(n: number): Promise<void> {
    const body = content.subarray(0, 6 * MIB + n);
    const path = `up-${n % 4}.bin`;
    const put = await cloud.api.call(at(path), {
      method: "PUT",
      body: (async function* () {
        for (let from = 0; from < body.length; from += 64 * 1024) yield body.subarray(from, from + 64 * 1024);
      })(),
    });
    if (put.status === 200 || put.status === 201) {
      const said = put.json<{ digest: string }>().digest;
      const own = `sha256:${createHash("sha256").update(body).digest("hex")}`;
      if (said === own) result.uploads.whole++;
      else wrong(`an upload was said to be ${said} and is ${own}`);
      return;
    }
    const { code } = put.json<Problem>();
    if (!EXPLAINED.has(code)) wrong(`an upload was answered ${put.status} ${code}: ${put.body.toString()}`);
    result.uploads.refused++;
    await sleep(200);
  }

  async function look(): Promise<boolean> {
    const answer = await cloud.api.call("/v1/pools/lab/stores/lake/stat?path=big.bin", {
      headers: { "x-request-id": randomUUID() },
    });
    if (answer.status === 200) {
      result.looks.answered++;
      return true;
    }
    const { code } = answer.json<Problem>();
    result.looks.refused[code] = (result.looks.refused[code] ?? 0) + 1;
    if (!EXPLAINED.has(code)) wrong(`a look was answered ${answer.status} ${code}`);
    return false;
  }

  /** One after the other, until it is over. A connection that broke is wrong: nothing stands between client and control plane. */
  const again = async (what: string, act: (n: number) => Promise<unknown>, pauseMs: number): Promise<void> => {
    for (let n = 0; going; n++) {
      const began = performance.now();
      try {
        await act(n);
      } catch (error) {
        wrong(`${what}: ${String(error)}`);
        await sleep(1_000);
      }
      result.longest[what] = Math.max(result.longest[what] ?? 0, Math.round((performance.now() - began) / 100) / 10);
      await sleep(pauseMs);
    }
  };
  const work = Promise.all([
    again("download", download, 100),
    again("download", download, 300),
    again("upload", upload, 200),
    again("look", look, 50),
  ]);

  const until = performance.now() + options.forMs;
  const between = ([least, most]: readonly [number, number]): number => least + chance.next() * (most - least);
  // Each once first, in an order of chance, then as it comes.
  let next: Fault[] = [];
  while (performance.now() < until || FAULTS.some((fault) => result.faults[fault] === 0)) {
    if (next.length === 0) next = FAULTS.toSorted(() => chance.next() - 0.5);
    const fault = next.pop()!;
    result.faults[fault]++;
    await make(fault, proxy, programs, fault.startsWith("frozen") ? options.frozenMs : between(options.flapMs));
    const over = performance.now();
    try {
      await waitFor("the link to be usable", look, { timeoutMs: USABLE_MS, everyMs: 20 });
    } catch {
      wrong(`after ${fault}: not usable for ${USABLE_MS / 1000} s`);
    }
    result.usableMs.push(performance.now() - over);
    await sleep(Math.min(between(options.flapMs), Math.max(0, until - performance.now())));
  }

  going = false;
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<boolean>((resolve) => (timer = setTimeout(resolve, CALM_MS, true)));
  if (await Promise.race([work.then(() => false), late]))
    wrong(`something still hung ${CALM_MS / 1000} s after the last fault`);
  clearTimeout(timer);

  for (const program of programs) if (program.exit !== undefined) wrong(`${program.name} ended: ${program.tail()}`);
  if (result.violations.length === 0) {
    await download();
    // Kept-alive connections of clients end by themselves; what a fault left behind does not.
    await waitFor(
      "descriptors to be given back",
      () => programs.every((one, n) => descriptors(one) <= before[n]! + 4),
      {
        timeoutMs: 60_000,
        everyMs: 500,
      },
    ).catch(() =>
      wrong(`open descriptors: ${before.join(", ")} before, ${programs.map(descriptors).join(", ")} after`),
    );
    if (proxy.connections.size !== 1) wrong(`${proxy.connections.size} connections of the agent at the end`);
  }
  const metrics = (await cloud.api.call("/metrics")).body.toString();
  for (const [kind, count] of [
    ["download", result.downloads],
    ["upload", result.uploads],
  ] as const)
    count.resumed = Number(new RegExp(`_resumed_total\\{[^}]*"${kind}"[^}]*\\} (\\d+)`).exec(metrics)?.[1] ?? 0);
  return { ...result, connections: proxy.accepted };
}

/** Resolves when it is over. */
async function make(fault: Fault, proxy: TcpProxy, programs: readonly Program[], forMs: number): Promise<void> {
  switch (fault) {
    case "cut":
      proxy.refuse(true);
      proxy.cut();
      await sleep(forMs);
      proxy.refuse(false);
      return;
    case "silence":
      // What is sent meanwhile is lost, so the connection cannot live: whether its ends notice is the question.
      proxy.setMode("swallow");
      await sleep(forMs);
      proxy.setMode("flow");
      proxy.cut();
      return;
    case "stall up":
    case "stall down":
      proxy.setMode("stall", [fault === "stall up" ? "up" : "down"]);
      await sleep(forMs);
      proxy.setMode("flow");
      return;
    case "frozen agent":
    case "frozen control plane": {
      const { pid } = programs[fault === "frozen agent" ? 0 : 1]!;
      process.kill(pid, "SIGSTOP");
      await sleep(forMs);
      process.kill(pid, "SIGCONT");
    }
  }
}
