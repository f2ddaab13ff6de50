// Deployments in the page, in a real Chromium on the real API, store and dispatcher; the agent is the test's own, so that
// every state of a deployment can be shown: none, one, many replicas, a crash loop, a policy that refuses, silence. Each
// is looked at in light, dark and narrow and audited by axe. SALLYPORT_SCREENSHOTS names a folder for the pictures.
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import {
  ConnectorError,
  jsonBody,
  systemClock,
  type AgentStatus,
  type DeploymentStatus,
  type ReplicaStatus,
  type Rollup,
} from "@sallyport/protocol";
import t from "tap";
import { signInUrl, type Authenticator } from "../../cloud/auth/index.ts";
import type { Deployment, DeploymentDetail } from "../../cloud/http/api.ts";
import { agentRoutes } from "../../cloud/http/routes/agents.ts";
import { enrollmentRoutes } from "../../cloud/http/routes/enrollments.ts";
import { sessionRoutes } from "../../cloud/http/routes/session.ts";
import { tokenRoutes } from "../../cloud/http/routes/tokens.ts";
import { apiWorld, logLine } from "../support/api-world.ts";
import { startBrowser } from "../support/browser.ts";
import { accept, answer, type FakeAgent } from "../support/fake-agent.ts";
import { waitFor } from "../support/launcher.ts";
import { needs } from "../support/skip.ts";

const pictures = process.env["SALLYPORT_SCREENSHOTS"];
const MINUTE_MS = 60_000;
const DIGEST = `sha256:${"5f".repeat(32)}`;
const MODEL = "models/digits.onnx";
const ENDPOINT = "http://10.20.0.7:8443";

const condition = (type: "available" | "updated" | "endpoint", more: object = {}) => ({
  type,
  ok: true,
  code: "OK",
  message: "",
  fix: null,
  since: Date.now() - 12 * MINUTE_MS,
  ...more,
});
const replica = (number: number, more: Partial<ReplicaStatus> = {}): ReplicaStatus => ({
  name: `r1.${number}`,
  revision: 1,
  number,
  state: "ready",
  code: null,
  message: null,
  since: Date.now() - 11 * MINUTE_MS,
  startedAt: Date.now() - 11 * MINUTE_MS,
  starts: 1,
  adopted: false,
  lastExit: null,
  ...more,
});
/** A minute at the endpoint, as it might have been. */
const rollup = (at: number, n: number): Rollup => {
  const requests = Math.round(2400 + 1300 * Math.sin(n / 7) + (n % 5) * 90);
  return {
    at,
    requests,
    errors: n % 17 === 0 ? 14 : n % 11 === 0 ? 3 : 0,
    retries: n % 17 === 0 ? 9 : 0,
    p50Ms: 2.1 + Math.sin(n / 5) * 0.6,
    p95Ms: 7.4 + Math.sin(n / 6) * 2.2 + (n % 17 === 0 ? 21 : 0),
    p99Ms: 22,
  };
};

t.test("deployments in the page", { skip: needs("chromium"), timeout: 420_000 }, async (whole) => {
  const t = whole;
  let authenticator: Authenticator | undefined;
  const world = await apiWorld(
    whole,
    ({ store, sessions, authenticator: mine }) => {
      authenticator = mine;
      return [
        sessionRoutes({ store, authenticator: mine, clock: systemClock, version: "test", secureCookies: false }),
        tokenRoutes({ store, clock: systemClock }),
        enrollmentRoutes({
          store,
          clock: systemClock,
          trust: { identityFingerprint: "f", caFingerprint: null },
          publicUrl: () => "http://127.0.0.1",
          agentImage: "",
        }),
        agentRoutes({
          store,
          clock: systemClock,
          links: {
            ofReplica: (workspace, id) => sessions.ofReplica(workspace, id),
            revoke: () => Promise.resolve(),
            changeKey: async () => false,
          },
        }),
      ];
    },
    { pageFolder: fileURLToPath(new URL("../../cloud/web/dist", import.meta.url)) },
  );
  const { api, scope, store } = world;

  // ---- the agent ----
  const agent: FakeAgent = await world.replica("vpc-1");
  const held = new Map<string, DeploymentStatus>();
  let predict: "allowed" | "denied" = "allowed";
  let serving = [{ engine: "process", isolated: false }];
  const status = (): AgentStatus => ({
    at: Date.now(),
    version: "0.1.0",
    labels: {},
    paused: null,
    draining: false,
    stores: [{ id: "lake", kind: "s3", label: "s3://lake/ml", grants: ["read", "write"] }],
    programs: ["node"],
    engines: ["process"],
    policyDigest: "ab".repeat(32),
    commands: ["artifact.*", "deployment.*"],
    limits: { runs: 2, steps: 2 },
    ceilings: { deployments: 8, replicas: 4, cpus: 2, memoryBytes: 1024 ** 3 },
    serving,
    deployments: [...held.values()],
    running: [],
    host: {
      hostname: "vpc-1",
      platform: "linux x64",
      cpus: 4,
      cpuLoad: 0.3,
      memoryTotalBytes: 8e9,
      memoryFreeBytes: 3e9,
      diskTotalBytes: null,
      diskFreeBytes: null,
    },
  });
  const say = async () => {
    agent.status = status();
    await store.seen([
      {
        workspace: scope.workspace,
        replica: agent.identity.replica,
        session: agent.session!.id,
        at: Date.now(),
        status: agent.status,
      },
    ]);
  };
  const connect = async () => {
    const session = await agent.connect();
    await store.openSession(session.replica, {
      id: session.id,
      process: "p",
      instance: "i",
      journal: session.journal,
      remoteAddress: "10.20.0.7",
      now: Date.now(),
    });
    await say();
  };
  agent.handlers.set("deployment.apply", ({ intent, input, stream }) => {
    const { deployment, name, generation, revision, spec } = input as {
      deployment: DeploymentStatus["deployment"];
      name: string;
      generation: number;
      revision: number;
      spec: Deployment["spec"];
    };
    if (spec.env["REFUSE"] !== undefined)
      throw new ConnectorError(
        "POLICY_DENIED",
        'The agent\'s policy does not allow to give a replica the secret "db/prod".',
        {
          fix: 'Whoever runs the agent can allow it by adding to its configuration `policy: { secrets: ["db/prod"] }` and reloading the agent.',
          details: { rule: "policy.secrets (default)" },
        },
      );
    accept(stream);
    const replicas = Array.from({ length: spec.replicas }, (_, n) =>
      replica(n, { name: `r${revision}.${n}`, revision, since: Date.now() - 4_000, startedAt: Date.now() - 5_000 }),
    );
    const old = held.get(deployment);
    held.set(deployment, {
      deployment,
      name,
      generation,
      revision,
      state: "available",
      conditions: [condition("available"), condition("updated"), condition("endpoint")],
      replicasWanted: spec.replicas,
      replicasReady: spec.replicas,
      replicas,
      engine: spec.engine,
      isolated: spec.engine !== "process",
      endpoint: `${ENDPOINT}/${name}`,
      rollup: old?.rollup ?? null,
    });
    void agent.report([{ command: intent.command, body: { type: "command.succeeded", result: {} } }]).then(say);
  });
  agent.handlers.set("deployment.remove", ({ intent, input, stream }) => {
    accept(stream);
    held.delete((input as { deployment: string }).deployment);
    void agent.report([{ command: intent.command, body: { type: "command.succeeded", result: {} } }]).then(say);
  });
  const lines = (replicaOf: string) => [
    `serving ${replicaOf}: ONNX Runtime 1.22, 1 thread`,
    "reading the model, 48,128 bytes",
    "model digits: input image FP32 [n, 64], output scores FP32 [n, 10]",
    "listening on /run/sallyport/digits.sock",
    "ready",
    ...Array.from({ length: 60 }, (_, n) => `POST /v2/models/digits/infer 200 ${(1 + (n % 7) / 10).toFixed(1)} ms`),
  ];
  const CRASH = [
    "reading the model, 48,128 bytes",
    "error: the graph asks for opset 99, which this runtime does not know",
    '{"code":"MODEL_REFUSED","message":"opset 99 is not supported"}',
  ];
  agent.handlers.set("deployment.logs", async ({ input, stream }) => {
    const {
      replica: of,
      start = 1,
      after = 0,
      follow,
      deployment,
    } = input as {
      replica: string;
      start?: number;
      after?: number;
      follow: boolean;
      deployment: string;
    };
    const crashing = held.get(deployment)?.state === "failed";
    const text = crashing ? CRASH : lines(of);
    stream.respond({
      type: "result",
      body: jsonBody({ deployment, replica: of, start, lastSeq: text.length, ended: crashing }),
    });
    for (const [n, line] of text.entries()) if (n >= after) await stream.write(logLine(n + 1, line));
    if (crashing || !follow) await stream.end();
  });
  const METADATA = {
    name: "digits",
    versions: ["1"],
    platform: "onnxruntime_onnx",
    inputs: [{ name: "image", datatype: "FP32", shape: [-1, 64] }],
    outputs: [{ name: "scores", datatype: "FP32", shape: [-1, 10] }],
  };
  const asked: { method: string; path: string; body?: string }[] = [];
  agent.handlers.set("deployment.request", async ({ input, stream }) => {
    const question = input as { method: string; path: string; body?: string };
    asked.push(question);
    if (predict === "denied")
      throw new ConnectorError("POLICY_DENIED", "The agent's policy does not let predictions of digits out.", {
        fix: 'Whoever runs the agent can allow it by adding to its configuration `policy: { release: { predict: ["digits"] } }` and reloading the agent.',
        details: { rule: "policy.release.predict (default)" },
      });
    const reply = async (statusCode: number, body: unknown) => {
      stream.respond({
        type: "result",
        body: jsonBody({ status: statusCode, mediaType: "application/json", replica: "r1.0", tookMs: 2.4 }),
      });
      await stream.write(Buffer.from(JSON.stringify(body)));
      await stream.end();
    };
    if (question.method === "GET") return reply(200, METADATA);
    const inputs = (JSON.parse(question.body!) as { inputs: { shape: number[] }[] }).inputs;
    if (inputs[0]?.shape[1] !== 64)
      return reply(400, { error: "input image: shape [n, 64] is expected, [1, 3] was given" });
    return reply(200, {
      model_name: "digits",
      model_version: "1",
      outputs: [{ name: "scores", datatype: "FP32", shape: [1, 10], data: [0.1, 0.7, 0, 0, 0.1, 0, 0, 0.1, 0, 0] }],
    });
  });
  const file = {
    name: "digits.onnx",
    path: MODEL,
    kind: "file",
    sizeBytes: 48_128,
    modifiedAt: Date.now() - 3_600_000,
    version: "v1",
    mediaType: "application/octet-stream",
  };
  agent.handlers.set("artifact.list", ({ stream }) => answer(stream, { entries: [file], nextCursor: null }));
  agent.handlers.set("artifact.stat", ({ input, stream }) =>
    answer(stream, { ...file, digest: (input as { digest?: boolean }).digest ? DIGEST : null }),
  );
  agent.handlers.set("artifact.preview", ({ stream }) =>
    answer(stream, {
      ...file,
      preview: { type: "none", reason: "An ONNX model is not shown." },
      readBytes: 512,
    }),
  );

  // ---- the browser ----
  const browser = await startBrowser();
  t.teardown(() => browser.close());
  const watched = await browser.open(world.url);
  const { page } = watched;
  // a refusal is an answer here, and the browser's console logs its status
  watched.allow(/status of (?:4\d\d|503)/);
  const inspect = (name: string) => watched.inspect(name, pictures);
  const goto = (path: string) => page.goto(`${world.url}${path}`);
  const pill = (word: string) => page.locator(".head .pill", { hasText: word }).waitFor();
  const dialog = () => page.getByRole("dialog");
  const tab = (name: string) => page.getByRole("tab", { name }).click();
  const detail = (id: string) => api.json<DeploymentDetail>(`/v1/deployments/${id}`);
  const change = async (id: string, more: Partial<DeploymentStatus>) => {
    held.set(id, { ...held.get(id)!, ...more });
    await say();
  };
  const create = async (name: string, more: object = {}) =>
    api.json<DeploymentDetail>("/v1/deployments", {
      headers: { "idempotency-key": `make-${name}` },
      json: {
        pool: world.pool.name,
        name,
        spec: { model: { store: "lake", path: MODEL, digest: DIGEST }, ...more },
      },
    });
  t.afterEach(async ({ name, passing }) => {
    if (pictures !== undefined && !passing())
      await watched.screenshot(join(pictures, `broken-${name.slice(0, 30)}.png`));
  });
  let id = "";

  await t.test("nothing yet: what it is and how to begin", async (t) => {
    const user = await store.ensureAdmin("admin", "main");
    await page.goto(signInUrl(world.url, await authenticator!.offerSignIn(user)));
    await page.waitForSelector("h1:has-text('Home')");
    await goto("/deployments");
    await page.getByText("No deployments yet").waitFor();
    await inspect("deployments-empty");
    await goto("/deployments/new");
    await page
      .getByText(/can serve models|Choose where/)
      .first()
      .waitFor();
    await inspect("new-deployment-nothing");
    t.pass();
  });

  await t.test("from an artifact to a deployment: errors beside their fields, then it is there", async (t) => {
    await connect();
    await goto(`/artifacts/vpc/lake?path=models&file=${MODEL}`);
    await page.getByRole("link", { name: "Deploy", exact: true }).click();
    await page.waitForURL(/deployments\/new\?/);
    await page.getByLabel("Path").waitFor();
    t.equal(await page.getByLabel("Path").inputValue(), MODEL);
    t.equal(await page.getByLabel("Name", { exact: true }).inputValue(), "digits", "a name is proposed");
    await page.getByText("Replicas run as plain processes of the agent's user").waitFor();
    await page.getByRole("button", { name: "Deploy digits" }).click();
    await page.getByText("The model is deployed by its digest").waitFor();
    await inspect("new-deployment-errors");
    await page.getByRole("button", { name: "Read the digest" }).click();
    await waitFor("the digest", async () => (await page.getByLabel("Digest").inputValue()) === DIGEST);
    await page.getByLabel("Replicas", { exact: true }).fill("9");
    await page.getByText("The agent's policy allows at most 4.").waitFor();
    await inspect("new-deployment-ceiling");
    await page.getByLabel("Replicas", { exact: true }).fill("1");
    await page.getByLabel("Environment").fill("LOG_LEVEL=info");
    await inspect("new-deployment");
    await page.getByRole("button", { name: "Deploy digits" }).click();
    await page.waitForURL(/deployments\/dep_/);
    id = /dep_[0-9a-f]+/.exec(page.url())![0];
    await pill("Available");
    t.match((await detail(id)).spec, { model: { digest: DIGEST }, env: { LOG_LEVEL: "info" }, replicas: 1 });
    await inspect("deployment-one");
  });

  await t.test("an hour of traffic, as charts and as a table; the endpoint and where its key lies", async (t) => {
    const end = Math.floor(Date.now() / MINUTE_MS) * MINUTE_MS;
    for (let n = 0; n < 58; n++) {
      if (n > 20 && n < 25) continue; // not reported: a hole
      held.set(id, { ...held.get(id)!, rollup: rollup(end - (57 - n) * MINUTE_MS, n) });
      await say();
    }
    await goto(`/deployments/${id}`);
    await page.locator(".chart svg").first().waitFor();
    await inspect("deployment-traffic");
    await page.locator(".chart svg").first().hover();
    await watched.screenshot(join(pictures ?? "/tmp", "deployment-traffic-hover.png"));
    await page.getByRole("button", { name: "Show as a table" }).click();
    await page.getByRole("columnheader", { name: "Requests per second" }).waitFor();
    await inspect("deployment-traffic-table");
    t.match(
      await page.locator("section[aria-label=Endpoint]").textContent(),
      /\$SALLYPORT_ENDPOINT_KEY.*sallyport-agent endpoint digits/,
    );
    t.match(await page.locator("section[aria-label=Endpoint]").textContent(), /control plane never has it/);
  });

  await t.test("scaled, within the ceiling and not past somebody else's change", async (t) => {
    await goto(`/deployments/${id}`);
    const card = page.getByRole("region", { name: "Scale" });
    await card.getByLabel("Replicas").fill("7");
    await card.getByText("at most 4 replicas").waitFor();
    await inspect("deployment-scale-ceiling");
    await card.getByLabel("Replicas").fill("2");
    await card.getByRole("button", { name: "Apply" }).click();
    await page.locator(".run-facts").getByText("2 / 2").waitFor();
    t.equal((await detail(id)).generation, 2);
    await card.getByLabel("Replicas").fill("3");
    // the other's change comes without an event reaching the page first: the page learns of it by the refusal
    await page.route("**/v1/changes*", (route) => route.abort());
    await api.json(`/v1/deployments/${id}/scale`, {
      method: "POST",
      json: { replicas: 4 },
      headers: { "if-match": '"2"' },
    });
    const apply = card.getByRole("button", { name: "Apply" });
    if (await apply.isEnabled()) await apply.click().catch(() => undefined);
    await card.getByText("It has changed meanwhile").waitFor();
    t.match(await card.textContent(), /generation 3/);
    t.match(await card.textContent(), /replicas 2 → 4/);
    await inspect("deployment-scale-stale");
    await page.unroute("**/v1/changes*");
    await card.getByRole("button", { name: "Go on with 3 replicas" }).click();
    await card.getByRole("button", { name: "Apply" }).click();
    await page.locator(".run-facts").getByText("3 / 3").waitFor();
    t.equal((await detail(id)).generation, 4);
  });

  await t.test("a change of the spec shows its difference first", async (t) => {
    await goto(`/deployments/${id}/change`);
    await page.getByText("Nothing to do: it is as asked for already.").waitFor();
    await page.getByLabel("Environment").fill("LOG_LEVEL=debug\nROUND=two");
    await page.getByText("Makes revision 2").waitFor();
    await inspect("change-deployment");
    await page.getByLabel("Cores a replica").fill("3");
    await page
      .getByText(/at most 2 cores a replica|allows 2/)
      .first()
      .waitFor();
    await inspect("change-deployment-refused");
    await page.getByLabel("Cores a replica").fill("1");
    await page.getByText("Makes revision 2").waitFor();
    await page.getByRole("button", { name: "Apply" }).click();
    await page.waitForURL(/deployments\/dep_[0-9a-f]+$/);
    await page.locator("td", { hasText: "r2.0" }).waitFor();
    t.equal((await detail(id)).revision, 2);
  });

  await t.test("back to an earlier revision", async (t) => {
    await goto(`/deployments/${id}?tab=revisions`);
    await page.locator("summary").first().click();
    await inspect("deployment-revisions");
    await page.getByRole("button", { name: "Roll back" }).click();
    await dialog().getByText("Makes revision 3").waitFor();
    await inspect("deployment-rollback-dialog");
    await dialog().getByRole("button", { name: "Roll back" }).click();
    await dialog().waitFor({ state: "detached" });
    await page.getByText("Revision 3", { exact: true }).waitFor();
    t.match(await detail(id), { revision: 3, spec: { env: { LOG_LEVEL: "info" } } });
  });

  await t.test("try it: made ready from the model, sent through the link, shown as it came", async (t) => {
    await goto(`/deployments/${id}?tab=try`);
    const body = page.getByLabel("Request body, JSON");
    await waitFor("the sample", async () => (await body.inputValue()).includes('"image"'));
    await page.getByRole("button", { name: "Send" }).click();
    await page.locator(".jt").getByText("scores").waitFor();
    t.match(await page.locator(".try-out").textContent(), /200.*2\.4 ms.*r1\.0/);
    t.equal(asked.at(-1)?.path, "/v2/models/digits/infer");
    await inspect("deployment-try");
    await body.fill('{"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 3], "data": [0,0,0]}]}');
    await page.keyboard.press("Control+Enter");
    await page.getByText(/shape \[n, 64\] is expected/).waitFor();
    await inspect("deployment-try-400");
    await body.fill("{ not json");
    await page.getByText("This is not JSON").waitFor();
    predict = "denied";
    await page.reload();
    await page.getByText("policy.release.predict (default)").first().waitFor();
    await inspect("deployment-try-refused");
    predict = "allowed";
  });

  await t.test("a crash loop: the reason, its log at the line, the old revision goes on", async (t) => {
    const exit = {
      at: Date.now() - 40_000,
      reason: "exit" as const,
      code: 65,
      signal: null,
      start: 6,
      logSeq: 3,
    };
    const message = "Replica r3.0 ended again and again: exit code 65 after 0.4 s, 6 times.";
    await change(id, {
      state: "failed",
      replicasReady: 0,
      conditions: [
        condition("available", {
          ok: false,
          code: "CRASH_LOOP",
          message,
          fix: "Read its log; deploy a model that this runtime can load, or roll back.",
          since: Date.now() - 95_000,
          details: { replica: "r3.0", start: 6, logSeq: 3 },
        }),
        condition("updated", { ok: false, code: "CRASH_LOOP", message: "Revision 3 does not come up." }),
        condition("endpoint"),
      ],
      replicas: [0, 1, 2].map((n) =>
        replica(n, {
          name: `r3.${n}`,
          revision: 3,
          state: n === 2 ? "waiting" : "crashed",
          code: n === 2 ? "AT_CAPACITY" : "CRASH_LOOP",
          message:
            n === 2
              ? "There is no room now: 2 of 2 cores are taken."
              : "It ended with exit code 65; the next start is in 38 s.",
          starts: n === 2 ? 0 : 6,
          startedAt: null,
          since: Date.now() - 40_000,
          lastExit: n === 2 ? null : exit,
        }),
      ),
    });
    await goto(`/deployments/${id}`);
    await pill("Failed");
    await page.getByText(message).first().waitFor();
    await inspect("deployment-crash-loop");
    await page.getByRole("button", { name: "Log of r3.0 at line 3" }).click();
    await page.getByText("opset 99 is not supported").waitFor();
    t.match(page.url(), /replica=r3\.0&start=6&line=3/);
    await inspect("deployment-crash-log");
    await goto("/");
    await page.getByText("Deployment digits: failed").waitFor();
    await inspect("home-deployment-failed");
  });

  await t.test("many replicas, old and new, adopted; and a log that is followed", async (t) => {
    await change(id, {
      state: "degraded",
      replicasReady: 11,
      replicasWanted: 3,
      conditions: [
        condition("available"),
        condition("updated", {
          ok: false,
          code: "REPLICA_UNREADY",
          message: "1 of 3 replicas is of revision 3; the others are on their way.",
        }),
        condition("endpoint"),
      ],
      replicas: Array.from({ length: 12 }, (_, n) =>
        replica(n, {
          name: n < 9 ? `r2.${n}` : `r3.${n - 9}`,
          revision: n < 9 ? 2 : 3,
          adopted: n % 4 === 0,
          state: n === 3 ? "draining" : n === 11 ? "starting" : n === 10 ? "unready" : "ready",
          ...(n === 10 ? { code: "REPLICA_UNREADY", message: "It runs but does not answer /v2/health/ready." } : {}),
          starts: n === 5 ? 3 : 1,
          lastExit:
            n === 5
              ? {
                  at: Date.now() - 3_000_000,
                  reason: "out-of-memory",
                  code: null,
                  signal: "SIGKILL",
                  start: 2,
                  logSeq: 40,
                }
              : null,
        }),
      ),
    });
    await goto(`/deployments/${id}`);
    await page.locator("td", { hasText: "r2.8" }).waitFor();
    await inspect("deployment-many");
    await tab("Logs");
    await page.getByText("listening on").waitFor();
    await page.getByText("Live").waitFor();
    await inspect("deployment-logs");
    t.pass();
  });

  await t.test("refused by the policy, waiting, none wanted: the list says which is how", async (t) => {
    const refused = await create("fraud-scores-with-a-rather-long-name-for-the-north-region-v2", {
      env: { REFUSE: "1" },
    });
    await waitFor("the refusal", async () => (await detail(refused.id)).state === "refused");
    await goto(`/deployments/${refused.id}`);
    await pill("Refused");
    await inspect("deployment-refused");
    t.match(await page.locator(".note").first().textContent(), /policy\.secrets \(default\)/, "the rule is named");
    await page.getByRole("button", { name: "More for this deployment" }).click();
    await page.getByRole("menuitem", { name: "Show its newest command" }).click();
    await page.locator("section[aria-label=Command]").getByRole("link", { name: refused.id }).waitFor();
    const none = await create("parked", { replicas: 0 });
    await waitFor("the parked one", async () => (await detail(none.id)).state === "available");
    await goto(`/deployments/${none.id}`);
    await page.getByText("None: 0 are wanted").waitFor();
    await inspect("deployment-none-wanted");
    serving = [...serving, { engine: "docker", isolated: true }];
    const docker = await create("churn", { engine: "docker", replicas: 2 });
    await waitFor("the other", async () => (await detail(docker.id)).state === "available");
    await change(docker.id, { rollup: rollup(Math.floor(Date.now() / MINUTE_MS) * MINUTE_MS, 3) });
    await change(id, { rollup: rollup(Math.floor(Date.now() / MINUTE_MS) * MINUTE_MS, 9) });
    await goto("/deployments");
    await page.getByRole("link", { name: "churn" }).waitFor();
    await inspect("deployments");
    await page.keyboard.press("Control+k");
    await dialog().waitFor();
    await page.keyboard.type("deploy");
    await inspect("palette-deployments");
    await page.keyboard.press("Escape");
    await page.keyboard.press("/");
    await page.keyboard.type("nothing is called that");
    await page.getByText("No deployment matches").waitFor();
    await inspect("deployments-no-match");
    await goto("/deployments/new?pool=vpc&store=lake&path=models/churn.onnx");
    await page.getByText("has a deployment churn already").waitFor();
    await inspect("new-deployment-namesake");
    const { items } = await api.json<{ items: { id: string }[] }>("/v1/agents");
    await goto(`/agents/${items[0]!.id}?tab=deployments`);
    await page.getByText("Ceilings of its policy").waitFor();
    await inspect("agent-deployments");
    t.pass();
  });

  await t.test("a silent agent: what it said last, in grey, and the word unknown", async (t) => {
    await agent.cut();
    await goto(`/deployments/${id}`);
    await pill("Unknown");
    await page.getByText("as heard").first().waitFor();
    t.match(await page.locator(".replicas").textContent(), /Unknownwas ready/);
    await inspect("deployment-unknown");
    await tab("Try it");
    await page.getByText("The agent is not there to ask").waitFor();
    await inspect("deployment-try-offline");
    await goto("/deployments");
    await page.locator(".t-row", { hasText: "Unknown" }).first().waitFor();
    await inspect("deployments-unknown");
    const waiting = await create("later");
    await goto(`/deployments/${waiting.id}`);
    await pill("Queued");
    await inspect("deployment-queued");
    await connect();
    await pill("Available");
    t.pass("taken when the agent came, without a reload");
  });

  await t.test("removed, after its name was typed", async (t) => {
    await goto(`/deployments/${id}`);
    await page.getByRole("button", { name: "More for this deployment" }).click();
    await page.getByRole("menuitem", { name: "Remove" }).click();
    const button = dialog().getByRole("button", { name: "Remove digits" });
    t.ok(await button.isDisabled(), "not before");
    await inspect("deployment-remove-dialog");
    await dialog().getByLabel("Type digits to remove it").fill("digits");
    await button.click();
    await page.waitForURL(/deployments$/);
    await waitFor(
      "it to leave the list",
      async () => (await page.getByRole("link", { name: "digits", exact: true }).count()) === 0,
    );
    await goto(`/deployments/${id}`);
    await pill("Removed");
    t.equal(await page.getByText("Ready", { exact: true }).count(), 0, "nothing is said to run");
    await inspect("deployment-removed");
  });

  t.same(agent.faults, []);
  t.same(watched.faults, [], "no console error, no policy violation, no third party, nothing that axe calls serious");
});
