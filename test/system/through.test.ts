// A real agent goes online, shows a preview and gives a download through what stands between companies and the world:
// proxies, inspection, terminators, IPv6, names that move. Real partners, with their default time-outs.
import { createHash, randomBytes } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { connect } from "node:tls";
import t, { type Test } from "tap";
import type { AddressReport, Diagnosis } from "../../agent/doctor/index.ts";
import { tempDir, waitFor } from "../support/launcher.ts";
import { startServer, type Server } from "../support/servers.ts";
import { needs, needsCommand } from "../support/skip.ts";
import { family, socketsOf } from "../support/sockets.ts";
import { CEILINGS, connectAgent, TestAgent, TestCloud, type AgentOptions } from "../support/stack.ts";

t.setTimeout(300_000);

const BIG = randomBytes(4 * 1024 * 1024);
const DIGEST = createHash("sha256").update(BIG).digest("hex");
const PASSWORD = "app-secret";

interface Through extends Omit<AgentOptions, "config"> {
  /** YAML of `link:`. */
  readonly link?: string;
}

/** An agent of its own pool, online by that way. */
async function online(
  t: Test,
  cloud: TestCloud,
  { link, ...options }: Through,
): Promise<{ agent: TestAgent; pool: string }> {
  const store = tempDir(t, "store");
  writeFileSync(join(store, "big.bin"), BIG);
  writeFileSync(join(store, "table.csv"), "a,b\n1,2\n");
  const pool = `pool-${randomBytes(4).toString("hex")}`;
  const agent = await connectAgent(t, cloud, pool, {
    ...options,
    config: `
${link === undefined ? "" : `link: ${link}`}
stores: [{ id: box, kind: fs, root: ${store} }]
policy:
  ${CEILINGS}
  commands: ["artifact.*"]
  stores: [{ store: box, read: ["**"] }]
  release: { metadata: true, previews: { rows: 5 }, raw: true }
`,
  });
  return { agent, pool };
}

async function works(t: Test, cloud: TestCloud, pool: string): Promise<void> {
  const box = `/v1/pools/${pool}/stores/box`;
  const preview = await cloud.api.call(`${box}/preview?path=table.csv`);
  t.equal(preview.status, 200, "a preview");
  t.match(preview.body.toString(), /"a"/);
  const whole = await cloud.api.call(`${box}/content?path=big.bin`);
  t.equal(createHash("sha256").update(whole.body).digest("hex"), DIGEST, "a download");
}

/** Invariant 1: one connection, to that port alone. */
function onlyTo(t: Test, agent: TestAgent, port: number): void {
  const sockets = family(agent.program.pid).flatMap(socketsOf);
  t.same(
    sockets.map((socket) => socket.remotePort),
    [port],
    "one connection, there",
  );
}

async function doctor(agent: TestAgent): Promise<AddressReport & { exit: number | null }> {
  const run = agent.cli(["doctor", "-o", "json"]);
  const { code } = await run.exited;
  const diagnosis = JSON.parse(run.output.toString()) as Diagnosis;
  return { ...diagnosis.addresses[0]!, exit: code };
}

const portOf = (server: Server): number =>
  Number(new URL(server.settings["TERMINATOR_URL"] ?? server.settings["PROXY_URL"]!).port);
const front = (server: Server): Pick<AgentOptions, "url" | "ca"> => ({
  url: server.settings["TERMINATOR_URL"]!,
  ca: server.settings["TERMINATOR_CA"]!,
});
const clientCertificate = (server: Server): string =>
  `{ clientCertificate: { cert: ${server.settings["CLIENT_CERT"]}, key: ${server.settings["CLIENT_KEY"]} } }`;

t.test("proxies", { skip: needs("squid") }, async (t) => {
  const cloud = await TestCloud.start(t, { tls: true });
  const caFile = join(cloud.dir, "tls/ca.crt");
  // By its name: the certificates that squid makes hold addresses as names, which counts for no address.
  const url = `https://localhost:${cloud.port}`;
  const passwordFile = join(tempDir(t, "password"), "password");
  const link = (proxy: Server, file = passwordFile) =>
    `{ noProxy: [], proxy: { url: "http://127.0.0.1:${portOf(proxy)}", user: app, password: "\${file:${file}}" } }`;
  writeFileSync(passwordFile, `${PASSWORD}\n`);

  await t.test("before the enrolment: the secret is looked at, and stays good", async (t) => {
    const squid = await startServer(t, "squid");
    const agent = new TestAgent(t, cloud, { url, config: `link: ${link(squid)}\n` });
    const { secret } = await cloud.enroll("early");
    const run = agent.cli(["doctor"], { SALLYPORT_ENROLL_SECRET: secret });
    t.match(await run.exited, { code: 0 });
    const said = run.output.toString();
    t.match(said, /ok {4}tls .*\n.*ok {4}upgrade .*\n.*ok {4}handshake .*identity key of the enrolment secret/, said);
    t.notMatch(said, PASSWORD);
    t.notOk(existsSync(join(agent.state, "identity.key")), "nothing was made");
    agent.start(secret);
    await waitFor("the agent to join by it", async () =>
      (await cloud.agents()).some((one) => one.pool.name === "early"),
    );
  });

  await t.test("CONNECT with a password; the CA is the one of the enrolment", async (t) => {
    const squid = await startServer(t, "squid");
    const { agent, pool } = await online(t, cloud, { link: link(squid) });
    await works(t, cloud, pool);
    onlyTo(t, agent, portOf(squid));
    t.match(await doctor(agent), { ok: true, exit: 0, proxy: `127.0.0.1:${portOf(squid)}` });
    t.notMatch(agent.program.output.toString(), PASSWORD);

    await t.test("a restart of the proxy", async (t) => {
      await squid.restart();
      await waitFor("the agent to be back", async () =>
        (await cloud.agents()).some((one) => one.pool.name === pool && one.state === "connected"),
      );
      await works(t, cloud, pool);
    });
    await t.test("a wrong password is told, and waits for a person", async (t) => {
      writeFileSync(passwordFile, "not-the-secret\n");
      t.match(await doctor(agent), {
        ok: false,
        exit: 1,
        hops: [
          { hop: "dns" },
          { hop: "tcp" },
          { hop: "proxy", code: "PROXY_AUTH_REQUIRED", text: /refuses the user app/ },
        ],
      });
      writeFileSync(passwordFile, `${PASSWORD}\n`);
    });
  });

  await t.test("TLS is inspected, and the proxy's CA is given", async (t) => {
    const squid = await startServer(t, "squid", ["--inspect", "--trust", caFile, "--upgrade"]);
    const { agent, pool } = await online(t, cloud, { url, link: link(squid), ca: squid.settings["PROXY_CA"]! });
    await works(t, cloud, pool);
    onlyTo(t, agent, portOf(squid));
    t.match(await doctor(agent), { ok: true, exit: 0 });

    // The same proxy, with only the control plane's own CA known: who signed is said.
    agent.configure(`link: ${link(squid)}\n`, url, caFile);
    t.match(await doctor(agent), {
      ok: false,
      exit: 1,
      hops: [
        {},
        {},
        {},
        { hop: "tls", code: "CLOUD_UNTRUSTED", text: /signed by “sallyport test CA \d+”, which/, fix: /inspecting/ },
      ],
    });
  });

  await t.test("TLS is inspected, and the Upgrade header is lost", async (t) => {
    const squid = await startServer(t, "squid", ["--inspect", "--trust", caFile]);
    const { agent } = await online(t, cloud, { link: "{}" });
    agent.configure(`link: ${link(squid)}\n`, url, squid.settings["PROXY_CA"]);
    t.match(await doctor(agent), {
      ok: false,
      exit: 1,
      hops: [{}, {}, {}, { hop: "tls" }, { hop: "upgrade", finding: "upgrade-stripped", fix: /exempt this host/ }],
    });
  });
});

t.test("terminators", { skip: needs("nginx", "haproxy") }, async (t) => {
  const cloud = await TestCloud.start(t);
  const to = ["--to", String(cloud.port)];

  await t.test("nginx", async (t) => {
    const nginx = await startServer(t, "nginx", to);
    const { agent, pool } = await online(t, cloud, front(nginx));
    await works(t, cloud, pool);
    onlyTo(t, agent, portOf(nginx));
    t.match(await doctor(agent), { ok: true, exit: 0 });
  });

  await t.test("nginx, without the two headers", async (t) => {
    const nginx = await startServer(t, "nginx", [...to, "--no-upgrade"]);
    const { agent } = await online(t, cloud, {});
    agent.configure("", nginx.settings["TERMINATOR_URL"]!, nginx.settings["TERMINATOR_CA"]);
    t.match(await doctor(agent), {
      ok: false,
      hops: [{}, {}, {}, { hop: "upgrade", finding: "upgrade-stripped", text: /426/, fix: /proxy_http_version/ }],
    });
  });

  await t.test("HAProxy, which cuts what is silent for 7 s", async (t) => {
    const haproxy = await startServer(t, "haproxy", [...to, "--idle", "7"]);
    const { agent, pool } = await online(t, cloud, front(haproxy));
    const before = (await cloud.agents()).find((one) => one.pool.name === pool)!.connectedAt;
    // Its sense of time, seen on a connection that says nothing: twice, to be well over it.
    for (let n = 0; n < 2; n++) {
      await new Promise<void>((resolve) => {
        const silent = connect({ host: "127.0.0.1", port: portOf(haproxy), rejectUnauthorized: false });
        silent.on("error", () => {});
        silent.on("close", () => resolve());
        silent.resume();
      });
    }
    const after = (await cloud.agents()).find((one) => one.pool.name === pool)!;
    t.match(after, { state: "connected", connectedAt: before }, "the beats kept the link");
    t.notMatch(agent.program.output.toString(), /no link/);
    await works(t, cloud, pool);
    onlyTo(t, agent, portOf(haproxy));
  });

  for (const name of ["nginx", "haproxy"] as const) {
    await t.test(`${name} demands a client certificate`, async (t) => {
      const gateway = await startServer(t, name, [...to, "--client-ca"]);
      const { agent, pool } = await online(t, cloud, { ...front(gateway), link: clientCertificate(gateway) });
      await works(t, cloud, pool);
      t.match(await doctor(agent), { ok: true, exit: 0 });
      agent.configure("", gateway.settings["TERMINATOR_URL"]!, gateway.settings["TERMINATOR_CA"]);
      const without = await doctor(agent);
      t.match(without, { ok: false, exit: 1 });
      t.match(without.hops.at(-1), { finding: "client-certificate", fix: /link\.clientCertificate/ });
    });
  }

  await t.test("the second address, when the first died", async (t) => {
    const first = await startServer(t, "haproxy", to);
    const second = await startServer(t, "nginx", to);
    const bundle = join(tempDir(t, "ca"), "both.pem");
    writeFileSync(
      bundle,
      [first, second].map((server) => readFileSync(server.settings["TERMINATOR_CA"]!, "utf8")).join("\n"),
    );
    const { agent, pool } = await online(t, cloud, {
      url: front(first).url!,
      ca: bundle,
      link: `{ addresses: ["${front(second).url}"] }`,
    });
    onlyTo(t, agent, portOf(first));
    const connectedAt = (await cloud.agents()).find((one) => one.pool.name === pool)!.connectedAt!;
    await first.stop();
    await waitFor("the agent to be back", async () => {
      const one = (await cloud.agents()).find(({ pool: { name } }) => name === pool)!;
      return one.state === "connected" && one.connectedAt! > connectedAt;
    });
    await works(t, cloud, pool);
    onlyTo(t, agent, portOf(second));
    t.match(await doctor(agent), { ok: false, hops: [{}, { hop: "tcp", finding: "refused" }] }, "the dead one is told");
  });

  await t.test(
    "a name with two addresses, then with another one: IPv6 alone",
    {
      skip: needsCommand("unshare", "util-linux") || (process.getuid?.() === 0 ? false : "mounts, which only root may"),
    },
    async (t) => {
      const hosts = join(tempDir(t, "hosts"), "hosts");
      writeFileSync(hosts, "::1 localhost\n127.0.0.1 localhost\n");
      const old = await startServer(t, "haproxy", to);
      const port = String(portOf(old));
      const ca = old.settings["TERMINATOR_CA"]!;
      const { agent, pool } = await online(t, cloud, { url: `https://localhost:${port}`, ca, hosts });
      await works(t, cloud, pool);
      const { hops } = await doctor(agent);
      t.match(hops, [{ text: /::1.*127\.0\.0\.1|127\.0\.0\.1.*::1/ }, { text: /127\.0\.0\.1 answers/ }]);

      // The same port on ::1, where the name leads from now on.
      await startServer(t, "haproxy", [...to, "--ipv6", "--port", port, "--certificates", old.dir]);
      writeFileSync(hosts, "::1 localhost\n");
      const connectedAt = (await cloud.agents()).find((one) => one.pool.name === pool)!.connectedAt!;
      await old.stop();
      await waitFor("the agent to be back", async () => {
        const one = (await cloud.agents()).find(({ pool: { name } }) => name === pool)!;
        return one.state === "connected" && one.connectedAt! > connectedAt;
      });
      await works(t, cloud, pool);
      t.match((await doctor(agent)).hops, [{ text: "::1" }, { text: /^::1 answers/ }]);
    },
  );

  await t.test("an IPv6 address itself", async (t) => {
    const haproxy = await startServer(t, "haproxy", [...to, "--ipv6"]);
    const { agent, pool } = await online(t, cloud, front(haproxy));
    await works(t, cloud, pool);
    onlyTo(t, agent, portOf(haproxy));
  });
});
