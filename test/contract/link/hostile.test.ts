// What a stranger or a broken peer may send must cost neither the process, nor a session, nor a socket.
import { generateKeyPairSync } from "node:crypto";
import { once } from "node:events";
import { connect } from "node:net";
import { AgentHandshake, ConnectorError, HandshakeRefused, newId } from "@sallyport/protocol";
import t from "tap";
import { waitFor } from "../../support/launcher.ts";
import { byWebSocketOnly } from "./by-web-socket.ts";
import { startAgentEnd } from "./agent-end.ts";
import { startCloudEnd } from "./cloud-end.ts";

t.test("a stranger's proof with a field's name of any length is refused in words that fit", async (t) => {
  const cloud = await startCloudEnd();
  t.teardown(() => cloud.stop());
  const greet = async (fieldChars: number): Promise<unknown> => {
    const handshake = new AgentHandshake({
      key: generateKeyPairSync("ed25519").privateKey,
      who: { type: "replica", replica: newId("replica") },
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
        dispatchSequence: { ["x".repeat(fieldChars)]: 1 },
        generations: {},
      }),
    });
    const transport = await cloud.dial();
    const outcome = new Promise((resolve) => {
      transport.onClose(() => resolve("closed"));
      transport.onMessage((message) => {
        try {
          const step = handshake.receive(message);
          if ("send" in step) transport.send(step.send);
        } catch (error) {
          resolve(error);
        }
      });
    });
    transport.send(handshake.hello());
    const result = await outcome;
    transport.destroy();
    return result;
  };
  for (const fieldChars of [300, 5_000, 60_000]) {
    const error = await greet(fieldChars);
    t.ok(
      error instanceof HandshakeRefused && error.reason.code === "PROTOCOL_ERROR",
      `${fieldChars}: ${String(error)}`,
    );
    t.ok(error instanceof HandshakeRefused && error.message.length < 1000);
  }
});

t.test("a refusal of any length breaks its stream alone", async (t) => {
  const cloud = await startCloudEnd();
  t.teardown(() => cloud.stop());
  const agent = startAgentEnd({ url: cloud.url, enrolment: cloud.enrolment() });
  t.teardown(() => agent.stop());
  const long = '"'.repeat(9_000);
  const refusals = [
    new ConnectorError("POLICY_DENIED", "short", { fix: "f".repeat(2_049) }),
    new ConnectorError("POLICY_DENIED", "m".repeat(4_097), { fix: "short" }),
    new ConnectorError("POLICY_DENIED", long, { fix: long, details: { long } }),
    new ConnectorError("POLICY_DENIED", "\u0001".repeat(9_000), { fix: "日".repeat(9_000) }),
  ];
  agent.link.onStream((stream) => stream.reset(refusals[(stream.head as { n: number }).n]!));
  const { id, replica } = await agent.online();
  for (const n of refusals.keys()) {
    const session = cloud.gateway.sessions.ofReplica(cloud.directory.workspace, replica)!;
    const stream = session.open({ type: "any", n }, { lane: "interactive", end: true });
    await t.rejects(stream.answer, { code: "POLICY_DENIED" }, `refusal ${n}`);
  }
  t.equal(agent.link.session?.id, id, "the session goes on");
});

byWebSocketOnly("a refused upgrade whose sender never closes does not keep the socket", async (t) => {
  const cloud = await startCloudEnd();
  t.teardown(() => cloud.stop());
  const sockets = await Promise.all(
    ["/elsewhere", "/link"].map(async (path) => {
      const socket = connect({ port: cloud.port, host: "127.0.0.1", allowHalfOpen: true });
      t.teardown(() => socket.destroy());
      socket.write(
        `GET ${path} HTTP/1.1\r\nhost: 127.0.0.1\r\norigin: http://evil.example\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n`,
      );
      socket.resume();
      await once(socket, "end");
      return socket;
    }),
  );
  const open = (): Promise<number> =>
    new Promise((resolve) => cloud.server.getConnections((_error, count) => resolve(count)));
  await waitFor("all of them to be given up", async () => (await open()) === 0);
  t.ok(
    sockets.every((socket) => !socket.destroyed),
    "though this end is still there",
  );
});
