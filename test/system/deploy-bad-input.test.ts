// What goes wrong with deployments, on the real programs: each its own code, a sentence that names thing and cause, and a
// fix, at the API and at the command line; what serves goes on serving meanwhile. Agents of four pools have one shortcoming
// each: `lab` is fit, `edge` finds its port taken and has little room, `bare` serves nothing, `quay` has a Docker Engine.
import { createHash, randomUUID } from "node:crypto";
import { writeFileSync } from "node:fs";
import { createServer as createHttp } from "node:http";
import { createServer, type AddressInfo } from "node:net";
import { join } from "node:path";
import t from "tap";
import type { Test } from "tap";
import type { DeploymentDetail, Problem, RunDetail } from "../../cloud/http/api.ts";
import { identity } from "../../packaging/serving/fixtures/onnx.ts";
import { buildImage } from "../support/built-image.ts";
import { underLoad } from "../support/load.ts";
import { binFile, entryFile, runProgram, tempDir, waitFor } from "../support/launcher.ts";
import { startDocker } from "../support/servers/docker.ts";
import { busyboxImage } from "../support/servers/images.ts";
import { needs } from "../support/skip.ts";
import { CEILINGS, connectAgent, freePort, TERMINAL, TestCloud, type TestAgent } from "../support/stack.ts";
import { processEngine } from "../support/story-process.ts";

const TIMEOUT = 300_000;
const MIB = 1024 * 1024;
const SMALL = { cpus: 0.1, memoryBytes: 64 * MIB };
const NOBODYS = `sha256:${"1".repeat(64)}`;
const CEILING = (more: string): string => CEILINGS.replace(" }", `, cpus: 1, memoryBytes: ${512 * MIB}, ${more} }`);

interface World {
  cloud: TestCloud;
  store: string;
  models: Record<"good" | "garbage" | "moved", { store: string; path: string; digest: string }>;
  cli(args: readonly string[], input?: string): Promise<{ code: number | null; stdout: string; stderr: string }>;
  /** Of the runtime on engine process: the real one, which ends by itself where the deployment's MODE says so. */
  runtime: string;
}
type Spec = Record<string, unknown>;

const specOf = (world: World, more: Spec = {}): Spec => ({ model: world.models.good, resources: SMALL, ...more });

const made = (world: World, pool: string, name: string, spec: Spec): Promise<DeploymentDetail> =>
  world.cloud.api.json<DeploymentDetail>("/v1/deployments", {
    headers: { "idempotency-key": randomUUID() },
    json: { pool, name, spec },
  });
const detail = ({ cloud }: World, { id }: { id: string }) => cloud.api.json<DeploymentDetail>(`/v1/deployments/${id}`);

/** Puts a whole spec on what is there now. */
async function put(world: World, of: { id: string }, spec: Spec): Promise<DeploymentDetail> {
  const { generation } = await detail(world, of);
  return world.cloud.api.json<DeploymentDetail>(`/v1/deployments/${of.id}`, {
    method: "PUT",
    json: { spec },
    headers: { "if-match": `"${generation}"` },
  });
}

async function until(
  world: World,
  of: { id: string },
  what: string,
  fact: (now: DeploymentDetail) => boolean,
  timeoutMs = 60_000,
): Promise<DeploymentDetail> {
  let last: DeploymentDetail | undefined;
  try {
    return await waitFor(
      what,
      async () => {
        last = await detail(world, of);
        return fact(last) && last;
      },
      { timeoutMs, everyMs: 150 },
    );
  } catch (cause) {
    throw new Error(`waited for ${what}; last seen: ${JSON.stringify({ ...last, spec: undefined })}`, { cause });
  }
}

const stands = (now: DeploymentDetail): boolean =>
  now.appliedGeneration === now.generation && now.state === "available" && now.replicasReady === now.spec.replicas;

type Row = {
  code: string;
  message: string;
  fix?: string | null | undefined;
  details?: Record<string, unknown> | undefined;
};
type ConditionType = NonNullable<DeploymentDetail["observed"]>["conditions"][number]["type"];
const condition = (now: DeploymentDetail, type: ConditionType): Row | null => {
  const found = now.observed?.conditions.find((one) => one.type === type);
  return found === undefined || found.ok || now.observed!.generation !== now.generation ? null : found;
};
const untilCondition = async (
  world: World,
  of: { id: string },
  type: ConditionType,
  code: string,
): Promise<{ now: DeploymentDetail; row: Row }> => {
  const now = await until(world, of, `condition ${type} to be ${code}`, (seen) => condition(seen, type)?.code === code);
  return { now, row: condition(now, type)! };
};

/** Code, a whole sentence that names the thing, and what to do; nothing of our insides. */
function proper(t: Test, what: string, row: Row, code: string, names: RegExp, fix: RegExp = /.+/): void {
  t.equal(row.code, code, `${what}: ${row.code}: ${row.message} [${row.fix ?? "no fix"}]`);
  t.match(row.message, names, `${what}: names it`);
  t.match(row.message, /^[A-Z"'].*[.)]$/s, `${what}: a sentence`);
  t.match(row.fix ?? "", fix, `${what}: what to do`);
  t.notMatch(`${row.message} ${row.fix}`, /\bat .*\.ts:\d+|node_modules|undefined|\[object/, `${what}: no insides`);
}
const ofProblem = (problem: Problem): Row => ({
  code: problem.code,
  message: problem.detail,
  fix: problem.fix,
  details: problem.details,
});

/** What the agent refuses at acceptance: the deployment is there, refused, and says why. */
async function refused(world: World, pool: string, spec: Spec): Promise<Row & { deployment: DeploymentDetail }> {
  const one = await made(world, pool, `refused-${randomUUID().slice(0, 8)}`, spec);
  const now = await until(world, one, "the refusal", (seen) => seen.state === "refused");
  return { ...now.error!, deployment: now };
}

const infer = (name: string) => `/v2/models/${name}/infer`;
const tensor = (shape: number[], datatype = "FP32", name = "x"): string =>
  JSON.stringify({
    inputs: [{ name, shape, datatype, data: Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => 1) }],
  });
const linked = ({ cloud }: World, { id }: { id: string }, path: string, body: string) =>
  cloud.api.call(`/v1/deployments/${id}/request?path=${path}`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: Buffer.from(body),
  });

/** Address and key of an endpoint, as the agent's own tool prints them. */
async function keyed(t: Test, agent: TestAgent, name: string): Promise<{ url: string; key: string }> {
  const shown = await runProgram(t, {
    name: "agent endpoint",
    args: [binFile("agent/bin/sallyport-agent"), "endpoint", name, "--output", "json", "--config", agent.configFile],
  });
  if (shown.code !== 0) throw new Error(shown.stderr);
  return (JSON.parse(shown.stdout) as [{ url: string; key: string }])[0];
}
const at = ({ url, key }: { url: string; key: string }, name: string, body: string) =>
  fetch(`${url}${infer(name)}`, {
    method: "POST",
    headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
    body,
  });

t.test("what goes wrong with deployments has a code, a cause and a fix", { timeout: TIMEOUT }, async (t) => {
  const cloud = await TestCloud.start(t);
  const store = tempDir(t, "models");
  const model = (name: string, bytes: Buffer) => {
    writeFileSync(join(store, name), bytes);
    return { store: "box", path: name, digest: `sha256:${createHash("sha256").update(bytes).digest("hex")}` };
  };
  const runtime = join(store, "runtime.mjs");
  writeFileSync(
    runtime,
    `console.log("starting");
if (process.env.MODE === "crash") {
  console.error("no room left for tensor 7: giving up");
  process.exit(7);
}
process.argv.splice(1, 1);
await import(process.argv[1]);
`,
  );
  const home = tempDir(t, "home");
  const world: World = {
    cloud,
    store,
    models: {
      good: model("good.onnx", identity("FP32", ["batch", 4])),
      garbage: model("garbage.onnx", Buffer.from("this is no model, whatever its name says")),
      moved: { ...model("moved.onnx", identity("FP32", ["batch", 8])), digest: NOBODYS },
    },
    cli: (args, input) =>
      runProgram(t, {
        name: "sallyport",
        args: [entryFile("cloud/cli/main"), ...args],
        env: { HOME: home, XDG_CONFIG_HOME: join(home, "config") },
        ...(input === undefined ? {} : { input }),
      }),
    runtime: `process: { path: ${process.execPath}, args: [${runtime}, ${JSON.stringify(entryFile("packaging/serving/main"))}] }`,
  };
  t.match(await world.cli(["login", cloud.url], `${cloud.api.token}\n`), { code: 0 });

  // Independent of one another: they share the control plane alone.
  t.jobs = 4;
  await Promise.all([
    t.test("on a machine with a Docker Engine", { skip: needs("docker"), timeout: TIMEOUT }, (t) => quay(t, world)),
    t.test("at an agent that is fit", { timeout: TIMEOUT }, (t) => lab(t, world)),
    t.test("at an agent with little room whose port is taken", { timeout: TIMEOUT }, (t) => edge(t, world)),
    t.test("at an agent that serves nothing", { timeout: TIMEOUT }, (t) => bare(t, world)),
  ]);
});

// -- lab: what people write, and models that do not do ---------------------------------------------------------------

async function lab(t: Test, world: World): Promise<void> {
  const { cloud, cli, models, store } = world;
  const { api } = cloud;
  const port = await freePort();
  const secrets = tempDir(t, "secrets");
  const agent = await connectAgent(t, cloud, "lab", {
    config: `
secrets: { named: { granted: "\${file:${join(secrets, "absent")}}", kept: "\${file:${join(secrets, "kept")}}" } }
stores: [{ id: box, kind: fs, root: ${store} }]
programs: { node: { path: ${process.execPath} } }
serving: { listen: "127.0.0.1:${port}", ${world.runtime} }
policy:
  ${CEILING("deployments: 20, replicas: 3")}
  commands: ["deployment.*", "pipeline.run", "run.*"]
  engines: [process]
  secrets: [granted]
  stores: [{ store: box, read: ["*.onnx"] }]
  release: { metadata: true, logs: true, predict: [digits] }
`,
  });
  const digits = await made(world, "lab", "digits", specOf(world));
  const silent = await made(world, "lab", "silent", specOf(world, { replicas: 0 }));
  await until(world, digits, "digits to stand", stands);
  const endpoint = await keyed(t, agent, "digits");

  await t.test("refused before anything begins", { timeout: TIMEOUT }, async (t) => {
    const rows: [what: string, spec: Spec, code: string, names: RegExp, rule?: RegExp][] = [
      ["replicas", { replicas: 4 }, "POLICY_DENIED", /replicas of at most 3; 4/, /ceilings\.replicas/],
      ["cores", { resources: { ...SMALL, cpus: 1.5 } }, "POLICY_DENIED", /cpus of at most 1; 1\.5/, /ceilings\.cpus/],
      [
        "memory",
        { resources: { ...SMALL, memoryBytes: 1024 * MIB } },
        "POLICY_DENIED",
        /memoryBytes of at most 536870912 bytes/,
        /ceilings\.memoryBytes/,
      ],
      ["engine not allowed", { engine: "docker" }, "POLICY_DENIED", /engine "docker"/, /policy\.engines/],
      [
        "secret not granted",
        { secrets: { PW: "kept" } },
        "POLICY_DENIED",
        /replica the secret "kept"/,
        /policy\.secrets/,
      ],
      [
        "path not granted",
        { model: { ...models.good, path: "deep/good.onnx" } },
        "POLICY_DENIED",
        /deep\/good\.onnx.* store box/,
        /policy\.stores/,
      ],
      ["store", { model: { ...models.good, store: "lake" } }, "STORE_UNKNOWN", /no store named lake/],
      ["dot segments", { model: { ...models.good, path: "a/../good.onnx" } }, "PATH_INVALID", /"\.\."/],
      ["steering variable", { env: { NODE_OPTIONS: "--inspect" } }, "DEPLOYMENT_INVALID", /NODE_OPTIONS/],
      ["set twice", { env: { A: "1" }, secrets: { A: "granted" } }, "DEPLOYMENT_INVALID", /sets A twice/],
      ["image of its own", { image: `reg.example/ml@${NOBODYS}` }, "DEPLOYMENT_INVALID", /image of its own/],
    ];
    await Promise.all(
      rows.map(async ([what, spec, code, names, rule]) => {
        const error = await refused(world, "lab", specOf(world, spec)).catch((cause: unknown) => cause as Error);
        if (error instanceof Error) return t.fail(`${what}: ${error.message}`);
        proper(t, what, error, code, names);
        if (rule !== undefined) t.match(error.details?.["rule"], rule, `${what}: the rule is named`);
        t.match(error.deployment.stateReason, names, `${what}: the deployment says why`);
      }),
    );
    t.equal(models.good.digest, (await detail(world, digits)).spec.model.digest);
  });

  await t.test("refused by the API itself", { timeout: TIMEOUT }, async (t) => {
    const path = `/v1/deployments/${digits.id}`;
    const call = (tail: string, json: unknown, match?: string, method = "POST") =>
      api.problem(`${path}${tail}`, { method, json, headers: match === undefined ? {} : { "if-match": match } });
    const absent = `dep_${"0".repeat(32)}`;
    const rows: [what: string, problem: Promise<Problem>, status: number, code: string, names: RegExp][] = [
      ["missing If-Match", call("/scale", { replicas: 2 }), 422, "INPUT_INVALID", /digits needs If-Match/],
      [
        "stale If-Match",
        call("/scale", { replicas: 2 }, '"9"'),
        412,
        "PRECONDITION_FAILED",
        /digits is at generation 1, not at "9"/,
      ],
      ["stale If-Match of a removal", call("", undefined, '"9"', "DELETE"), 412, "PRECONDITION_FAILED", /generation 1/],
      [
        "name taken",
        api.problem("/v1/deployments", { json: { pool: "lab", name: "digits", spec: specOf(world) } }),
        409,
        "CONFLICT",
        /digits/,
      ],
      [
        "unknown pool",
        api.problem("/v1/deployments", { json: { pool: "nowhere", name: "a", spec: specOf(world) } }),
        404,
        "NOT_FOUND",
        /nowhere/,
      ],
      ["unknown deployment", api.problem(`/v1/deployments/${absent}`), 404, "NOT_FOUND", new RegExp(absent)],
      ["unknown revision", call("/rollback", { revision: 9 }, "*"), 404, "NOT_FOUND", /digits has no revision 9/],
      ["unknown replica", api.problem(`${path}/replicas/r9.0/logs`), 410, "LOGS_GONE", /digits has no replica r9\.0/],
      [
        "unknown start",
        api.problem(`${path}/replicas/r1.0/logs?start=5`),
        410,
        "LOGS_GONE",
        /r1\.0 of deployment digits has not been started 5 times/,
      ],
      ["no replica's name", api.problem(`${path}/replicas/first/logs`), 422, "INPUT_INVALID", /replica such as r3\.0/],
      [
        "model without digest",
        call("", { spec: specOf(world, { model: { store: "box", path: "good.onnx" } }) }, "*", "PUT"),
        422,
        "INPUT_INVALID",
        /digest/,
      ],
      [
        "image by tag",
        call("", { spec: specOf(world, { image: "reg.example/ml:latest" }) }, "*", "PUT"),
        422,
        "INPUT_INVALID",
        /image.*by digest/,
      ],
      ["field unknown", call("", { spec: specOf(world, { replica: 2 }) }, "*", "PUT"), 422, "INPUT_INVALID", /replica/],
      [
        "step's image by tag",
        api.problem("/v1/runs", {
          json: {
            pool: "lab",
            pipeline: {
              name: "p",
              engine: "docker",
              outputs: { store: "box" },
              steps: [{ name: "a", image: "busybox:1" }],
            },
          },
        }),
        422,
        "INPUT_INVALID",
        /image.*by digest/,
      ],
      [
        "predict not granted",
        api.problem(`/v1/deployments/${silent.id}/request`, { method: "POST", body: Buffer.from("{}") }),
        403,
        "POLICY_DENIED",
        /predictions of "silent"/,
      ],
      [
        "path outside the protocol",
        api.problem(`${path}/request?path=/metrics`, { method: "POST", body: Buffer.from("{}") }),
        422,
        "INPUT_INVALID",
        /Open Inference Protocol/,
      ],
      [
        "too large for the link",
        api.problem(`${path}/request`, { method: "POST", body: Buffer.alloc(200 * 1024, 32) }),
        413,
        "TOO_LARGE",
        /131072 bytes/,
      ],
    ];
    for (const [what, asked, status, code, names] of rows) {
      const problem = await asked.catch((error: unknown) => error as Error);
      if (problem instanceof Error) {
        t.fail(`${what}: ${problem.message}`);
        continue;
      }
      const row = ofProblem(problem);
      const text = `${row.message} ${JSON.stringify(problem.errors ?? "")}`;
      t.equal(problem.status, status, `${what}: ${status}`);
      // Of a field that does not fit the schema, its path and what is expected are the sentence.
      if (problem.errors === undefined) proper(t, what, row, code, names);
      else t.match([row.code, text, row.fix], [code, names, /.+/], `${what}: ${text}`);
    }
    t.match((await detail(world, digits)).generation, 1, "nothing was changed by any of it");
  });

  await t.test(
    "a request that does not fit the model: 400 with input and expectation, both ways",
    { timeout: TIMEOUT },
    async (t) => {
      const rows: [what: string, body: string, says: RegExp][] = [
        ["shape", tensor([1, 5]), /'x'.*\[-1, 4\].*\[1, 5\]/],
        ["type", tensor([1, 4], "INT64"), /'x'.*FP32.*INT64/],
        ["input", tensor([1, 4], "FP32", "pixels"), /'pixels'.*'x'/],
        ["no JSON", "{", /not JSON/],
      ];
      for (const [what, body, says] of rows) {
        const through = await linked(world, digits, infer("digits"), body);
        t.equal(through.status, 400, `${what}: through the link: ${through.body}`);
        t.match(through.json(), { error: says });
        t.match(through.headers["sallyport-replica"], /^r1\.0$/, "it is the replica's own answer");
        const direct = await at(endpoint, "digits", body);
        t.equal(direct.status, 400, `${what}: at the endpoint`);
        t.match(await direct.json(), { error: says });
      }
      const shown = await cli(["deployment", "request", "digits", "-d", tensor([2, 5])]);
      t.match(shown, { code: 2, stdout: /'x'.*\[-1, 4\]/, stderr: /answered 400/ }, "the command line ends with 2");
      const unknown = await linked(world, digits, infer("other"), tensor([1, 4]));
      t.match([unknown.status, unknown.body.toString()], [404, /expected 'digits'/], "a model of another name");
    },
  );

  await t.test("at the endpoint: wrong key, no such endpoint, too large", { timeout: TIMEOUT }, async (t) => {
    for (const [what, url, key] of [
      ["wrong key", endpoint.url, `${endpoint.key.slice(0, -1)}_`],
      ["no such endpoint", endpoint.url.replace(/digits$/, "other"), endpoint.key],
    ] as const) {
      const answer = await at({ url, key }, "digits", tensor([1, 4]));
      t.match([answer.status, answer.headers.get("sallyport-code")], [401, "UNAUTHENTICATED"], what);
      t.match(await answer.json(), { error: /endpoint.*key/ }, `${what}: names can not be found by trying`);
    }
    const large = await fetch(`${endpoint.url}${infer("digits")}`, {
      method: "POST",
      headers: { authorization: `Bearer ${endpoint.key}` },
      body: Buffer.alloc(33 * MIB, 32),
    }).catch((error: unknown) => error as Error);
    if (large instanceof Error) t.fail(`the refusal of a large body is not read: ${String(large.cause)}`);
    else {
      t.match([large.status, large.headers.get("sallyport-code")], [413, "TOO_LARGE"], "33 MiB");
      t.match(await large.json(), { error: /33554432 bytes/ });
    }
  });

  await t.test("models that do not do; the old revision serves on", { timeout: TIMEOUT }, async (t) => {
    const at4 = {
      url: `${endpoint.url}${infer("digits")}`,
      headers: { authorization: `Bearer ${endpoint.key}` },
      body: tensor([1, 4]),
    };
    const bad = await made(world, "lab", "moved", specOf(world, { model: models.moved }));
    const missing = await made(
      world,
      "lab",
      "missing",
      specOf(world, { model: { ...models.good, path: "none.onnx", digest: NOBODYS } }),
    );
    const secret = await made(world, "lab", "secretless", specOf(world, { secrets: { PW: "granted" } }));
    const served = await underLoad(at4, async () => {
      await put(world, digits, specOf(world, { model: models.garbage }));
      const { now, row } = await untilCondition(world, digits, "updated", "MODEL_REFUSED");
      proper(t, "garbage", row, "MODEL_REFUSED", /r2\.0/, /model/);
      t.equal(now.state, "degraded", "it serves, and not as wanted");
      t.match(
        now.observed!.conditions.find((one) => one.type === "available"),
        { ok: true },
      );
      t.match(row.details, { replica: "r2.0", start: Number, exit: { code: 65 } });
      t.match(now.stateReason, /r2\.0/, "and the first line of the page says so");
      const waited = await cli(["deployment", "rollback", "digits", "--to", "1", "--wait"]);
      t.equal(waited.code, 0, waited.stderr);
    });
    t.same(served.failures, {}, `no failed request of ${served.answered}`);
    for (const [what, of, code, names] of [
      ["another digest", bad, "DIGEST_MISMATCH", /moved\.onnx in store box/],
      ["no such file", missing, "ARTIFACT_NOT_FOUND", /none\.onnx/],
      ["a secret that is nowhere", secret, "SECRET_UNKNOWN", /secret granted.*absent/],
    ] as const) {
      const { now, row } = await untilCondition(world, of, "available", code);
      proper(t, what, row, code, names);
      t.equal(now.state, "failed", `${what}: serves nothing`);
      const shown = await cli(["deployment", "get", now.name]);
      t.match(shown, { code: 0, stdout: new RegExp(code) }, `${what}: at the command line`);
    }
  });

  await t.test(
    "crash loop: reason and place in the log; its last lines through the link; the old one serves",
    { timeout: TIMEOUT },
    async (t) => {
      const at4 = {
        url: `${endpoint.url}${infer("digits")}`,
        headers: { authorization: `Bearer ${endpoint.key}` },
        body: tensor([1, 4]),
      };
      const served = await underLoad(at4, async () => {
        const file = join(tempDir(t, "spec"), "spec.json");
        writeFileSync(file, JSON.stringify(specOf(world, { env: { MODE: "crash" } })));
        const waited = await cli(["deployment", "apply", "-f", file, "--pool", "lab", "--name", "digits", "--wait"]);
        t.match(waited, { code: 1, stderr: /CRASH_LOOP/ }, "--wait ends with 1");
        t.match(waited.stderr, /sallyport deployment logs digits r\d\.0 --tail 20/, "and says where to look");
        const { now, row } = await untilCondition(world, digits, "updated", "CRASH_LOOP");
        proper(t, "crash loop", row, "CRASH_LOOP", /r\d\.0 ended with exit code 7, \d+ times in a row/, /log/);
        t.match(row.details, { exit: { reason: "exit", code: 7 }, logSeq: Number, start: Number });
        t.equal(now.state, "degraded");
        const { replica, start, logSeq } = row.details as { replica: string; start: number; logSeq: number };
        const logs = (
          await api.call(`/v1/deployments/${digits.id}/replicas/${replica}/logs?start=${start}&tail=5`)
        ).body
          .toString()
          .trim()
          .split("\n")
          .map((line) => JSON.parse(line) as { seq: number; body?: { data: string } });
        t.ok(
          logs.some((line) => line.body?.data.includes("tensor 7: giving up")),
          "the API reads its last words",
        );
        t.equal(logs.at(-1)!.seq, logSeq, "the condition names the last record");
        const shown = await cli(["deployment", "logs", "digits", replica, "--start", String(start), "--tail", "20"]);
        t.match([shown.code, `${shown.stdout}${shown.stderr}`], [0, /tensor 7: giving up/], "so does the command line");
        t.match(await cli(["deployment", "rollback", "digits", "--wait"]), { code: 0 });
      });
      t.same(served.failures, {}, `no failed request of ${served.answered}`);
    },
  );

  await t.test("at the command line", { timeout: TIMEOUT }, async (t) => {
    const spec = join(tempDir(t, "spec"), "spec.json");
    const file = (more: Spec) => {
      writeFileSync(spec, JSON.stringify({ pool: "lab", name: "tool", spec: specOf(world, more) }));
      return ["deployment", "apply", "-f", spec, "--wait"];
    };
    const rows: [args: () => string[], code: number, says: RegExp][] = [
      [() => file({ replicas: 4 }), 5, /replicas of at most 3; 4.*\n {2}fix: .*ceilings.*\n {2}POLICY_DENIED/],
      [() => file({ replicas: 1, model: { ...models.good, digest: "latest" } }), 2, /digest/],
      [() => file({ image: "reg.example/ml:latest" }), 2, /by digest/],
      [() => file({ model: models.garbage }), 1, /MODEL_REFUSED/],
      [() => ["deployment", "get", "nothing"], 3, /no deployment nothing; there are .*digits/],
      [() => ["deployment", "scale", "nothing", "2"], 3, /nothing/],
      [() => ["deployment", "scale", "digits", "many"], 2, /many is not a whole number/],
      [() => ["deployment", "scale", "digits", "9", "--wait"], 5, /replicas of at most 3; 9/],
      [() => ["deployment", "rollback", "digits", "--to", "77"], 3, /no revision 77/],
      [() => ["deployment", "logs", "digits", "r77.0"], 1, /no replica r77\.0/],
      [() => ["deployment", "logs", "silent"], 3, /no replica that was started/],
      [() => ["deployment", "request", "silent", "-d", "{}"], 5, /predictions of "silent"/],
      [() => ["deployment", "request", "digits", "-d", `@${join(store, "nothing")}`], 2, /no such file/],
      [() => ["deployment", "rm", "digits"], 2, /--yes/],
    ];
    for (const [args, code, says] of rows) {
      const asked = args();
      const result = await cli(asked);
      t.equal(result.code, code, `sallyport ${asked.join(" ")}: ${result.stderr.trim()}`);
      t.match(result.stderr, says);
    }
  });
}

// -- edge: no port, no room, a policy that changes -------------------------------------------------------------------

async function edge(t: Test, world: World): Promise<void> {
  const { cloud, cli, store } = world;
  const port = await freePort();
  const squatter = createServer((socket) => socket.destroy());
  await new Promise<void>((resolve) => squatter.listen(port, "127.0.0.1", resolve));
  const config = (policy = "secrets: [pw]") => `
secrets: { named: { pw: "\${file:${join(store, "good.onnx")}}" } }
stores: [{ id: box, kind: fs, root: ${store} }]
serving: { listen: "127.0.0.1:${port}", ${world.runtime} }
limits: { replicas: 1 }
policy:
  ${CEILING("deployments: 2, replicas: 2")}
  commands: ["deployment.*"]
  engines: [process]
  stores: [{ store: box, read: ["**"] }]
  release: { metadata: true, logs: true, predict: true }
  ${policy}
`;
  const agent = await connectAgent(t, cloud, "edge", { config: config("") });
  const one = await made(world, "edge", "one", specOf(world));

  await t.test(
    "port taken: said, healed when it is free; replicas run and the link answers meanwhile",
    { timeout: TIMEOUT },
    async (t) => {
      const { now, row } = await untilCondition(world, one, "endpoint", "PORT_TAKEN");
      proper(t, "port taken", row, "PORT_TAKEN", new RegExp(`127\\.0\\.0\\.1:${port}`), /serving\.listen/);
      t.match(now.endpoint, new RegExp(`:${port}/one$`));
      const ready = await until(world, one, "its replica to be ready", (seen) => seen.replicasReady === 1);
      t.match(ready.stateReason, /listens at/, "the first line says so");
      t.equal(ready.state, "degraded");
      t.equal((await linked(world, one, infer("one"), tensor([1, 4]))).status, 200, "the link does not need the port");
      await new Promise((resolve) => squatter.close(resolve));
      await until(world, one, "the endpoint to listen", stands);
      t.equal((await at(await keyed(t, agent, "one"), "one", tensor([1, 4]))).status, 200);
    },
  );

  await t.test("no room: waits, and goes on when there is", { timeout: TIMEOUT }, async (t) => {
    const two = await made(world, "edge", "two", specOf(world));
    const { row } = await untilCondition(world, two, "available", "AT_CAPACITY");
    proper(
      t,
      "no room",
      row,
      "AT_CAPACITY",
      /limits\.replicas is 1/,
      /Scale this or another deployment down.*by itself/,
    );
    t.match((await detail(world, two)).observed!.replicas, [{ state: "waiting", code: "AT_CAPACITY" }]);

    const third = await refused(world, "edge", specOf(world));
    proper(t, "deployments", third, "POLICY_DENIED", /deployments of at most 2; 3/);
    t.equal(third.details?.["rule"], "policy.ceilings.deployments");

    const late = await cli(["deployment", "scale", "two", "1", "--pool", "edge", "--wait", "--timeout", "2"]);
    t.equal(late.code, 8, `--wait gives up in time: ${late.stderr}`);
    t.match(late.stderr, /no room/);
    t.match(await cli(["deployment", "scale", "one", "0", "--pool", "edge", "--wait"]), { code: 0 });
    await until(world, two, "the other to take its place", stands);
    t.match(await cli(["deployment", "rm", "two", "--pool", "edge", "--yes", "--wait"]), { code: 0 });
    t.match(await cli(["deployment", "scale", "one", "1", "--pool", "edge", "--wait"]), { code: 0 });
  });

  await t.test(
    "the policy is tightened: what runs runs on, a new start is refused",
    { timeout: TIMEOUT },
    async (t) => {
      const engine = processEngine();
      const [running] = await engine.running(agent, one.id);
      agent.configure(
        config('stores: [{ store: box, read: ["other/**"] }]').replace(
          '  stores: [{ store: box, read: ["**"] }]\n',
          "",
        ),
        cloud.url,
      );
      agent.program.kill("SIGHUP");
      await agent.program.waitForOutput(/configuration reloaded/);
      t.equal((await linked(world, one, infer("one"), tensor([1, 4]))).status, 200, "it serves");
      t.same(await engine.running(agent, one.id), [running], "and is the same process");
      await engine.killReplica(agent, one.id, running!.slice(0, running!.indexOf(":")));
      const { now, row } = await untilCondition(world, one, "available", "POLICY_DENIED");
      proper(t, "tightened", row, "POLICY_DENIED", /good\.onnx/, /policy/);
      t.match(row.details, { rule: /policy\.stores/, replica: /^r1\.0$/ });
      t.equal(now.state, "failed");
      const asked = await api(cloud).problem(`/v1/deployments/${one.id}/request?timeoutMs=500`, {
        method: "POST",
        body: Buffer.from(tensor([1, 4])),
      });
      t.match(asked.code, /DEPLOYMENT_UNREADY|TIMED_OUT/, `a request says so: ${asked.detail}`);
      agent.configure(config(""), cloud.url);
      agent.program.kill("SIGHUP");
      await until(world, one, "it to be back", stands);
    },
  );

  await t.test("an agent that is gone", { timeout: TIMEOUT }, async (t) => {
    await agent.program.stop();
    await until(world, one, "unknown", (now) => now.state === "unknown");
    const asked = await api(cloud).problem(`/v1/deployments/${one.id}/request`, {
      method: "POST",
      body: Buffer.from("{}"),
    });
    proper(t, "gone", ofProblem(asked), "AGENT_OFFLINE", /edge|agent/i);
    t.match(await cli(["deployment", "logs", "one", "--pool", "edge"]), { code: 7, stderr: /AGENT_OFFLINE/ });
  });
}
const api = (cloud: TestCloud) => cloud.api;

// -- bare: no engine, no runtime -------------------------------------------------------------------------------------

async function bare(t: Test, world: World): Promise<void> {
  await connectAgent(t, world.cloud, "bare", {
    config: `
stores: [{ id: box, kind: fs, root: ${world.store} }]
policy:
  ${CEILING("deployments: 2, replicas: 2")}
  commands: ["deployment.*"]
  engines: ["*"]
  stores: [{ store: box, read: ["**"] }]
  release: { metadata: true }
`,
  });
  const runtime = await refused(world, "bare", specOf(world));
  proper(t, "no runtime", runtime, "RUNTIME_MISSING", /engine process/, /serving\.process/);
  const engine = await refused(world, "bare", specOf(world, { engine: "docker" }));
  proper(t, "no such engine", engine, "ENGINE_UNKNOWN", /no engine docker/, /It has: process/);
  const shown = await world.cli(["deployment", "get", engine.deployment.name]);
  t.match(shown, { code: 0, stdout: /no engine docker/ });
}

// -- quay: images, memory, an Engine that goes and comes ---------------------------------------------------------------

/** Plays a registry's refusals: `private` wants an account, `forbidden` has none that may, the rest is not there. */
async function refusingRegistry(t: Test): Promise<string> {
  const http = createHttp((asked, answer) => {
    const repository = /^\/v2\/([a-z]+)\//.exec(asked.url ?? "")?.[1];
    if (repository === undefined) return void answer.end("{}");
    const [status, code] =
      repository === "private"
        ? ([401, "UNAUTHORIZED"] as const)
        : repository === "forbidden"
          ? ([403, "DENIED"] as const)
          : ([404, "MANIFEST_UNKNOWN"] as const);
    answer.writeHead(status, {
      "content-type": "application/json",
      ...(status === 401 ? { "www-authenticate": "Basic realm=test" } : {}),
    });
    answer.end(JSON.stringify({ errors: [{ code, message: code.toLowerCase() }] }));
  });
  await new Promise<void>((resolve) => http.listen(0, "127.0.0.1", resolve));
  t.teardown(() => {
    http.closeAllConnections();
    http.close();
  });
  return `127.0.0.1:${(http.address() as AddressInfo).port}`;
}

async function quay(t: Test, world: World): Promise<void> {
  const { cloud, cli, store } = world;
  const [server, registry] = await Promise.all([startDocker(t), refusingRegistry(t)]);
  const [shell, serving] = [await busyboxImage(server.docker), buildImage(server.socket, "serving")];
  serving.catch(() => undefined);
  const at = (repository: string): string => `${registry}/${repository}@${NOBODYS}`;
  const port = await freePort();
  const config = (image: string) => `
engines: { docker: { socket: ${server.socket} } }
stores: [{ id: box, kind: fs, root: ${store} }]
serving: { listen: "127.0.0.1:${port}", image: "${image}" }
policy:
  ${CEILING("deployments: 5, replicas: 2")}
  commands: ["deployment.*", "pipeline.run", "run.*"]
  engines: [docker]
  images: ["${registry}/*", "${shell}"]
  stores: [{ store: box, read: ["**"], write: ["runs/**"] }]
  release: { metadata: true, logs: true, predict: true }
`;
  const agent = await connectAgent(t, cloud, "quay", { config: config(at("missing")) });
  const reconfigure = (image: string) => {
    agent.configure(config(image), cloud.url);
    agent.program.kill("SIGHUP");
  };
  const BOX = { cpus: 0.5, memoryBytes: 256 * MIB };
  const spec = (more: Spec = {}) => specOf(world, { engine: "docker", resources: BOX, ...more });
  const box = await made(world, "quay", "box", spec());
  const run = (image: string, more: Spec = {}) =>
    cloud.api.json<RunDetail>("/v1/runs", {
      headers: { "idempotency-key": randomUUID() },
      json: {
        pool: "quay",
        pipeline: { name: "p", engine: "docker", outputs: { store: "box" }, steps: [{ name: "a", image, ...more }] },
      },
    });
  const look = ({ id }: { id: string }) => cloud.api.json<RunDetail>(`/v1/runs/${id}`);
  const ended = (of: { id: string }) =>
    waitFor("the run to end", async () => {
      const now = await look(of);
      return TERMINAL.includes(now.state) && now;
    });

  /** Of a step whose image may still come: asked at the end. */
  let awaited: { id: string } | undefined;
  await t.test(
    "steps: an image that is missing, refused, not allowed; out of memory",
    { timeout: TIMEOUT },
    async (t) => {
      const [missing, refusedByAccount, forbidden, stranger, hungry] = await Promise.all([
        run(at("missing")),
        run(at("private")),
        run(at("forbidden")),
        run(`elsewhere.example/x@${NOBODYS}`),
        run(shell, {
          args: ["-c", "exec dd if=/dev/zero of=/dev/null bs=200M count=1"],
          resources: { cpus: 0.5, memoryBytes: 64 * MIB },
        }),
      ]);
      for (const [what, of, code, names] of [
        ["account wanted", refusedByAccount, "IMAGE_DENIED", /private@sha256/],
        ["forbidden", forbidden, "IMAGE_DENIED", /forbidden@sha256/],
        ["not allowed", stranger, "POLICY_DENIED", /elsewhere\.example/],
        ["out of memory", hungry, "OUT_OF_MEMORY", /limit of 67108864 bytes/],
      ] as const) {
        const now = await ended(of);
        t.equal(now.state, "failed", what);
        proper(t, what, now.error!, code, names);
      }
      awaited = missing;
    },
  );

  await t.test("the runtime's image is missing, then refused, then there", { timeout: TIMEOUT }, async (t) => {
    const first = await untilCondition(world, box, "available", "IMAGE_MISSING");
    proper(t, "missing", first.row, "IMAGE_MISSING", /missing@sha256/, /name and the digest/);
    t.match(first.now.observed!.replicas, [{ state: "waiting", code: "IMAGE_MISSING" }]);
    reconfigure(at("private"));
    const second = await untilCondition(world, box, "available", "IMAGE_DENIED");
    proper(t, "refused", second.row, "IMAGE_DENIED", /private@sha256/, /account/);
    t.equal(second.now.state, "failed");
    reconfigure(await serving);
    await until(world, box, "the replica", stands);
  });

  const endpoint = await keyed(t, agent, "box");
  const load = {
    url: `${endpoint.url}${infer("box")}`,
    headers: { authorization: `Bearer ${endpoint.key}` },
    body: tensor([1, 4]),
  };

  await t.test(
    "a replica without enough memory: the limit is named, the old revision serves on",
    { timeout: TIMEOUT },
    async (t) => {
      const served = await underLoad(load, async () => {
        await put(world, box, spec({ resources: { ...BOX, memoryBytes: 32 * MIB } }));
        const { now, row } = await untilCondition(world, box, "updated", "OUT_OF_MEMORY");
        proper(t, "out of memory", row, "OUT_OF_MEMORY", /r2\.0.*33554432 bytes/, /resources\.memoryBytes/);
        t.match(row.details, { exit: { reason: "out-of-memory" } });
        t.equal(now.state, "degraded");
        t.match(await cli(["deployment", "rollback", "box", "--pool", "quay", "--wait"]), { code: 0 });
      });
      t.same(served.failures, {}, `no failed request of ${served.answered}`);
    },
  );

  await t.test(
    "the Engine goes: said, and what runs answers; the Engine comes: the replica is back",
    { timeout: TIMEOUT },
    async (t) => {
      let run1: RunDetail | undefined;
      const served = await underLoad(load, async () => {
        await server.killHard();
        const { now: gone, row } = await untilCondition(world, box, "engine", "ENGINE_UNREACHABLE");
        proper(t, "engine gone", row, "ENGINE_UNREACHABLE", /Engine does not answer at .*docker\.sock/, /Start/);
        t.match(gone.stateReason, /Engine does not answer/, `the first line says so: ${gone.stateReason}`);
        t.equal(gone.state, "degraded");
        t.equal(gone.replicasReady, 1, "and that it serves");
        const shown = await cli(["deployment", "get", "box", "--pool", "quay"]);
        t.match(shown, { code: 0, stdout: /ENGINE_UNREACHABLE/ });
        run1 = await run(shell, { args: ["-c", "true"] });
        t.equal((await look(run1)).error, null, "a step waits for it");
      });
      t.same(served.failures, {}, `no failed request of ${served.answered}`);
      await server.start();
      const back = await until(world, box, "the replica to be back", stands);
      t.match(
        back.observed!.conditions.find((one) => one.type === "engine"),
        { ok: true },
      );
      t.equal((await ended(run1!)).state, "succeeded", "and goes on");
      t.equal((await linked(world, box, infer("box"), tensor([1, 4]))).status, 200);
    },
  );

  await t.test("a step's image that never came", { timeout: TIMEOUT }, async (t) => {
    const now = await ended(awaited!);
    t.equal(now.state, "failed");
    proper(t, "missing", now.error!, "IMAGE_MISSING", /missing@sha256.* is not at the Engine/, /name and the digest/);
    const waits = await cli(["run", "logs", now.id]);
    t.match(`${waits.stdout}${waits.stderr}`, /Waiting for the image, trying again/, "its log said why it waited");
  });
}
