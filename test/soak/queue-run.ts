// A queue that grows for an hour while nobody is there to take it, time injected, and what becomes of it when the agent is
// back. Half are runs of pipelines that go one at a time, in the order of their commits; half are applies of deployments,
// of which a newer one ends an older one that still waits. Submitted over HTTP, seen at the agent's handlers.
import { randomUUID } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { Agent, request as httpRequest } from "node:http";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { DATABASE_FILE } from "../../cloud/store/index.ts";
import { FastTime } from "../support/fast-time.ts";
import { repository, tempDir, waitFor, type Teardown } from "../support/launcher.ts";
import { freePort, connectAgent, TestCloud } from "../support/stack.ts";
import { startTcpProxy } from "../support/tcp-proxy.ts";

const HOUR_MS = 3600_000;
const RESOURCES = 200;
const IN_FLIGHT = 32;

export interface QueueResult {
  commands: number;
  submitMs: number;
  /** From the agent's session to the end of the last one. */
  drainMs: number;
  /** How many the agent began: superseded ones it never sees. */
  begun: number;
  states: Record<string, number>;
  violations: string[];
}

export async function queueRun(
  t: Teardown,
  { commands, drainMs }: { commands: number; drainMs: number },
): Promise<QueueResult> {
  const each = Math.floor(commands / RESOURCES);
  const time = new FastTime(t);
  const seen = join(tempDir(t, "order"), "order.txt");
  const cloud = await TestCloud.start(t, { nodeArgs: time.nodeArgs, env: time.env });
  const proxy = await startTcpProxy(t, { port: cloud.port });
  const agent = await connectAgent(t, cloud, "lab", {
    url: `http://127.0.0.1:${proxy.port}`,
    nodeArgs: [...time.nodeArgs, "--import", join(repository, "test/soak/queue-hook.ts")],
    env: { ...time.env, SALLYPORT_TEST_ORDER: seen },
    config: `
stores: [{ id: box, kind: fs, root: ${tempDir(t, "store")} }]
programs: { sh: { path: /bin/sh } }
serving: { listen: "127.0.0.1:${await freePort()}", process: { path: /bin/sh } }
limits: { concurrentRuns: 64 }
policy:
  ceilings: { concurrentRuns: 64, concurrentSteps: 2, stepTimeoutMs: 3600000, stepsPerRun: 10, streams: 32, deployments: ${RESOURCES}, replicas: 1, cpus: 1, memoryBytes: 1073741824 }
  commands: ["pipeline.run", "run.*", "deployment.*"]
  engines: [process]
  programs: [sh]
  stores: [{ store: box, read: ["**"], write: ["runs/**"] }]
  release: { metadata: true }
`,
  });

  const keepAlive = new Agent({ keepAlive: true, maxSockets: IN_FLIGHT });
  t.teardown(() => keepAlive.destroy());
  /** The command of the answer. */
  const post = (method: string, path: string, json: unknown, headers: Record<string, string> = {}) =>
    new Promise<{ id: string; command: string }>((resolve, reject) => {
      const body = JSON.stringify(json);
      const sent = httpRequest(
        {
          host: "127.0.0.1",
          port: cloud.port,
          agent: keepAlive,
          method,
          path,
          headers: {
            authorization: `Bearer ${cloud.api.token}`,
            "content-type": "application/json",
            "content-length": Buffer.byteLength(body),
            "idempotency-key": randomUUID(),
            ...headers,
          },
        },
        (response) => {
          let text = "";
          response.setEncoding("utf8").on("data", (chunk: string) => (text += chunk));
          response.once("error", reject).once("end", () => {
            if (response.statusCode! >= 300) reject(new Error(`${path}: ${response.statusCode} ${text.slice(0, 300)}`));
            else resolve(JSON.parse(text) as { id: string; command: string });
          });
        },
      );
      sent.once("error", reject);
      sent.end(body);
    });

  // ---- an hour of nobody
  proxy.refuse(true);
  proxy.cut();
  await waitFor("the agent to be gone", async () => (await cloud.agent()).state === "disconnected");
  const goneAt = time.elapsed();
  const submittedAt = performance.now();
  const asked = new Map<string, { of: string; number: number }>();
  const spec = {
    model: { store: "box", path: "model.onnx", digest: `sha256:${"0".repeat(64)}` },
    engine: "process",
    resources: { cpus: 0.1, memoryBytes: 134_217_728 },
  };
  /** Within one of them one after the other: so the order of commits is the order of numbers. */
  const submitAll = async (resource: number): Promise<void> => {
    const name = `r${resource}`;
    const runs = resource % 2 === 0;
    let deployment = "";
    for (let number = 1; number <= each; number++) {
      const env = { NUMBER: String(number) };
      const made = runs
        ? await post("POST", "/v1/runs", {
            pool: "lab",
            params: { number },
            pipeline: {
              name,
              concurrency: 1,
              params: { number: {} },
              outputs: { store: "box" },
              steps: [{ name: "one", program: "sh", args: ["-c", "true"] }],
            },
          })
        : number === 1
          ? await post("POST", "/v1/deployments", { pool: "lab", name, spec: { ...spec, env } })
          : await post(
              "PUT",
              `/v1/deployments/${deployment}`,
              { spec: { ...spec, env } },
              { "if-match": `"${number - 1}"` },
            );
      deployment ||= made.id;
      asked.set(made.command, { of: `${runs ? "pipeline" : "deployment"}/${name}`, number });
    }
  };
  const queue = Array.from({ length: RESOURCES }, (_, n) => n)[Symbol.iterator]();
  await Promise.all(
    Array.from({ length: IN_FLIGHT }, async () => {
      for (const resource of queue) await submitAll(resource);
    }),
  );
  const submitMs = performance.now() - submittedAt;
  await time.run(1000);
  await time.reach(goneAt + HOUR_MS);

  // ---- back
  await time.run(10);
  proxy.refuse(false);
  await waitFor("the agent to be back", async () => (await cloud.agent()).state === "connected", { timeoutMs: 60_000 });
  const backAt = performance.now();
  await time.run(1);
  const database = new DatabaseSync(join(cloud.dir, DATABASE_FILE), { readOnly: true });
  t.teardown(() => database.close());
  const count = database.prepare("SELECT state, count(*) AS n FROM commands GROUP BY state");
  const tally = () =>
    Object.fromEntries((count.all() as { state: string; n: number }[]).map(({ state, n }) => [state, n]));
  const violations: string[] = [];
  await waitFor(
    "the queue to be empty",
    () => Object.keys(tally()).every((state) => !["queued", "accepted", "running"].includes(state)),
    {
      timeoutMs: drainMs,
      everyMs: 250,
    },
  ).catch((error: Error) => violations.push(`stuck: ${error.message} ${JSON.stringify(tally())}`));
  const tookMs = performance.now() - backAt;
  const states = tally();

  // ---- judged by what the agent's handlers saw
  const order = existsSync(seen) ? readFileSync(seen, "utf8").trim().split("\n") : [];
  const last = new Map<string, number>();
  const begun = new Map<string, Set<number>>();
  for (const line of order) {
    const [of, text] = line.split(" ") as [string, string];
    const number = Number(text);
    if (begun.get(of)?.has(number)) violations.push(`double: ${line}`);
    if (number < (last.get(of) ?? 0)) violations.push(`out of order: ${line} after ${last.get(of)}`);
    last.set(of, number);
    begun.set(of, (begun.get(of) ?? new Set()).add(number));
  }
  const rows = database.prepare("SELECT command_id AS id, state FROM commands").all() as {
    id: string;
    state: string;
  }[];
  const stateOf = new Map(rows.map(({ id, state }) => [id, state]));
  for (const [command, { of, number }] of asked) {
    const state = stateOf.get(command);
    const wasBegun = begun.get(of)?.has(number) === true;
    const newest = of.startsWith("pipeline/") || number === each;
    if (state === undefined) violations.push(`lost: ${of} ${number} is not known`);
    else if (newest && (state !== "succeeded" || !wasBegun)) violations.push(`lost: ${of} ${number} is ${state}`);
    else if (!newest && state !== "superseded" && state !== "succeeded")
      violations.push(`lost: ${of} ${number} is ${state}, and a newer one came`);
    else if (state === "superseded" && wasBegun) violations.push(`superseded, and begun: ${of} ${number}`);
  }
  if (stateOf.size !== asked.size) violations.push(`${stateOf.size} commands are known, ${asked.size} were asked for`);
  await Promise.all([agent.program.stop(), cloud.program.stop()]);
  return { commands: asked.size, submitMs, drainMs: tookMs, begun: order.length, states, violations };
}
