// Commands and runs in the page, in a real Chromium on the real API: why one waits and who holds the slots, what is
// unknown, declaring it lost, a run again with other parameters. SALLYPORT_SCREENSHOTS names a folder for the pictures.
import { fileURLToPath } from "node:url";
import { systemClock, type ReportBody } from "@sallyport/protocol";
import t from "tap";
import { signInUrl, type Authenticator } from "../../cloud/auth/index.ts";
import type { RunDetail } from "../../cloud/http/api.ts";
import { agentRoutes } from "../../cloud/http/routes/agents.ts";
import { enrollmentRoutes } from "../../cloud/http/routes/enrollments.ts";
import { sessionRoutes } from "../../cloud/http/routes/session.ts";
import { tokenRoutes } from "../../cloud/http/routes/tokens.ts";
import { apiWorld } from "../support/api-world.ts";
import { startBrowser } from "../support/browser.ts";
import { accept, answer } from "../support/fake-agent.ts";
import { waitFor } from "../support/launcher.ts";
import { needs } from "../support/skip.ts";

const pictures = process.env["SALLYPORT_SCREENSHOTS"];

t.test("commands in the page", { skip: needs("chromium"), timeout: 240_000 }, async (t) => {
  let authenticator: Authenticator | undefined;
  const world = await apiWorld(
    t,
    ({ store, dispatch, sessions, authenticator: mine }) => {
      authenticator = mine;
      const clock = systemClock;
      return [
        sessionRoutes({ store, authenticator: mine, clock, version: "test", secureCookies: false }),
        tokenRoutes({ store, clock }),
        enrollmentRoutes({
          store,
          clock,
          trust: { identityFingerprint: "f", caFingerprint: null },
          publicUrl: () => "http://127.0.0.1",
          agentImage: "",
        }),
        agentRoutes({
          store,
          clock,
          links: {
            ofReplica: (workspace, id) => sessions.ofReplica(workspace, id),
            revoke: () => {},
            changeKey: async () => false,
          },
          poke: dispatch.poke,
        }),
      ];
    },
    { pageFolder: fileURLToPath(new URL("../../cloud/web/dist", import.meta.url)) },
  );
  const { api } = world;
  const agent = await world.replica("vpc-1");
  const inputs: { params: unknown }[] = [];
  agent.handlers.set("pipeline.run", ({ input, stream }) => {
    inputs.push(input as { params: unknown });
    accept(stream);
  });
  agent.handlers.set("run.cancel", ({ stream }) => accept(stream));
  agent.handlers.set("run.logs", ({ input, stream }) => {
    const { run, step } = input as { run: string; step: string };
    answer(stream, { run, step, attempt: 1, lastSeq: 0, ended: true });
  });
  await agent.connect();
  const start = (more: object = {}) =>
    api.json<RunDetail>("/v1/runs", {
      json: {
        pool: "vpc",
        pipeline: {
          name: "digits",
          outputs: { store: "lake" },
          params: { epochs: { default: 3 }, note: { default: "plain" } },
          steps: [{ name: "train", program: "node", retries: 2 }],
        },
        ...more,
      },
    });
  await api.json("/v1/pools/vpc", { method: "PATCH", json: { maxRuns: 1 } });
  const first = await start({ params: { epochs: 7 } });
  await waitFor(
    "the run is taken",
    async () => (await api.json<RunDetail>(`/v1/runs/${first.id}`)).state === "running",
  );
  const waiting = await start({ priority: 5 });

  const browser = await startBrowser();
  t.teardown(() => browser.close());
  const watched = await browser.open(world.url);
  const { page } = watched;
  const user = (await world.store.userByName("admin"))!;
  await page.goto(signInUrl(world.url, await authenticator!.offerSignIn(user)));
  await page.getByRole("heading", { name: "Home", level: 1 }).waitFor();

  // why it waits, and for whom
  await page.goto(`${world.url}/commands?id=${waiting.command}`);
  const panel = page.getByRole("region", { name: "Command", exact: true });
  await panel.getByText("Pool vpc takes 1 run at a time, and that one is taken. It is number 1 of 1").waitFor();
  await panel.getByText("CONCURRENCY_LIMIT").waitFor();
  await panel.getByRole("link", { name: /digits, accepted on vpc-1 for/ }).waitFor();
  await panel.getByText(/asked for by admin/).waitFor();
  await watched.inspect("command-waiting", pictures);

  // a step that failed and is tried again
  const step = (more: object) =>
    ({
      type: "step",
      run: first.id as never,
      step: "train",
      attempt: 1,
      state: "running",
      error: null,
      exitCode: null,
      outputs: [],
      logSeq: 0,
      adopted: false,
      ...more,
    }) as ReportBody;
  await agent.report([
    { command: first.command, body: { type: "command.running" } },
    { command: first.command, body: step({}) },
    {
      command: first.command,
      body: step({
        state: "failed",
        exitCode: 3,
        error: { code: "STEP_FAILED", message: "Step train ended with exit code 3." },
        retryAt: Date.now() + 90_000,
      }),
    },
  ]);
  await page.goto(`${world.url}/runs/${first.id}`);
  await page.getByText(/^tried again in \d+ s$/).waitFor();
  await watched.inspect("run-retry", pictures);

  // silence, and an operator's word
  await agent.cut();
  await page.getByText("vpc-1 is silent, so what became of this run is not known.").waitFor();
  await page.getByRole("link", { name: "the command of this run" }).click();
  await panel.getByText(/What became of it is not known: vpc-1, which has it/).waitFor();
  await panel.getByText(/The journal of vpc-1 settles it/).waitFor();
  await watched.inspect("command-unknown", pictures);
  await panel.getByRole("button", { name: "Declare it lost…" }).click();
  const dialog = page.getByRole("dialog");
  await dialog.getByText(/Nothing is stopped by that\. If vpc-1 still runs it, it goes on/).waitFor();
  const verb = dialog.getByRole("button", { name: "Declare it lost" });
  t.ok(await verb.isDisabled(), "not without a reason");
  await dialog.getByRole("textbox").fill("the host burned down");
  await watched.inspect("command-lost", pictures);
  await verb.click();
  await panel
    .getByText(/admin declared it lost: the host burned down/)
    .first()
    .waitFor();
  t.equal((await world.store.command(world.scope, first.command as never))?.state, "lost");

  // again, with another parameter
  await agent.connect();
  await page.goto(`${world.url}/runs/${first.id}`);
  await page.getByRole("link", { name: "Run again" }).click();
  await page.getByLabel("epochs").fill("11");
  await page.getByLabel("Priority").fill("9");
  await page.getByLabel("Give up after").fill("2");
  await watched.inspect("run-again", pictures);
  await page.getByRole("button", { name: "Start digits" }).click();
  await page.getByText("Repeats").waitFor();
  const again = (await world.store.runs(world.scope, { limit: 1 })).items[0]!;
  t.match(again.run, { rerunOf: first.id, params: { epochs: 11, note: "plain" } });
  t.match(again.command, { priority: 9 });
  t.ok(Math.abs(again.command.expires - again.command.createdAt - 2 * 3600_000) < 1000);
  t.same(watched.faults, []);
  t.same(agent.faults, []);
});
