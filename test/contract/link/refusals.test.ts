// Who is let in and who is not, and what each side says; two agents with one identity; what ends a session.
import { generateKeyPairSync, randomBytes } from "node:crypto";
import { cpSync, existsSync, mkdtempSync, rmSync } from "node:fs";
import { createServer, request } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  AgentHandshake,
  FRAME,
  FrameWriter,
  HandshakeRefused,
  newId,
  systemClock,
  type AgentHello,
} from "@sallyport/protocol";
import t from "tap";
import { WebSocket } from "ws";
import { dial } from "../../../agent/link/ws-dial.ts";
import { byWebSocketOnly } from "./by-web-socket.ts";
import { startAgentEnd, type AgentEnd } from "./agent-end.ts";
import { startCloudEnd, type CloudEnd } from "./cloud-end.ts";

type Test = { teardown(fn: () => unknown): void };
const cloudEnd = async (t: Test, options: Parameters<typeof startCloudEnd>[0] = {}): Promise<CloudEnd> => {
  const cloud = await startCloudEnd(options);
  t.teardown(() => cloud.stop());
  return cloud;
};
const agentEnd = (t: Test, options: Parameters<typeof startAgentEnd>[0]): AgentEnd => {
  const agent = startAgentEnd(options);
  t.teardown(() => agent.stop());
  return agent;
};

t.test("enrolment secrets that must not work", async (t) => {
  const cloud = await cloudEnd(t);
  const other = await cloudEnd(t);
  const used = cloud.enrolment();
  const first = agentEnd(t, { url: cloud.url, enrolment: used });
  await first.online();
  const withdrawn = cloud.enrolment();
  cloud.directory.enrollments.get(withdrawn.id)!.revoked = true;
  const cases = {
    ENROLMENT_USED: used,
    ENROLMENT_EXPIRED: cloud.enrolment({ expiresInMs: -1 }),
    ENROLMENT_REVOKED: withdrawn,
    ENROLMENT_UNKNOWN: { ...cloud.enrolment(), secret: randomBytes(32) },
    // Of another control plane: its key is not the pinned one, so the agent says nothing at all.
    CLOUD_UNTRUSTED: other.enrolment(),
  };
  for (const [code, enrolment] of Object.entries(cases)) {
    const agent = agentEnd(t, { url: cloud.url, enrolment });
    const error = await agent.failed();
    t.equal(error.code, code);
    t.ok(error.fix, "with a fix");
    const last = agent.events.at(-1)!;
    t.ok(last.type === "state" && last.retryInMs !== null && last.retryInMs >= 30_000, "and is tried again slowly");
    t.notOk(existsSync(join(agent.stateDirectory, "identity.json")));
    agent.stop();
  }
  t.equal(cloud.directory.replicas.size, 1);
  t.equal(
    other.directory.enrollments.values().next().value?.usedBy,
    null,
    "the foreign secret is still good where it belongs",
  );
});

t.test(
  "an enrolment whose answer was lost is repeated with the same key, and a restart needs the state directory only",
  async (t) => {
    const cloud = await cloudEnd(t);
    const enrolment = cloud.enrolment();
    const stateDirectory = mkdtempSync(join(tmpdir(), "sallyport-link-"));
    t.teardown(() => rmSync(stateDirectory, { recursive: true, force: true }));
    // The answer is lost: the directory fails after it has redeemed.
    cloud.directory.beforeOpened = async () => {
      cloud.directory.beforeOpened = null;
      throw new Error("the disk is gone");
    };
    const agent = startAgentEnd({ url: cloud.url, enrolment, stateDirectory, random: () => 0 });
    t.equal((await agent.failed()).code, "INTERNAL");
    const session = await agent.online();
    agent.stop();
    t.equal(cloud.directory.replicas.size, 1);
    const again = startAgentEnd({ url: null, stateDirectory });
    t.teardown(() => again.stop());
    const next = await again.online();
    t.equal(next.replica, session.replica);
    t.equal(next.epoch, 2);
  },
);

t.test("a cloud with another identity key is not told anything", async (t) => {
  const cloud = await cloudEnd(t);
  const agent = startAgentEnd({
    url: cloud.url,
    enrolment: cloud.enrolment(),
    stateDirectory: mkdtempSync(join(tmpdir(), "sallyport-link-")),
  });
  t.teardown(() => rmSync(agent.stateDirectory, { recursive: true, force: true }));
  await agent.online();
  agent.stop();
  const impostor = await cloudEnd(t, { directory: cloud.directory });
  const again = startAgentEnd({ url: impostor.url, stateDirectory: agent.stateDirectory });
  t.teardown(() => again.stop());
  t.equal((await again.failed()).code, "CLOUD_UNTRUSTED");
  t.equal(cloud.directory.opens.length, 1);
});

t.test("recorded greetings are worth nothing, nor are foreign keys", async (t) => {
  const cloud = await cloudEnd(t);
  const agent = agentEnd(t, { url: cloud.url, enrolment: cloud.enrolment() });
  const { replica } = await agent.online();
  const hello = (key = generateKeyPairSync("ed25519").privateKey): AgentHello => ({
    key,
    who: { type: "replica", replica },
    pins: [cloud.identityFingerprint],
    windows: { interactive: 65536, bulk: 65536 },
    maxStreams: 4,
    mac: true,
    peerOnLoopback: true,
    proof: () => ({
      version: "x",
      instance: "x",
      startCounter: 1,
      journal: newId("journal"),
      lastSession: null,
      dispatchSequence: {},
      generations: {},
    }),
  });
  const dialOnce = () => cloud.dial();

  // A key that is not the replica's.
  const record: Buffer[] = [];
  const greet = async (tamper?: (message: Buffer) => Buffer): Promise<unknown> => {
    const transport = await dialOnce();
    const handshake = new AgentHandshake(hello());
    const outcome = new Promise((resolve) => {
      transport.onClose(() => resolve("closed"));
      transport.onMessage((message) => {
        try {
          const step = handshake.receive(message);
          if ("send" in step) {
            record.push(step.send);
            transport.send(tamper === undefined ? step.send : tamper(Buffer.from(step.send)));
          } else resolve("in");
        } catch (error) {
          resolve(error);
        }
      });
    });
    record.push(handshake.hello());
    transport.send(handshake.hello());
    const result = await outcome;
    transport.destroy();
    return result;
  };
  const foreign = await greet();
  t.ok(foreign instanceof HandshakeRefused && foreign.proven && foreign.reason.code === "HANDSHAKE_FAILED");
  const tampered = await greet((message) => {
    message[message.length >> 1]! ^= 1;
    return message;
  });
  t.ok(tampered instanceof HandshakeRefused && tampered.reason.code === "PROTOCOL_ERROR", String(tampered));

  // The very bytes of another greeting: HELLO is answered with a new nonce, so the recorded PROOF fits nothing.
  const transport = await dialOnce();
  const codes = new Promise<number[]>((resolve) => {
    const types: number[] = [];
    transport.onClose(() => resolve(types));
    transport.onMessage((message) => {
      types.push(message[0]!);
      if (message[0] === FRAME.challenge) transport.send(record[1]!);
    });
  });
  transport.send(record[0]!);
  t.same(await codes, [FRAME.challenge, FRAME.refuse]);
  t.equal(cloud.directory.opens.length, 1, "only the real agent was ever let in");

  // Versions apart: both ends are told.
  const old = await dialOnce();
  const answer = new Promise<Buffer>((resolve) => old.onMessage(resolve));
  const text = JSON.parse(new AgentHandshake(hello()).hello().subarray(6).toString()) as { protocol: unknown };
  text.protocol = { min: 900, max: 901 };
  old.send(new FrameWriter(null).control(FRAME.hello, 0, 0, JSON.stringify(text)));
  t.match((await answer).subarray(6).toString(), /PROTOCOL_VERSION/);
  old.destroy();
});

byWebSocketOnly("strangers at the door", async (t) => {
  const cloud = await cloudEnd(t, { limits: { greeting: 3, greetingPerAddress: 2 } });
  const status = (path: string, headers: Record<string, string> = {}) =>
    new Promise<number>((resolve, reject) => {
      const req = request({
        port: cloud.port,
        host: "127.0.0.1",
        path,
        headers: {
          connection: "upgrade",
          upgrade: "websocket",
          "sec-websocket-version": "13",
          "sec-websocket-key": randomBytes(16).toString("base64"),
          ...headers,
        },
      });
      req.on("response", (response) => {
        response.resume();
        resolve(response.statusCode!);
      });
      req.on("upgrade", (_response, socket) => {
        socket.destroy();
        resolve(101);
      });
      req.on("error", reject);
      req.end();
    });
  t.equal(await status("/other"), 404);
  t.equal(await status("/link", { origin: "http://127.0.0.1" }), 403, "browsers are not agents");

  const sockets = [1, 2].map(() => new WebSocket(`ws://127.0.0.1:${cloud.port}/link`));
  await Promise.all(sockets.map((socket) => new Promise((resolve) => socket.once("open", resolve))));
  t.equal(await status("/link"), 503, "too many who did not say who they are");
  // One of them talks too much before it is known.
  const cut = new Promise((resolve) => sockets[0]!.once("close", resolve));
  sockets[0]!.on("error", () => {});
  sockets[0]!.send(Buffer.alloc(200_000));
  await cut;
  // The other says nothing and is cut by the deadline (4 s): that is the gateway's own timer, seen in its events.
  sockets[1]!.terminate();
  t.ok(cloud.events.every((event) => event.type === "refused"));
});

t.test("two agents with one identity", async (t) => {
  const cloud = await cloudEnd(t);
  const first = agentEnd(t, { url: cloud.url, enrolment: cloud.enrolment() });
  const session = await first.online();
  const copy = mkdtempSync(join(tmpdir(), "sallyport-link-"));
  t.teardown(() => rmSync(copy, { recursive: true, force: true }));
  cpSync(first.stateDirectory, copy, { recursive: true });
  const clone = startAgentEnd({ url: cloud.url, stateDirectory: copy });
  t.teardown(() => clone.stop());
  t.equal((await clone.failed()).code, "IDENTITY_CLONED");
  const last = clone.events.at(-1)!;
  t.ok(last.type === "state" && last.retryInMs! >= 60_000, "the newcomer is told to wait");
  t.equal(cloud.directory.alarms[0]?.code, "IDENTITY_CLONED");
  t.equal(first.link.session, session, "the old one goes on");

  clone.stop();
  first.stop();
});

t.test("revoking cuts the live link, and the agent stays and asks slowly", async (t) => {
  const cloud = await cloudEnd(t);
  const agent = agentEnd(t, { url: cloud.url, enrolment: cloud.enrolment(), random: () => 0 });
  const session = await agent.online();
  const failed = agent.failed();
  cloud.directory.revoke(session.replica);
  cloud.gateway.revoke(session.replica);
  t.equal((await failed).code, "IDENTITY_REVOKED");
  const last = agent.events.at(-1)!;
  t.ok(last.type === "state" && last.to === "offline" && last.retryInMs! >= 30_000);
});

t.test("status comes at once and on change; drain says goodbye and the agent dials again", async (t) => {
  const cloud = await cloudEnd(t);
  const agent = agentEnd(t, { url: cloud.url, enrolment: cloud.enrolment(), random: () => 0 });
  const next = () =>
    new Promise<Record<string, string>>((resolve) =>
      cloud.gateway.sessions.onStatus((_session, status) => resolve(status.labels)),
    );
  const firstStatus = next();
  await agent.online();
  t.same(await firstStatus, {});
  const secondStatus = next();
  agent.setLabels({ site: "north" });
  t.same(await secondStatus, { site: "north" });
  const gone = agent.failed();
  const drained = cloud.gateway.drain(1000);
  t.equal((await gone).code, "GOING_AWAY");
  await drained;
  await agent.reached("offline");
  t.equal(cloud.directory.closes.at(-1)?.reason.code, "GOING_AWAY");
});

byWebSocketOnly("answers that are not the control plane's become precise errors", async (t) => {
  let status = 200;
  const headers: Record<string, string> = {};
  const server = createServer((_request, response) => response.writeHead(status, headers).end("<html>"));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.teardown(() => {
    server.closeAllConnections();
    server.close();
  });
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const attempt = async (
    to = url,
  ): Promise<{
    reason: { code: string; message: string; fix: string; details: unknown };
    retryAfterMs: number | null;
  }> => {
    try {
      const transport = await dial({
        cloudUrl: to,
        ca: null,
        clock: systemClock,
        signal: new AbortController().signal,
      });
      transport.destroy();
      throw new Error("it connected");
    } catch (error) {
      return error as never;
    }
  };
  for (const [code, words] of [
    [200, /captive page/],
    [302, /redirect|final address/],
    [401, /credentials/],
    [404, /address/],
    [503, /again by itself/],
  ] as const) {
    status = code;
    if (code === 503) headers["retry-after"] = "7";
    const failure = await attempt();
    t.equal(failure.reason.code, "CLOUD_UNREACHABLE");
    t.match(failure.reason.message + failure.reason.fix, words);
    if (code === 503) t.equal(failure.retryAfterMs, 7000);
  }
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
  t.match((await attempt()).reason, { code: "CLOUD_UNREACHABLE", message: /nothing listens/ });
  t.throws(
    () =>
      void dial({ cloudUrl: "http://192.0.2.1", ca: null, clock: systemClock, signal: new AbortController().signal }),
    { code: "CLOUD_UNTRUSTED" },
    "no plain text off this machine",
  );
});
