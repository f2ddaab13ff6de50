// A peer that has proved who it is and then misbehaves, in either role: the session ends with a reason, the process and
// its other sessions do not notice, nothing is kept, and an honest peer is let in as before.
import { generateKeyPairSync } from "node:crypto";
import { createServer } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import {
  AgentHandshake,
  CloudHandshake,
  FLAG,
  FRAME,
  formatEnrolmentSecret,
  keyFingerprint,
  keySigner,
  newEnrolmentSecretBytes,
  newId,
  parseEnrolmentSecret,
  systemClock,
  wait,
  type FrameWriter,
} from "@sallyport/protocol";
import t from "tap";
import { WebSocket, WebSocketServer } from "ws";
import { waitFor } from "../support/launcher.ts";
import { startAgentEnd } from "../contract/link/agent-end.ts";
import { startCloudEnd } from "../contract/link/cloud-end.ts";

const MIB = 2 ** 20;
const WINDOWS = { interactive: 256 * 1024, bulk: MIB };
const CODES = /^(PROTOCOL_ERROR|FRAME_TOO_LARGE|LINK_LOST|HANDSHAKE_FAILED)$/;

interface Peer {
  ws: WebSocket;
  socket: Socket;
  writer: FrameWriter;
  /** A stream id that this side may open. */
  own: number;
  /** Frames of a client are masked: with zeros here, which change nothing. */
  masked: boolean;
}

/** A WebSocket frame's header by hand. */
function header(peer: Peer, first: number, length: number | bigint): Buffer {
  const mask = peer.masked ? 0x80 : 0;
  const key = Buffer.alloc(peer.masked ? 4 : 0);
  if (typeof length === "number") return Buffer.concat([Buffer.from([first, mask | length]), key]);
  const head = Buffer.alloc(10);
  head[0] = first;
  head[1] = mask | 127;
  head.writeBigUInt64BE(length, 2);
  return Buffer.concat([head, key]);
}
const open = ({ writer }: Peer, id: number) => writer.control(FRAME.open, 0, id, "{}");

const ATTACKS: Record<string, (peer: Peer) => void> = {
  "a text frame": ({ ws }) => ws.send("hello"),
  "an unknown type": ({ ws }) => ws.send(Buffer.from([99, 0, 0, 0, 0, 1, 123, 125])),
  "an empty message": ({ ws }) => ws.send(Buffer.alloc(0)),
  "bytes for a stream that never was": ({ ws, writer, own }) =>
    ws.send(writer.data(own + 4000, 1, Buffer.alloc(10), true)),
  "a stream opened twice": (peer) => {
    peer.ws.send(open(peer, peer.own));
    peer.ws.send(open(peer, peer.own));
  },
  "a stream of the other side's numbers, answered twice": ({ ws, writer, own }) =>
    ws.send(writer.control(FRAME.open, 0, own + 1, "{}")),
  "far more bytes than its credit": (peer) => {
    const { ws, writer, own } = peer;
    ws.send(open(peer, own));
    for (let n = 0; n < 200; n++) {
      ws.send(writer.data(own, n, Buffer.alloc(64 * 1024), true));
      if (writer.detaches(64 * 1024)) ws.send(Buffer.alloc(64 * 1024));
    }
  },
  "an acknowledgement of what was never sent": ({ ws, writer }) =>
    ws.send(writer.control(FRAME.ack, 0, 0, '{"bytes":1000000000000,"echo":0,"holdUs":0}')),
  "a figure that is none": ({ ws, writer }) => ws.send(writer.control(FRAME.credit, 0, 1, '{"limit":"many"}')),
  "an end with another length": (peer) => {
    peer.ws.send(open(peer, peer.own));
    peer.ws.send(peer.writer.control(FRAME.end, 0, peer.own, '{"bytes":77}'));
  },
  "a frame of the handshake": ({ ws, writer }) => ws.send(writer.control(FRAME.hello, 0, 0, "{}")),
  "a frame said twice": ({ ws, writer }) => {
    const ping = writer.control(FRAME.ping, 0, 0, '{"n":1}');
    ws.send(Buffer.from(ping));
    ws.send(Buffer.from(ping));
  },
  "a frame without its MAC": ({ ws }) => ws.send(Buffer.from([FRAME.ping, 0, 0, 0, 0, 0, ...Buffer.from('{"n":1}')])),
  "a length of a terabyte": (peer) => peer.socket.write(header(peer, 0x82, 2n ** 40n)),
  "a compressed message, which was not agreed": (peer) =>
    peer.socket.write(Buffer.concat([header(peer, 0xc2, 4), Buffer.from([0xcb, 0x48, 0xcd, 0xc9])])),
  "a hundred thousand tiny fragments": (peer) => {
    const piece = (first: number) => Buffer.concat([header(peer, first, 1), Buffer.from([FLAG.maced])]);
    peer.socket.write(piece(0x02));
    const rest = Buffer.concat(Array.from({ length: 1000 }, () => piece(0x00)));
    for (let n = 0; n < 100; n++) peer.socket.write(rest);
  },
};

const rssMib = () => process.memoryUsage().rss / MIB;

t.setTimeout(240_000);

t.test("an agent that misbehaves", async (t) => {
  const cloud = await startCloudEnd();
  t.teardown(() => cloud.stop());
  const honest = startAgentEnd({ url: cloud.url, enrolment: cloud.enrolment() });
  t.teardown(() => honest.stop());
  honest.onStream = (stream) => stream.respond({ ok: true }, { end: true });
  const { replica, id } = await honest.online();
  const beforeMib = rssMib();
  for (const [name, attack] of Object.entries(ATTACKS)) {
    const secret = cloud.enrolment();
    const handshake = new AgentHandshake({
      key: generateKeyPairSync("ed25519").privateKey,
      who: { type: "enrol", enrollment: secret.id, secret: secret.secret, nameHint: "bad" },
      pins: [cloud.identityFingerprint],
      windows: WINDOWS,
      maxStreams: 16,
      mac: true,
      peerOnLoopback: true,
      proof: () => ({
        version: "x",
        instance: newId("journal"),
        startCounter: 1,
        journal: newId("journal"),
        lastSession: null,
        dispatchSequence: {},
        generations: {},
      }),
    });
    const ws = new WebSocket(`${cloud.url.replace("http", "ws")}/link`);
    ws.on("error", () => {});
    await new Promise((resolve) => ws.once("open", resolve));
    const writer = await new Promise<FrameWriter>((resolve) => {
      ws.on("message", (message: Buffer) => {
        try {
          const step = handshake.receive(message);
          if ("send" in step) ws.send(step.send);
          else resolve(step.greeted.writer);
        } catch {
          // what follows is not of the handshake
        }
      });
      ws.send(handshake.hello());
    });
    const socket = (ws as unknown as { _socket: Socket })._socket;
    socket.on("error", () => {});
    const events = cloud.events.length;
    attack({ ws, socket, writer, own: 1, masked: true });
    const offline = await waitFor(`the end of: ${name}`, () => {
      const event = cloud.events.slice(events).find((one) => one.type === "offline");
      return event?.type === "offline" ? event : undefined;
    });
    t.match(offline.reason.code, CODES, `${name}: ${offline.reason.message}`);
    ws.terminate();
    const answer = cloud.gateway.sessions
      .ofReplica(cloud.directory.workspace, replica)!
      .open({}, { lane: "interactive", end: true }).answer;
    t.same(await answer, { ok: true }, "the honest one is served");
  }
  t.equal(honest.link.session?.id, id);
  t.ok(rssMib() - beforeMib < 96, `memory grew by ${Math.round(rssMib() - beforeMib)} MiB`);
});

t.test("a control plane that misbehaves", async (t) => {
  const identity = generateKeyPairSync("ed25519");
  const command = generateKeyPairSync("ed25519");
  const server = createServer();
  const webSockets = new WebSocketServer({ server });
  let attack: ((peer: Peer) => void) | null = null;
  let greeted = 0;
  webSockets.on("connection", (ws, request) => {
    ws.on("error", () => {});
    const handshake = new CloudHandshake({
      identity: keySigner("identity-1", identity.privateKey),
      identityPublicKey: identity.publicKey,
      session: newId("session"),
      incarnation: "test",
      nowMs: Date.now(),
      commandKeys: new Map([["command-1", command.publicKey]]),
      windows: WINDOWS,
      maxStreams: 16,
      mac: true,
      peerOnLoopback: true,
    });
    let step = 0;
    ws.on("message", (message: Buffer) => {
      step++;
      if (step === 1) ws.send(handshake.onHello(message));
      else if (step === 2) {
        handshake.onProof(message);
        const { send, agreed } = handshake.ready({
          session: handshake.session,
          epoch: ++greeted,
          replica,
          workspace,
          pool,
          names: { replica: "a", pool: "b", workspace: "c" },
        });
        ws.send(send);
        attack?.({ ws, socket: request.socket, writer: agreed.writer, own: 2, masked: false });
      }
    });
  });
  const [replica, workspace, pool] = [newId("replica"), newId("workspace"), newId("pool")];
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const secret = parseEnrolmentSecret(
    formatEnrolmentSecret({
      id: newId("enrollment"),
      secret: newEnrolmentSecretBytes(),
      identityFingerprint: keyFingerprint(identity.publicKey),
      caFingerprint: null,
    }),
  );
  const agent = startAgentEnd({
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    enrolment: secret,
    // A peer like that is dialled again after a while; here at once.
    random: () => 0,
  });
  t.teardown(() => {
    agent.stop();
    for (const socket of webSockets.clients) socket.terminate();
    webSockets.close();
    server.close();
  });
  await agent.online();
  const beforeMib = rssMib();
  for (const [name, act] of Object.entries(ATTACKS)) {
    await agent.online();
    attack = act;
    const failed = agent.failed();
    const dialled = greeted;
    // The one that is there is left for one that attacks.
    for (const socket of webSockets.clients) socket.terminate();
    await failed;
    await waitFor(`the end of: ${name}`, () => greeted > dialled + 1);
    const said = agent.events.flatMap((event) => (event.type === "state" && event.error !== null ? [event.error] : []));
    t.match(said.at(-1)!.code, CODES, `${name}: ${said.at(-1)!.message}`);
    attack = null;
  }
  await wait(systemClock, 50);
  await agent.online();
  t.ok(rssMib() - beforeMib < 96, `memory grew by ${Math.round(rssMib() - beforeMib)} MiB`);
});

t.test("strangers: an endless handshake, a huge one, one out of order", async (t) => {
  const cloud = await startCloudEnd({ limits: { greeting: 8, greetingPerAddress: 8 } });
  t.teardown(() => cloud.stop());
  const dial = async () => {
    const ws = new WebSocket(`${cloud.url.replace("http", "ws")}/link`);
    ws.on("error", () => {});
    t.teardown(() => ws.terminate());
    await new Promise((resolve) => ws.once("open", resolve));
    return ws;
  };
  const closed = (ws: WebSocket) => new Promise((resolve) => ws.once("close", resolve));
  const began = performance.now();
  const endless = await dial();
  const drip = setInterval(() => endless.send(Buffer.from([FRAME.hello]), { fin: false }), 100);
  t.teardown(() => clearInterval(drip));
  const huge = await dial();
  const hugeClosed = closed(huge);
  huge.send(Buffer.alloc(MIB));
  const early = await dial();
  const earlyClosed = closed(early);
  early.send(Buffer.from([FRAME.proof, 0, 0, 0, 0, 0, 123, 125]));
  await Promise.all([hugeClosed, earlyClosed]);
  t.ok(performance.now() - began < 3_000, "at once");
  await closed(endless);
  t.ok(performance.now() - began < 8_000, "an endless one at the deadline");
  const honest = startAgentEnd({ url: cloud.url, enrolment: cloud.enrolment() });
  t.teardown(() => honest.stop());
  await honest.online();
});
