// The way of a person from a trained model to a served one and back, in a real Chromium on the real programs, engine
// `process`: deploy, try, scale, lose a replica, change, roll back, refuse a model, follow a log, stop the agent, remove.
// Each state is looked at in light, dark and narrow and audited by axe. SALLYPORT_SCREENSHOTS names a folder for the pictures.
import { randomUUID } from "node:crypto";
import { cpSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { PipelineInput } from "@sallyport/protocol";
import t from "tap";
import type { DeploymentDetail, RunDetail } from "../../cloud/http/api.ts";
import { startBrowser } from "../support/browser.ts";
import { repository, tempDir, waitFor } from "../support/launcher.ts";
import { needs } from "../support/skip.ts";
import { CEILINGS, connectAgent, freePort, TestCloud } from "../support/stack.ts";
import { processEngine } from "../support/story-process.ts";

const pictures = process.env["SALLYPORT_SCREENSHOTS"];
const GARBAGE = "models/garbage.onnx";

t.test(
  "from a trained model to a served one, in the page",
  { skip: needs("chromium"), timeout: 270_000 },
  async (t) => {
    const cloud = await TestCloud.start(t);
    const { api } = cloud;
    const engine = processEngine();
    const store = tempDir(t, "store");
    cpSync(join(repository, "packaging/demo/sample"), store, { recursive: true });
    mkdirSync(join(store, "models"));
    writeFileSync(join(store, GARBAGE), "This is no model.\n".repeat(40));
    const listen = `127.0.0.1:${await freePort()}`;
    const agent = await connectAgent(t, cloud, "demo", {
      config: `
stores: [{ id: sample, kind: fs, root: ${store} }]
${engine.config.replace("LISTEN", listen)}
limits: { servingCpus: 4 }
policy:
  ${CEILINGS.replace(" }", ", deployments: 4, replicas: 4, cpus: 4, memoryBytes: 2147483648 }")}
  commands: ["artifact.*", "pipeline.run", "run.*", "deployment.*"]
  engines: [process]
  programs: [node]
  stores: [{ store: sample, read: ["**"], write: ["runs/**"] }]
  release: { metadata: true, previews: { rows: 500 }, logs: true, raw: true, predict: [digits] }
`,
    });
    const pipeline = JSON.parse(
      readFileSync(join(repository, "packaging/demo/sample/pipelines/digits.pipeline.json"), "utf8"),
    ) as PipelineInput;
    const run = await api.json<{ id: string }>("/v1/runs", {
      headers: { "idempotency-key": randomUUID() },
      json: { pool: "demo", pipeline, params: { epochs: 4, hidden: 32 } },
    });
    const browser = await startBrowser();
    t.teardown(() => browser.close());
    const watched = await browser.open(cloud.url, { width: 1280 });
    const { page } = watched;
    // a refusal is an answer here, and the browser's console logs its status
    watched.allow(/status of (?:4\d\d|503)/);
    const inspect = (name: string) => watched.inspect(`real-${name}`, pictures);
    const pill = (word: string) => page.locator(".head .pill", { hasText: word }).waitFor();
    const tab = (name: string) => page.getByRole("tab", { name }).click();
    const dialog = () => page.getByRole("dialog");
    const scale = () => page.getByRole("region", { name: "Scale" });
    const row = (replica: string) => page.locator(".replicas tbody tr", { hasText: replica });
    const ready = (replica: string) => row(replica).getByText("Ready", { exact: true }).waitFor();
    const facts = (text: string) => page.locator(".run-facts").getByText(text).first().waitFor();
    let id = "";
    const detail = () => api.json<DeploymentDetail>(`/v1/deployments/${id}`);
    const overview = () => page.goto(`${cloud.url}/deployments/${id}`);
    t.afterEach(async ({ name, passing }) => {
      if (pictures !== undefined && !passing())
        await watched.screenshot(join(pictures, `broken-${name.slice(0, 30).replaceAll(/\W+/g, "-")}.png`));
    });

    await t.test("from the output of a run: Deploy, with its digest", async (t) => {
      const reset = await cloud.cli(["admin", "reset"]);
      await page.goto(/https?:\/\/\S+\/signin#\S+/.exec(reset.stdout)![0]);
      await page.waitForSelector("h1:has-text('Home')");
      const ended = await waitFor(
        "the run to end",
        async () => {
          const now = await api.json<RunDetail>(`/v1/runs/${run.id}`);
          return ["succeeded", "failed", "cancelled"].includes(now.state) && now;
        },
        { timeoutMs: 90_000 },
      );
      t.equal(ended.state, "succeeded", ended.error?.message ?? "the pipeline ran");
      const model = ended.attempts.flatMap((one) => one.outputs).find((one) => one.name === "model.onnx")!;
      await page.goto(`${cloud.url}/runs/${run.id}?step=train&tab=outputs`);
      await page.getByRole("link", { name: "Deploy", exact: true }).click();
      await page.waitForURL(/deployments\/new\?/);
      await page.getByLabel("Path").waitFor();
      t.equal(await page.getByLabel("Path").inputValue(), model.path);
      t.equal(await page.getByLabel("Digest").inputValue(), model.digest, "the digest that the run reported is there");
      await page.getByLabel("Name", { exact: true }).fill("digits");
      await page.getByText("nothing keeps them from the agent's machine").waitFor();
      await inspect("new-deployment");
      await page.getByRole("button", { name: "Deploy digits" }).click();
      await page.waitForURL(/deployments\/dep_/);
      id = /dep_[0-9a-f]+/.exec(page.url())![0];
      await watched.screenshot(join(pictures ?? tempDir(t), "real-deployment-begins.png"));
      await pill("Available");
      await ready("r1.0");
      const curl = await page.locator("section[aria-label=Endpoint]").textContent();
      t.match(curl, `http://${listen}/digits/v2/models/digits/infer`, "what a client types");
      t.match(curl, /\$SALLYPORT_ENDPOINT_KEY.*sallyport-agent endpoint digits/);
      await inspect("deployment-one");
    });

    await t.test("try it: made ready from the model, answered, and told what is wrong", async (t) => {
      await tab("Try it");
      const body = page.getByLabel("Request body, JSON");
      await waitFor("the sample", async () => (await body.inputValue()).includes('"pixels"'));
      await page.getByRole("button", { name: "Send" }).click();
      await page.locator(".try-out").getByText("model_name").waitFor();
      t.match(await page.locator(".try-out").textContent(), /200.*at the agent, by replica r1\.0/);
      await inspect("try");
      await body.fill('{ "inputs": [{ "name": "pixels", "datatype": "FP32", "shape": [1, 3], "data": [0, 0, 0] }] }');
      await page.keyboard.press("Control+Enter");
      await page.locator(".try-out").getByText("400", { exact: true }).waitFor();
      t.match(await page.locator(".try-out").textContent(), /pixels.*64/, "input and expectation are named");
      await inspect("try-400");
    });

    await t.test("scaled with the stepper; a killed replica leaves and returns", async (t) => {
      await tab("Overview");
      await scale().getByLabel("Replicas").press("ArrowUp");
      await scale().getByRole("button", { name: "Apply" }).click();
      await facts("2 / 2");
      await ready("r1.0");
      await ready("r1.1");
      t.equal((await detail()).revision, 1);
      await inspect("two-replicas");
      await engine.killReplica(agent, id, "r1.0");
      await row("r1.0").getByText("was killed").waitFor();
      await watched.screenshot(join(pictures ?? tempDir(t), "real-killed.png"));
      await waitFor("the second start", async () => (await row("r1.0").locator("td").nth(3).textContent()) === "2");
      await ready("r1.0");
      await pill("Available");
      t.match(await row("r1.0").textContent(), /was killed, SIGKILL/);
      await inspect("returned");
    });

    await t.test("a change: its difference, then a new revision; and the way back", async (t) => {
      await page.getByRole("link", { name: "Change", exact: true }).click();
      await page.getByLabel("Environment").fill("ROUND=two");
      await page.getByText("Makes revision 2").waitFor();
      await inspect("change");
      await page.getByRole("button", { name: "Apply" }).click();
      await page.waitForURL(/deployments\/dep_[0-9a-f]+$/);
      await watched.screenshot(join(pictures ?? tempDir(t), "real-rolling.png"));
      await ready("r2.0");
      await ready("r2.1");
      await waitFor("the old ones to be gone", async () => (await page.locator(".replicas tbody tr").count()) === 2);
      await pill("Available");
      await tab("Revisions");
      await page.locator("summary").first().click();
      await inspect("revisions");
      await page.getByRole("button", { name: "Roll back" }).click();
      await dialog().getByText("Makes revision 3").waitFor();
      await inspect("rollback-dialog");
      await dialog().getByRole("button", { name: "Roll back" }).click();
      await dialog().waitFor({ state: "detached" });
      await page.getByText("Revision 3", { exact: true }).waitFor();
      await tab("Overview");
      await ready("r3.0");
      await ready("r3.1");
      await pill("Available");
      t.same((await detail()).spec.env, {}, "revision 1's content");
    });

    await t.test("no model at all: the reason, its log at the line; the old revision serves on", async (t) => {
      await page.getByRole("link", { name: "Change", exact: true }).click();
      await page.getByLabel("Path").fill(GARBAGE);
      await page.getByRole("button", { name: "Read the digest" }).click();
      await page.getByText("Makes revision 4").waitFor();
      await page.getByRole("button", { name: "Apply" }).click();
      await page.waitForURL(/deployments\/dep_[0-9a-f]+$/);
      await page.getByText("MODEL_REFUSED").first().waitFor();
      const link = page.getByRole("button", { name: /^Log of r4\.\d at line \d+$/ }).first();
      await link.waitFor();
      await inspect("refused-model");
      const answered = await api.call(`/v1/deployments/${id}/request?method=GET&path=/v2/models/digits`, {
        method: "POST",
      });
      t.equal(answered.status, 200, "revision 3 serves on");
      t.ok((await detail()).observed!.replicas.some((one) => one.revision === 3 && one.state === "ready"));
      await link.click();
      await page.locator(".lines").getByText("MODEL_REFUSED").first().waitFor();
      t.match(page.url(), /replica=r4\.\d&start=\d+&line=\d+/);
      await inspect("refused-log");
      await page.goto(`${cloud.url}/deployments`);
      await page.getByRole("link", { name: "digits", exact: true }).waitFor();
      await inspect("list");
      await page.goto(`${cloud.url}/deployments/${id}?tab=revisions`);
      await page.locator(".revision", { hasText: "Revision 3" }).getByRole("button", { name: "Roll back" }).click();
      await dialog().getByText("Makes revision 5").waitFor();
      await dialog().getByRole("button", { name: "Roll back" }).click();
      await dialog().waitFor({ state: "detached" });
      await tab("Overview");
      await ready("r5.0");
      await ready("r5.1");
      await pill("Available");
    });

    await t.test("the log of a replica, followed while it is written", async (t) => {
      await row("r5.1").getByRole("button", { name: "Log of r5.1" }).click();
      await page.locator(".logbar").getByText("Live").waitFor();
      await page
        .locator(".lines")
        .getByText(/ready|listening/)
        .first()
        .waitFor();
      await inspect("log-live");
      await engine.killReplica(agent, id, "r5.1");
      const start = page.locator('.logpick input[aria-label="Start"]');
      await waitFor("the next start", async () => (await start.inputValue()) === "Start 2, newest");
      await page.locator(".lines").getByText("Start 2 of replica r5.1 begins").waitFor();
      t.pass();
      await watched.screenshot(join(pictures ?? tempDir(t), "real-log-killed.png"));
    });

    await t.test(
      "a part of the page that an upgrade took away: loaded anew, once, where the reader goes",
      async (t) => {
        await overview();
        await page.locator(".replicas").waitFor();
        await page.route("**/assets/commands-*.js", (route) => route.fulfill({ status: 404, body: "" }));
        await page.route(`${cloud.url}/`, (route) =>
          route.fulfill({ contentType: "text/html", body: "<!doctype html>" }),
        );
        watched.allow(/LostPart|Failed to fetch dynamically imported module/);
        const loaded = page.waitForEvent("load");
        await page.getByRole("link", { name: "Commands" }).hover();
        await page.getByRole("link", { name: "Commands" }).click();
        await loaded;
        await page.unrouteAll();
        await page.getByText("this page was loaded anew").waitFor();
        t.match(page.url(), /\/commands/);
      },
    );

    await t.test("the agent is stopped: all of it unknown, with its age", async (t) => {
      await overview();
      await ready("r5.1");
      await agent.program.killHard();
      await pill("Unknown");
      await page.getByText("as heard").first().waitFor();
      t.match(await page.locator(".replicas").textContent(), /Unknownwas ready/);
      await inspect("unknown");
      await tab("Logs");
      await watched.screenshot(join(pictures ?? tempDir(t), "real-log-unknown.png"));
      agent.start();
      await tab("Overview");
      await pill("Available");
      await row("r5.0").getByText("adopted").waitFor();
    });

    await t.test("removed, after its name was typed", async (t) => {
      await page.getByRole("button", { name: "More for this deployment" }).click();
      await page.getByRole("menuitem", { name: "Remove" }).click();
      t.ok(await dialog().getByRole("button", { name: "Remove digits" }).isDisabled(), "not before");
      await dialog().getByLabel("Type digits to remove it").fill("digits");
      await inspect("remove-dialog");
      await dialog().getByRole("button", { name: "Remove digits" }).click();
      await page.waitForURL(/deployments$/);
      await page.getByText("No deployments yet").waitFor();
      t.same(await engine.running(agent, id), [], "nothing of it runs");
      await overview();
      await pill("Removed");
      await inspect("removed");
    });

    t.same(watched.faults, [], "no console error, no policy violation, no third party, nothing that axe calls serious");
  },
);
