// Peers that say nothing after the upgrade, and two agents of one identity that come at the same moment.
import { cpSync, mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FRAME, type ConnectorError } from "@sallyport/protocol";
import t from "tap";
import { type WebSocket, WebSocketServer } from "ws";
import { ManualClock } from "../../support/clock.ts";
import { byWebSocketOnly } from "./by-web-socket.ts";
import { startAgentEnd } from "./agent-end.ts";
import { startCloudEnd } from "./cloud-end.ts";

/** Both ends' limit for the other to speak. */
const GREETING_MS = 4_000;

byWebSocketOnly(
  "a control plane that is silent after the upgrade: the agent gives up at its deadline and dials again later",
  async (t) => {
    const server = createServer();
    const webSockets = new WebSocketServer({ server });
    const connected = new Promise<WebSocket>((resolve) => webSockets.once("connection", resolve));
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    t.teardown(() => {
      for (const socket of webSockets.clients) socket.terminate();
      webSockets.close();
      server.close();
    });
    const there = await startCloudEnd();
    t.teardown(() => there.stop());
    const clock = new ManualClock();
    const agent = startAgentEnd({
      url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
      enrolment: there.enrolment(),
      clock,
    });
    t.teardown(() => agent.stop());
    const [socket] = await Promise.all([connected, agent.reached("greeting")]);
    const cut = new Promise((resolve) => socket.once("close", resolve));
    await clock.advance(GREETING_MS - 1);
    t.equal(agent.link.state, "greeting");
    const failed = agent.failed();
    await clock.advance(1);
    t.equal((await failed).code, "HANDSHAKE_FAILED");
    t.equal(agent.link.state, "offline");
    await cut;
    t.ok((clock.nextInMs ?? 0) > 0, "another dial is armed");
  },
);

t.test("an agent that is silent after the dial is told why, cut off, and nothing is kept of it", async (t) => {
  const clock = new ManualClock();
  const cloud = await startCloudEnd({ clock, limits: { greeting: 1 } });
  t.teardown(() => cloud.stop());
  const before = clock.pending;
  const transport = await cloud.dial();
  t.teardown(() => transport.destroy());
  const said: Buffer[] = [];
  transport.onMessage((message) => said.push(message));
  const closed = new Promise<void>((resolve) => transport.onClose(() => resolve()));
  await clock.advance(GREETING_MS - 1);
  t.equal(cloud.events.length, 0);
  await clock.advance(1);
  t.match(cloud.events, [{ type: "refused", error: { code: "HANDSHAKE_FAILED" }, replica: null }]);
  await closed;
  t.equal(said.length, 1);
  t.equal(said[0]![0], FRAME.refuse);
  t.match(JSON.parse(said[0]!.subarray(said[0]!.indexOf("{")).toString()), { code: "HANDSHAKE_FAILED" });
  await clock.advance(1_000);
  t.equal(clock.pending, before, "no timer of it is left");
  // Its place among those that greet is free again.
  const next = await cloud.dial();
  t.teardown(() => next.destroy());
});

t.test(
  "two agents of one identity at the same moment: one is let in, the other is the clone, and that is an alarm",
  async (t) => {
    const cloud = await startCloudEnd();
    t.teardown(() => cloud.stop());
    const first = startAgentEnd({ url: cloud.url, enrolment: cloud.enrolment() });
    const { replica } = await first.online();
    const folders = [1, 2].map(() => mkdtempSync(join(tmpdir(), "sallyport-twin-")));
    t.teardown(() => folders.forEach((folder) => rmSync(folder, { recursive: true, force: true })));
    for (const folder of folders) cpSync(first.stateDirectory, folder, { recursive: true });
    const gone = new Promise<void>((resolve) => cloud.gateway.sessions.onOffline(() => resolve()));
    first.stop();
    await gone;

    const twins = folders.map((stateDirectory) => startAgentEnd({ url: cloud.url, stateDirectory }));
    t.teardown(() => twins.forEach((twin) => twin.stop()));
    const outcomes = await Promise.all(
      twins.map((twin) =>
        Promise.race([twin.online().then(() => "online"), twin.failed().then((error: ConnectorError) => error.code)]),
      ),
    );
    t.same(outcomes.toSorted(), ["IDENTITY_CLONED", "online"]);
    t.same(
      cloud.gateway.sessions.all().map((session) => session.replica),
      [replica],
      "one session",
    );
    t.same(
      cloud.directory.alarms.map((alarm) => alarm.code),
      ["IDENTITY_CLONED"],
    );
    t.equal(cloud.directory.opens.length, 2, "the clone was never given an epoch");
  },
);
