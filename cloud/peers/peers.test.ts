// The link between two processes, over real sockets: who is let in, and what becomes of a stream that crosses it.
import { generateKeyPairSync } from "node:crypto";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import t, { type Test } from "tap";
import {
  ConnectorError,
  DEFAULT_WINDOWS,
  FrameReader,
  FrameWriter,
  keySigner,
  Mux,
  newId,
  systemClock,
  webSocketTransport,
  type LinkStream,
  type ReplicaId,
  type SocketLike,
  type Transport,
} from "@sallyport/protocol";
import { WebSocket, WebSocketServer } from "ws";
import { waitFor } from "../../test/support/launcher.ts";
import { startNats } from "../../test/support/nats.ts";
import { needs } from "../../test/support/skip.ts";
import { passingCertificate } from "../keys/index.ts";
import { NatsListener } from "../link/index.ts";
import type { CloudSession } from "../link/sessions.ts";
import type { PeerIdentity } from "./handshake.ts";
import { connectNats, natsAccess } from "../nats/index.ts";
import { PeerLink } from "./peer-link.ts";
import { dialPeerOverNats, peerHello, peerPrefix } from "./peer-nats.ts";
import { PeerServer } from "./peer-server.ts";

const key = generateKeyPairSync("ed25519");
const identityOf = (process: string, own = key, incarnation = "one"): PeerIdentity => ({
  process,
  incarnation,
  signer: keySigner("k", own.privateKey),
  ring: new Map([["k", own.publicKey]]),
});
const replica = newId("replica", 1);
const session = newId("session", 1);

/** Two ends of a link as an agent and a process have one. */
async function agentLink(t: Test, onStream: (stream: LinkStream) => void): Promise<Mux> {
  const server = createServer();
  const sockets = new WebSocketServer({ server });
  const mux = (transport: Transport, side: "agent" | "cloud") =>
    new Mux({
      id: side,
      transport,
      clock: systemClock,
      side,
      writer: new FrameWriter(null),
      reader: new FrameReader(null),
      windows: DEFAULT_WINDOWS,
      peerWindows: DEFAULT_WINDOWS,
      maxStreams: 16,
      peerMaxStreams: 16,
      checksums: true,
      onStream,
    });
  const accepted = new Promise<Mux>((resolve) =>
    sockets.on("connection", (socket, request) =>
      resolve(mux(webSocketTransport(socket, request.socket as unknown as SocketLike), "cloud")),
    ),
  );
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const dialled = new WebSocket(`ws://127.0.0.1:${(server.address() as AddressInfo).port}`);
  let raw: unknown;
  dialled.on("upgrade", (response) => (raw = response.socket));
  await new Promise((resolve) => dialled.once("open", resolve));
  const agent = mux(webSocketTransport(dialled, raw as SocketLike), "agent");
  const cloud = await accepted;
  t.teardown(async () => {
    cloud.close(new ConnectorError("GOING_AWAY", "The test ends."));
    await agent.closed;
    sockets.close();
    await new Promise((resolve) => server.close(resolve));
  });
  return cloud;
}

async function makeServer(t: Test, mux: Mux | null, tls = false) {
  const refused: string[] = [];
  const closed: { replica: ReplicaId; code: string }[] = [];
  const held = mux === null ? null : ({ id: session, replica, open: mux.open.bind(mux) } as unknown as CloudSession);
  const certificate = tls ? await passingCertificate(Date.now()) : undefined;
  const server = new PeerServer({
    identity: identityOf("b"),
    clock: systemClock,
    ...(certificate === undefined ? {} : { tls: certificate }),
    held: (id) => (id === replica ? held : null),
    ping: () => mux!.ping(),
    close: (id, _session, reason) => void closed.push({ replica: id, code: reason.code }),
    headFor: (_session, head) => ({ signed: head }),
    refused: (error) => void refused.push(error.message),
  });
  const port = await server.listen("127.0.0.1", 0);
  t.teardown(() => server.close());
  return { server, refused, closed, url: `${tls ? "wss" : "ws"}://127.0.0.1:${port}` };
}

function dial(t: Test, url: string, identity = identityOf("a"), process = "b"): PeerLink {
  const link = new PeerLink({ process, url, identity, clock: systemClock, changed() {} });
  t.teardown(() => link.close());
  return link;
}

t.test("who is let in", async (t) => {
  for (const tls of [false, true]) {
    const { url, refused } = await makeServer(t, null, tls);
    const good = dial(t, url);
    await waitFor("the link", () => good.up);
    for (const [what, identity, process, says] of [
      ["another key", identityOf("a", generateKeyPairSync("ed25519")), "b", /identity key/],
      ["another database", identityOf("a", key, "two"), "b", /another database|broke/],
      ["another process at that address", identityOf("a"), "c", /b answers where c was expected/],
    ] as const) {
      const link = dial(t, url, identity, process);
      await waitFor(what, () => link.problem !== null);
      t.match(link.problem!.message, says, what);
      t.notOk(link.up);
      link.close();
    }
    t.ok(refused.some((text) => text.includes("another database")));
  }
});

t.test("somebody in between shows another certificate", async (t) => {
  const { url } = await makeServer(t, null, true);
  // It ends the TLS with a certificate of its own and hands every byte on.
  const own = await passingCertificate(Date.now());
  const { createServer: createTls, connect } = await import("node:tls");
  const between = createTls({ cert: own.cert, key: own.key }, (socket) => {
    const far = connect({ host: "127.0.0.1", port: Number(new URL(url).port), rejectUnauthorized: false });
    for (const one of [socket, far]) one.on("error", () => void [socket.destroy(), far.destroy()]);
    socket.pipe(far).pipe(socket);
  });
  await new Promise<void>((resolve) => between.listen(0, "127.0.0.1", resolve));
  t.teardown(() => void between.close());
  const link = dial(t, `wss://127.0.0.1:${(between.address() as AddressInfo).port}`);
  await waitFor("the refusal", () => link.problem !== null);
  t.match(link.problem!.message, /certificate/);
});

t.test("a stream across", async (t) => {
  const accepted: LinkStream[] = [];
  const mux = await agentLink(t, (stream) => void accepted.push(stream));
  const { url, closed } = await makeServer(t, mux);
  const link = dial(t, url);
  await waitFor("the link", () => link.up);
  const open = (head: unknown, end: boolean, lane: "interactive" | "bulk" = "bulk") =>
    link.open({ type: "open", replica, session, lane, end, head }, { lane, end });
  const next = async (): Promise<LinkStream> => {
    await waitFor("the stream", () => accepted.length > 0);
    return accepted.shift()!;
  };

  await t.test("head, answer and bytes of both directions; the lane too", async (t) => {
    const near = open({ say: 1 }, false);
    const far = await next();
    t.same([far.head, far.lane], [{ signed: { say: 1 } }, "bulk"]);
    far.respond({ yes: true });
    t.same(await near.answer, { yes: true });
    const sizes = [1, 5000, 300_000, 2_000_000];
    const read = async (stream: LinkStream): Promise<number> => {
      let bytes = 0;
      for await (const chunk of stream.bytes) bytes += chunk.length;
      return bytes;
    };
    const write = async (stream: LinkStream): Promise<void> => {
      for (const size of sizes) await stream.write(Buffer.alloc(size, 7));
      await stream.end();
    };
    const sum = sizes.reduce((total, one) => total + one, 0);
    const [up, down] = await Promise.all([read(far), read(near), write(far), write(near)]);
    t.same([up, down], [sum, sum]);
  });

  await t.test("a reader that does not read holds the writer, within bounds", async (t) => {
    const near = open({}, true);
    const far = await next();
    far.respond({});
    await near.answer;
    let written = 0;
    let stopped = false;
    void (async () => {
      while (!stopped) {
        await far.write(Buffer.alloc(64 * 1024));
        written += 64 * 1024;
      }
    })().catch(() => {});
    let before = -1;
    await waitFor("it to stand still", async () => {
      const same = written === before && written > 0;
      before = written;
      await new Promise((resolve) => setTimeout(resolve, 150));
      return same;
    });
    t.ok(written <= 8 * 2 ** 20, `${written} bytes on the way`);
    stopped = true;
    near.reset(new ConnectorError("CANCELLED", "Enough."));
    await waitFor("the reset to cross", () => far.signal.aborted);
    t.match(far.signal.reason, { code: "CANCELLED", message: "Enough." });
  });

  await t.test("a refusal comes as the agent gave it", async (t) => {
    const near = open({}, true);
    (await next()).reset(
      new ConnectorError("POLICY_DENIED", "The policy refuses it.", { fix: "Ask.", details: { rule: 3 } }),
    );
    await t.rejects(near.answer, {
      code: "POLICY_DENIED",
      message: "The policy refuses it.",
      fix: "Ask.",
      details: { rule: 3 },
    });
  });

  await t.test("a session that is not there: nothing was sent, and it is said so", async (t) => {
    const other = newId("session", 2);
    const near = link.open(
      { type: "open", replica, session: other, lane: "bulk", end: true, head: {} },
      { lane: "bulk", end: true },
    );
    await t.rejects(near.answer, { code: "LINK_LOST", details: { notSent: true } });
    const pong = link.open({ type: "ping", replica, session }, { lane: "interactive", end: true });
    t.match(await pong.answer, { rttMs: Number });
    const gone = link.open({ type: "ping", replica, session: other }, { lane: "interactive", end: true });
    await t.rejects(gone.answer, { code: "LINK_LOST" });
    const reason = { code: "IDENTITY_REVOKED" as const, message: "Revoked." };
    await link.open({ type: "close", replica, reason }, { lane: "interactive", end: true }).answer;
    t.same(closed, [{ replica, code: "IDENTITY_REVOKED" }]);
    const unknown = link.open({ type: "other" } as never, { lane: "interactive", end: true });
    await t.rejects(unknown.answer, { code: "KIND_UNKNOWN" });
  });

  await t.test("the agent's link dies: the stream breaks here too, after what came whole", async (t) => {
    const near = open({}, true);
    const far = await next();
    far.respond({});
    await far.write(Buffer.alloc(1000));
    await near.answer;
    const bytes: number[] = [];
    const reading = (async () => {
      for await (const chunk of near.bytes) bytes.push(chunk.length);
    })();
    await waitFor("the bytes", () => bytes.length > 0);
    mux.close(new ConnectorError("SESSION_SUPERSEDED", "A newer one."));
    await t.rejects(reading, { code: "LINK_LOST" });
    t.same(bytes, [1000]);
  });
});

t.test("over NATS, where there is no direct way", { skip: needs("nats"), timeout: 180_000 }, async (t) => {
  const nats = await startNats(t);
  const access = natsAccess(nats.url.replace("://", `://${nats.user}:${nats.password}@`), { ca: null, creds: null });
  const connect = () => connectNats(access, "test");
  const prefix = peerPrefix(null, "one:1");
  t.equal(prefix, "sallyport.one_1.peer");
  const accepted: LinkStream[] = [];
  const mux = await agentLink(t, (stream) => void accepted.push(stream));
  const { server, refused, url } = await makeServer(t, mux);
  const listener = new NatsListener({
    gateway: server,
    connect,
    prefix,
    hello: peerHello(prefix, "b"),
    clock: systemClock,
    onState() {},
    onFailure: (error) => void refused.push(error.message),
  });
  await listener.start();
  t.teardown(() => listener.stop());

  /** Bytes are passed on to `target` while it is set; otherwise it is a port that nobody answers. */
  const door = { target: null as number | null };
  const { createServer: createTcp, connect: connectTcp } = await import("node:net");
  const between = createTcp((socket) => {
    socket.on("error", () => {});
    if (door.target === null) return void socket.resetAndDestroy();
    const far = connectTcp(door.target, "127.0.0.1");
    far.on("error", () => socket.destroy());
    socket.on("close", () => far.destroy());
    far.on("close", () => socket.destroy());
    socket.pipe(far).pipe(socket);
  });
  await new Promise<void>((resolve) => between.listen(0, "127.0.0.1", resolve));
  t.teardown(() => void between.close());
  const direct = `ws://127.0.0.1:${(between.address() as AddressInfo).port}`;

  const dialBoth = (identity = identityOf("a"), process = "b", changes: (string | null)[] = []): PeerLink => {
    const link = new PeerLink({
      process,
      url: direct,
      identity,
      clock: systemClock,
      directAgainMs: 50,
      overNats: (process) => dialPeerOverNats({ connect, prefix, process, clock: systemClock }),
      changed: (changed, error) => void changes.push(error === null ? changed.way : error.code),
    });
    t.teardown(() => link.close());
    return link;
  };

  await t.test("only who has the key, and only the one that is meant", async (t) => {
    const stranger = dialBoth(identityOf("a", generateKeyPairSync("ed25519")));
    await waitFor("another key", () => stranger.problem !== null);
    t.match(stranger.problem!.message, /Nor over NATS: .*identity key/);
    stranger.close();
    const nobody = dialBoth(identityOf("a"), "c");
    await waitFor("nobody of that name", () => nobody.problem !== null);
    t.match(nobody.problem!.message, /Nor over NATS/);
    nobody.close();
    // Who has no key at all, and goes on in spite of it.
    const transport = await dialPeerOverNats({ connect, prefix, process: "b", clock: systemClock });
    const over = new Promise<void>((resolve) => transport.onClose(() => resolve()));
    transport.send(Buffer.from(`{"peer":1,"process":"a","incarnation":"one","nonce":"${"A".repeat(43)}"}`));
    await over;
    t.ok(
      refused.some((text) => text.includes("hello is malformed")),
      refused.join("; "),
    );
  });

  await t.test("streams cross; with the direct way back they move, and what runs goes on", async (t) => {
    const changes: (string | null)[] = [];
    const link = dialBoth(identityOf("a"), "b", changes);
    await waitFor("the link", () => link.up);
    t.equal(link.way, "nats");
    const open = async (): Promise<[LinkStream, LinkStream]> => {
      const near = link.open(
        { type: "open", replica, session, lane: "bulk", end: true, head: { say: 1 } },
        { lane: "bulk", end: true },
      );
      await waitFor("the stream", () => accepted.length > 0);
      const far = accepted.shift()!;
      t.same(far.head, { signed: { say: 1 } });
      far.respond({ yes: true });
      t.same(await near.answer, { yes: true });
      return [near, far];
    };
    const [near, far] = await open();
    let bytes = 0;
    const reading = (async () => {
      for await (const chunk of near.bytes) bytes += chunk.length;
    })();
    const block = Buffer.alloc(256 * 1024, 7);
    for (let n = 0; n < 16; n++) await far.write(block);
    door.target = Number(new URL(url).port);
    await waitFor("the direct way", () => link.way === "direct");
    const [other, otherFar] = await open();
    await otherFar.write(block);
    await otherFar.end();
    let more = 0;
    for await (const chunk of other.bytes) more += chunk.length;
    t.equal(more, block.length, "new streams go the direct way");
    for (let n = 0; n < 16; n++) await far.write(block);
    await far.end();
    await reading;
    t.equal(bytes, 32 * block.length, "and the old one to its end");
    t.same(changes, ["nats", "direct"]);
  });

  await t.test("the NATS server goes away: the link breaks, and is back with it", async (t) => {
    door.target = null;
    const changes: (string | null)[] = [];
    const link = dialBoth(identityOf("a"), "b", changes);
    await waitFor("the link", () => link.up);
    await nats.stop();
    await waitFor("the break", () => !link.up);
    await nats.resume();
    await waitFor("the link again", () => link.up);
    t.same(changes, ["nats", "LINK_LOST", "nats"]);
    t.equal(link.way, "nats");
  });
});
