// The life of a link over time, with the clock in hand; and the CA that an enrolment secret pins, over real TLS.
import { createPublicKey } from "node:crypto";
import { connect, createServer, type AddressInfo, type Server, type Socket } from "node:net";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import { ownTls } from "../../../cloud/keys/authority.ts";
import { ManualClock } from "../../support/clock.ts";
import { overNats } from "../../support/nats.ts";
import { startAgentEnd } from "./agent-end.ts";
import { byWebSocketOnly } from "./by-web-socket.ts";
import { startCloudEnd, type CloudEnd } from "./cloud-end.ts";

/** The control plane's address with another server's port. */
const elsewhere = (cloud: CloudEnd, server: Server): string =>
  cloud.url.replace(`:${cloud.port}`, `:${(server.address() as AddressInfo).port}`);

t.test("a cloud that is away: the agent starts, and waits in doubling windows", async (t) => {
  const probe = createServer();
  const port = await new Promise<number>((resolve) =>
    probe.listen(0, "127.0.0.1", () => resolve((probe.address() as { port: number }).port)),
  );
  await new Promise((resolve) => probe.close(resolve));
  const clock = new ManualClock();
  const agent = startAgentEnd({
    url: overNats ? `nats://user:password@127.0.0.1:${port}/none` : `http://127.0.0.1:${port}`,
    clock,
    random: () => 0.999_999,
    enrolment: {
      id: "enr_00000000000000000000000000000000" as never,
      secret: Buffer.alloc(32),
      identityFingerprint: "x",
      caFingerprint: null,
    },
  });
  t.teardown(() => agent.stop());
  const waits: number[] = [];
  let failed = agent.failed();
  for (let i = 0; i < 7; i++) {
    t.equal((await failed).code, "CLOUD_UNREACHABLE");
    const last = agent.events.at(-1)!;
    waits.push((last.type === "state" ? last.retryInMs : null) ?? -1);
    failed = agent.failed();
    if (i < 6) await clock.advance(waits.at(-1)!);
  }
  t.same(waits, [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000]);
});

t.test("a socket that accepts and says nothing is given up after 4 s", async (t) => {
  const silent = createServer();
  silent.listen(0, "127.0.0.1");
  await new Promise((resolve) => silent.once("listening", resolve));
  const sockets: { destroy(): void }[] = [];
  const connected = new Promise((resolve) =>
    silent.on("connection", (socket) => {
      sockets.push(socket);
      resolve(null);
    }),
  );
  t.teardown(() => {
    for (const socket of sockets) socket.destroy();
    silent.close();
  });
  const clock = new ManualClock();
  const cloud = await startCloudEnd();
  t.teardown(() => cloud.stop());
  const agent = startAgentEnd({
    url: elsewhere(cloud, silent),
    clock,
    enrolment: cloud.enrolment(),
  });
  t.teardown(() => agent.stop());
  await connected;
  const failed = agent.failed();
  await clock.advance(4_000);
  t.match(await failed, { code: "CLOUD_UNREACHABLE", message: /within 4 s/ });
});

t.test("a silent session of another instance is superseded after 5 s", async (t) => {
  const clock = new ManualClock();
  const cloud = await startCloudEnd({ clock });
  t.teardown(() => cloud.stop());
  // Between the first agent and the cloud stands a proxy that can stop passing bytes on while both sockets stay open.
  const pairs: [Socket, Socket][] = [];
  const proxy = createServer((near) => {
    const far = connect(cloud.port, "127.0.0.1");
    pairs.push([near, far]);
    near.pipe(far).pipe(near);
    for (const socket of [near, far]) socket.on("error", () => {});
  });
  await new Promise<void>((resolve) => proxy.listen(0, "127.0.0.1", resolve));
  t.teardown(() => {
    for (const socket of pairs.flat()) socket.destroy();
    proxy.close();
  });
  const agentClock = new ManualClock();
  const first = startAgentEnd({
    url: elsewhere(cloud, proxy),
    enrolment: cloud.enrolment(),
    clock: agentClock,
  });
  t.teardown(() => first.stop());
  const session = await first.online();
  const there = cloud.gateway.sessions.all()[0]!;
  for (const [near, far] of pairs) {
    near.unpipe();
    far.unpipe();
  }
  // Time may only move on once the second has proved who it is: its greeting has a deadline, too.
  const find = cloud.directory.findReplica.bind(cloud.directory);
  const proved = new Promise<void>((resolve) => {
    cloud.directory.findReplica = (id) => {
      resolve();
      return find(id);
    };
  });
  const second = startAgentEnd({ url: cloud.url, stateDirectory: first.stateDirectory, clock: agentClock });
  t.teardown(() => second.stop());
  await second.reached("greeting");
  const online = second.online();
  await proved;
  while (cloud.gateway.sessions.all()[0] === there) {
    await clock.advance(500);
    await new Promise((resolve) => setImmediate(resolve));
  }
  const next = await online;
  t.equal(next.replica, session.replica);
  t.equal(next.epoch, 2);
  t.equal((await there.closed).code, "SESSION_SUPERSEDED");
  t.equal(cloud.directory.alarms.length, 0);
});

byWebSocketOnly("the CA that the secret names is found, kept, and the only one trusted", async (t) => {
  const folder = () => {
    const path = mkdtempSync(join(tmpdir(), "sallyport-ca-"));
    t.teardown(() => rmSync(path, { recursive: true, force: true }));
    return path;
  };
  const tls = await ownTls(folder(), ["127.0.0.1"], Date.now());
  const cloud = await startCloudEnd({ tls });
  t.teardown(() => cloud.stop());
  const caFingerprint = tls.caFingerprint!;
  const agent = startAgentEnd({ url: cloud.url, enrolment: cloud.enrolment({ caFingerprint }) });
  t.teardown(() => agent.stop());
  await agent.online();
  t.match(JSON.parse(readFileSync(join(agent.stateDirectory, "identity.json"), "utf8")).ca, /BEGIN CERTIFICATE/);

  // Without the pin, and with the pin of another: refused before a word is said.
  for (const enrolment of [cloud.enrolment(), cloud.enrolment({ caFingerprint: "A".repeat(43) })]) {
    const other = startAgentEnd({ url: cloud.url, enrolment });
    t.equal((await other.failed()).code, "CLOUD_UNTRUSTED");
    other.stop();
  }
  // Another CA's server at the same place is not believed by the agent that pinned.
  const impostor = await startCloudEnd({
    tls: await ownTls(folder(), ["127.0.0.1"], Date.now()),
    directory: cloud.directory,
    identityKey: { privateKey: cloud.identityKey, publicKey: createPublicKey(cloud.identityKey) },
  });
  t.teardown(() => impostor.stop());
  const moved = startAgentEnd({ url: impostor.url, stateDirectory: agent.stateDirectory });
  t.teardown(() => moved.stop());
  t.equal((await moved.failed()).code, "CLOUD_UNTRUSTED");
});
