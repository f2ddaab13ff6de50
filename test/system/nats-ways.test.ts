// How an agent gets into a NATS network and stays: each kind of login, held against the server's permissions; through a
// proxy that asks for a password; and from one process of the control plane to the next without a failed command.
import { createHash, randomBytes } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { connect, credsAuthenticator, nkeyAuthenticator, nkeys, type ConnectionOptions } from "@nats-io/transport-node";
import t, { type Test } from "tap";
import { tempDir, waitFor } from "../support/launcher.ts";
import { natsOperator } from "../support/nats-jwt.ts";
import { startNats, type NatsServer } from "../support/nats.ts";
import { processesOf, startProcesses } from "../support/several.ts";
import { startServer } from "../support/servers.ts";
import { needs } from "../support/skip.ts";
import { family, socketsOf } from "../support/sockets.ts";
import { CEILINGS, connectAgent, TestAgent, TestCloud, type CloudClient } from "../support/stack.ts";

const CONTENT = randomBytes(4 * 2 ** 20);
const DIGEST = createHash("sha256").update(CONTENT).digest("hex");
const rightsOf = (name: string) => ({ publish: `sallyport.up.${name}.>`, subscribe: `sallyport.down.${name}.>` });
const user = (login: string, { publish, subscribe }: { publish: string; subscribe: string }) =>
  `{ ${login}, permissions: { publish: "${publish}", subscribe: "${subscribe}" } }`;
const CLOUD = user("user: cloud, password: cloud-secret", { publish: "sallyport.down.>", subscribe: "sallyport.up.>" });

/** An agent over NATS, in a pool of its own name, that shows what it has. */
async function agentBy(t: Test, cloud: CloudClient, nats: NatsServer, name: string, link: string) {
  const store = tempDir(t, "store");
  writeFileSync(join(store, "big.bin"), CONTENT);
  const agent = await connectAgent(t, cloud, name, {
    config: `
link:
  url: ${nats.url}
  stableAfterMs: 0
  ${link}
stores: [{ id: box, kind: fs, root: ${store} }]
policy:
  ${CEILINGS}
  commands: ["artifact.*"]
  stores: [{ store: box, read: ["**"] }]
  release: { metadata: true, raw: true }
`,
  });
  const row = (await cloud.agents()).find(({ pool }) => pool.name === name)!;
  t.equal(row.remoteAddress, `nats:${name}`, "it came by its own name");
  const whole = await cloud.api.call(`/v1/pools/${name}/stores/box/content?path=big.bin`);
  t.equal(createHash("sha256").update(whole.body).digest("hex"), DIGEST, "a download");
  return agent;
}

/** Whoever has this login is refused all that is another agent's. */
async function refusedOthers(t: Test, nats: NatsServer, own: string, login: ConnectionOptions): Promise<void> {
  const client = await connect({ servers: nats.url.replace("nats://", ""), reconnect: false, ...login });
  const errors: string[] = [];
  void (async () => {
    for await (const status of client.status()) if (status.type === "error") errors.push(status.error.message);
  })();
  const wrong = ["sallyport.down.other.>", "sallyport.up.>", "sallyport.>", ">"];
  for (const subject of wrong) client.subscribe(subject, { callback: () => {} });
  client.publish("sallyport.up.other.hello", "{}");
  client.publish(`sallyport.down.${own}.${"0".repeat(32)}`, "x");
  client.publish("sallyport.one.peer.up.x.hello", "{}");
  await waitFor("all to be refused", () => errors.length >= wrong.length + 3);
  t.ok(errors.every((message) => message.includes("Permissions Violation")));
  client.subscribe(`sallyport.down.${own}.>`, { callback: () => {} });
  await client.flush();
  t.equal(errors.length, wrong.length + 3, "and nothing of its own");
  await client.close();
}

t.test("logins", { skip: needs("nats"), timeout: 200_000 }, async (t) => {
  await t.test("user and password, and an nkey", async (t) => {
    const pair = nkeys.createUser();
    const seed = Buffer.from(pair.getSeed()).toString();
    const users = [
      CLOUD,
      user("user: by-password, password: agent-secret", rightsOf("by-password")),
      user(`nkey: ${pair.getPublicKey()}`, rightsOf("by-nkey")),
    ];
    const nats = await startNats(t, { authorization: `users: [\n${users.join("\n")}\n]` });
    const cloud = await TestCloud.start(t, { args: ["--nats-url", nats.url.replace("://", "://cloud:cloud-secret@")] });
    await agentBy(t, cloud, nats, "by-password", `nats: { user: by-password, password: agent-secret }`);
    await refusedOthers(t, nats, "by-password", { user: "by-password", pass: "agent-secret" });
    const file = join(tempDir(t, "seed"), "seed");
    writeFileSync(file, `${seed}\n`);
    await agentBy(t, cloud, nats, "by-nkey", `nats: { name: by-nkey, nkey: "\${file:${file}}" }`);
    await refusedOthers(t, nats, "by-nkey", { authenticator: nkeyAuthenticator(Buffer.from(seed)) });

    const stranger = new TestAgent(t, cloud, {
      config: `link: { url: ${nats.url}, nats: { name: by-nkey, nkey: ${Buffer.from(nkeys.createUser().getSeed()).toString()} } }\n`,
    });
    const { secret } = await cloud.enroll("stranger");
    await stranger.start(secret).waitForOutput(/refuses the agent's credentials/);
    const other = new TestAgent(t, cloud, {
      config: `link: { url: ${nats.url}, nats: { name: by-nkey, user: by-password, password: agent-secret } }\n`,
    });
    await other.start(secret).waitForOutput(/The NATS server refuses: .*Permissions Violation/i);
  });

  await t.test("a token, for both", async (t) => {
    const nats = await startNats(t, { authorization: `token: "token-secret"` });
    const cloud = await TestCloud.start(t, { args: ["--nats-url", nats.url.replace("://", "://token-secret@")] });
    await agentBy(t, cloud, nats, "by-token", `nats: { name: by-token, token: token-secret }`);
    t.notMatch(cloud.program.output.toString(), "token-secret");
  });

  await t.test("credentials files of a network with an operator, by a scoped signing key", async (t) => {
    const operator = natsOperator(rightsOf("{{name()}}"));
    const nats = await startNats(t, { config: operator.config });
    const folder = tempDir(t, "creds");
    const file = (name: string, text: string): string => {
      writeFileSync(join(folder, name), text);
      return join(folder, name);
    };
    const own = file("cloud.creds", operator.user("cloud", ["sallyport.down.>"], ["sallyport.up.>"]));
    const cloud = await TestCloud.start(t, { args: ["--nats-url", nats.url, "--nats-creds", own] });
    const creds = operator.agent("by-creds");
    const link = `nats: { creds: "\${file:${file("agent.creds", creds)}}" }`;
    const agent = await agentBy(t, cloud, nats, "by-creds", link);
    await refusedOthers(t, nats, "by-creds", { authenticator: credsAuthenticator(Buffer.from(creds)) });
    for (const { program } of [agent, cloud]) t.notMatch(program.output.toString(), /SU[A-Z0-9]{40}/);
  });
});

t.test(
  "wss+nats:// by CONNECT through a proxy with a password",
  { skip: needs("nats", "squid"), timeout: 200_000 },
  async (t) => {
    const nats = await startNats(t, { tls: true, webSocket: true });
    const squid = await startServer(t, "squid");
    const proxy = Number(new URL(squid.settings["PROXY_URL"]!).port);
    const cloud = await TestCloud.start(t, {
      args: ["--nats-url", nats.url.replace("://", `://${nats.user}:${nats.password}@`), "--nats-ca", nats.caFile!],
    });
    const way = (password: string) => `
  noProxy: []
  proxy: { url: "http://127.0.0.1:${proxy}", user: app, password: ${password} }
  nats: { name: proxied, user: ${nats.user}, password: ${nats.password}, ca: ${nats.caFile} }`;
    const webSocket = { ...nats, url: nats.webSocketUrl! };
    const agent = await agentBy(t, cloud, webSocket, "proxied", way("app-secret"));
    const onlyThere = () =>
      t.same(
        family(agent.program.pid)
          .flatMap(socketsOf)
          .map((socket) => socket.remotePort),
        [proxy],
        "one connection, to the proxy",
      );
    onlyThere();
    await squid.restart();
    await waitFor("the agent to be back", async () => {
      const whole = await cloud.api.call("/v1/pools/proxied/stores/box/content?path=big.bin");
      return createHash("sha256").update(whole.body).digest("hex") === DIGEST;
    });
    onlyThere();
    const wrong = new TestAgent(t, cloud, { config: `link:\n  url: ${nats.webSocketUrl}\n${way("not-the-secret")}\n` });
    await wrong.start((await cloud.enroll("wrong")).secret).waitForOutput(/PROXY_AUTH_REQUIRED.*refuses the user app/);
  },
);

t.test(
  "a process is stopped: its agent moves over NATS, and no command fails",
  { skip: needs("nats", "postgres"), timeout: 200_000 },
  async (t) => {
    const nats = await startNats(t);
    const { all } = await startProcesses(t, 2, { nats });
    await agentBy(t, all[0]!, nats, "moving", `nats: { name: moving, user: ${nats.user}, password: ${nats.password} }`);
    const held = async (cloud: TestCloud) => (await processesOf(cloud)).items.find((one) => one.self)!.sessions;
    const [first, second] = ((await held(all[0]!)) === 1 ? all : all.toReversed()) as [TestCloud, TestCloud];
    const failures: string[] = [];
    let looks = 0;
    let going = true;
    const looking = (async () => {
      while (going) {
        const answer = await second.api.call("/v1/pools/moving/stores/box/stat?path=big.bin");
        looks++;
        if (answer.status !== 200) failures.push(answer.body.toString());
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
    })();
    await waitFor("looks", () => looks >= 20);
    t.equal((await first.program.stop({ graceMs: 60_000 })).code, 0);
    await waitFor("the agent to be at the other", async () => (await held(second)) === 1);
    const before = looks;
    await waitFor("more looks", () => looks >= before + 20);
    going = false;
    await looking;
    t.same(failures, [], `none of ${looks} looks failed`);
  },
);
