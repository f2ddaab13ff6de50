// Two agents of one pool, one of which goes away. What it had not taken, the other takes; what it had on an engine of its
// own is unknown until it is back; what it had on a Docker Engine that both ask goes over, though the first one works on.
// Effects are counted where they happen: by a server that the steps ask.
import { randomUUID } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { dirname, join } from "node:path";
import t, { type Test } from "tap";
import { readNdjson, type LogRecord } from "@sallyport/protocol";
import type { CommandDetail, RunDetail } from "../../cloud/http/api.ts";
import { tempDir, waitFor } from "../support/launcher.ts";
import { startDocker, type DockerServer } from "../support/servers/docker.ts";
import { nodeImage } from "../support/servers/images.ts";
import { needs } from "../support/skip.ts";
import { CEILINGS, connectAgent, TestCloud, type TestAgent } from "../support/stack.ts";
import { startTcpProxy } from "../support/tcp-proxy.ts";

const policy = (engine: string) => `
policy:
  ${CEILINGS.replace(" }", ", cpus: 4, memoryBytes: 2147483648 }")}
  commands: ["pipeline.run", "run.*"]
  engines: [${engine}]
  programs: [node]
  networks: [count]
  stores: [{ store: box, read: ["**"], write: ["runs/**"] }]
  release: { metadata: true, logs: true }
`;

const start = (cloud: TestCloud, pipeline: unknown) =>
  cloud.api.json<{ id: string; command: string }>("/v1/runs", {
    headers: { "idempotency-key": randomUUID() },
    json: { pool: "lab", pipeline },
  });
const runOf = (cloud: TestCloud, id: string) => cloud.api.json<RunDetail>(`/v1/runs/${id}`);
const ended = (cloud: TestCloud, id: string, timeoutMs = 60_000): Promise<RunDetail> =>
  waitFor(
    `run ${id} to end`,
    async () => {
      const now = await runOf(cloud, id);
      return ["succeeded", "failed", "cancelled"].includes(now.state) && now;
    },
    { timeoutMs },
  );

async function linesOf(cloud: TestCloud, run: string, step: string): Promise<string[]> {
  const answer = await cloud.api.open(`/v1/runs/${run}/steps/${step}/logs?limit=100000`);
  const lines: string[] = [];
  for await (const record of readNdjson(answer)) {
    const one = record as LogRecord;
    if ("gap" in one) lines.push(`gap: ${one.reason}`);
    else if (one.stream === "stdout") lines.push(one.body.data);
  }
  return lines;
}

/** How often a step came to a place, as the steps themselves said; they wait at a gate until it is opened. */
class Counter {
  readonly came = new Map<string, number>();
  readonly #open = new Set<string>();
  url = "";

  open(gate: string): void {
    this.#open.add(gate);
  }
  count(place: string): number {
    return this.came.get(place) ?? 0;
  }

  async listen(t: Test, host: string): Promise<void> {
    const server = createServer((request, response) => {
      const place = request.url!.slice(1);
      if (request.method === "POST") {
        this.came.set(place, this.count(place) + 1);
        response.end();
      } else response.writeHead(this.#open.has(place) ? 200 : 404).end();
    });
    await new Promise<void>((resolve) => server.listen(0, host, resolve));
    t.teardown(() => new Promise((resolve) => server.close(resolve)));
    this.url = `http://${host}:${(server.address() as { port: number }).port}`;
  }
}

const LINES = 40;
const STEP = `
const [counter, name, out] = process.argv.slice(1);
const say = (place) => fetch(counter + "/" + place, { method: "POST" });
await say(name + ".began");
for (let n = 0; n < ${LINES}; n++) console.log(name + " line " + n);
while ((await fetch(counter + "/" + name)).status !== 200) await new Promise((r) => setTimeout(r, 50));
await say(name + ".done");
console.log(name + " ends");
await (await import("node:fs/promises")).writeFile(out, name);
`;

t.setTimeout(700_000);

t.test("the engine process", { timeout: 300_000 }, async (t) => {
  const cloud = await TestCloud.start(t);
  const store = tempDir(t, "store");
  const effects = join(tempDir(t, "effects"), "effects");
  writeFileSync(effects, "");
  const config = `
stores: [{ id: box, kind: fs, root: ${store} }]
programs: { node: { path: ${process.execPath} } }
${policy("process")}`;
  const [a, b] = [await connectAgent(t, cloud, "lab", { config }), await connectAgent(t, cloud, "lab", { config })];
  const pipeline = (name: string, gate: string) => ({
    name,
    outputs: { store: "box" },
    steps: [
      {
        name: "a",
        program: "node",
        args: [
          "-e",
          `const fs = require("node:fs"); fs.appendFileSync(${JSON.stringify(effects)}, "${name}\\n");
           const timer = setInterval(() => { if (fs.existsSync(${JSON.stringify(gate)})) clearInterval(timer); }, 50);`,
        ],
      },
    ],
  });
  const done = (name: string) =>
    readFileSync(effects, "utf8")
      .split("\n")
      .filter((line) => line === name).length;

  await t.test("killed before it took anything: the other takes it", { timeout: 180_000 }, async (t) => {
    await a.program.killHard();
    const gate = join(dirname(effects), "open");
    writeFileSync(gate, "");
    const since = performance.now();
    const run = await start(cloud, pipeline("first", gate));
    t.match(await ended(cloud, run.id), { state: "succeeded" });
    t.ok(performance.now() - since < 15_000, `after ${Math.round(performance.now() - since)} ms`);
    t.equal(done("first"), 1);
  });

  await t.test(
    "accepted: unknown, never failed and nobody else's; when it is back it finishes",
    { timeout: 180_000 },
    async (t) => {
      await b.program.killHard();
      a.start();
      await waitFor("one to be back", async () => (await cloud.agents()).some((one) => one.state === "connected"));
      const gate = `${effects}.second`;
      const run = await start(cloud, pipeline("second", gate));
      await waitFor("the step to run", () => done("second") === 1);
      const holder = (await runOf(cloud, run.id)).agent!.id;
      b.start();
      await waitFor("both", async () => (await cloud.agents()).filter((one) => one.state === "connected").length === 2);
      await a.program.killHard();
      const until = performance.now() + 22_000;
      const states = new Set<string>();
      while (performance.now() < until) {
        const now = await runOf(cloud, run.id);
        states.add(now.state);
        if (now.agent?.id !== holder) t.fail("it went to another");
        await new Promise((resolve) => setTimeout(resolve, 250));
      }
      t.ok(states.has("unknown") && !states.has("failed"), [...states].join());
      writeFileSync(gate, "");
      a.start();
      t.match(await ended(cloud, run.id), { state: "succeeded", agent: { id: holder } });
      t.equal(done("second"), 1);
    },
  );
});

t.test("a Docker Engine that both ask", { skip: needs("docker"), timeout: 450_000 }, async (t) => {
  const [cloud, server] = await Promise.all([TestCloud.start(t), startDocker(t)]);
  const image = await nodeImage(server.docker);
  const network = await server.docker.createNetwork({ Name: "count" });
  t.teardown(() => network.remove());
  const about = (await network.inspect()) as { IPAM: { Config: { Gateway: string }[] } };
  const counter = new Counter();
  await counter.listen(t, about.IPAM.Config[0]!.Gateway);
  const store = tempDir(t, "store");
  mkdirSync(join(store, "runs"));
  const config = `
stores: [{ id: box, kind: fs, root: ${store} }]
engines: { docker: { socket: ${server.socket} } }
programs: { node: { path: /usr/bin/node, image: "${image}" } }
labels: { zone: cellar }
${policy("docker")}`;
  const step = (name: string, before?: string) => ({
    name,
    program: "node",
    args: ["--input-type=module", "-e", STEP, counter.url, name, "${outputs.out}"],
    network: "count",
    resources: { cpus: 0.5, memoryBytes: 268435456 },
    outputs: { out: {} },
    ...(before === undefined ? {} : { inputs: { in: { step: before, output: "out" } } }),
  });
  const twoSteps = (one: string, two: string) => ({
    name: "two-steps",
    engine: "docker",
    outputs: { store: "box", prefix: "runs" },
    steps: [step(one), step(two, one)],
  });

  const proxy = await startTcpProxy(t, { port: cloud.port });
  const a = await connectAgent(t, cloud, "lab", { config, url: `http://127.0.0.1:${proxy.port}` });
  const idOfA = (await cloud.agent()).id;
  let b: TestAgent | null = null;
  const both = (timeoutMs = 90_000) =>
    waitFor(
      "both to be connected",
      async () => {
        const agents = await cloud.agents();
        return (
          agents.filter((one) => one.state === "connected" && one.status?.engineIds?.["docker"] !== undefined)
            .length === 2
        );
      },
      { timeoutMs },
    );

  /** As a step says when it begins; a run that cannot get there says why. */
  const began = (run: { id: string }, name: string) =>
    waitFor(
      `step ${name} to begin`,
      async () => {
        const now = await runOf(cloud, run.id);
        if (now.state === "failed") throw new Error(JSON.stringify(now.error));
        return counter.count(`${name}.began`) === 1;
      },
      { timeoutMs: 90_000 },
    );

  async function judge(t: Test, run: { id: string; command: string }, one: string, two: string): Promise<void> {
    for (const place of [one, two].flatMap((name) => [`${name}.began`, `${name}.done`]))
      t.equal(counter.count(place), 1, `${place}, counted by whom it asked`);
    for (const name of [one, two])
      t.same(
        await linesOf(cloud, run.id, name),
        [...Array.from({ length: LINES }, (_, n) => `${name} line ${n}`), `${name} ends`],
        "its log is whole",
      );
    const folder = join(store, "runs", run.id);
    t.equal(readFileSync(join(folder, two, "out"), "utf8"), two);
    t.same(readdirSync(folder).sort(), [one, two].sort());
  }

  /** The first one is back: it is told, says nothing that changes anything, and nothing is left at the Engine. */
  async function afterwards(t: Test, run: { id: string; command: string }, before: RunDetail): Promise<void> {
    const history = async () => (await cloud.api.json<CommandDetail>(`/v1/commands/${run.command}`)).history;
    await waitFor(
      "the first one to let go",
      async () => (await history()).some((event) => event.type === "released" && event.agent?.id === idOfA),
      { timeoutMs: 60_000 },
    );
    t.match(
      (await history()).find((event) => event.type === "taken-over"),
      { agent: { id: before.agent!.id } },
    );
    const now = await runOf(cloud, run.id);
    t.equal(now.takenFrom?.id, idOfA);
    t.same({ ...now, attempts: [] }, { ...before, attempts: [] }, "nothing flipped");
    await containersGone(server, run.command);
  }

  await t.test(
    "partitioned, it goes on working; the other takes over, the run ends once",
    { timeout: 200_000 },
    async (t) => {
      const run = await start(cloud, twoSteps("one", "two"));
      await began(run, "one");
      b = await connectAgent(t.parent as Test, cloud, "lab", { config });
      await both();
      const cutAt = performance.now();
      proxy.setMode("swallow");
      // It works on: the second step begins before anybody has noticed.
      counter.open("one");
      await began(run, "two");
      t.comment(`the partitioned one began the second step after ${Math.round(performance.now() - cutAt)} ms`);
      const taken = await waitFor(
        "the takeover",
        async () => {
          const now = await runOf(cloud, run.id);
          return now.agent !== null && now.agent.id !== idOfA && now;
        },
        { timeoutMs: 40_000, everyMs: 50 },
      );
      const tookMs = performance.now() - cutAt;
      // 15 s, and what the next sweep, this look and a busy machine add.
      t.ok(tookMs < 20_000, `taken over ${Math.round(tookMs)} ms after the cut`);
      t.match(taken, { state: "running" });
      await new Promise((resolve) => setTimeout(resolve, 3000));
      counter.open("two");
      const end = await ended(cloud, run.id).catch((error) => {
        t.comment(b!.program.tail(20));
        throw error;
      });
      t.match(end, { state: "succeeded", agent: { id: taken.agent!.id } });
      await judge(t, run, "one", "two");
      await new Promise((resolve) => setTimeout(resolve, 2000));
      await judge(t, run, "one", "two");
      proxy.setMode("flow");
      proxy.cut();
      await afterwards(t, run, end);
      await judge(t, run, "one", "two");
    },
  );

  await t.test("the control plane itself is away: nothing moves", { timeout: 200_000 }, async (t) => {
    await both();
    const run = await start(cloud, twoSteps("five", "six"));
    await began(run, "five");
    const holder = (await runOf(cloud, run.id)).agent!.id;
    await cloud.program.killHard();
    counter.open("five");
    // By then agents wait up to half a minute before they dial again, each its own time.
    await new Promise((resolve) => setTimeout(resolve, 25_000));
    await waitFor("the next step to begin", () => counter.count("six.began") > 0);
    t.equal(counter.count("six.began"), 1, "work goes on");
    await cloud.start();
    await both();
    await new Promise((resolve) => setTimeout(resolve, 5000));
    const now = await runOf(cloud, run.id);
    t.match(now, { state: "running", agent: { id: holder } });
    counter.open("six");
    const end = await ended(cloud, run.id);
    t.match(end, { state: "succeeded", agent: { id: holder } });
    t.equal(end.takenFrom, undefined);
    await judge(t, run, "five", "six");
    await containersGone(server, run.command);
  });

  await t.test(
    "stopped in the middle and woken after the run's end, it begins nothing again",
    { timeout: 200_000 },
    async (t) => {
      await both();
      // Only the one that is to be stopped takes runs now.
      await b!.program.killHard();
      const run = await start(cloud, twoSteps("three", "four"));
      await began(run, "three");
      t.equal((await runOf(cloud, run.id)).agent!.id, idOfA);
      b!.start();
      await both();
      a.program.kill("SIGSTOP");
      counter.open("three");
      counter.open("four");
      const end = await ended(cloud, run.id);
      t.match(end, { state: "succeeded" });
      t.not(end.agent!.id, idOfA);
      await judge(t, run, "three", "four");
      const kept = await server.docker.listContainers({ all: true, filters: { name: [run.command] } });
      t.equal(kept.length, 2, "what would stop it from beginning a step again is kept");
      a.program.kill("SIGCONT");
      await afterwards(t, run, end);
      await judge(t, run, "three", "four");
    },
  );
});

async function containersGone(server: DockerServer, command: string): Promise<void> {
  await waitFor(
    "its containers to be removed",
    async () => (await server.docker.listContainers({ all: true, filters: { name: [command] } })).length === 0,
    { timeoutMs: 90_000 },
  );
}
