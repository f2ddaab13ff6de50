// The whole of deploying, told on one engine with artifacts in a real S3 server and secrets in a real Vault: a pipeline
// makes a model, the very model is deployed by its digest, predicts, scales, is killed, updated and removed, under load.
// Effects are counted at the engine (which process or container answers), not by our own record.
import { randomUUID } from "node:crypto";
import { cpSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Test } from "tap";
import type { DeploymentDetail, DeploymentDiff, RunDetail } from "../../cloud/http/api.ts";
import type { PipelineInput, ProducedArtifact } from "@sallyport/protocol";
import { binFile, repository, runProgram, tempDir, waitFor } from "./launcher.ts";
import { underLoad } from "./load.ts";
import { startS3, startVault, type S3Server, type VaultServer } from "./servers.ts";
import { CEILINGS, connectAgent, freePort, type CloudClient, type TestAgent } from "./stack.ts";

/** What differs from engine to engine. */
export interface StoryEngine {
  name: "process" | "docker";
  /** Lines of the agent's configuration: `engines`, `serving` without `listen`, and the program `node`. */
  config: string;
  /** Ends one replica the hard way, past the agent: `r1.0`. */
  killReplica(agent: TestAgent, deployment: string, replica: string): Promise<void>;
  /** Removes one by hand where the engine knows removing; else as `killReplica`. */
  removeReplica(agent: TestAgent, deployment: string, replica: string): Promise<void>;
  /** What runs at the engine for the deployment now: one text for each replica, which changes when it is started anew. */
  running(agent: TestAgent, deployment: string): Promise<string[]>;
}

export interface Story {
  readonly t: Test;
  readonly cloud: CloudClient;
  readonly agent: TestAgent;
  readonly engine: StoryEngine;
  readonly s3: S3Server;
  readonly vault: VaultServer;
  readonly bucket: string;
  /** Of the endpoints. */
  readonly port: number;
}

const NAME = "digits";
const POOL = "lab";

/** Starts S3, Vault and an agent that may do what the story does. */
export async function openStory(
  t: Test,
  cloud: CloudClient,
  engine: StoryEngine,
  { listenHost = "127.0.0.1" }: { listenHost?: string } = {},
): Promise<Story> {
  const [s3, vault] = await Promise.all([startS3(t, { tls: true }), startVault(t, { tls: true })]);
  const bucket = await s3.bucket();
  await vault.writeSecret("ml/s3", { access: s3.accessKeyId, secret: s3.secretAccessKey });
  await vault.writeSecret("ml/serving", { token: "canary-of-the-serving-secret" });
  const lake = join(s3.dataDir, bucket);
  // The customer's own files, whichever tree the programs are of.
  const sample = join(repository, "packaging/demo/sample");
  for (const part of ["code/digits", "data"]) {
    mkdirSync(join(lake, part), { recursive: true });
    cpSync(join(sample, part), join(lake, part), { recursive: true });
  }
  const tokenFile = join(tempDir(t, "vault-token"), "token");
  writeFileSync(tokenFile, `${vault.token}\n`, { mode: 0o600 });
  const port = await freePort();
  const agent = await connectAgent(t, cloud, POOL, {
    config: `
secrets:
  vault: { address: ${vault.address}, ca: ${vault.caFile}, token: "\${file:${tokenFile}}" }
  named: { serving: "\${vault:secret/ml/serving#token}" }
stores:
  - { id: lake, kind: s3, endpoint: ${s3.endpoint}, region: ${s3.region}, bucket: ${bucket}, pathStyle: true, ca: ${s3.caFile},
      accessKeyId: "\${vault:secret/ml/s3#access}", secretAccessKey: "\${vault:secret/ml/s3#secret}" }
${engine.config.replace("LISTEN", `${listenHost}:${port}\n  advertise: http://127.0.0.1:${port}`)}
policy:
  ${CEILINGS.replace(" }", ", deployments: 4, replicas: 4, cpus: 2, memoryBytes: 1073741824 }")}
  commands: ["artifact.*", "pipeline.run", "run.*", "deployment.*"]
  engines: [${engine.name}]
  programs: [node]
  secrets: [serving]
  stores: [{ store: lake, read: ["**"], write: ["runs/**"] }]
  release: { metadata: true, logs: true, predict: [${NAME}] }
`,
  });
  return { t, cloud, agent, engine, s3, vault, bucket, port };
}

/** Runs the sample's pipeline and answers with the model that it made. */
export async function makeModel({ t, cloud, engine }: Story): Promise<ProducedArtifact> {
  const { api } = cloud;
  const pipeline = JSON.parse(
    readFileSync(join(repository, "packaging/demo/sample/pipelines/digits.pipeline.json"), "utf8"),
  ) as PipelineInput;
  const text = JSON.stringify({ ...pipeline, engine: engine.name }).replaceAll('"store":"sample"', '"store":"lake"');
  const run = await api.json<{ id: string }>("/v1/runs", {
    headers: { "idempotency-key": randomUUID() },
    json: { pool: POOL, pipeline: JSON.parse(text) as unknown, params: { epochs: 4, hidden: 32 } },
  });
  const ended = await waitFor(
    "the run to end",
    async () => {
      const now = await api.json<RunDetail>(`/v1/runs/${run.id}`);
      return ["succeeded", "failed", "cancelled"].includes(now.state) && now;
    },
    { timeoutMs: 180_000 },
  );
  t.equal(ended.state, "succeeded", ended.error?.message ?? "the pipeline ran");
  const model = ended.attempts.flatMap((one) => one.outputs).find((one) => one.name === "model.onnx");
  if (model === undefined) throw new Error("the run left no model");
  return model;
}

export const specOf = (story: Story, model: { path: string; digest: string }, more: Record<string, unknown> = {}) => ({
  model: { store: "lake", path: model.path, digest: model.digest },
  engine: story.engine.name,
  resources: { cpus: 0.5, memoryBytes: 268_435_456 },
  secrets: { SERVING_SECRET: "serving" },
  ...more,
});

export const detail = (story: Story, id: string) => story.cloud.api.json<DeploymentDetail>(`/v1/deployments/${id}`);

/** Waits until it holds and the agent has applied the newest generation; the error tells what was seen last. */
export async function until(
  story: Story,
  id: string,
  what: string,
  fact: (now: DeploymentDetail) => boolean,
  timeoutMs = 90_000,
): Promise<DeploymentDetail> {
  let last: DeploymentDetail | undefined;
  try {
    return await waitFor(
      what,
      async () => {
        last = await detail(story, id);
        return last.appliedGeneration === last.generation && fact(last) && last;
      },
      { timeoutMs, everyMs: 200 },
    );
  } catch (cause) {
    throw new Error(
      `waited for ${what}; last seen: ${JSON.stringify({ ...last, spec: undefined })}\n--- agent\n${story.agent.program.tail()}`,
      { cause },
    );
  }
}

export const isAvailable = (replicas: number) => (now: DeploymentDetail) =>
  now.state === "available" && now.replicasReady === replicas && now.observed?.replicas.length === replicas;

const REQUEST = (rows: number[][]) =>
  JSON.stringify({
    inputs: [{ name: "pixels", shape: [rows.length, 64], datatype: "FP32", data: rows.flat() }],
  });

/** The story. Returns how many requests were answered under load. */
export async function tellStory(story: Story): Promise<number> {
  const { t, cloud, agent, engine } = story;
  const { api } = cloud;
  const model = await makeModel(story);
  let answered = 0;

  // -- deploy by digest
  const made = await api.json<DeploymentDetail>("/v1/deployments", {
    headers: { "idempotency-key": randomUUID() },
    json: { pool: POOL, name: NAME, spec: specOf(story, model) },
  });
  const { id } = made;
  let now = await until(story, id, "the deployment to be available", isAvailable(1));
  t.equal(now.revision, 1);
  t.equal(now.observed?.isolated, engine.name === "docker", "the page is told whether replicas are isolated");
  const etag = () => ({ "if-match": `"${now.generation}"` });

  // -- predict: through the link, and at the endpoint with its key, the same answer
  const rows = readFileSync(join(repository, "packaging/demo/sample/data/digits.csv"), "utf8")
    .split("\n")
    .slice(1, 3)
    .map((line) =>
      line
        .split(",")
        .slice(0, 64)
        .map((text) => Number(text) / 16),
    );
  const body = REQUEST(rows);
  const infer = `/v2/models/${NAME}/infer`;
  const linked = await api.call(`/v1/deployments/${id}/request?path=${infer}`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: Buffer.from(body),
  });
  t.equal(linked.status, 200, linked.body.toString().slice(0, 300));
  const keyed = await runProgram(t, {
    name: "agent endpoint",
    args: [binFile("agent/bin/sallyport-agent"), "endpoint", NAME, "--output", "json", "--config", agent.configFile],
  });
  t.equal(keyed.code, 0, keyed.stderr);
  const [{ url, key }] = JSON.parse(keyed.stdout) as [{ url: string; key: string }];
  t.equal(now.endpoint, url, "the page shows the same address, and no key");
  t.notOk(JSON.stringify(now).includes(key));
  const at = { url: `${url}${infer}`, headers: { authorization: `Bearer ${key}` }, body };
  const direct = await fetch(at.url, {
    method: "POST",
    headers: { ...at.headers, "content-type": "application/json" },
    body,
  });
  t.equal(direct.status, 200);
  const outputs = (text: string) => (JSON.parse(text) as { outputs: { data: number[] }[] }).outputs;
  t.same(outputs(linked.body.toString()), outputs(await direct.text()), "both ways give the same prediction");
  const best = (data: number[]) =>
    [0, 1].map((row) => {
      const scores = data.slice(row * 10, row * 10 + 10);
      return scores.indexOf(Math.max(...scores));
    });
  const scores = outputs(linked.body.toString()).find((one) => one.data.length === 20);
  if (scores !== undefined) t.same(best(scores.data), [0, 1], "it reads the first two digits of the sample: 0 and 1");
  t.equal((await fetch(at.url, { method: "POST", body })).status, 401, "no key, no answer");

  // -- scale 1 -> 3 -> 1 under load
  const calm = await underLoad(at, async () => {
    now = await detail(story, id);
    for (const replicas of [3, 1]) {
      await api.json(`/v1/deployments/${id}/scale`, { method: "POST", json: { replicas }, headers: etag() });
      now = await until(story, id, `${replicas} replicas`, isAvailable(replicas));
      t.equal(now.revision, 1, "scaling makes no revision");
    }
  });
  t.same(calm.failures, {}, `no failed request of ${calm.answered} while scaling 1 -> 3 -> 1`);
  answered += calm.answered;
  t.equal(now.observed?.replicas[0]?.starts, 1, "the replica that stayed was never restarted");

  // -- a replica is killed under load: another takes its requests, and it comes back
  await api.json(`/v1/deployments/${id}/scale`, { method: "POST", json: { replicas: 2 }, headers: etag() });
  now = await until(story, id, "two replicas", isAvailable(2));
  const killed = await underLoad(at, async () => {
    await engine.killReplica(agent, id, "r1.0");
    now = await until(
      story,
      id,
      "the killed replica to be back",
      (seen) => isAvailable(2)(seen) && seen.observed!.replicas.some((one) => one.name === "r1.0" && one.starts === 2),
    );
  });
  t.same(killed.failures, {}, `no failed request of ${killed.answered} while a replica was killed`);
  answered += killed.answered;
  const exit = now.observed!.replicas.find((one) => one.name === "r1.0")!.lastExit;
  t.match(exit, { start: 1 }, "its end is told");

  // -- a new revision rolls out under load
  const diff = await api.json<DeploymentDiff>(`/v1/deployments/${id}/diff`, {
    method: "POST",
    json: { spec: specOf(story, model, { replicas: 2, env: { ROUND: "two" } }) },
  });
  t.match(diff, { newRevision: true, revision: 2, changes: [{ path: "env.ROUND", to: "two" }], refusals: [] });
  const rolled = await underLoad(at, async () => {
    await api.json(`/v1/deployments/${id}`, {
      method: "PUT",
      json: { spec: specOf(story, model, { replicas: 2, env: { ROUND: "two" } }) },
      headers: etag(),
    });
    now = await until(
      story,
      id,
      "the new revision",
      (seen) => isAvailable(2)(seen) && seen.observed!.replicas.every((one) => one.revision === 2),
    );
  });
  t.same(rolled.failures, {}, `no failed request of ${rolled.answered} while revision 2 rolled out`);
  answered += rolled.answered;

  // -- kill -9 of the agent while it serves: the replicas go on, are adopted, and are not restarted
  const before = await engine.running(agent, id);
  t.equal(before.length, 2);
  await agent.program.killHard();
  agent.start();
  now = await until(
    story,
    id,
    "the replicas to be adopted",
    (seen) => isAvailable(2)(seen) && seen.observed!.replicas.every((one) => one.adopted && one.starts === 1),
  );
  t.same((await engine.running(agent, id)).toSorted(), before.toSorted(), "the same processes serve on");
  t.equal(
    (await fetch(at.url, { method: "POST", headers: { ...at.headers, "content-type": "application/json" }, body }))
      .status,
    200,
    "the endpoint is back, with the same key",
  );

  // -- removed by hand
  await engine.removeReplica(agent, id, "r2.1");
  now = await until(
    story,
    id,
    "the removed replica to return",
    (seen) => isAvailable(2)(seen) && seen.observed!.replicas.some((one) => one.name === "r2.1" && one.starts === 2),
  );

  // -- rollback: revision 1's content, as revision 3
  const back = await api.json<DeploymentDetail>(`/v1/deployments/${id}/rollback`, {
    method: "POST",
    json: { revision: 1 },
    headers: { "if-match": `"${now.generation}"` },
  });
  t.equal(back.revision, 3);
  now = await until(
    story,
    id,
    "the rollback",
    (seen) => seen.state === "available" && seen.observed!.replicas.every((one) => one.revision === 3),
  );
  t.equal(now.spec.env["ROUND"], undefined, "what revision 1 did not have is gone");
  const stale = await api.problem(`/v1/deployments/${id}/scale`, {
    method: "POST",
    json: { replicas: 3 },
    headers: { "if-match": '"1"' },
  });
  t.equal(stale.code, "PRECONDITION_FAILED", "a stale If-Match changes nothing");
  return answered;
}

/** Removes it and sees that nothing is left. */
export async function endStory(story: Story, id: string): Promise<void> {
  const { t, cloud, engine, agent } = story;
  const now = await detail(story, id);
  await cloud.api.call(`/v1/deployments/${id}`, { method: "DELETE", headers: { "if-match": `"${now.generation}"` } });
  await waitFor("nothing of it to run", async () => (await engine.running(agent, id)).length === 0, {
    timeoutMs: 60_000,
  });
  await waitFor("it to leave the list", async () => {
    const { items } = await cloud.api.json<{ items: { id: string }[] }>("/v1/deployments");
    return !items.some((one) => one.id === id);
  });
  t.ok(true, "removed: nothing of it runs, the list does not show it");
}
