// The story in the page, in a real Chromium on the real programs: sign in, add the agent, look at artifacts, run the
// pipeline and follow its log, stop the agent, start it again. No console error, no violation of the content security
// policy, no request to anybody else. SALLYPORT_SCREENSHOTS names a folder for a picture of every page, light and dark.
import { cpSync, readFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { startBrowser, type WatchedPage } from "../support/browser.ts";
import { repository, tempDir } from "../support/launcher.ts";
import { needs } from "../support/skip.ts";
import { CEILINGS, TestAgent, TestCloud } from "../support/stack.ts";

const pictures = process.env["SALLYPORT_SCREENSHOTS"];

t.test("the story in the page", { skip: needs("chromium"), timeout: 240_000 }, async (t) => {
  const cloud = await TestCloud.start(t);
  const store = tempDir(t, "store");
  cpSync(join(repository, "packaging/demo/sample"), store, { recursive: true });
  const agent = new TestAgent(t, cloud, {
    config: `
stores: [{ id: sample, kind: fs, root: ${store} }]
programs: { node: { path: ${process.execPath} } }
policy:
  ${CEILINGS}
  commands: ["artifact.*", "pipeline.run", "run.*"]
  engines: [process]
  programs: [node]
  stores: [{ store: sample, read: ["**"], write: ["runs/**"] }]
  release: { metadata: true, previews: { rows: 500 }, logs: true, raw: true }
`,
  });
  const browser = await startBrowser();
  t.teardown(() => browser.close());
  const watched = await browser.open(cloud.url);
  const { page } = watched;
  const shot = (name: string, of: WatchedPage = watched) =>
    pictures === undefined ? Promise.resolve() : of.screenshot(join(pictures, `${name}.png`));

  await t.test("sign in with the one-time link", async (t) => {
    // the link of the first start was spent by the test's own client: ask for another, as an admin would
    const reset = await cloud.cli(["admin", "reset"]);
    const link = /https?:\/\/\S+\/signin#\S+/.exec(reset.stdout)?.[0];
    t.ok(link !== undefined, reset.stdout + reset.stderr);
    await page.goto(link!);
    await page.waitForSelector("h1:has-text('Home')");
    t.notMatch(page.url(), /#/, "the secret does not stay in the address");
    await shot("home-empty-light");
  });

  await t.test("add an agent: the panel turns green by itself", async (t) => {
    await page.click("text=Add agent");
    await page.fill("input[placeholder=prod]", "demo");
    await page.click("text=Make the command");
    const line = (await page.textContent(".copyline pre")) ?? "";
    const secret = /spe_[\w.-]+/.exec(line)?.[0];
    t.ok(secret !== undefined, "the line to copy holds the secret");
    await shot("add-agent-light");
    agent.start(secret);
    await page.waitForSelector("[data-joined]");
    await shot("add-agent-joined-light");
  });

  await t.test("look at artifacts", async (t) => {
    await page.goto(`${cloud.url}/artifacts`);
    await page.click(".store-card");
    await page.waitForSelector("[role=row] a");
    for (const [file, expected] of [
      ["images/digits.png", "img"],
      ["data/digits.csv", "text=p00"],
      ["README.md", "h1:has-text('The sample store')"],
      ["reports/summary.json", "text=perDigit"],
      ["logs/import.log", "text=imported 1797 images"],
    ] as const) {
      await page.goto(`${cloud.url}/artifacts/demo/sample?file=${file}`);
      await page.waitForSelector(`.pv-foot`);
      await page.waitForSelector(expected);
      await shot(`artifact-${file.slice(file.lastIndexOf("/") + 1)}-light`);
      t.pass(file);
    }
    const [download] = await Promise.all([
      page.waitForEvent("download"),
      page.click('[aria-label^="Download"], a:has-text("Download")'),
    ]);
    t.same(
      readFileSync(await download.path()),
      readFileSync(join(store, "logs/import.log")),
      "the download is the file",
    );
  });

  let runUrl = "";
  await t.test("run the pipeline and follow its log", async (t) => {
    await page.goto(`${cloud.url}/runs/new`);
    await page.click(".source-item");
    await page.click("button:has-text('Start digits'):not([disabled])");
    await page.waitForURL(/runs\/run_/);
    runUrl = page.url();
    await page.click('.tl-row:has-text("train")');
    await page.waitForSelector("text=/epoch +\\d+\\/60/");
    await shot("run-live-light");
    await page.waitForSelector(".head .pill:has-text('Succeeded')", { timeout: 120_000 });
    await page.waitForSelector("text=/wrote a model/");
    await shot("run-light");
    await page.click('.tl-row:has-text("evaluate")');
    await page.click("[role=tab]:has-text('Outputs')");
    await page.waitForSelector("text=plot.png");
    await page.waitForSelector("img");
    await shot("run-outputs-light");
    t.pass("log, metrics and plot are shown");
  });

  await t.test("every page in the dark, and narrow", async (t) => {
    const storage = await page.context().storageState();
    for (const [suffix, options] of [
      ["dark", { dark: true }],
      ["narrow", { width: 900 }],
    ] as const) {
      const other = await browser.open(cloud.url, options);
      await other.page.context().addCookies(storage.cookies);
      for (const [name, path, expected] of [
        ["home", "/", "h1:has-text('Home')"],
        ["agents", "/agents", "text=Connected"],
        ["add-agent", "/agents/new", "text=Make the command"],
        ["artifact-table", "/artifacts/demo/sample?path=data&file=data/digits.csv", "text=p00"],
        ["artifact-image", "/artifacts/demo/sample?path=images&file=images/digits.png", ".pv-foot"],
        ["run", new URL(runUrl).pathname, "text=/wrote metrics/"],
        ["runs", "/runs", "text=digits"],
        ["commands", "/commands", "text=pipeline.run"],
        ["settings", "/settings", "text=/token/i"],
      ] as const) {
        await other.page.goto(`${cloud.url}${path}`);
        await other.page.waitForSelector(expected);
        await shot(`${name}-${suffix}`, other);
        await t.resolves(
          other.page.waitForFunction(
            "document.documentElement.scrollWidth <= document.documentElement.clientWidth + 1",
            undefined,
            { timeout: 15_000 },
          ),
          `${name}, ${suffix}: nothing sticks out`,
        );
      }
      t.same(other.faults, [], suffix);
      await other.page.context().close();
    }
  });

  await t.test("stop the agent: the page says so; start it: all of it comes back", async (t) => {
    await page.goto(`${cloud.url}/agents`);
    await page.waitForSelector('text="Connected"');
    const began = performance.now();
    await agent.program.killHard();
    await page.waitForSelector("text=Disconnected", { timeout: 15_000 });
    t.ok(performance.now() - began < 15_000, "within 15 s, without a reload");
    await shot("agents-disconnected-light");
    watched.allow(/503/); // the browser's console logs the refused request
    await page.goto(`${cloud.url}/artifacts/demo/sample`);
    await page.waitForSelector("text=/not connected|offline|No agent/i");
    await shot("artifacts-offline-light");
    agent.start();
    await page.waitForSelector("[role=row] a"); // the list comes back by itself
    await page.goto(`${cloud.url}/agents`);
    await page.waitForSelector('text="Connected"');
    await page.goto(`${cloud.url}/artifacts/demo/sample?path=runs`);
    await page.waitForSelector("text=/run_/");
    await page.goto(runUrl);
    await page.waitForSelector(".head .pill:has-text('Succeeded')");
    t.pass("agent, artifacts and the run are there again");
  });

  t.same(watched.faults, [], "no console error, no policy violation, no third party");
});
