import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { GetObjectCommand, PutObjectCommand, S3Client } from "@aws-sdk/client-s3";
import pg from "pg";
import t from "tap";
import { repository } from "./launcher.ts";
import { connect } from "@nats-io/transport-node";
import { startNats } from "./nats.ts";
import { startPostgres, startS3, startVault } from "./servers.ts";
import { needs } from "./skip.ts";

t.test("S3 over TLS: verifies signatures, keeps its state over a restart", { skip: needs("s3") }, async (t) => {
  const s3 = await startS3(t, { tls: true });
  const client = s3.client();
  t.teardown(() => client.destroy());
  const [Bucket, other] = [await s3.bucket(), await s3.bucket()];
  t.not(Bucket, other);
  await client.send(new PutObjectCommand({ Bucket, Key: "a/b.txt", Body: "hello" }));
  t.equal(readFileSync(join(s3.dataDir, Bucket, "a/b.txt"), "utf8"), "hello", "an object is a plain file");
  const impostor = new S3Client({
    endpoint: s3.endpoint,
    region: s3.region,
    forcePathStyle: true,
    credentials: { accessKeyId: s3.accessKeyId, secretAccessKey: "wrong" },
    requestHandler: { httpsAgent: { ca: readFileSync(s3.caFile ?? "") } },
  });
  t.teardown(() => impostor.destroy());
  await t.rejects(impostor.send(new GetObjectCommand({ Bucket, Key: "a/b.txt" })), { name: "SignatureDoesNotMatch" });
  await s3.restart();
  const found = await client.send(new GetObjectCommand({ Bucket, Key: "a/b.txt" }));
  t.equal(await found.Body?.transformToString(), "hello");
});

t.test("Vault: a secret is there for its token alone, also after a restart", { skip: needs("vault") }, async (t) => {
  const vault = await startVault(t, { persist: true });
  await vault.writeSecret("ml/s3", { secret_key: "x" });
  await vault.restart();
  t.match(await vault.api("GET", "secret/data/ml/s3"), { data: { data: { secret_key: "x" } } });
  const refused = await fetch(`${vault.address}/v1/secret/data/ml/s3`, { headers: { "X-Vault-Token": "wrong" } });
  t.equal(refused.status, 403);
});

t.test("PostgreSQL: a database each, TLS, its state over a restart", { skip: needs("postgres") }, async (t) => {
  const server = await startPostgres(t, { tls: true });
  const [one, other] = [await server.database(), await server.database()];
  await server.sql(one, "create table kept (n bigint)");
  await t.rejects(server.sql(other, "select n from kept"), { code: "42P01" });
  await server.restart();
  t.same(await server.sql(one, "select n from kept"), []);
  const client = new pg.Client({ connectionString: one, ssl: { ca: readFileSync(server.caFile!) } });
  await client.connect();
  t.same((await client.query("select ssl from pg_stat_ssl where pid = pg_backend_pid()")).rows, [{ ssl: true }]);
  await client.end();
  await t.rejects(server.sql(one.replace("app-secret", "wrong"), "select 1"), { code: "28P01" });
});

t.test(
  "NATS: verifies passwords, TLS, a leaf node reaches it, comes back where it was",
  { skip: needs("nats") },
  async (t) => {
    const server = await startNats(t, { leaf: true });
    const { user, password: pass } = server;
    const far = () => connect({ servers: server.leafUrl!, user, pass, reconnect: false });
    const asked = async () => {
      const [hub, leaf] = [await connect({ servers: server.url, user, pass, reconnect: false }), await far()];
      try {
        hub.subscribe("asked", { callback: (_error, message) => void message.respond("answered") });
        await hub.flush();
        // Interest crosses the leaf a moment after it was said at the hub.
        for (let tries = 0; ; tries++) {
          try {
            return (await leaf.request("asked", "", { timeout: 1_000 })).string();
          } catch (error) {
            if (tries === 50) throw error;
            await new Promise((resolve) => setTimeout(resolve, 100));
          }
        }
      } finally {
        await Promise.all([hub.close(), leaf.close()]);
      }
    };
    t.equal(await asked(), "answered");
    await t.rejects(connect({ servers: server.url, user, pass: "wrong", reconnect: false }), {
      name: "AuthorizationError",
    });
    await server.restart();
    t.equal(await asked(), "answered");
    const secure = await startNats(t, { tls: true, webSocket: true });
    await t.rejects(connect({ servers: secure.url, user, pass, reconnect: false }), "without the CA");
    const client = await connect({
      servers: secure.url,
      user,
      pass,
      reconnect: false,
      tls: { caFile: secure.caFile! },
    });
    await client.close();
    t.match(secure.webSocketUrl, /^wss\+nats:/);
  },
);

t.test("every server that a test can ask for has its recipe", async (t) => {
  for (const name of ["s3", "vault", "docker", "chromium", "postgres", "nats"])
    t.ok(existsSync(join(repository, "test/support/servers", name)), name);
});
