// One control plane of several processes on one PostgreSQL. Any of them serves any request for any agent; one that is
// killed or stopped under load takes nothing with it; without NATS the same happens, later. What steps do is counted
// where they do it.
import { createHash, randomBytes, randomUUID } from "node:crypto";
import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t, { type Test } from "tap";
import { readNdjson, type LogRecord, type Preview } from "@sallyport/protocol";
import type { Agent, RunDetail } from "../../cloud/http/api.ts";
import { binFile, repository, runProgram, startProgram, tempDir, waitFor } from "../support/launcher.ts";
import { startNats, type NatsServer } from "../support/nats.ts";
import { needs, needsCommand } from "../support/skip.ts";
import { CEILINGS, connectAgent, freePort, TERMINAL, TestAgent, type TestCloud } from "../support/stack.ts";
import { processesOf, startProcesses, type Processes } from "../support/several.ts";

const MIB = 2 ** 20;
const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

interface Scene extends Processes {
  nats: NatsServer;
  /** Where the agents' steps write what they did. */
  effects: string;
  content: Buffer;
  config: string;
}

async function makeScene(t: Test, count: number): Promise<Scene> {
  const nats = await startNats(t);
  const processes = await startProcesses(t, count, { nats });
  const folder = tempDir(t, "lake");
  const effects = join(tempDir(t, "effects"), "effects");
  writeFileSync(effects, "");
  const content = randomBytes(64 * MIB);
  writeFileSync(join(folder, "big.bin"), content);
  writeFileSync(join(folder, "table.csv"), "id,name\n1,ada\n2,grace\n");
  const config = `
stores: [{ id: lake, kind: fs, root: ${folder} }]
programs: { node: { path: ${process.execPath} } }
policy:
  ${CEILINGS.replace("concurrentRuns: 2", "concurrentRuns: 16").replace("concurrentSteps: 2", "concurrentSteps: 4")}
  commands: ["pipeline.run", "run.*", "artifact.*"]
  engines: [process]
  programs: [node]
  stores: [{ store: lake, read: ["**"], write: ["runs/**"] }]
  release: { metadata: true, logs: true, previews: { rows: 100 }, raw: [{ store: lake, paths: ["**"] }] }
`;
  return { ...processes, nats, effects, content, config };
}

const start = (cloud: TestCloud, pipeline: unknown, key: string = randomUUID()) =>
  cloud.api.json<{ id: string; command: string }>("/v1/runs", {
    headers: { "idempotency-key": key },
    json: { pool: "lab", pipeline },
  });
const ended = (cloud: TestCloud, id: string, timeoutMs = 60_000): Promise<RunDetail> =>
  waitFor(
    `run ${id} to end`,
    async () => {
      const now = await cloud.api.json<RunDetail>(`/v1/runs/${id}`);
      return TERMINAL.includes(now.state) && now;
    },
    { timeoutMs },
  );
const step = (effects: string, name: string, ms = 0) => ({
  name: "step",
  outputs: { store: "lake", prefix: "runs" },
  steps: [
    {
      name: "a",
      program: "node",
      args: [
        "-e",
        `require("node:fs").appendFileSync(${JSON.stringify(effects)}, "${name}\\n"); console.log("did ${name}");
         setTimeout(() => {}, ${ms});`,
      ],
    },
  ],
});
const countOf = (scene: Scene, name: string): number =>
  readFileSync(scene.effects, "utf8")
    .split("\n")
    .filter((line) => line === name).length;

/** Connected, as each of these processes says. */
const seenBy = (clouds: readonly TestCloud[], count: number, timeoutMs = 60_000): Promise<boolean> =>
  waitFor(
    `${count} agents at ${clouds.length} processes`,
    async () =>
      (await Promise.all(clouds.map((cloud) => cloud.agents()))).every(
        (agents) => agents.filter((one) => one.state === "connected" && one.status !== null).length === count,
      ),
    { timeoutMs },
  );

async function heldBy(cloud: TestCloud): Promise<number> {
  return (await processesOf(cloud)).items.find((one) => one.self)!.sessions;
}
async function download(cloud: TestCloud): Promise<{ digest: string; bytes: number }> {
  const answer = await cloud.api.open("/v1/pools/lab/stores/lake/content?path=big.bin");
  const hash = createHash("sha256");
  let bytes = 0;
  for await (const chunk of answer as AsyncIterable<Buffer>) {
    hash.update(chunk);
    bytes += chunk.length;
  }
  return { digest: hash.digest("hex"), bytes };
}
const linesOf = async (cloud: TestCloud, run: string): Promise<string[]> => {
  const lines: string[] = [];
  for await (const record of readNdjson(await cloud.api.open(`/v1/runs/${run}/steps/a/logs?limit=1000`))) {
    const one = record as LogRecord;
    if (!("gap" in one)) lines.push(one.body.data);
  }
  return lines;
};

t.setTimeout(900_000);

t.test("any process serves any request", { skip: needs("postgres", "nats"), timeout: 600_000 }, async (t) => {
  const scene = await makeScene(t, 2);
  const [a, b] = scene.all as [TestCloud, TestCloud];
  scene.balancer.prefer(a.port);
  const agent = await connectAgent(t, a, "lab", { config: scene.config, url: scene.balancer.url });
  await seenBy([a, b], 1);
  t.same([await heldBy(a), await heldBy(b)], [1, 0], "the agent is at the first, and the requests go to the second");

  await t.test("a look, a download, a run, its log, a stop", async (t) => {
    const preview = await b.api.json<Preview>("/v1/pools/lab/stores/lake/preview?path=table.csv");
    t.match(JSON.stringify(preview), /grace/);
    for (const [where, cloud] of Object.entries({ "over two processes": b, "over one": a, "over two again": b })) {
      const began = performance.now();
      const { digest, bytes } = await download(cloud);
      t.comment(`64 MiB ${where}: ${Math.round((bytes / MIB / (performance.now() - began)) * 1000)} MiB/s`);
      t.equal(digest, sha256(scene.content));
    }
    const run = await start(b, step(scene.effects, "first"));
    t.match(await ended(b, run.id), { state: "succeeded" });
    t.equal(countOf(scene, "first"), 1);
    t.ok((await linesOf(b, run.id)).includes("did first"), "its log");
    const long = await start(b, step(scene.effects, "long", 60_000));
    await waitFor("the step to run", () => countOf(scene, "long") === 1);
    await b.api.json(`/v1/runs/${long.id}/cancel`, { method: "POST" });
    t.match(await ended(b, long.id), { state: "cancelled" });
    const missing = await b.api.problem("/v1/pools/lab/stores/lake/stat?path=nothing");
    t.equal(missing.code, "ARTIFACT_NOT_FOUND", "an agent's refusal comes as it is");
  });

  await t.test("what one commits, pages at the other hear, each number once and in order", async (t) => {
    const follow = async (cloud: TestCloud, query = "") => {
      const stream = await cloud.api.open(`/v1/changes${query}`);
      const heard = {
        text: "",
        numbers: () => [...heard.text.matchAll(/event: change\nid: ([0-9]+)\n/g)].map((m) => Number(m[1])),
      };
      stream.on("data", (chunk: Buffer) => (heard.text += chunk.toString()));
      t.teardown(() => stream.destroy());
      await waitFor("the stream to begin", () => heard.text.includes("event: ready"));
      return heard;
    };
    const live = await follow(b);
    const from = Number(/event: ready\nid: ([0-9]+)/.exec(live.text)![1]);
    const runs = await Promise.all(
      Array.from({ length: 10 }, (_, n) => start(n % 2 === 0 ? a : b, step(scene.effects, `change-${n}`))),
    );
    for (const run of runs) await ended(a, run.id);
    const replay = await follow(a, `?after=${from}`);
    await waitFor(
      "both to hear the last",
      () => live.numbers().length > 30 && live.numbers().at(-1) === replay.numbers().at(-1),
    );
    t.same(live.numbers(), replay.numbers());
  });

  await t.test("without NATS: the same within the sweep, and it says so", async (t) => {
    t.match(await processesOf(b), { backplane: { kind: "nats", connected: true } });
    await scene.nats.stop();
    await waitFor("it to say so", async () => !(await processesOf(b)).backplane.connected);
    t.match((await b.api.call("/metrics")).body.toString(), /sallyport_cloud_backplane_connected 0/);
    const began = performance.now();
    const run = await start(b, step(scene.effects, "swept"));
    t.match(await ended(b, run.id), { state: "succeeded" });
    t.comment(`a run at the other process without NATS: ${Math.round(performance.now() - began)} ms`);
    // Five seconds at most, and what the run itself takes on a busy machine.
    t.ok(performance.now() - began < 15_000, "by the sweep");
    t.equal(countOf(scene, "swept"), 1);
    t.equal((await download(b)).digest, sha256(scene.content), "streams need no NATS");
    await scene.nats.resume();
    await waitFor("NATS to be back", async () =>
      (await Promise.all([a, b].map(processesOf))).every((one) => one.backplane.connected),
    );
    const again = performance.now();
    const fast = await start(b, step(scene.effects, "fast"));
    t.match(await ended(b, fast.id), { state: "succeeded" });
    t.comment(`with NATS again: ${Math.round(performance.now() - again)} ms`);
    t.equal(countOf(scene, "fast"), 1);
  });

  await t.test("a copy of the agent at the other process is refused and told", async (t) => {
    const [id] = await a.agents();
    const copy = new TestAgent(t, b, { config: scene.config, url: b.url, state: join(tempDir(t, "copy"), "state") });
    cpSync(agent.state, copy.state, { recursive: true, filter: (path) => !/\.sock$|control|host/.test(path) });
    const began = performance.now();
    copy.start();
    const alarmed = await waitFor("the alarm", async () =>
      (await b.api.json<Agent>(`/v1/agents/${id!.id}`)).alarms.some((one) => one.code === "IDENTITY_CLONED"),
    );
    t.ok(alarmed);
    t.comment(`told ${Math.round(performance.now() - began)} ms after the copy was started`);
    t.same([await heldBy(a), await heldBy(b)], [1, 0], "the first one stays");
    await copy.program.killHard();
  });

  await t.test("revoked at one process, cut at the other within 5 s", async (t) => {
    const [one] = await b.agents();
    const began = performance.now();
    await b.api.json(`/v1/agents/${one!.id}/revoke`, { method: "POST" });
    await waitFor("the link to be cut", async () => (await heldBy(a)) === 0);
    const ms = performance.now() - began;
    t.ok(ms < 5_000, `${Math.round(ms)} ms`);
  });
});

/** Runs that are submitted one after the other at one process until it is told to stop; each by a key that it repeats until it is answered. */
function submitter(
  scene: Scene,
  cloud: TestCloud,
  name: string,
): { runs: { id: string; name: string }[]; stop(): Promise<void> } {
  const runs: { id: string; name: string }[] = [];
  let going = true;
  const done = (async () => {
    for (let n = 0; going; n++) {
      const key = randomUUID();
      const mine = `${name}-${n}`;
      for (;;) {
        try {
          runs.push({ id: (await start(cloud, step(scene.effects, mine), key)).id, name: mine });
          break;
        } catch (error) {
          // Only a connection that broke is tried again: every answer counts.
          if ((error as { status?: number }).status !== undefined) throw error;
        }
      }
    }
  })();
  return {
    runs,
    async stop() {
      going = false;
      await done;
    },
  };
}
/** Looks at the artifact again and again; what did not come well. */
function looker(cloud: TestCloud): { looks: number; failures: string[]; stop(): Promise<void> } {
  let going = true;
  const state = { looks: 0, failures: [] as string[], stop: async () => {} };
  const done = (async () => {
    while (going) {
      const answer = await cloud.api.call("/v1/pools/lab/stores/lake/stat?path=table.csv");
      state.looks++;
      if (answer.status !== 200) state.failures.push(`${answer.status} ${answer.body.toString()}`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  })();
  state.stop = async () => {
    going = false;
    await done;
  };
  return state;
}
const onceEach = async (t: Test, scene: Scene, cloud: TestCloud, runs: readonly { id: string; name: string }[]) => {
  for (const run of runs) t.match(await ended(cloud, run.id, 120_000), { state: "succeeded" }, run.name);
  t.same(
    runs.filter((run) => countOf(scene, run.name) !== 1).map((run) => [run.name, countOf(scene, run.name)]),
    [],
    `each of ${runs.length} runs had its effect once`,
  );
};

t.test("one is killed under load", { skip: needs("postgres", "nats"), timeout: 300_000 }, async (t) => {
  const scene = await makeScene(t, 2);
  const [a, b] = scene.all as [TestCloud, TestCloud];
  scene.balancer.prefer(a.port, b.port);
  const options = { config: scene.config, url: scene.balancer.url };
  await connectAgent(t, a, "lab", options);
  await connectAgent(t, a, "lab", options);
  await seenBy([a, b], 2);
  t.same([await heldBy(a), await heldBy(b)], [2, 0]);

  const load = submitter(scene, b, "kill");
  const downloads = [download(b), download(b), download(b)];
  await waitFor("the load", () => load.runs.length >= 5);
  const killed = performance.now();
  await a.program.killHard();
  await waitFor("the agents to be at the other", async () => (await heldBy(b)) === 2);
  t.comment(`both agents at the other process ${Math.round(performance.now() - killed)} ms after the kill`);
  const before = load.runs.length;
  await waitFor("more runs", () => load.runs.length >= before + 5);
  await load.stop();
  for (const one of await Promise.all(downloads)) t.equal(one.digest, sha256(scene.content), "a download went on");
  await onceEach(t, scene, b, load.runs);
  await waitFor("the dead one to be taken off the list", async () => (await processesOf(b)).items.length === 1);
});

t.test("one is stopped under load", { skip: needs("postgres", "nats"), timeout: 300_000 }, async (t) => {
  const scene = await makeScene(t, 2);
  const [a, b] = scene.all as [TestCloud, TestCloud];
  scene.balancer.prefer(a.port, b.port);
  await connectAgent(t, a, "lab", { config: scene.config, url: scene.balancer.url });
  await seenBy([a, b], 1);

  const load = submitter(scene, b, "stop");
  const looks = looker(b);
  const going = download(b);
  await waitFor("the load", () => load.runs.length >= 3 && looks.looks >= 10);
  scene.balancer.prefer(b.port);
  const stopping = performance.now();
  const exit = await a.program.stop({ graceMs: 60_000 });
  t.equal(exit.code, 0);
  t.comment(`stopped in ${Math.round(performance.now() - stopping)} ms`);
  await waitFor("the agent to be at the other", async () => (await heldBy(b)) === 1);
  const before = looks.looks;
  await waitFor("more looks", () => looks.looks >= before + 10);
  await Promise.all([load.stop(), looks.stop()]);
  t.same(looks.failures, [], `none of ${looks.looks} looks failed`);
  t.equal((await going).digest, sha256(scene.content));
  await onceEach(t, scene, b, load.runs);
});

t.test(
  "with TLS on every way and HAProxy before them, as production.yaml has it",
  { skip: needs("postgres") || needsCommand("haproxy"), timeout: 200_000 },
  async (t) => {
    const front = await freePort();
    const { all } = await startProcesses(t, 2, { url: `https://127.0.0.1:${front}` });
    const [a, b] = all as [TestCloud, TestCloud];
    t.equal(a.ca, b.ca, "one authority");
    const file = join(tempDir(t, "haproxy"), "haproxy.cfg");
    const config = readFileSync(join(repository, "packaging/compose/production/haproxy.cfg"), "utf8")
      .replace("bind :8443", `bind 127.0.0.1:${front}`)
      .replace("cloud-1:8443", `127.0.0.1:${a.port}`)
      .replace("cloud-2:8443", `127.0.0.1:${b.port}`)
      .replace(" resolvers docker init-addr none", "")
      .replace(/resolvers docker\n.*\n/, "");
    writeFileSync(file, config);
    startProgram(t, { name: "haproxy", command: "haproxy", args: ["-db", "-f", file] });
    const folder = tempDir(t, "lake");
    writeFileSync(join(folder, "table.csv"), "id,name\n1,ada\n");
    const agent = await connectAgent(t, a, "lab", {
      url: `https://127.0.0.1:${front}`,
      config: `
stores: [{ id: lake, kind: fs, root: ${folder} }]
policy:
  ${CEILINGS}
  commands: ["artifact.*"]
  stores: [{ store: lake, read: ["**"] }]
  release: { metadata: true, previews: { rows: 100 } }
`,
    });
    await seenBy([a, b], 1);
    const look = async (cloud: TestCloud) =>
      JSON.stringify(await cloud.api.json<Preview>("/v1/pools/lab/stores/lake/preview?path=table.csv"));
    for (const cloud of [a, b]) t.match(await look(cloud), /ada/);
    const [holder, other] = (await heldBy(a)) === 1 ? [a, b] : [b, a];
    await holder.program.killHard();
    await waitFor("the agent to be at the other", async () => (await heldBy(other)) === 1, { timeoutMs: 60_000 });
    t.match(await look(other), /ada/);
    t.equal(agent.program.exit, undefined);
  },
);

t.test("who may not take part", { skip: needs("postgres"), timeout: 200_000 }, async (t) => {
  const scene = await startProcesses(t, 1);
  const [a] = scene.all as [TestCloud];
  t.match(await processesOf(a), {
    items: [{ self: true, state: "here" }],
    backplane: { kind: "sweep", connected: false },
  });
  await t.test("a process that is alone by its configuration", async (t) => {
    const alone = await tryStart(t, ["--database", scene.database]);
    t.match(alone, { code: 2, stderr: /Another control plane uses the database.*\n.*--peer-listen/ });
  });
  await t.test("one with other keys", async (t) => {
    const keys = join(tempDir(t, "keys"), "other");
    await runProgram(t, { name: "keys", args: [binFile("cloud/bin/sallyport-cloud"), "keys", keys] });
    const other = await tryStart(t, ["--database", scene.database, "--peer-listen", "127.0.0.1:0", "--keys", keys]);
    t.match(other, { code: 2, stderr: /other keys/ });
  });
  await t.test("one without shared keys, or without a shared database", async (t) => {
    const noKeys = await tryStart(t, ["--database", scene.database, "--peer-listen", "127.0.0.1:0"]);
    t.match(noKeys, { code: 2, stderr: /same keys/ });
    const noDatabase = await tryStart(t, ["--peer-listen", "127.0.0.1:0", "--keys", "anywhere"]);
    t.match(noDatabase, { code: 2, stderr: /need a database/ });
  });
});

const tryStart = (t: Test, args: string[]): Promise<{ code: number | null; stderr: string }> =>
  runProgram(t, {
    name: "cloud",
    args: [
      binFile("cloud/bin/sallyport-cloud"),
      "run",
      "--data",
      tempDir(t, "cloud"),
      "--listen",
      "127.0.0.1:0",
      ...args,
    ],
  });
