import t from "tap";
import { startNats } from "../../test/support/nats.ts";
import { needs } from "../../test/support/skip.ts";
import { connectNats, natsAccess, withoutNatsSecret } from "./index.ts";

const none = { ca: null, creds: null };

t.test("addresses: what is taken, what is refused, what is shown", async (t) => {
  t.match(natsAccess("nats://127.0.0.1", none), {
    servers: ["127.0.0.1:4222"],
    tls: false,
    user: null,
    password: null,
  });
  t.match(natsAccess("tls://u:p%40@a.example:1,tls://b.example", none), {
    servers: ["a.example:1", "b.example:4222"],
    tls: true,
    user: "u",
    password: "p@",
  });
  t.match(natsAccess("tls://token@a.example", none), { user: null, password: "token" });
  for (const wrong of [
    "a:4222",
    "http://127.0.0.1",
    "nats://a.example",
    "nats://127.0.0.1,tls://a.example",
    "tls://a/x",
  ])
    t.throws(() => natsAccess(wrong, none), { code: "CONFIG_INVALID" }, wrong);
  for (const address of ["tls://u:hunter2@a.example", "tls://hunter2@a.example,tls://b.example"])
    t.notMatch(withoutNatsSecret(address), "hunter2");
});

t.test(
  "one connection: the next server when one is away, TLS by its CA, over when cut",
  { skip: needs("nats") },
  async (t) => {
    const server = await startNats(t, { tls: true });
    const { host } = new URL(server.url);
    const access = natsAccess(`tls://${server.user}:${server.password}@127.0.0.1:1,tls://${host}`, {
      ca: server.caFile!,
      creds: null,
    });
    const connection = await connectNats(access, "test");
    t.equal(connection.getServer(), host);
    await t.rejects(connectNats({ ...access, caFile: null }, "test"), "its CA is not the machine's");
    await t.rejects(connectNats({ ...access, password: "wrong" }, "test"), { name: "AuthorizationError" });
    await server.stop();
    await connection.closed();
    t.ok(connection.isClosed());
  },
);
