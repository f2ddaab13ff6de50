// The multiplexer over a real WebSocket on loopback.
import { randomBytes } from "node:crypto";
import { createServer } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import t from "tap";
import { WebSocket, WebSocketServer } from "ws";
import { systemClock, wait, type Clock } from "./clock.ts";
import { FrameMac, FrameReader, FrameWriter } from "./codec.ts";
import { ConnectorError } from "./errors.ts";
import { FRAME, FRAME_NAMES, type FrameType } from "./frames.ts";
import { DEFAULT_WINDOWS, Mux, type MuxOptions } from "./mux.ts";
import type { LinkStream } from "./stream.ts";
import { webSocketTransport } from "./transport-ws.ts";
import type { Transport } from "./transport.ts";

interface Pair {
  agent: Mux;
  cloud: Mux;
  agentTransport: Transport;
  cloudTransport: Transport;
  /** Types of the frames that the agent sent, in order. */
  sent: string[];
  accepted: AsyncIterator<LinkStream>;
  /** Stops the cloud's end from reading. */
  cloudSocket: Socket;
}

async function pair(
  t: { teardown(fn: () => unknown): void },
  options: {
    maced?: boolean;
    clock?: Clock;
    maxStreams?: number;
    wrap?: (transport: Transport) => Transport;
    /** Keys for bulk: absent = a CRC-32. "different": each end believes in other ones. */
    gmac?: "shared" | "different";
  } = {},
): Promise<Pair> {
  const server = createServer();
  const webSockets = new WebSocketServer({ noServer: true, perMessageDeflate: false });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const far = new Promise<{ transport: Transport; socket: Socket }>((resolve) =>
    server.on("upgrade", (request, socket, head) =>
      webSockets.handleUpgrade(request, socket, head, (webSocket) =>
        resolve({ transport: webSocketTransport(webSocket, socket as Socket), socket: socket as Socket }),
      ),
    ),
  );
  const webSocket = new WebSocket(`ws://127.0.0.1:${(server.address() as AddressInfo).port}`, {
    perMessageDeflate: false,
  });
  const opened = new Promise((resolve) => webSocket.once("open", resolve));
  let agentTransport = await new Promise<Transport>((resolve) =>
    webSocket.on("upgrade", (response) => resolve(webSocketTransport(webSocket, response.socket))),
  );
  await opened;
  const { transport: cloudTransport, socket: cloudSocket } = await far;
  const sent: string[] = [];
  const send = agentTransport.send.bind(agentTransport);
  agentTransport.send = (message) => {
    const type = message[0] as FrameType;
    if (message.length > 4096 || FRAME_NAMES[type] === undefined) sent.push("payload");
    else sent.push(`${FRAME_NAMES[type]}${type === FRAME.data ? `:${Buffer.from(message).readUInt32BE(2)}` : ""}`);
    send(message);
  };
  if (options.wrap !== undefined) agentTransport = options.wrap(agentTransport);
  const keys = [randomBytes(32), randomBytes(32)] as const;
  const bulk = [randomBytes(32), randomBytes(32), randomBytes(32), randomBytes(32)] as const;
  const mac = (key: Buffer) => (options.maced === false ? null : new FrameMac(key));
  const queue: LinkStream[] = [];
  let waiting: ((stream: LinkStream) => void) | null = null;
  const base = {
    id: "ses_test",
    clock: options.clock ?? systemClock,
    windows: DEFAULT_WINDOWS,
    peerWindows: DEFAULT_WINDOWS,
    maxStreams: options.maxStreams ?? 256,
    peerMaxStreams: 256,
    checksums: true,
  } satisfies Partial<MuxOptions>;
  const agent = new Mux({
    ...base,
    transport: agentTransport,
    side: "agent",
    bulkKeys: options.gmac === undefined ? null : { send: bulk[0], receive: bulk[1] },
    writer: new FrameWriter(mac(keys[0])),
    reader: new FrameReader(mac(keys[1])),
    onStream: () => {},
  });
  const cloud = new Mux({
    ...base,
    transport: cloudTransport,
    side: "cloud",
    bulkKeys:
      options.gmac === undefined
        ? null
        : options.gmac === "shared"
          ? { send: bulk[1], receive: bulk[0] }
          : { send: bulk[2], receive: bulk[3] },
    writer: new FrameWriter(mac(keys[1])),
    reader: new FrameReader(mac(keys[0])),
    onStream: (stream) => {
      if (waiting !== null) waiting(stream);
      else queue.push(stream);
      waiting = null;
    },
  });
  t.teardown(async () => {
    agent.close(new ConnectorError("CANCELLED", "The test is over."));
    agentTransport.destroy();
    cloudTransport.destroy();
    await new Promise((resolve) => server.close(resolve));
  });
  return {
    agent,
    cloud,
    agentTransport,
    cloudTransport,
    cloudSocket,
    sent,
    accepted: {
      next: () =>
        new Promise((resolve) => {
          const stream = queue.shift();
          if (stream !== undefined) resolve({ done: false, value: stream });
          else waiting = (value) => resolve({ done: false, value });
        }),
    },
  };
}

const accept = async (pair: Pair): Promise<LinkStream> => (await pair.accepted.next()).value as LinkStream;
const count = async (stream: LinkStream): Promise<number> => {
  let bytes = 0;
  for await (const chunk of stream.bytes) bytes += chunk.length;
  return bytes;
};
/** Resolves when the condition holds; looked at on every turn of the event loop. */
async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setImmediate(resolve));
}

t.test("a stalled reader stops at its credit and holds nobody else up", async (t) => {
  const both = await pair(t);
  const stalled = both.agent.open({ n: 1 }, { lane: "bulk" });
  const far = await accept(both);
  far.respond({});
  let taken = 0;
  const pump = (async () => {
    for (;;) {
      await stalled.write(Buffer.alloc(64 * 1024));
      taken += 64 * 1024;
    }
  })();
  pump.catch(() => {});
  await until(() => taken >= DEFAULT_WINDOWS.bulk);
  await both.agent.ping();
  t.equal(taken, DEFAULT_WINDOWS.bulk, "exactly its credit left");
  await until(() => both.agent.flow.inFlightBytes === 0);
  t.pass("and none of it occupies the link");

  const other = both.agent.open({ n: 2 }, { lane: "bulk" });
  const read = count(await accept(both));
  for (let i = 0; i < 256; i++) await other.write(Buffer.alloc(64 * 1024));
  await other.end();
  t.equal(await read, 16 * 1024 * 1024);
  t.equal(taken, DEFAULT_WINDOWS.bulk);

  // As soon as it reads, it goes on.
  const reading = count(far);
  await until(() => taken >= 8 * 1024 * 1024);
  stalled.reset(new ConnectorError("CANCELLED", "Enough."));
  await t.rejects(reading, { code: "CANCELLED" });
  await t.rejects(pump, { code: "CANCELLED" });
});

t.test("interactive and control frames pass bulk that waits", async (t) => {
  const both = await pair(t);
  const bulk = both.agent.open({}, { lane: "bulk" });
  const interactive = both.agent.open({}, { lane: "interactive" });
  const [a, b] = [await accept(both), await accept(both)];
  const read = Promise.all([count(a), count(b)]);
  both.sent.length = 0;
  // One turn of the event loop: bulk is asked for first, and leaves last.
  const writes = [
    bulk.write(Buffer.alloc(2000)),
    interactive.write(Buffer.alloc(2000)),
    bulk.write(Buffer.alloc(2000)),
    interactive.write(Buffer.alloc(2000)),
  ];
  void both.agent.ping();
  await Promise.all(writes);
  await Promise.all([bulk.end(), interactive.end()]);
  t.same(both.sent.slice(0, 5), ["PING", "DATA:3", "DATA:3", "DATA:1", "DATA:1"]);
  t.same(await read, [4000, 4000]);
});

t.test("streams of a lane take turns", async (t) => {
  const both = await pair(t);
  const streams = [
    both.agent.open({}, { lane: "bulk" }),
    both.agent.open({}, { lane: "bulk" }),
    both.agent.open({}, { lane: "bulk" }),
  ];
  const reads = Promise.all([count(await accept(both)), count(await accept(both)), count(await accept(both))]);
  both.sent.length = 0;
  await Promise.all(streams.map((stream) => stream.write(Buffer.alloc(200 * 1024))));
  await Promise.all(streams.map((stream) => stream.end()));
  t.same(both.sent.filter((frame) => frame.startsWith("DATA")).slice(0, 6), [
    "DATA:1",
    "DATA:3",
    "DATA:5",
    "DATA:1",
    "DATA:3",
    "DATA:5",
  ]);
  t.same(await reads, [200 * 1024, 200 * 1024, 200 * 1024]);
});

t.test("tiny frames cost a stalled reader's memory no more than their bytes", async (t) => {
  const both = await pair(t);
  const stream = both.agent.open({}, { lane: "interactive" });
  const far = await accept(both);
  for (let i = 0; i < 20_000; i++) void stream.write(Buffer.from([i & 255]));
  await stream.end();
  await both.agent.ping();
  const chunks: number[] = [];
  let expected = 0;
  let ordered = true;
  for await (const chunk of far.bytes) {
    chunks.push(chunk.length);
    for (const byte of chunk) if (byte !== (expected++ & 255)) ordered = false;
  }
  t.ok(ordered);
  t.equal(expected, 20_000);
  t.ok(chunks.length <= 3, `${chunks.length} chunks`);
});

for (const sum of ["crc32", "gmac"] as const)
  t.test(`what was damaged on the way is noticed at its end: ${sum}`, async (t) => {
    // Bulk bytes carry no MAC; the END's checksum is what tells.
    const both = await pair(t, {
      ...(sum === "gmac" ? { gmac: "shared" as const } : {}),
      wrap: (transport) => {
        const send = transport.send;
        let done = false;
        transport.send = (message) => {
          if (!done && message.length === 20_000) {
            done = true;
            message = Buffer.from(message);
            message[1234]! ^= 1;
          }
          send(message);
        };
        return transport;
      },
    });
    const stream = both.agent.open({}, { lane: "bulk" });
    const read = count(await accept(both));
    await stream.write(Buffer.alloc(20_000));
    await stream.end();
    await t.rejects(read, { code: "LINK_LOST", details: { reason: "PROTOCOL_ERROR" } });
    t.equal((await both.agent.closed).code, "PROTOCOL_ERROR", "the other end is told why");
  });

t.test("bulk under a key of the session: both ways, empty, in any cut; of another session it is none", async (t) => {
  const both = await pair(t, { gmac: "shared" });
  for (const sizes of [[], [1], [5, 200_000, 70_001]]) {
    const stream = both.agent.open({}, { lane: "bulk" });
    const far = await accept(both);
    far.respond({});
    const reads = [count(stream), count(far)];
    for (const end of [stream, far]) {
      for (const size of sizes) await end.write(randomBytes(size));
      await end.end();
    }
    const total = sizes.reduce((sum, size) => sum + size, 0);
    t.same(await Promise.all(reads), [total, total]);
  }
  const strangers = await pair(t, { gmac: "different" });
  const stream = strangers.agent.open({}, { lane: "bulk" });
  const read = count(await accept(strangers));
  await stream.write(Buffer.alloc(20_000));
  await stream.end();
  await t.rejects(read, { code: "LINK_LOST", details: { reason: "PROTOCOL_ERROR" } });
});

t.test("interactive bytes without a MAC, put in on the way, end the link", async (t) => {
  const both = await pair(t);
  const stream = both.agent.open({}, { lane: "interactive" });
  await accept(both);
  both.agentTransport.send(new FrameWriter(null).data(stream.id, 0, Buffer.from("forged"), false));
  t.equal((await both.agent.closed).code, "PROTOCOL_ERROR");
});

t.test("frames that no honest peer sends end the link with PROTOCOL_ERROR", async (t) => {
  const plain = new FrameWriter(null);
  const cases: Record<string, (open: number) => Buffer> = {
    "bytes for a stream that never was": () => plain.data(77, 0, Buffer.from("x"), false),
    "an answer to a stream of the other side": () => plain.control(FRAME.end, 0, 8, '{"bytes":0}'),
    "bytes over the credit": (id) => plain.data(id, 0, Buffer.alloc(4000), false),
    "an END with another length": (id) => plain.control(FRAME.end, 0, id, '{"bytes":5,"crc32":0}'),
    "a stream opened twice": (id) => plain.control(FRAME.open, 0, id, "{}"),
    "an ACK for bytes never sent": () => plain.control(FRAME.ack, 0, 0, '{"bytes":5,"echo":0,"holdUs":0}'),
    "a hello in the session": () => plain.control(FRAME.hello, 0, 0, "{}"),
    "a CREDIT that is no number": (id) => plain.control(FRAME.credit, 0, id, '{"limit":"x"}'),
  };
  for (const [name, frame] of Object.entries(cases)) {
    await t.test(name, async (t) => {
      const both = await pair(t, { maced: false });
      const stream = both.agent.open({}, { lane: "interactive" });
      await accept(both);
      for (let i = 0; i < (name.includes("credit") ? 80 : 1); i++) both.agentTransport.send(frame(stream.id));
      t.equal((await both.cloud.closed).code, "PROTOCOL_ERROR");
    });
  }
});

t.test("more streams than agreed are refused one by one, and the link lives", async (t) => {
  const both = await pair(t, { maxStreams: 3 });
  const streams = [1, 2, 3, 4].map((n) => both.agent.open({ n }, { lane: "interactive" }));
  const first = await accept(both);
  await t.rejects(streams[3]!.answer, { code: "STREAM_REFUSED" });
  first.respond({}, { end: true });
  await streams[0]!.end();
  await count(first);
  const next = both.agent.open({ n: 5 }, { lane: "interactive", end: true });
  for (const _ of [2, 3]) await accept(both);
  (await accept(both)).respond({ ok: 1 }, { end: true });
  t.same(await next.answer, { ok: 1 });
});

t.test("a lost link breaks every stream at once with LINK_LOST", async (t) => {
  const both = await pair(t);
  const stream = both.agent.open({}, { lane: "bulk" });
  const far = await accept(both);
  far.respond({});
  const reads = [count(stream), count(far)];
  const stuck = (async () => {
    for (;;) await stream.write(Buffer.alloc(256 * 1024));
  })();
  both.cloudTransport.destroy();
  for (const broken of await Promise.allSettled([...reads, stuck])) {
    t.equal(broken.status === "rejected" && (broken.reason as ConnectorError).code, "LINK_LOST");
  }
  t.equal((stream.signal.reason as ConnectorError).code, "LINK_LOST");
  t.throws(() => both.agent.open({}, { lane: "bulk" }), { code: "LINK_LOST" });
});

t.test("a stream that was opened and reset within one turn was never there", async (t) => {
  const both = await pair(t);
  both.agent.open({ n: 1 }, { lane: "interactive" }).reset(new ConnectorError("CANCELLED", "Never mind."));
  const second = both.agent.open({ n: 2 }, { lane: "interactive", end: true });
  const far = await accept(both);
  t.same(far.head, { n: 2 });
  far.respond({}, { end: true });
  await second.answer;
  t.equal(both.agent.openStreams, 0);
  t.equal(both.cloud.openStreams, 0);
});

t.test("a reader that leaves early resets the stream", async (t) => {
  const both = await pair(t);
  const stream = both.agent.open({}, { lane: "bulk" });
  const far = await accept(both);
  await stream.write(Buffer.alloc(1000));
  for await (const _ of far.bytes) break;
  await t.rejects(stream.answer, { code: "CANCELLED" });
});

t.test("drain waits for what runs, refuses what is new", async (t) => {
  const both = await pair(t);
  const running = both.agent.open({}, { lane: "interactive", end: true });
  const far = await accept(both);
  const drained = both.cloud.drain(new ConnectorError("GOING_AWAY", "Stopping."));
  await both.agent.ping();
  t.throws(() => both.agent.open({}, { lane: "interactive" }), { code: "GOING_AWAY" });
  far.respond({ done: true }, { end: true });
  await drained;
  t.same(await running.answer, { done: true });
});

t.test("a link that fell silent is dead after 12 s, a busy process is not", async (t) => {
  const { ManualClock } = await import("../test/support/clock.ts");
  const clock = new ManualClock();
  const both = await pair(t, { clock });
  t.ok((await both.agent.ping()) >= 0);
  // The far end stops reading: it still stands, and says nothing.
  both.cloudSocket.pause();
  let over: ConnectorError | null = null;
  void both.agent.closed.then((reason) => (over = reason));
  await clock.advance(11_900);
  t.equal(over, null);
  await clock.advance(200);
  t.equal((await both.agent.closed).code, "LINK_LOST");
});

t.test("a delayed path keeps a small standing queue and full use", async (t) => {
  // 20 ms each way and 4 MB/s, by holding back what the agent sends.
  const rate = 4_000;
  const both = await pair(t, {
    wrap: (transport) => {
      const send = transport.send;
      let freeAt = 0;
      let tail = Promise.resolve();
      transport.send = (message) => {
        freeAt = Math.max(freeAt, performance.now()) + message.length / rate;
        const dueAt = freeAt + 20;
        tail = tail.then(() => wait(systemClock, Math.max(0, dueAt - performance.now()))).then(() => send(message));
      };
      return transport;
    },
  });
  const once = async () => {
    const stream = both.agent.open({}, { lane: "bulk" });
    const read = count(await accept(both));
    const from = performance.now();
    const queued: number[] = [];
    for (let sent = 0; sent < 6_000_000; sent += 50_000) {
      await stream.write(Buffer.alloc(50_000));
      // The start is still finding out what the path holds.
      if (sent > 3_000_000) queued.push(both.agent.flow.inFlightBytes);
    }
    await stream.end();
    await read;
    const seconds = (performance.now() - from) / 1000;
    const standingMs = queued.sort((a, b) => a - b)[queued.length >> 1]! / rate - 20;
    return { rate: 6 / seconds, standingMs };
  };
  const isGood = ({ rate, standingMs }: Awaited<ReturnType<typeof once>>) => rate > 4 * 0.75 && standingMs < 60;
  let seen = await once();
  // A busy machine wakes the path late, which is not the link's doing; what is wrong with the link is so every time.
  for (let more = 0; more < 3 && !isGood(seen); more++) seen = await once();
  t.ok(isGood(seen), `${seen.rate.toFixed(1)} of 4 MB/s, a standing queue of ${seen.standingMs.toFixed(0)} ms`);
});

t.test("a long path is filled: the window of a reader that keeps up grows, within the link's spare", async (t) => {
  // 50 ms one way, as fast as it goes: 1 MiB of credit alone would be 20 MB/s.
  const both = await pair(t, {
    wrap: (transport) => {
      const send = transport.send;
      let tail = Promise.resolve();
      transport.send = (message) => {
        const dueAt = performance.now() + 50;
        tail = tail.then(() => wait(systemClock, Math.max(0, dueAt - performance.now()))).then(() => send(message));
      };
      return transport;
    },
  });
  const stream = both.agent.open({}, { lane: "bulk" });
  const far = await accept(both);
  const read = count(far);
  for (let i = 0; i < 512; i++) await stream.write(Buffer.alloc(64 * 1024));
  const windowBytes = (far.bytes as unknown as { windowBytes: number }).windowBytes;
  await stream.end();
  t.equal(await read, 32 * 1024 * 1024);
  t.equal(windowBytes, 8 * 1024 * 1024);
});
