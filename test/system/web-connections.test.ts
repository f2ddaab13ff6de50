// An agent's connection in the page, in a real Chromium on the real API and store: live figures, a history with cuts of
// several kinds, an agent that is away, one that never came. SALLYPORT_SCREENSHOTS names a folder for the pictures.
import { fileURLToPath } from "node:url";
import { newId, systemClock } from "@sallyport/protocol";
import t from "tap";
import { signInUrl, type Authenticator } from "../../cloud/auth/index.ts";
import { agentRoutes } from "../../cloud/http/routes/agents.ts";
import { sessionRoutes } from "../../cloud/http/routes/session.ts";
import { agentStatus } from "../support/agent-status.ts";
import { apiWorld } from "../support/api-world.ts";
import { startBrowser } from "../support/browser.ts";
import { needs } from "../support/skip.ts";

const pictures = process.env["SALLYPORT_SCREENSHOTS"];
const HOUR_MS = 3_600_000;

t.test("an agent's connection in the page", { skip: needs("chromium"), timeout: 240_000 }, async (t) => {
  let authenticator: Authenticator | undefined;
  const world = await apiWorld(
    t,
    ({ store, sessions, authenticator: mine }) => {
      authenticator = mine;
      return [
        sessionRoutes({ store, authenticator: mine, clock: systemClock, version: "test", secureCookies: false }),
        agentRoutes({
          store,
          clock: systemClock,
          links: {
            ofReplica: (workspace, id) => sessions.ofReplica(workspace, id),
            revoke: () => undefined,
            changeKey: async () => false,
          },
        }),
      ];
    },
    { pageFolder: fileURLToPath(new URL("../../cloud/web/dist", import.meta.url)) },
  );
  const { scope, store } = world;
  const agent = await world.replica("vpc-1");
  const { replica } = agent.identity;
  const now = Date.now();
  const open = async (at: number, id = newId("session")) => {
    await store.openSession(replica, {
      id,
      process: "p",
      instance: "i",
      journal: agent.journal,
      remoteAddress: "10.20.0.7",
      version: "0.1.0",
      now: at,
    });
    return id;
  };
  const driver = await startBrowser();
  t.teardown(() => driver.close());
  const watched = await driver.open(world.url);
  const { page } = watched;
  const user = await store.ensureAdmin("admin", "main");
  await page.goto(signInUrl(world.url, await authenticator!.offerSignIn(user)));
  await page.waitForSelector("h1:has-text('Home')");

  await t.test("one that never connected", async (t) => {
    await page.goto(`${world.url}/agents/${replica}?tab=link`);
    await page.getByText("No connections yet").waitFor();
    t.equal(await page.getByText("not known now").count(), 4, "nothing is made up");
    await watched.inspect("connection-none", pictures);
  });

  await t.test("history and live figures", async (t) => {
    const ends = [
      [20, 14, "LINK_LOST", "Nothing came from the other end for 12 s."],
      [13.9, 9, "GOING_AWAY", "The agent is stopping."],
      [8.2, 2, "LINK_LOST", "The connection broke."],
    ] as const;
    for (const [from, to, code, message] of ends)
      await store.closeSession(replica, await open(now - from * HOUR_MS), now - to * HOUR_MS, { code, message });
    for (const minutes of [110, 112, 115])
      await store.refuseConnection(scope.workspace, replica, {
        at: now - minutes * 60_000,
        code: "IDENTITY_CLONED",
        message: "Another running agent uses the identity of vpc-1.",
        remoteAddress: "10.99.0.3",
      });
    const session = await agent.connect();
    await open(now - HOUR_MS, session.id);
    agent.status = {
      ...agentStatus(),
      process: {
        startedAt: now - HOUR_MS,
        residentBytes: 98e6,
        clockSkewMs: -94_000,
        loopDelayMs: { p50: 0.2, p99: 3.4, max: 41 },
      },
    };
    await store.seen([
      { workspace: scope.workspace, replica, session: session.id, at: Date.now(), status: agent.status },
    ]);
    await page.reload();
    await page.getByText("connected now").waitFor();
    const text = (await page.locator("main, body").first().textContent()) ?? "";
    t.match(text, /1 m 34 s behind the control plane's/);
    t.match(text, /late by 3\.4 ms/);
    t.match(text, /The agent is stopping\. ?GOING_AWAY/);
    t.match(text, /refused 3×/);
    t.match(text, /connected for 1\d h/);
    t.equal(await page.locator(".conn-track > i").count(), 4);
    t.equal(await page.locator(".conn-table tbody tr").count(), 5);
    // a beat comes after 5 s
    await page.getByText(/median \d/).waitFor();
    await watched.inspect("connection", pictures);
  });

  await t.test("away: the history says why, no figure pretends to be of now", async (t) => {
    const { id } = agent.session!;
    await agent.cut();
    await store.closeSession(replica, id, Date.now(), { code: "LINK_LOST", message: "The connection broke." });
    await page.getByText("The agent is not connected: nothing moves.").waitFor();
    await page.waitForFunction("!document.body.textContent.includes('connected now')");
    t.equal(await page.getByText("not known now").count(), 4);
    await watched.inspect("connection-away", pictures);
  });

  await t.test("nothing went wrong in the browser", async (t) => t.same(watched.faults, []));
});
