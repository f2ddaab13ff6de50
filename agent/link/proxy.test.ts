import t from "tap";
import { bypasses, environmentNoProxy, environmentProxy, environmentProxyApplies } from "./proxy.ts";

t.test("what goes without a proxy", async (t) => {
  const cases: [entries: string, url: string, without: boolean][] = [
    ["*", "https://cp.example", true],
    ["cp.example", "https://cp.example", true],
    ["example", "https://cp.example", true],
    [".example", "https://CP.example", true],
    ["*.example", "https://cp.example", true],
    ["ample", "https://cp.example", false],
    ["cp.example:443", "https://cp.example", true],
    ["cp.example:8443", "https://cp.example", false],
    ["cp.example:8443", "wss://cp.example:8443/link", true],
    ["other, cp.example", "https://cp.example", true],
    ["10.0.0.0/8", "https://10.1.2.3", true],
    ["10.0.0.0/8", "https://11.1.2.3", false],
    ["10.0.0.0/99", "https://10.1.2.3", false],
    ["10.1.2.3", "https://10.1.2.3", true],
    ["2.3", "https://10.1.2.3", false],
    ["::1", "https://[::1]:8443", true],
    ["[::1]", "https://[::1]", true],
    ["[::1]:8443", "https://[::1]:8443", true],
    ["[::1]:8443", "https://[::1]", false],
    ["fd00::/8", "https://[fd00::1]", true],
    ["fd00::/8", "https://10.1.2.3", false],
    ["", "https://cp.example", false],
    [".", "https://cp.example", false],
  ];
  for (const [entries, url, without] of cases)
    t.equal(bypasses(environmentNoProxy({ no_proxy: entries }) ?? [], new URL(url)), without, `${entries} and ${url}`);
});

t.test("the environment's proxy", async (t) => {
  t.equal(environmentProxy({ HTTP_PROXY: "http://other:1" }), null);
  const given = environmentProxy({ https_proxy: "app:p%40ss%@proxy.example:3128/" })!;
  t.match(given, { credentials: { user: "app", password: "p%40ss%" } }, "a bare % is kept as it is");
  t.equal(given.url.href, "http://proxy.example:3128/");
  t.match(environmentProxy({ HTTPS_PROXY: "https://a:b%40c@p:1", https_proxy: "x:1" }), {
    url: { protocol: "https:" },
    credentials: { user: "a", password: "b@c" },
  });
  for (const bad of ["socks5://user:hunter2hunter2@p:1", "http://", "http://user:hunter2hunter2@:x"]) {
    try {
      environmentProxy({ HTTPS_PROXY: bad });
      t.fail(bad);
    } catch (error) {
      t.match(error, { code: "CONFIG_INVALID" });
      t.notMatch(String(error), "hunter2");
    }
  }
  t.ok(environmentProxyApplies(new URL("wss://cp.example/link")));
  for (const local of ["wss://localhost/link", "wss://127.0.0.1:1", "wss://[::1]:1", "ws://127.0.0.1:1"])
    t.notOk(environmentProxyApplies(new URL(local)), local);
});
