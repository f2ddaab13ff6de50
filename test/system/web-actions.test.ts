// What a person does in the page, on the real programs in a real Chromium: changes files, agents, runs, tokens and the
// password, meets refusals and failures, and works by keyboard alone. Each state is looked at in light, dark and narrow
// and audited by axe. SALLYPORT_SCREENSHOTS names a folder for a picture of every state.
import { cpSync, existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { startBrowser } from "../support/browser.ts";
import { repository, tempDir, waitFor } from "../support/launcher.ts";
import { needs } from "../support/skip.ts";
import { CEILINGS, connectAgent, TestAgent, TestCloud } from "../support/stack.ts";

const pictures = process.env["SALLYPORT_SCREENSHOTS"];

/** A pipeline of `node -e` steps; each depends on the one before. */
const pipeline = (name: string, scripts: Record<string, string>, more: object = {}) =>
  JSON.stringify({
    name,
    outputs: { store: "sample", prefix: "runs" },
    steps: Object.entries(scripts).map(([step, script], n, all) => ({
      name: step,
      program: "node",
      args: ["-e", script, "${params.times}"],
      ...(n === 0 ? {} : { needs: [all[n - 1]![0]] }),
    })),
    params: { times: { default: 3, description: "how often it counts" } },
    ...more,
  });
const COUNT = "for (let n = 1; n <= Number(process.argv[1]); n++) console.log('count ' + n)";
const WAIT = "console.log('it goes on'); setInterval(() => {}, 1000)";
const FAIL = "console.log('reading the table'); console.error('no column named price in data.csv'); process.exit(3)";

t.test("what a person does in the page", { skip: needs("chromium"), timeout: 420_000 }, async (whole) => {
  const t = whole;
  const cloud = await TestCloud.start(whole);
  const store = tempDir(t, "store");
  cpSync(join(repository, "packaging/demo/sample"), store, { recursive: true });
  writeFileSync(join(store, "private.txt"), "nobody may read this\n");
  writeFileSync(join(store, "weights.bin"), Buffer.alloc(4096));
  const config = (grants: string) => `
stores: [{ id: sample, kind: fs, root: ${store} }]
programs: { node: { path: ${process.execPath} } }
policy:
  ${CEILINGS}
  commands: ["artifact.*", "pipeline.run", "run.*"]
  engines: [process]
  programs: [node]
  stores: [{ store: sample, ${grants} }]
  release: { metadata: true, previews: { rows: 500 }, logs: true, raw: true }
`;
  const READ =
    'read: ["inbox/**", "data/**", "images/**", "code/**", "logs/**", "reports/**", "runs/**", "pipelines/**", "README.md", "weights.bin"]';
  const browser = await startBrowser();
  t.teardown(() => browser.close());
  const watched = await browser.open(cloud.url);
  const { page } = watched;
  // a refusal is an answer here, and the browser's console logs its status
  watched.allow(/status of (?:4\d\d|503)/);
  const inspect = (name: string) => watched.inspect(name, pictures);
  const goto = (path: string) => page.goto(`${cloud.url}${path}`);
  const menu = async (label: RegExp, item: string) => {
    await page.getByRole("button", { name: label }).click();
    await page.getByRole("menuitem", { name: item, exact: true }).click();
  };
  const dialog = () => page.getByRole("dialog");
  const signInLink = async () => {
    const reset = await cloud.cli(["admin", "reset"]);
    return /https?:\/\/\S+\/signin#\S+/.exec(reset.stdout)![0];
  };
  const start = async (text: string) => {
    await goto("/runs/new");
    await page.getByLabel(/JSON/).fill(text);
    await page
      .getByRole("button", { name: /^Start \w/ })
      .and(page.locator(":not([disabled])"))
      .click();
    await page.waitForURL(/runs\/run_/);
  };
  const state = (word: string) => page.locator(".head .pill", { hasText: word }).waitFor();

  // where a step of the story broke off
  t.afterEach(async ({ name, passing }) => {
    if (pictures !== undefined && !passing())
      await watched.screenshot(join(pictures, `broken-${name.slice(0, 30)}.png`));
  });

  await t.test("the style policy allows this response's nonce alone", async (t) => {
    const policies = await Promise.all(
      [1, 2].map(
        async () =>
          (await cloud.api.call("/", { headers: { accept: "text/html" } })).headers["content-security-policy"] ?? "",
      ),
    );
    t.match(policies[0], /style-src 'self' 'nonce-[\w-]{22}'/);
    t.notMatch(policies.join(" "), /unsafe/);
    t.not(policies[0], policies[1], "a new one for each response");
  });

  await t.test("sign-in: wrong password, a link, the same link again", async (t) => {
    await goto("/runs");
    await page.waitForURL(/signin\?back/);
    await inspect("signin");
    await page.getByLabel("Name").fill("admin");
    await page.getByLabel("Password", { exact: true }).fill("not the password");
    await page.keyboard.press("Enter");
    await page.waitForSelector("[role=alert]");
    await inspect("signin-wrong-password");
    const link = await signInLink();
    await page.goto(link);
    await page.waitForSelector("h1:has-text('Home')");
    await inspect("home-empty");
    await page.context().clearCookies();
    await page.goto("about:blank");
    await page.goto(link);
    await page.waitForSelector("[role=alert]");
    await inspect("signin-used-link");
    await page.goto("about:blank");
    await page.goto(await signInLink());
    await page.waitForSelector("h1:has-text('Home')");
    t.pass("signed in");
  });

  await t.test("pages with nothing on them yet", async (t) => {
    for (const [name, path, text] of [
      ["agents-empty", "/agents", "No agents yet"],
      ["enrolments-empty", "/agents?view=enrolments", "No enrolments yet"],
      ["stores-empty", "/artifacts", "No stores yet"],
      ["runs-empty", "/runs", "No runs yet"],
      ["commands-empty", "/commands", "No commands yet"],
      ["tokens-empty", "/settings", "API tokens"],
      ["new-run-empty", "/runs/new", "Start a run"],
      ["not-found", "/no/such/page", "There is no page at this address"],
      ["run-not-found", "/runs/run_01890a5dac96774bbcceb302099a8057", "NOT_FOUND"],
    ] as const) {
      await goto(path);
      await page.getByText(text).first().waitFor();
      await inspect(name);
    }
    t.pass("each says what would be there");
  });

  const agent = await connectAgent(t, cloud, "plant", {
    config: config(`${READ}, write: ["runs/**", "inbox/**"], delete: ["inbox/**"]`),
  });

  await t.test("add an agent: its states", async (t) => {
    await goto("/agents/new");
    await page.getByPlaceholder("prod", { exact: true }).fill("Not A Name");
    await inspect("add-agent-bad-name");
    await page.getByPlaceholder("prod", { exact: true }).fill("spare");
    await page.click("text=Make the command");
    await page.waitForSelector(".copyline pre");
    await inspect("add-agent-waiting");
    const secret = /spe_[\w.-]+/.exec((await page.textContent(".copyline pre")) ?? "")![0];
    const spare = new TestAgent(whole, cloud, {
      config: config('read: ["nothing/**"]').replace('"pipeline.run", ', ""),
    });
    spare.start(secret);
    await page.waitForSelector("[data-joined]");
    await inspect("add-agent-joined");
    const late = new TestAgent(whole, cloud, { config: config(READ) });
    late.start(secret);
    await goto("/agents?view=enrolments");
    await page.waitForSelector("td .tone-bad");
    await inspect("enrolments");
    await late.program.killHard();
    t.pass("a secret that is used twice is shown as a refused join");
  });

  await t.test("a file is uploaded, replaced, changed by somebody else, deleted", async (t) => {
    const at = join(store, "inbox/note.txt");
    const upload = async (text: string) => {
      const [chooser] = await Promise.all([
        page.waitForEvent("filechooser"),
        page.getByRole("button", { name: "Upload a file into this folder" }).click(),
      ]);
      await chooser.setFiles({ name: "note.txt", mimeType: "text/plain", buffer: Buffer.from(text) });
    };
    await goto("/artifacts/plant/sample?path=inbox");
    await page.waitForSelector(".pane .empty, .pane [role=alert]");
    await inspect("artifacts-empty-folder");
    await upload("the first\n");
    await page.getByRole("link", { name: /note\.txt/ }).click();
    await page.waitForSelector("text=the first");
    t.equal(readFileSync(at, "utf8"), "the first\n");
    await inspect("artifacts-uploaded");
    await upload("the second\n");
    await dialog().getByText("Replace note.txt?").waitFor();
    await inspect("artifacts-replace-dialog");
    await page.getByRole("button", { name: "Replace it" }).click();
    await dialog().waitFor({ state: "detached" });
    await page.waitForSelector("text=the second");
    t.equal(readFileSync(at, "utf8"), "the second\n", "replaced, and the preview shows it by itself");
    writeFileSync(at, "somebody else wrote this meanwhile\n");
    await menu(/^More for note/, "Delete");
    await page.getByRole("button", { name: "Delete note.txt" }).click();
    await dialog().getByText("It has changed since you looked at it.").waitFor();
    await inspect("artifacts-delete-conflict");
    t.ok(existsSync(at), "not deleted: it is not what was seen");
    await page.getByRole("button", { name: "Show what is there now" }).click();
    await dialog().waitFor({ state: "detached" });
    await page.waitForSelector("text=somebody else wrote");
    await menu(/^More for note/, "Delete");
    await page.getByRole("button", { name: "Delete note.txt" }).click();
    await dialog().waitFor({ state: "detached" });
    await waitFor("the file to be gone", async () => !existsSync(at));
    // where the policy grants no writing, the agent says so
    await goto("/artifacts/plant/sample?path=data");
    await page.waitForSelector("[role=row] a");
    await upload("not here\n");
    await dialog().getByText("POLICY_DENIED").waitFor();
    await inspect("artifacts-upload-refused");
    t.notOk(existsSync(join(store, "data/note.txt")), "refused by the agent's policy");
  });

  await t.test("every viewer, and what may not be read", async (t) => {
    for (const [name, file, expected] of [
      ["image", "images/digits.png", "img"],
      ["table", "data/digits.csv", "text=p00"],
      ["markdown", "README.md", "h1:has-text('The sample store')"],
      ["json", "reports/summary.json", "text=perDigit"],
      ["log", "logs/import.log", "text=imported 1797 images"],
      ["code", "code/digits/train.ts", "text=import"],
      ["pipeline", "pipelines/digits.pipeline.json", "text=Start a run"],
      ["binary", "weights.bin", "text=No preview"],
      ["denied", "private.txt", "[role=alert]"],
    ] as const) {
      await goto(
        `/artifacts/plant/sample?file=${file}${file.includes("/") ? `&path=${file.slice(0, file.lastIndexOf("/"))}` : ""}`,
      );
      await page.waitForSelector(".pv-foot, .pane [role=alert]");
      await page.waitForSelector(expected);
      if (name === "markdown") await page.getByRole("button", { name: "Details" }).click();
      await inspect(`viewer-${name}`);
    }
    await goto("/artifacts");
    await page.waitForSelector(".store-card");
    await inspect("stores");
    t.pass("shown");
  });

  let succeeded = "";
  await t.test("a run, and again with other parameters", async (t) => {
    await goto("/runs/new");
    await page.getByLabel(/JSON/).fill('{ "name": "x", ');
    await page.waitForSelector(".mantine-Textarea-error");
    await inspect("new-run-bad-json");
    await start(pipeline("count", { count: COUNT, again: COUNT }));
    await state("Succeeded");
    succeeded = page.url();
    await page.waitForSelector("text=count 3");
    await inspect("run-succeeded");
    await page
      .getByRole("link", { name: "Run again" })
      .or(page.getByRole("button", { name: "Run again" }))
      .click();
    await page.getByLabel("times").fill("5");
    await inspect("new-run-again");
    await page.getByRole("button", { name: "Start count" }).click();
    await page.waitForURL((url) => /runs\/run_/.test(url.pathname) && url.href !== succeeded);
    await state("Succeeded");
    await page.waitForSelector("text=count 5");
    t.pass("it counted on");
  });

  await t.test("a failing step names its exit code and shows what it wrote to stderr", async (t) => {
    await start(pipeline("prices", { load: COUNT, clean: FAIL, publish: COUNT }));
    await state("Failed");
    await page.waitForSelector("text=no column named price");
    await inspect("run-failed");
    await page.getByRole("tab", { name: /Details/ }).click();
    await page.locator("dt", { hasText: "Exit code" }).waitFor();
    t.equal(await page.locator("dt:has-text('Exit code') + dd").textContent(), "3");
    await inspect("run-failed-details");
    await page.getByRole("tab", { name: "Spec" }).click();
    await inspect("run-spec");
    await page.click('.tl-row:has-text("publish")');
    await page.getByRole("tab", { name: "Log" }).click();
    await page.waitForSelector("text=This step never began");
    await inspect("run-step-never-began");
    await goto("/");
    await page.waitForSelector("text=Run of prices failed");
  });

  await t.test("a running run is cancelled", async (t) => {
    await start(pipeline("endless", { wait: WAIT, after: COUNT }));
    await page.waitForSelector("text=it goes on");
    await inspect("run-running");
    await page.getByRole("button", { name: "Cancel" }).click();
    await dialog().waitFor();
    await inspect("run-cancel-dialog");
    await page.getByRole("button", { name: "Cancel the run" }).click();
    await state("Cancelled");
    await inspect("run-cancelled");
    t.pass("cancelled");
  });

  await t.test("what the policy refuses says which rule", async (t) => {
    await goto("/runs/new?pool=spare");
    await page.getByLabel(/JSON/).fill(pipeline("refused", { count: COUNT }));
    await page.getByRole("button", { name: "Start refused" }).click();
    await page.waitForURL(/runs\/run_/);
    await state("Failed");
    await inspect("run-refused");
    await menu(/^More for this run/, "Show its command");
    await page.waitForSelector("section[aria-label=Command] .pill");
    t.match(await page.locator("section[aria-label=Command]").textContent(), /refused/i);
    await inspect("command-refused");
  });

  await t.test("a run waits, and says why, while its agent is away; and one that was cut off is unknown", async (t) => {
    await start(pipeline("survivor", { wait: "setTimeout(() => console.log('I went on'), 20_000)" }));
    await state("Running");
    const cutOff = page.url();
    await agent.program.killHard();
    await state("Unknown");
    await inspect("run-unknown");
    await goto("/agents");
    await page.waitForSelector("text=Disconnected");
    await inspect("agents-one-away");
    await goto("/runs/new?pool=plant");
    await page.getByLabel(/JSON/).fill(pipeline("patient", { count: COUNT }));
    await inspect("new-run-no-agent");
    await page.getByRole("button", { name: "Start patient" }).click();
    await page.waitForURL(/runs\/run_/);
    await state("Queued");
    await page.getByText("AGENT_OFFLINE").waitFor();
    const waiting = page.url();
    await inspect("run-queued");
    await goto("/commands");
    await page.getByRole("link", { name: "pipeline.run" }).first().click();
    await page.waitForSelector("section[aria-label=Command] .note");
    await inspect("command-waiting");
    await goto("/");
    await page.getByText("Needs attention").waitFor();
    await inspect("home-attention");
    await goto("/artifacts/plant/sample?path=data&file=data/digits.csv");
    await page.waitForSelector("[role=alert]");
    await inspect("artifacts-offline");
    await goto("/artifacts");
    await page.waitForSelector(".store-card");
    await inspect("stores-offline");
    const [, id] = await Promise.all([
      goto("/agents"),
      cloud.agents().then((all) => all.find((each) => each.pool.name === "plant")!.id),
    ]);
    await goto(`/agents/${id}`);
    await page.waitForSelector(".note");
    await inspect("agent-away");
    agent.start();
    await page.goto(waiting);
    await state("Succeeded");
    await page.goto(cutOff);
    await state("Succeeded");
    await page.waitForSelector("text=I went on");
    await inspect("run-adopted");
    await goto("/runs");
    await page.waitForSelector("text=survivor");
    await inspect("runs");
    await goto("/");
    await page.waitForSelector("text=survivor");
    await inspect("home");
    t.pass("both ended well");
  });

  await t.test("by keyboard alone", async (t) => {
    await goto("/commands");
    await page.waitForSelector("[role=row] a");
    await page.keyboard.press("/");
    await page.keyboard.type("pipeline");
    t.equal(await page.locator("[data-page-filter]").inputValue(), "pipeline", "/ goes to the filter");
    await page.keyboard.press("Escape");
    t.equal(await page.locator("[data-page-filter]").inputValue(), "", "Esc empties it");
    await page.keyboard.press("Escape");
    await page.keyboard.press("j");
    await page.keyboard.press("j");
    await page.keyboard.press("k");
    await page.keyboard.press("ArrowDown");
    await page.keyboard.press("Enter");
    await page.waitForSelector("section[aria-label=Command] dl");
    await inspect("commands");
    await page.keyboard.press("Escape");
    await page.waitForSelector("section[aria-label=Command]", { state: "detached" });
    t.notMatch(page.url(), /id=/, "Esc closes the pane");
    await page.keyboard.press("Control+k");
    await dialog().waitFor();
    await inspect("palette");
    await page.keyboard.type("no such thing");
    await inspect("palette-nothing");
    await page.keyboard.press("Control+a");
    await page.keyboard.type("plant sample");
    await page.keyboard.press("ArrowDown");
    await page.keyboard.press("ArrowUp");
    await page.keyboard.press("Enter");
    await page.waitForURL(/artifacts\/plant\/sample/);
    await page.waitForSelector("[role=row] a");
    await inspect("artifacts");
    await page.keyboard.press("g");
    await page.keyboard.press("r");
    await page.waitForURL(/runs$/);
    await page.keyboard.press("Tab");
    t.equal(await page.evaluate("document.activeElement?.className"), "skip", "the first stop skips to the page");
  });

  await t.test("an agent is renamed, revoked, deleted", async (t) => {
    const { id } = (await cloud.agents()).find((each) => each.pool.name === "plant")!;
    for (const tab of ["overview", "stores", "policy", "alarms"]) {
      await goto(`/agents/${id}?tab=${tab}`);
      await page.waitForSelector(".head .pill:has-text('Connected')");
      await inspect(`agent-${tab}`);
    }
    await menu(/^What can be done/, "Rename");
    await dialog().getByLabel("Name").fill("harbour");
    await inspect("agent-rename-dialog");
    await page.keyboard.press("Enter");
    await page.waitForSelector("h1:has-text('harbour')");
    await menu(/^What can be done/, "Revoke");
    await dialog().waitFor();
    await inspect("agent-revoke-dialog");
    await page.getByRole("button", { name: "Revoke harbour" }).click();
    await page.waitForSelector(".head .pill:has-text('Revoked')");
    await inspect("agent-revoked");
    await menu(/^What can be done/, "Delete");
    await page.getByRole("button", { name: "Delete harbour" }).click();
    await page.waitForURL(/agents$/);
    await waitFor("the record to be gone", async () => !(await cloud.agents()).some((each) => each.id === id));
    // the address changes before the page is drawn
    await waitFor("its name to be gone", async () => (await page.getByText("harbour", { exact: true }).count()) === 0);
    t.pass("gone from the list too");
  });

  await t.test("a token is made and revoked; a password is set, used, and the session left", async (t) => {
    await goto("/settings");
    await page.getByRole("button", { name: "New token" }).click();
    await dialog().getByLabel("Label").fill("laptop");
    await inspect("token-dialog");
    await page.keyboard.press("Enter");
    const token = ((await dialog().locator("pre").textContent()) ?? "").trim();
    await inspect("token-made");
    const asToken = () => cloud.api.call("/v1/me", { headers: { authorization: `Bearer ${token}` } });
    t.equal((await asToken()).status, 200, "the token works");
    await page.getByRole("button", { name: "Done" }).click();
    await inspect("tokens");
    await page.locator("tr", { hasText: "laptop" }).getByRole("button", { name: "Revoke" }).click();
    await page.getByRole("button", { name: "Revoke the token" }).click();
    await dialog().waitFor({ state: "detached" });
    t.equal((await asToken()).status, 401, "and then no more");
    await goto("/settings?tab=look");
    await page.waitForSelector("text=Theme");
    await inspect("settings-look");
    await goto("/settings?tab=account");
    await page.waitForSelector("text=not set");
    await page.getByLabel("New password").fill("short");
    await page.getByLabel("Once more").fill("another");
    await inspect("settings-account");
    const password = "correct horse battery";
    await page.getByLabel("New password").fill(password);
    await page.getByLabel("Once more").fill(password);
    await page.keyboard.press("Enter");
    await page.waitForSelector("text=The password was set.");
    await page.locator(".side-user").click();
    await inspect("account-menu");
    await page.getByRole("menuitem", { name: "Sign out" }).click();
    await page.waitForURL(/signin/);
    t.equal((await page.context().cookies()).length, 0, "no cookie is left");
    await page.getByLabel("Name").fill("admin");
    await page.getByLabel("Password", { exact: true }).fill(password);
    await page.keyboard.press("Enter");
    await page.waitForSelector("h1:has-text('Home')");
  });

  t.same(watched.faults, [], "no console error, no policy violation, no third party, nothing that axe calls serious");
});
