// The transport over a real NATS server, one end of it a plain NATS client: what is sent comes whole and in order, what
// waits is bounded, and whatever goes missing ends it.
import { randomBytes } from "node:crypto";
import { createServer, type AddressInfo } from "node:net";
import { connect, type NatsConnection } from "@nats-io/transport-node";
import {
  MAX_MESSAGE_BYTES,
  acceptNats,
  dialNats,
  natsSocket,
  natsSubjects,
  readNatsHello,
  systemClock,
  type NatsTransportOptions,
  type Transport,
} from "@sallyport/protocol";
import fc from "fast-check";
import t, { type Test } from "tap";
import { dialNatsLink } from "../../../agent/link/index.ts";
import { waitFor } from "../../support/launcher.ts";
import { startNats, type NatsServer } from "../../support/nats.ts";
import { needs } from "../../support/skip.ts";
import { natsRoute } from "./agent-end.ts";

const MIB = 2 ** 20;
const WINDOW = 16 * MIB;
const prefix = "sallyport";
const name = "edge";

const client = async (t: Test, server: NatsServer): Promise<NatsConnection> => {
  const { user, password: pass } = server;
  const connection = await connect({ servers: server.url, user, pass, reconnect: false });
  t.teardown(() => connection.close());
  return connection;
};
const optionsOf = async (t: Test, server: NatsServer, session: string): Promise<NatsTransportOptions> => {
  const connection = await client(t, server);
  return { connection, socket: natsSocket(connection), prefix, name, session, clock: systemClock };
};

interface Pair {
  agent: Transport;
  cloud: Transport;
  session: string;
}
/** As the two ends find each other: hello, then a transport for the session that it names. */
async function pair(t: Test, server: NatsServer): Promise<Pair> {
  const session = randomBytes(16).toString("hex");
  const hellos = await client(t, server);
  const cloud = new Promise<Transport>((resolve, reject) => {
    hellos.subscribe(natsSubjects(prefix, name, session).hello, {
      callback: (_error, message) => {
        const hello = readNatsHello(prefix, message);
        if (hello?.session === session) optionsOf(t, server, session).then(acceptNats).then(resolve, reject);
      },
    });
  });
  await hellos.flush();
  const agent = await dialNats(await optionsOf(t, server, session));
  const made = { agent, cloud: await cloud, session };
  t.teardown(() => [made.agent, made.cloud].forEach((end) => end.destroy()));
  return made;
}

t.test(
  "messages of any size come whole and in order, however little the server takes",
  { skip: needs("nats") },
  async (t) => {
    const server = await startNats(t, { maxPayload: 2_000 });
    const ends = await pair(t, server);
    for (const [from, to] of [
      [ends.agent, ends.cloud],
      [ends.cloud, ends.agent],
    ] as const) {
      let expected: Uint8Array[] = [];
      let wrong = 0;
      let came = 0;
      to.onMessage((message) => {
        came++;
        if (!message.equals(expected.shift() ?? randomBytes(1))) wrong++;
      });
      await fc.assert(
        fc.asyncProperty(
          fc.array(
            fc.oneof({ weight: 8, arbitrary: fc.nat(5_000) }, { weight: 1, arbitrary: fc.nat(MAX_MESSAGE_BYTES) }),
            {
              maxLength: 30,
            },
          ),
          fc.boolean(),
          async (sizes, corked) => {
            expected = sizes.map((size) => randomBytes(size));
            const until = came + sizes.length;
            if (corked) from.cork();
            for (const message of [...expected]) from.send(message);
            if (corked) from.uncork();
            await waitFor("all to come", async () => came >= until, { everyMs: 2 });
            return wrong === 0 && came === until;
          },
        ),
        { numRuns: 20 },
      );
    }
    const over = new Promise<Error | null>((resolve) => ends.cloud.onClose(resolve));
    const last = new Promise<Buffer>((resolve) => ends.cloud.onMessage(resolve));
    ends.agent.send(Buffer.from("the last word"));
    ends.agent.close();
    t.equal((await last).toString(), "the last word", "what was sent before the end still comes");
    t.equal(await over, null, "a clean end");
  },
);

t.test("a user that may not use these subjects is told which it needs", { skip: needs("nats") }, async (t) => {
  const user = (permissions: string) => `users: [{ user: app, password: app-secret, permissions: ${permissions} }]`;
  for (const permissions of [
    `{ publish: "sallyport.up.edge.>", subscribe: "sallyport.down.other.>" }`,
    `{ publish: "sallyport.up.other.>", subscribe: "sallyport.down.edge.>" }`,
  ]) {
    const server = await startNats(t, { authorization: user(permissions) });
    await t.rejects(optionsOf(t, server, "0".repeat(32)).then(dialNats), {
      code: "CLOUD_UNREACHABLE",
      message: /The NATS server refuses: Permissions Violation/i,
      fix: "Let the NATS user publish to sallyport.up.edge.> and subscribe to sallyport.down.edge.>.",
    });
  }
});

t.test(
  "what waits is bounded, and whatever is missing ends it",
  { skip: needs("nats"), timeout: 120_000 },
  async (t) => {
    const server = await startNats(t);
    /** An agent's end whose peer is a plain client: it welcomes, and counts. */
    const alone = async (t: Test) => {
      const session = randomBytes(16).toString("hex");
      const subjects = natsSubjects(prefix, name, session);
      const peer = await client(t, server);
      const seen = { bytes: 0 };
      peer.subscribe(subjects.hello, { callback: () => peer.publish(subjects.down, Buffer.of(3)) });
      peer.subscribe(subjects.up, {
        callback: (_error, { data }) => {
          if (data[0] === 1) seen.bytes += data.length;
        },
      });
      await peer.flush();
      const agent = await dialNats(await optionsOf(t, server, session));
      t.teardown(() => agent.destroy());
      const over = new Promise<Error | null>((resolve) => agent.onClose(resolve));
      const say = (kind: number, more: Buffer) => peer.publish(subjects.down, Buffer.concat([Buffer.of(kind), more]));
      return { agent, over, peer, seen, say };
    };
    const u32 = (value: number) => {
      const bytes = Buffer.alloc(4);
      bytes.writeUInt32BE(value);
      return bytes;
    };

    await t.test("a peer that acknowledges nothing", async (t) => {
      const { agent, peer, seen, say } = await alone(t);
      const drained = new Promise<void>((resolve) => agent.onDrain(() => agent.bufferedBytes === 0 && resolve()));
      for (let sent = 0; sent < 20 * MIB; sent += MIB) agent.send(randomBytes(MIB));
      await waitFor("the window to be full", async () => seen.bytes >= WINDOW);
      await peer.flush();
      t.ok(seen.bytes < WINDOW + 64 * 1024, `${seen.bytes} bytes left it`);
      t.ok(agent.bufferedBytes > 20 * MIB - seen.bytes - 1000, "the rest is counted as waiting");
      const ack = Buffer.alloc(6);
      ack.writeUIntBE(seen.bytes, 0, 6);
      say(2, ack);
      await drained;
      await waitFor("all of it", async () => seen.bytes > 20 * MIB);
      t.equal(agent.bufferedBytes, 0);
    });

    const endings: [string, (one: Awaited<ReturnType<typeof alone>>) => void, RegExp][] = [
      ["a number is left out", ({ say }) => say(1, u32(1)), /lost on the way/],
      ["the same number twice", ({ say }) => [0, 0].forEach((n) => say(1, u32(n))), /lost on the way/],
      ["the end comes before what it follows", ({ say }) => say(5, u32(1)), /lost on the way/],
      ["more is acknowledged than was sent", ({ say }) => say(2, Buffer.alloc(6, 1)), /packet that is none/],
      ["a kind that does not exist", ({ say }) => say(9, u32(0)), /packet that is none/],
      ["a message that is too long", ({ say }) => say(1, Buffer.concat([u32(0), u32(2 ** 31)])), /announced a message/],
      ["the other end cuts it", ({ say }) => say(6, Buffer.alloc(0)), /other end cut it/],
      [
        "the other end's process is gone",
        ({ agent, over, peer }) => {
          let told = false;
          void over.then(() => (told = true));
          // The server may learn of it a moment after the first question.
          const ask = async () => {
            agent.send(Buffer.from("are you there?"));
            return told;
          };
          void peer.close().then(() => waitFor("the word of it", ask));
        },
        /nobody is at the other end/,
      ],
    ];
    for (const [what, act, words] of endings)
      await t.test(what, async (t) => {
        const one = await alone(t);
        act(one);
        t.match((await one.over)?.message, words);
        t.doesNotThrow(() => one.agent.send(Buffer.from("nobody minds")));
        t.equal(one.agent.bufferedBytes, 0);
      });

    await t.test("the server is gone, and while it is there nobody listens", async (t) => {
      const { over } = await alone(t);
      await server.restart();
      t.ok((await over) instanceof Error);
      await t.rejects(optionsOf(t, server, "0".repeat(32)).then(dialNats), {
        code: "CLOUD_UNREACHABLE",
        message: /No control plane listens/,
      });
    });
  },
);

t.test("a server that takes the connection and says nothing gets it back when the dial is given up", async (t) => {
  const silent = createServer();
  const closed = new Promise<void>((resolve) =>
    silent.on("connection", (socket) => void socket.resume().on("close", () => resolve())),
  );
  await new Promise<void>((resolve) => silent.listen(0, "127.0.0.1", resolve));
  t.teardown(() => silent.close());
  const { port } = silent.address() as AddressInfo;
  const route = natsRoute(`nats://user:password@127.0.0.1:${port}/none`, name);
  await t.rejects(dialNatsLink(route, systemClock, new AbortController().signal), /within 4 s/);
  await closed;
});
