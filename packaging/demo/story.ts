// The story that the demo tells, as steps that are checked. Each returns a line about what was really seen.
import { createHash, randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { readNdjson, type ArtifactEntry, type LogRecord, type PipelineInput, type Preview } from "@sallyport/protocol";
import { ApiFailure } from "./api.ts";
import { until, type Stack } from "./stack.ts";

interface Artifact {
  name: string;
  store: string;
  path: string;
  sizeBytes: number;
  digest: string;
}
interface Run {
  id: string;
  state: string;
  waiting: { code: string; text: string } | null;
  error: { code: string; message: string } | null;
  attempts: { step: string; state: string; outputs: Artifact[] }[];
}

function must(fact: boolean, what: string): asserts fact {
  if (!fact) throw new Error(what);
}

const files = "/v1/pools/demo/stores/sample";
const query = (path: string) => `path=${encodeURIComponent(path)}`;
const sha256 = (bytes: Uint8Array) => `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
const kib = (bytes: number) => `${(bytes / 1024).toFixed(1)} KiB`;

interface Deployment {
  id: string;
  state: string;
  stateReason: string;
  generation: number;
  revision: number;
  replicasReady: number | null;
  endpoint: string | null;
  observed: { replicas: { name: string; state: string; starts: number }[] } | null;
}

export class Story {
  readonly stack: Stack;
  readonly #shown = new Map<string, Artifact>();
  #waitingRun = "";
  #deployed = "";

  constructor(stack: Stack) {
    this.stack = stack;
  }

  get #api() {
    return this.stack.api;
  }

  async #agent(): Promise<{ id: string; name: string; state: string; stateReason: string }> {
    const { items } = await this.#api.get<{
      items: { id: string; name: string; state: string; stateReason: string }[];
    }>("/v1/agents");
    must(items.length === 1, `one agent is expected, ${items.length} are listed`);
    return items[0]!;
  }

  /** Enrols the agent with the line that the page offers, and sees it connect. */
  async connect(): Promise<string> {
    const enrollment = await this.#api.post<{ id: string; secret: string }>(
      "/v1/enrollments",
      { pool: "demo" },
      { "idempotency-key": randomUUID() },
    );
    this.stack.startAgent(enrollment.secret);
    const agent = await until("the agent to connect", 20_000, async () => {
      must(this.stack.agentRuns, `the agent ended:\n${this.stack.tail("agent")}`);
      const { items } = await this.#api.get<{
        items: { name: string; state: string; version: string | null; status: unknown }[];
      }>("/v1/agents");
      return items.find((a) => a.state === "connected" && a.status !== null);
    });
    return `${agent.name}, version ${agent.version}`;
  }

  async browse(): Promise<string> {
    const top = await this.#api.get<{ entries: ArtifactEntry[] }>(`${files}/artifacts?path=`);
    const names = top.entries.map((e) => e.name);
    for (const name of ["README.md", "code", "data", "images", "logs", "pipelines", "reports"])
      must(names.includes(name), `${name} is missing from the list: ${names.join(", ")}`);
    const data = await this.#api.get<{ entries: ArtifactEntry[] }>(`${files}/artifacts?${query("data")}`);
    return `${names.length} entries at the top, ${data.entries.length} in data/`;
  }

  async #preview<T extends Preview["type"]>(path: string, type: T): Promise<Extract<Preview, { type: T }>> {
    const { preview } = await this.#api.get<{ preview: Preview }>(`${files}/preview?${query(path)}`);
    must(preview.type === type, `${path} is shown as ${preview.type}, not as ${type}`);
    return preview as Extract<Preview, { type: T }>;
  }

  async look(): Promise<string> {
    const image = await this.#preview("images/digits.png", "image");
    const local = readFileSync(join(this.stack.store, "images/digits.png"));
    must(sha256(Buffer.from(image.data, "base64")) === sha256(local), "the picture is not the one in the store");
    const table = await this.#preview("data/digits.csv", "table");
    must(table.columns.length === 65 && table.rows.length > 0, `the table has ${table.columns.length} columns, not 65`);
    const json = await this.#preview("reports/summary.json", "json");
    must((json.value as { images: number }).images === 1797, "the JSON does not say 1797 images");
    const markdown = await this.#preview("README.md", "markdown");
    must(markdown.text.startsWith("# The sample store"), "the Markdown has another title");
    const log = await this.#preview("logs/import.log", "log");
    must(
      log.lines.some((line) => line.text.includes("imported 1797 images")),
      "the log lacks its last line",
    );
    return `picture ${image.width} x ${image.height}, table ${table.columns.length} x ${table.totalRows ?? "many"}, JSON, Markdown, log of ${log.lines.length} lines`;
  }

  async download(): Promise<string> {
    const response = await this.#api.fetch(`${files}/content?${query("data/digits.csv")}`);
    const digest = sha256(new Uint8Array(await response.arrayBuffer()));
    must(digest === sha256(readFileSync(join(this.stack.store, "data/digits.csv"))), `the file arrived with ${digest}`);
    return `data/digits.csv, ${digest}`;
  }

  async #start(params: Record<string, number>): Promise<Run> {
    const response = await this.#api.fetch(`${files}/content?${query("pipelines/digits.pipeline.json")}`);
    return await this.#startSpec((await response.json()) as PipelineInput, params);
  }

  #startSpec(pipeline: PipelineInput, params: Record<string, number>): Promise<Run> {
    return this.#api.post<Run>("/v1/runs", { pool: "demo", pipeline, params }, { "idempotency-key": randomUUID() });
  }

  #ended(id: string): Promise<Run> {
    return until(`run ${id} to end`, 60_000, async () => {
      const run = await this.#api.get<Run>(`/v1/runs/${id}`);
      return ["succeeded", "failed", "cancelled"].includes(run.state) && run;
    });
  }

  /** Starts the pipeline and follows the log of its training step while it runs. */
  async train(say: (line: string) => void): Promise<string> {
    const run = await this.#start({});
    await until("the training to begin", 30_000, async () => {
      const now = await this.#api.get<Run>(`/v1/runs/${run.id}`);
      must(now.state !== "failed", `the run failed: ${now.error?.message}`);
      return now.attempts.some((a) => a.step === "train");
    });
    const log = await this.#api.fetch(`/v1/runs/${run.id}/steps/train/logs?follow=true`);
    must(log.body !== null, "the log has no body");
    let lines = 0;
    let live = false;
    let expected = 1;
    for await (const value of readNdjson(log.body as unknown as AsyncIterable<Uint8Array>)) {
      const record = value as LogRecord;
      must(!("gap" in record) && record.seq === expected++, "the log has a hole");
      if (record.stream === "system") continue;
      lines++;
      if (!live) live = (await this.#api.get<Run>(`/v1/runs/${run.id}`)).state === "running";
      if (/epoch +(\d*[05])\//.test(record.body.data)) say(record.body.data.trimEnd());
    }
    must(live, "no line of the log came while the run was running");
    const ended = await this.#ended(run.id);
    must(ended.state === "succeeded", `the run ended as ${ended.state}: ${ended.error?.message}`);
    for (const output of ended.attempts.flatMap((a) => a.outputs)) this.#shown.set(output.name, output);
    return `${ended.attempts.length} steps, ${lines} lines of log followed live`;
  }

  async results(): Promise<string> {
    const [metrics, plot, model] = ["metrics.json", "plot.png", "model.onnx"].map((name) => this.#shown.get(name));
    must(
      metrics !== undefined && plot !== undefined && model !== undefined,
      `the run left ${[...this.#shown.keys()].join(", ")}`,
    );
    const json = await this.#preview(metrics.path, "json");
    const accuracy = (json.value as { accuracy: number }).accuracy;
    must(accuracy > 0.95, `the accuracy is ${accuracy}, which is not above 0.95`);
    const image = await this.#preview(plot.path, "image");
    must(
      sha256(Buffer.from(image.data, "base64")) === plot.digest,
      "the plot has another digest than the run reported",
    );
    const stat = await this.#api.get<{ sizeBytes: number; digest: string }>(
      `${files}/stat?${query(model.path)}&digest=true`,
    );
    must(
      stat.digest === model.digest && stat.sizeBytes === model.sizeBytes,
      `the model is ${stat.digest}, the run reported ${model.digest}`,
    );
    return `accuracy ${accuracy.toFixed(4)}; plot ${image.width} x ${image.height}; model ${kib(stat.sizeBytes)}, ${stat.digest}`;
  }

  async #deployment(): Promise<Deployment> {
    return this.#api.get<Deployment>(`/v1/deployments/${this.#deployed}`);
  }

  #available(replicas: number): Promise<Deployment> {
    return until(`${replicas} ready replicas`, 60_000, async () => {
      const now = await this.#deployment();
      must(now.state !== "failed" && now.state !== "refused", `the deployment is ${now.state}: ${now.stateReason}`);
      return now.state === "available" && now.replicasReady === replicas && now;
    });
  }

  /** The very model that the pipeline made: the agent compares the digest after it has read the file. */
  async deploy(): Promise<string> {
    const model = this.#shown.get("model.onnx")!;
    const made = await this.#api.post<Deployment>(
      "/v1/deployments",
      {
        pool: "demo",
        name: "digits",
        spec: {
          model: { store: model.store, path: model.path, digest: model.digest },
          resources: { cpus: 1, memoryBytes: 268_435_456 },
        },
      },
      { "idempotency-key": randomUUID() },
    );
    this.#deployed = made.id;
    const now = await this.#available(1);
    return `revision ${now.revision} serves at ${now.endpoint}; engine process: a plain process, not isolated`;
  }

  /** A digit of the sample, once through the link and once at the endpoint in the private network. */
  async predict(): Promise<string> {
    const line = readFileSync(join(this.stack.store, "data/digits.csv"), "utf8").split("\n")[1]!.split(",").map(Number);
    const body = JSON.stringify({
      inputs: [{ name: "pixels", shape: [1, 64], datatype: "FP32", data: line.slice(0, 64).map((v) => v / 16) }],
    });
    const path = "/v2/models/digits/infer";
    const headers = { "content-type": "application/json" };
    const linked = await this.#api.fetch(`/v1/deployments/${this.#deployed}/request?path=${path}`, {
      method: "POST",
      body,
      headers,
    });
    const { url, key } = await this.stack.endpoint("digits");
    const direct = await fetch(`${url}${path}`, {
      method: "POST",
      body,
      headers: { ...headers, authorization: `Bearer ${key}` },
    });
    const scores = async (response: Response) =>
      ((await response.json()) as { outputs: { data: number[] }[] }).outputs[0]!.data;
    const [one, other] = [await scores(linked), await scores(direct)];
    must(JSON.stringify(one) === JSON.stringify(other), "the two ways give different predictions");
    const digit = one.indexOf(Math.max(...one));
    must(digit === line[64], `the model reads ${digit}, the image is a ${line[64]}`);
    const refused = await fetch(`${url}${path}`, { method: "POST", body, headers });
    must(refused.status === 401, `the endpoint answers ${refused.status} without its key`);
    return `it reads a ${digit}, both ways the same; without the key the endpoint answers ${refused.status}`;
  }

  async scale(): Promise<string> {
    const { generation } = await this.#deployment();
    await this.#api.post(`/v1/deployments/${this.#deployed}/scale`, { replicas: 2 }, { "if-match": `"${generation}"` });
    const now = await this.#available(2);
    return now.observed!.replicas.map((one) => `${one.name} ${one.state}`).join(", ");
  }

  /** Past the agent and the control plane, as a careless colleague would. */
  async heal(): Promise<string> {
    const [victim] = (await this.stack.replicas("digits")).filter((one) => one.pid !== null);
    must(victim !== undefined, "no replica runs");
    process.kill(-victim.pid!, "SIGKILL");
    const began = performance.now();
    await until("the killed replica to be back", 60_000, async () => {
      const now = await this.#deployment();
      const one = now.observed?.replicas.find(({ name }) => name === victim.name);
      return one?.state === "ready" && one.starts > 1 && now.state === "available";
    });
    return `${victim.name} (process ${victim.pid}) was killed and is ready again after ${((performance.now() - began) / 1000).toFixed(1)} s`;
  }

  /** Stops the agent: the page says so, a look fails at once, a run waits and says why. */
  async disconnect(): Promise<string> {
    await this.stack.stopAgent();
    const began = performance.now();
    const agent = await until("the page to say that the agent is gone", 15_000, async () => {
      const now = await this.#agent();
      return now.state !== "connected" && now.state !== "draining" && now;
    });
    const tookMs = performance.now() - began;
    const refused = await this.#api.get(`${files}/artifacts?path=`).then(
      () => null,
      (error: unknown) => error,
    );
    must(
      refused instanceof ApiFailure && refused.code === "AGENT_OFFLINE",
      `a look at the store gave ${String(refused)}, not AGENT_OFFLINE`,
    );
    const run = await this.#startSpec(
      JSON.parse(readFileSync(join(this.stack.store, "pipelines/digits.pipeline.json"), "utf8")) as PipelineInput,
      { epochs: 3 },
    );
    must(
      run.state === "queued" && run.waiting?.code === "AGENT_OFFLINE",
      `a run is ${run.state}, waiting for ${run.waiting?.code}`,
    );
    this.#waitingRun = run.id;
    return `${agent.state} after ${(tookMs / 1000).toFixed(1)} s; a look fails at once with AGENT_OFFLINE, a run waits: "${run.waiting.text}"`;
  }

  /** Starts it again, with nothing but its state folder. */
  async reconnect(): Promise<string> {
    this.stack.startAgent();
    await until("the agent to come back", 20_000, async () => {
      must(this.stack.agentRuns, `the agent ended:\n${this.stack.tail("agent")}`);
      return (await this.#agent()).state === "connected";
    });
    const model = this.#shown.get("model.onnx")!;
    const stat = await this.#api.get<{ digest: string }>(`${files}/stat?${query(model.path)}&digest=true`);
    must(stat.digest === model.digest, "the model is not what it was");
    const run = await this.#ended(this.#waitingRun);
    must(run.state === "succeeded", `the run that waited ended as ${run.state}: ${run.error?.message}`);
    const deployed = await this.#available(2);
    must(
      deployed.observed!.replicas.every((one) => one.starts <= 2),
      "a replica was restarted with the agent",
    );
    return "the model is where it was, both replicas served on, the run that waited has succeeded";
  }
}
