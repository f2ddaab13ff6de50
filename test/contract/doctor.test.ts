// The doctor against a real control plane's end, and against everything else that may stand in its place. Each row says
// which hop must be blamed, by which code and finding, and what the fix must speak of.
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer as createHttpServer, type RequestListener } from "node:http";
import { createServer as createHttpsServer, type ServerOptions } from "node:https";
import { connect, createServer, type AddressInfo, type Server, type Socket } from "node:net";
import { systemClock, type Clock } from "@sallyport/protocol";
import t from "tap";
import { diagnose, renderDiagnosis, type HopReport, type Known } from "../../agent/doctor/index.ts";
import { makeNetwork } from "../../agent/link/index.ts";
import { makeAuthority } from "../support/certificates.ts";
import { tempDir } from "../support/launcher.ts";
import { startAgentEnd } from "./link/agent-end.ts";
import { startCloudEnd } from "./link/cloud-end.ts";

type Test = { teardown(fn: () => unknown): void };

async function listening<S extends Server>(t: Test, server: S): Promise<number> {
  const sockets = new Set<Socket>();
  server.on("connection", (socket: Socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
    socket.on("close", () => sockets.delete(socket));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.teardown(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return (server.address() as AddressInfo).port;
}

const http = (t: Test, listener: RequestListener) => listening(t, createHttpServer(listener));
const https = (t: Test, options: ServerOptions, listener: RequestListener = (_q, r) => r.end("ok\n")) =>
  listening(t, createHttpsServer(options, listener));
const answering = (status: number, headers: Record<string, string>, body = ""): RequestListener => {
  return (_request, response) => response.writeHead(status, headers).end(body);
};
const html = { "content-type": "text/html" };

const pems = ({ certFile, keyFile }: { certFile: string; keyFile: string }) => ({
  cert: readFileSync(certFile),
  key: readFileSync(keyFile),
});

interface Proxied {
  url: string;
  user?: string;
  password?: string;
}

const known = (more: Partial<Known> = {}): Known => ({
  ca: null,
  caFrom: "the CAs of this machine",
  caFingerprint: null,
  pins: null,
  pinsFrom: "the enrolment secret",
  ...more,
});

function examine(url: string, more: { known?: Known; proxy?: Proxied; clock?: Clock } = {}) {
  const { proxy } = more;
  return diagnose({
    addresses: [url],
    network: makeNetwork({
      addresses: [],
      proxy:
        proxy === undefined
          ? null
          : { url: proxy.url, user: proxy.user ?? null, password: proxy.password ?? null, ca: null },
      noProxy: [],
      clientCertificate: null,
      environment: {},
      resolveSecret: async (text) => text,
      hide: () => {},
    }),
    known: more.known ?? known(),
    clock: more.clock ?? systemClock,
    signal: new AbortController().signal,
  });
}

/** Deadlines ten times as short. */
const hasty: Clock = { ...systemClock, after: (delayMs, fn, options) => systemClock.after(delayMs / 10, fn, options) };
const ahead = (ms: number): Clock => ({ ...systemClock, now: () => systemClock.now() + ms });

t.setTimeout(120_000);

t.test("a sound way, and a running agent is left alone", async (t) => {
  const cloud = await startCloudEnd();
  t.teardown(() => cloud.stop());
  const before = await examine(cloud.url);
  t.equal(before.ok, true, renderDiagnosis(before));
  t.same(
    before.addresses[0]!.hops.map(({ hop }) => hop),
    ["dns", "tcp", "upgrade", "handshake", "clock"],
  );
  t.match(before.addresses[0]!.hops[3]!.text, /not joined one yet/);

  const agent = startAgentEnd({ url: cloud.url, enrolment: cloud.enrolment() });
  t.teardown(() => agent.stop());
  const session = await agent.online();
  const beside = await examine(cloud.url, { known: known({ pins: [cloud.identityFingerprint] }) });
  t.equal(beside.ok, true);
  t.match(beside.addresses[0]!.hops[3]!.text, /proved the identity key/);
  t.equal(agent.link.session, session, "the agent's session lives");
  t.equal(cloud.directory.opens.length, 1, "no other one was opened");
  t.same(cloud.directory.alarms, [], "nobody took it for a clone");

  const skewed = await examine(cloud.url, { clock: ahead(60_000) });
  t.match(skewed, { ok: true });
  t.match(skewed.addresses[0]!.hops.at(-1), {
    hop: "clock",
    state: "warning",
    text: /60 s ahead of/,
    fix: /time service/,
  });
});

interface Row {
  readonly name: string;
  readonly blamed: { hop: HopReport["hop"]; code: HopReport["code"]; finding: HopReport["finding"] | RegExp };
  readonly text: RegExp;
  readonly fix: RegExp;
  readonly run: (t: Test & { name: string }) => ReturnType<typeof examine>;
}

const dir = (t: Test, name: string) => tempDir(t, name);

const rows: Row[] = [
  {
    name: "DNS failure",
    blamed: { hop: "dns", code: "CLOUD_UNREACHABLE", finding: /^name-/ },
    text: /no-such-host\.invalid: the name/,
    fix: /name servers/,
    run: () => examine("https://no-such-host.invalid"),
  },
  {
    name: "refused port",
    blamed: { hop: "tcp", code: "CLOUD_UNREACHABLE", finding: "refused" },
    text: /nothing listens there/,
    fix: /address and port/,
    run: () => examine("https://127.0.0.1:9"),
  },
  {
    name: "silent host",
    blamed: { hop: "tls", code: "CLOUD_UNREACHABLE", finding: "silent" },
    text: /TLS handshake got no answer/,
    fix: /firewall/,
    run: async (t) =>
      examine(
        `https://127.0.0.1:${await listening(
          t,
          createServer(() => {}),
        )}`,
        { clock: hasty },
      ),
  },
  {
    name: "a server that never answers the request",
    blamed: { hop: "upgrade", code: "CLOUD_UNREACHABLE", finding: "silent" },
    text: /WebSocket's request got no answer/,
    fix: /firewall/,
    run: async (t) =>
      examine(
        `http://127.0.0.1:${await listening(
          t,
          createServer(() => {}),
        )}`,
        { clock: hasty },
      ),
  },
  {
    name: "captive page, by redirect",
    blamed: { hop: "upgrade", code: "CLOUD_UNREACHABLE", finding: "captive-page" },
    text: /redirect \(302\) to https:\/\/login\.example\/portal: the page of a sign-in/,
    fix: /without a sign-in/,
    run: async (t) =>
      examine(
        `http://127.0.0.1:${await http(t, answering(302, { location: "https://login.example/portal?session=x" }))}`,
      ),
  },
  {
    name: "captive page, by a form",
    blamed: { hop: "upgrade", code: "CLOUD_UNREACHABLE", finding: "captive-page" },
    text: /page to sign in at \(200\) with the title “Guest network”/,
    fix: /without a sign-in/,
    run: async (t) =>
      examine(`http://127.0.0.1:${await http(t, answering(200, html, "<title> Guest\n network</title><form>"))}`),
  },
  {
    name: "redirect to where it moved",
    blamed: { hop: "upgrade", code: "CLOUD_UNREACHABLE", finding: "redirect" },
    text: /redirect \(301\) to https:\/\/new\.example\/link/,
    fix: /address to https:\/\/new\.example\.$/,
    run: async (t) =>
      examine(`http://127.0.0.1:${await http(t, answering(301, { location: "https://new.example/link" }))}`),
  },
  {
    name: "HTML answer",
    blamed: { hop: "upgrade", code: "CLOUD_UNREACHABLE", finding: "page" },
    text: /an HTML page \(200\) with the title “It works!”/,
    fix: /another server/,
    run: async (t) => examine(`http://127.0.0.1:${await http(t, answering(200, html, "<title>It works!</title>"))}`),
  },
  {
    name: "stripped Upgrade",
    blamed: { hop: "upgrade", code: "CLOUD_UNREACHABLE", finding: "upgrade-stripped" },
    text: /Upgrade header does not reach it \(426\)/,
    fix: /proxy_http_version 1\.1/,
    run: async (t) => examine(`http://127.0.0.1:${await http(t, answering(426, { upgrade: "websocket" }))}`),
  },
  {
    name: "stripped Upgrade, before an older control plane",
    blamed: { hop: "upgrade", code: "CLOUD_UNREACHABLE", finding: "upgrade-stripped" },
    text: /Upgrade header does not reach it \(404\)/,
    fix: /TLS-inspecting proxy/,
    run: async (t) =>
      examine(
        `http://127.0.0.1:${await http(t, ({ url }, response) => {
          if (url === "/healthz") response.end("ok\n");
          else response.writeHead(404).end("no");
        })}`,
      ),
  },
  {
    name: "another server",
    blamed: { hop: "upgrade", code: "CLOUD_UNREACHABLE", finding: "not-found" },
    text: /has no \/link \(404\)/,
    fix: /address is the control plane's/,
    run: async (t) => examine(`http://127.0.0.1:${await http(t, answering(404, html, "no"))}`),
  },
  {
    name: "wrong CA, such as of a TLS-inspecting proxy",
    blamed: { hop: "tls", code: "CLOUD_UNTRUSTED", finding: "certificate-untrusted" },
    text: /signed by “test authority [\d.]+”, which this agent does not trust: it trusts the CAs of this machine/,
    fix: /TLS-inspecting proxy.*cloud\.ca/,
    run: async (t) => examine(`https://127.0.0.1:${await https(t, pems(makeAuthority(dir(t, "ca"))))}`),
  },
  {
    name: "another name",
    blamed: { hop: "tls", code: "CLOUD_UNTRUSTED", finding: "certificate-name" },
    text: /certificate for DNS:other\.example/,
    fix: /name that the certificate is for/,
    run: async (t) => {
      const made = makeAuthority(dir(t, "ca"), { names: "DNS:other.example" });
      const ca = readFileSync(made.caFile, "utf8");
      return examine(`https://127.0.0.1:${await https(t, pems(made))}`, { known: known({ ca }) });
    },
  },
  {
    name: "an expired certificate",
    blamed: { hop: "tls", code: "CLOUD_UNTRUSTED", finding: "certificate-expired" },
    text: /is valid from .* to .*, and it is/,
    fix: /must renew it/,
    run: async (t) => {
      const made = makeAuthority(dir(t, "ca"), { days: -1 });
      const ca = readFileSync(made.caFile, "utf8");
      return examine(`https://127.0.0.1:${await https(t, pems(made))}`, { known: known({ ca }) });
    },
  },
  {
    name: "a clock that is off, seen by a certificate",
    blamed: { hop: "clock", code: "CLOUD_UNTRUSTED", finding: "clock-off" },
    text: /clock is 10 days ahead of that of 127\.0\.0\.1/,
    fix: /time service/,
    run: async (t) => {
      const made = makeAuthority(dir(t, "ca"), { days: -1 });
      const ca = readFileSync(made.caFile, "utf8");
      const date = new Date(Date.now() - 10 * 86_400_000).toUTCString();
      const port = await https(t, pems(made), answering(200, { date }, "ok\n"));
      return examine(`https://127.0.0.1:${port}`, { known: known({ ca }) });
    },
  },
  {
    name: "a clock that is off, told by the control plane",
    blamed: { hop: "clock", code: "HANDSHAKE_FAILED", finding: "clock-off" },
    text: /clock is 60 min behind the control plane's/,
    fix: /time service/,
    run: async (t) => {
      const cloud = await startCloudEnd();
      t.teardown(() => cloud.stop());
      return examine(cloud.url, { clock: ahead(-3_600_000) });
    },
  },
  {
    name: "a client certificate is wanted",
    blamed: { hop: "tls", code: "CLOUD_UNTRUSTED", finding: "client-certificate" },
    text: /wants a client certificate/,
    fix: /link\.clientCertificate/,
    run: async (t) => {
      const made = makeAuthority(dir(t, "ca"));
      const ca = readFileSync(made.caFile, "utf8");
      const port = await https(t, { ...pems(made), requestCert: true, rejectUnauthorized: true, ca });
      return examine(`https://127.0.0.1:${port}`, { known: known({ ca }) });
    },
  },
  {
    name: "a client certificate is wanted, as nginx tells it",
    blamed: { hop: "tls", code: "CLOUD_UNREACHABLE", finding: "client-certificate" },
    text: /wants a client certificate/,
    fix: /link\.clientCertificate/,
    run: async (t) =>
      examine(
        `http://127.0.0.1:${await http(t, answering(400, html, "<title>400 No required SSL certificate was sent</title>"))}`,
      ),
  },
  {
    name: "a plain-HTTP port",
    blamed: { hop: "tls", code: "CLOUD_UNREACHABLE", finding: "plain-http" },
    text: /speaks plain HTTP, not TLS; a control plane answers there/,
    fix: /port for https/,
    run: async (t) => examine(`https://127.0.0.1:${await http(t, (_q, response) => response.end("ok\n"))}`),
  },
  {
    name: "TLS is cut",
    blamed: { hop: "tls", code: "CLOUD_UNREACHABLE", finding: "reset" },
    text: /cut during the TLS handshake/,
    fix: /firewall/,
    run: async (t) =>
      examine(
        `https://127.0.0.1:${await listening(
          t,
          createServer((socket) => socket.once("data", () => socket.destroy())),
        )}`,
      ),
  },
  {
    name: "another control plane",
    blamed: { hop: "handshake", code: "CLOUD_UNTRUSTED", finding: "identity-key" },
    text: /not the one of the enrolment secret/,
    fix: /answer in its place/,
    run: async (t) => {
      const cloud = await startCloudEnd();
      t.teardown(() => cloud.stop());
      return examine(cloud.url, { known: known({ pins: ["A".repeat(43)] }) });
    },
  },
  {
    name: "the proxy asks who it is (407)",
    blamed: { hop: "proxy", code: "PROXY_AUTH_REQUIRED", finding: "proxy-auth" },
    text: /asks for a user and password \(407\)/,
    fix: /link\.proxy\.user/,
    run: async (t) =>
      examine("https://cp.example", { proxy: await proxyThatSays(t, "407 X\r\nProxy-Authenticate: Basic realm=x") }),
  },
  {
    name: "the proxy does not take the password (407)",
    blamed: { hop: "proxy", code: "PROXY_AUTH_REQUIRED", finding: "proxy-auth" },
    text: /refuses the user app with this password/,
    fix: /Correct link\.proxy/,
    run: async (t) => {
      const proxy = await proxyThatSays(t, "407 X\r\nProxy-Authenticate: Basic realm=x");
      return examine("https://cp.example", { proxy: { ...proxy, user: "app", password: "hunter2hunter2" } });
    },
  },
  {
    name: "the proxy takes NTLM only (407)",
    blamed: { hop: "proxy", code: "PROXY_AUTH_REQUIRED", finding: "proxy-auth" },
    text: /takes Negotiate or NTLM only/,
    fix: /Basic/,
    run: async (t) =>
      examine("https://cp.example", {
        proxy: await proxyThatSays(t, "407 X\r\nProxy-Authenticate: Negotiate\r\nProxy-Authenticate: NTLM"),
      }),
  },
  {
    name: "the proxy forbids it",
    blamed: { hop: "proxy", code: "PROXY_REFUSED", finding: "proxy-refused" },
    text: /does not allow connections to cp\.example:443 \(403\)/,
    fix: /allow CONNECT to cp\.example:443/,
    run: async (t) => examine("https://cp.example", { proxy: await proxyThatSays(t, "403 Forbidden") }),
  },
  {
    name: "the proxy cannot get there",
    blamed: { hop: "proxy", code: "PROXY_REFUSED", finding: "proxy-refused" },
    text: /could not connect to cp\.example:443 \(503, ERR_DNS_FAIL\)/,
    fix: /the way from it/,
    run: async (t) =>
      examine("https://cp.example", { proxy: await proxyThatSays(t, "503 X\r\nX-Squid-Error: ERR_DNS_FAIL 0") }),
  },
  {
    name: "what should be the proxy is a web server",
    blamed: { hop: "proxy", code: "PROXY_REFUSED", finding: "not-a-proxy" },
    text: /does not do CONNECT \(405\)/,
    fix: /forward proxy/,
    run: async (t) => examine("https://cp.example", { proxy: await proxyThatSays(t, "405 No") }),
  },
  {
    name: "what should be the proxy is something else",
    blamed: { hop: "proxy", code: "PROXY_REFUSED", finding: "not-a-proxy" },
    text: /is not an HTTP proxy/,
    fix: /address and port/,
    run: async (t) => {
      const port = await listening(
        t,
        createServer((socket) => socket.write("SSH-2.0-OpenSSH_9\r\n")),
      );
      return examine("https://cp.example", { proxy: { url: `http://127.0.0.1:${port}` } });
    },
  },
  {
    name: "no proxy there",
    blamed: { hop: "tcp", code: "PROXY_UNREACHABLE", finding: "refused" },
    text: /the proxy 127\.0\.0\.1:9: nothing listens/,
    fix: /address and port/,
    run: () => examine("https://cp.example", { proxy: { url: "http://127.0.0.1:9" } }),
  },
  {
    name: "an https:// proxy with a certificate of nobody",
    blamed: { hop: "proxy", code: "PROXY_UNTRUSTED", finding: "certificate-untrusted" },
    text: /certificate of the proxy/,
    fix: /link\.proxy\.ca/,
    run: async (t) =>
      examine("https://cp.example", {
        proxy: { url: `https://127.0.0.1:${await https(t, pems(makeAuthority(dir(t, "ca"))))}` },
      }),
  },
];

async function proxyThatSays(t: Test, answer: string): Promise<Proxied> {
  const port = await listening(
    t,
    createServer((socket) => socket.once("data", () => socket.end(`HTTP/1.1 ${answer}\r\nContent-Length: 0\r\n\r\n`))),
  );
  return { url: `http://127.0.0.1:${port}` };
}

t.test("each hop that may fail", async (t) => {
  for (const { name, blamed, text, fix, run } of rows) {
    await t.test(name, async (t) => {
      const diagnosis = await run(t);
      const last = diagnosis.addresses[0]!.hops.at(-1)!;
      t.equal(diagnosis.ok, false);
      t.match(last, { ...blamed, state: "failed", text, fix }, JSON.stringify(last));
      const hops = diagnosis.addresses[0]!.hops.map(({ hop }) => hop);
      t.equal(new Set(hops).size, hops.length, "each hop once");
      t.notMatch(JSON.stringify(diagnosis), /hunter2|session=x/);
    });
  }
});

t.test("CONNECT: bytes that come with the answer are kept, and the way carries a session", async (t) => {
  const { caFile, certFile, keyFile } = makeAuthority(dir(t, "ca"));
  const read = (file: string) => readFileSync(file, "utf8");
  const cloud = await startCloudEnd({ tls: { cert: read(certFile), key: read(keyFile) } });
  t.teardown(() => cloud.stop());
  const asked: string[] = [];
  const port = await listening(
    t,
    createServer((socket) => {
      // Byte by byte out, so that no answer comes in one piece.
      socket.once("data", (head: Buffer) => {
        asked.push(head.toString());
        const to = connect(cloud.port, "127.0.0.1");
        to.on("error", () => socket.destroy());
        socket.on("error", () => to.destroy());
        for (const byte of Buffer.from("HTTP/1.0 200 Connection established\r\nX: y\r\n\r\n"))
          socket.write(Buffer.of(byte));
        socket.pipe(to).pipe(socket);
      });
    }),
  );
  const url = `https://127.0.0.1:${cloud.port}`;
  const diagnosis = await examine(url, {
    known: known({ ca: read(caFile) }),
    proxy: { url: `http://127.0.0.1:${port}`, user: "app", password: "pässwörd:x" },
  });
  t.equal(diagnosis.ok, true, renderDiagnosis(diagnosis));
  t.match(diagnosis.addresses[0], {
    proxy: `127.0.0.1:${port}`,
    hops: [{}, {}, { hop: "proxy" }, { hop: "tls" }, {}, {}, {}],
  });
  t.match(asked[0], `CONNECT 127.0.0.1:${cloud.port} HTTP/1.1\r\n`);
  t.match(asked[0], `Proxy-Authorization: Basic ${Buffer.from("app:pässwörd:x").toString("base64")}\r\n`);
});

t.test("an https:// proxy: TLS within TLS carries a session", async (t) => {
  const inner = makeAuthority(dir(t, "ca"));
  const outer = makeAuthority(dir(t, "proxy-ca"));
  const read = (file: string) => readFileSync(file, "utf8");
  const cloud = await startCloudEnd({ tls: { cert: read(inner.certFile), key: read(inner.keyFile) } });
  t.teardown(() => cloud.stop());
  const proxy = createHttpsServer(pems(outer));
  proxy.on("connect", (_request, socket: Socket) => {
    const to = connect(cloud.port, "127.0.0.1");
    to.on("error", () => socket.destroy());
    socket.on("error", () => to.destroy());
    socket.write("HTTP/1.1 200 OK\r\n\r\n");
    socket.pipe(to).pipe(socket);
  });
  const port = await listening(t, proxy);
  const url = `https://127.0.0.1:${cloud.port}`;
  const network = makeNetwork({
    addresses: [],
    proxy: { url: `https://localhost:${port}`, user: null, password: null, ca: outer.caFile },
    noProxy: [],
    clientCertificate: null,
    environment: {},
    resolveSecret: async (text) => text,
    hide: () => {},
  });
  const agent = startAgentEnd({ url, enrolment: cloud.enrolment(), ca: read(inner.caFile), network });
  t.teardown(() => agent.stop());
  const session = await agent.online();
  t.equal(agent.link.session, session);
});
