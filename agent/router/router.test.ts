// Real sockets, real replicas by Node's HTTP server, some in processes that are killed.
import { execFileSync, fork, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { Agent, createServer, request as httpRequest, type RequestListener, type Server } from "node:http";
import { request as httpsRequest } from "node:https";
import { connect, createServer as createTcp, type AddressInfo } from "node:net";
import { networkInterfaces, tmpdir } from "node:os";
import { join } from "node:path";
import { entryUrl, systemClock, type Clock, type DeploymentId } from "@sallyport/protocol";
import fc from "fast-check";
import { pino } from "pino";
import t, { type Test } from "tap";
import { makeAuthority } from "../../test/support/certificates.ts";
import { ManualClock } from "../../test/support/clock.ts";
import { createRouter, type ReplicaTarget, type Router, type RouterLimits } from "./index.ts";
import { echo, listen, type Echo } from "./test-replica.ts";

const KEY = "the-key-of-the-deployment";
const ID = "dep-1" as DeploymentId;
const log = pino({ level: "silent" });

interface Answer {
  status: number;
  headers: Record<string, string | string[] | undefined>;
  body: Buffer;
}

function ask(
  base: string,
  options: { method?: string; path?: string; headers?: Record<string, string>; body?: Buffer[]; agent?: Agent } = {},
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const request = httpRequest(
      base,
      {
        // As it is, not as a URL's parser would have it.
        path: `${new URL(base).pathname}${options.path ?? "/v2/models/m/infer"}`,
        method: options.method ?? "POST",
        headers: { authorization: `Bearer ${KEY}`, ...options.headers },
        ...(options.agent === undefined ? { agent: false } : { agent: options.agent }),
      },
      (response) => {
        const chunks: Buffer[] = [];
        response.on("data", (chunk: Buffer) => chunks.push(chunk));
        response.on("error", reject);
        response.on("end", () =>
          resolve({ status: response.statusCode!, headers: response.headers, body: Buffer.concat(chunks) }),
        );
      },
    );
    request.on("error", reject);
    for (const chunk of options.body ?? []) request.write(chunk);
    request.end();
  });
}
const echoed = (answer: Answer): Echo => JSON.parse(answer.body.toString()) as Echo;

class World {
  readonly dir = mkdtempSync(join(tmpdir(), "router-"));
  readonly router: Router;
  readonly servers: Server[] = [];
  readonly children: ChildProcess[] = [];
  #sockets = 0;

  constructor(t: Test, limits: Partial<RouterLimits> = {}, clock: Clock = systemClock) {
    this.router = createRouter({ listen: "127.0.0.1:0", advertise: null, tls: null, clock, log, limits });
    t.teardown(async () => {
      await this.router.close(0);
      for (const server of this.servers) {
        server.closeAllConnections();
        server.close();
      }
      for (const child of this.children) {
        if (child.exitCode !== null || child.signalCode !== null) continue;
        const over = once(child, "exit");
        child.kill("SIGKILL");
        await over;
      }
      rmSync(this.dir, { recursive: true, force: true });
    });
  }
  socket(): string {
    return join(this.dir, `${this.#sockets++}.sock`);
  }
  async replica(name: string, handler: RequestListener = echo(name)): Promise<ReplicaTarget> {
    const server = createServer(handler);
    this.servers.push(server);
    const path = this.socket();
    await listen(server, path);
    return target(name, path);
  }
  async process(name: string): Promise<ReplicaTarget & { child: ChildProcess }> {
    const path = this.socket();
    const child = fork(entryUrl(import.meta.url, "./test-replica"), [path, name]);
    this.children.push(child);
    await once(child, "message");
    return { ...target(name, path), child };
  }
  route(replicas: ReplicaTarget[], holdMs = 20_000): void {
    this.router.set({ deployment: ID, name: "m", key: KEY, replicas, holdMs });
  }
  get base(): string {
    return this.router.endpoint("m");
  }
}
const target = (name: string, path: string): ReplicaTarget => ({
  name,
  address: { kind: "socket", path },
  token: "replica-token",
});

/** A closed loop: each client asks again as soon as it is answered, until `stop`. */
function clients(
  base: string,
  count: number,
): { stop(): Promise<{ asked: number; failed: string[] }>; asked(): number } {
  const agent = new Agent({ keepAlive: true, maxSockets: count });
  const failed: string[] = [];
  let asked = 0;
  let stopped = false;
  const loop = async (n: number) => {
    while (!stopped) {
      const body = Buffer.from(`${n}:${asked++}`);
      try {
        const answer = await ask(base, { agent, body: [body] });
        if (answer.status !== 200 || echoed(answer).body !== body.toString("base64"))
          failed.push(`${answer.status} ${answer.body}`);
      } catch (error) {
        failed.push(String(error));
      }
    }
  };
  const all = Promise.all(Array.from({ length: count }, (_, n) => loop(n)));
  return {
    asked: () => asked,
    async stop() {
      stopped = true;
      await all;
      agent.destroy();
      return { asked, failed };
    },
  };
}
async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setImmediate(resolve));
}

t.test("who may ask for what", async (t) => {
  const world = new World(t);
  await world.router.start();
  world.route([await world.replica("r1.0")]);
  t.match(
    await ask(world.base.replace(/\/m$/, "/"), { method: "GET", path: "healthz", headers: { authorization: "" } }),
    { status: 200 },
  );

  const wrong = await ask(world.base, { headers: { authorization: "Bearer the-key-of-the-deploymenX" } });
  const unknown = await ask(world.base.replace(/m$/, "other"));
  const bare = await ask(world.base, { headers: { authorization: "" } });
  for (const answer of [wrong, unknown, bare]) {
    t.equal(answer.status, 401);
    t.equal(answer.headers["sallyport-code"], "UNAUTHENTICATED");
    t.same(answer.body, wrong.body, "nothing tells a wrong key from a name that is not there");
  }
  for (const path of ["/metrics", "/v2x", "/v2/../metrics", "/v2/%2E%2e/metrics", "/v2/a%2fb"])
    t.equal((await ask(world.base, { path })).status, 404, path);
  t.equal((await ask(world.base, { path: "/v2/models/m?a=%2f" })).status, 200);
});

t.test("what goes through arrives as it was sent", async (t) => {
  const world = new World(t, { repeatableBytes: 2000 });
  await world.router.start();
  world.route([await world.replica("r1.0"), await world.replica("r1.1")]);
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"),
      fc.array(fc.uint8Array({ minLength: 1, maxLength: 3000 }), { maxLength: 5 }),
      fc.boolean(),
      fc.stringMatching(/^[a-z0-9/?=&_.~-]{0,40}$/).filter((text) => !/(?:^|\/)\.{1,2}(?:\/|\?|$)/.test(`/${text}`)),
      async (method, pieces, chunked, rest) => {
        const body = pieces.map((piece) => Buffer.from(piece));
        const whole = Buffer.concat(body);
        const answer = await ask(world.base, {
          method,
          path: `/v2/${rest}`,
          body,
          headers: {
            "x-mine": "yes",
            "x-hop": "no",
            connection: "x-hop",
            traceparent: "00-a-b-01",
            "x-request-id": "my-id",
            ...(chunked && whole.length > 0
              ? { "transfer-encoding": "chunked" }
              : { "content-length": String(whole.length) }),
          },
        });
        if (answer.status !== 200) throw new Error(`${answer.status} ${answer.body}`);
        const got = echoed(answer);
        if (got.method !== method || got.path !== `/v2/${rest}` || got.body !== whole.toString("base64"))
          throw new Error(JSON.stringify(got));
        const { headers } = got;
        if (headers["authorization"] !== "Bearer replica-token" || JSON.stringify(got.raw).includes(KEY))
          throw new Error("key");
        if (headers["x-mine"] !== "yes" || headers["x-hop"] !== undefined || headers["traceparent"] !== "00-a-b-01")
          throw new Error("headers");
        if (headers["x-request-id"] !== "my-id" || answer.headers["x-request-id"] !== "my-id") throw new Error("id");
        if (answer.headers["x-gone"] !== undefined) throw new Error("a header of the replica's connection");
      },
    ),
    { numRuns: 120 },
  );
});

t.test("a replica that is killed costs no request", async (t) => {
  const world = new World(t);
  await world.router.start();
  const first = await world.process("r1.0");
  const second = await world.process("r1.1");
  const suspects: string[] = [];
  world.router.onSuspect((_, replica) => suspects.push(replica));
  world.route([first, second]);
  const load = clients(world.base, 8);
  await until(() => load.asked() > 800);
  first.child.kill("SIGKILL");
  await until(() => load.asked() > 2000);
  t.match(suspects, ["r1.0"]);
  // Alone, and killed as well: requests wait until another is there.
  world.route([second]);
  await until(() => load.asked() > 2400);
  second.child.kill("SIGKILL");
  await until(() => suspects.includes("r1.1"));
  const third = await world.process("r1.2");
  world.route([third]);
  const before = load.asked();
  await until(() => load.asked() > before + 800);
  const { asked, failed } = await load.stop();
  t.same(failed, [], `${asked} requests`);
  t.comment(`${asked} requests, 0 failed`);
});

t.test("replicas come and go under load, and one that left ends what it has", async (t) => {
  const world = new World(t);
  await world.router.start();
  const all = [await world.replica("r1.0"), await world.replica("r1.1"), await world.replica("r1.2")];
  world.route(all.slice(0, 1));
  const load = clients(world.base, 8);
  for (let round = 0; round < 30; round++) {
    const at = load.asked();
    await until(() => load.asked() > at + 60);
    world.route(all.slice(round % 3, (round % 3) + 1 + (round % 2)));
  }
  const { asked, failed } = await load.stop();
  t.same(failed, [], `${asked} requests`);

  let release: () => void = () => {};
  let begun = false;
  const slow = await world.replica("r2.0", (_, response) => {
    begun = true;
    release = () => response.end("late");
  });
  world.route([slow]);
  const late = ask(world.base);
  await until(() => begun);
  world.route([all[0]!]);
  t.equal(world.router.busy(ID, "r2.0"), 1);
  let drained = false;
  const drain = world.router.drained(ID, "r2.0", 60_000).then(() => (drained = true));
  t.equal(echoed(await ask(world.base)).replica, "r1.0", "new requests go elsewhere");
  t.equal(drained, false);
  release();
  t.equal((await late).body.toString(), "late");
  await drain;
  t.equal(world.router.busy(ID, "r2.0"), 0);
  await world.router.drained(ID, "never-there", 60_000);
});

t.test("a replica that does not serve yet, under an address of one that did, costs no request", async (t) => {
  const world = new World(t);
  await world.router.start();
  let ready = false;
  let turned = 0;
  const beginning = await world.replica("r1.0", (request, response) => {
    request.resume();
    if (!ready) turned += 1;
    response.writeHead(ready ? 200 : 503, ready ? {} : { "sallyport-serving": "not-ready" });
    response.end(ready ? "served" : '{"error":"The model is not loaded yet."}');
  });
  const body = [Buffer.alloc(500, "a")];
  world.route([beginning, await world.replica("r1.1")]);
  for (let i = 0; i < 6; i++) t.equal(echoed(await ask(world.base, { body })).replica, "r1.1");
  t.ok(turned >= 1, `${turned} were given to the other`);
  world.route([beginning]);
  const waits = ask(world.base, { body });
  ready = true;
  t.equal((await waits).status, 200, "the only one is waited for");
});

t.test("it is sent twice at most, and never after the first byte of an answer", async (t) => {
  const world = new World(t);
  await world.router.start();
  let times = 0;
  const cuts =
    (bytes: string): RequestListener =>
    (request) => {
      times += 1;
      request.resume();
      request.on("end", () => (bytes === "" ? request.socket.destroy() : request.socket.end(bytes)));
    };
  const breaking = await world.replica("r1.0", cuts(""));
  const partial = await world.replica("r1.1", cuts("HTTP/1.1 200 O"));
  const half = await world.replica("r1.2", cuts("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"));
  const good = await world.replica("r1.3");
  const body = [Buffer.alloc(500, "a")];

  world.route([breaking]);
  t.match(await ask(world.base, { body }), { status: 502, headers: { "sallyport-code": "REPLICA_UNREADY" } });
  t.equal(times, 2, "the only one: the connection might have been an old one");
  times = 0;
  world.route([{ ...breaking, name: "r1.9" }, good]);
  for (let i = 0; i < 4; i++) t.equal(echoed(await ask(world.base, { body })).replica, "r1.3");
  t.ok(times >= 1 && times <= 4, "each broken request was sent once more, elsewhere");
  times = 0;
  world.route([partial]);
  t.equal((await ask(world.base, { body })).status, 502);
  t.equal(times, 1);
  world.route([half]);
  times = 0;
  await t.rejects(ask(world.base, { body }), "cut off, not made up");
  t.equal(times, 1);
  // Too long to be kept: sent once.
  times = 0;
  world.route([breaking]);
  t.equal((await ask(world.base, { body: [Buffer.alloc(3 << 20)] }).catch(() => ({ status: 502 }))).status, 502);
  t.equal(times <= 1, true);
});

t.test("requests wait for a replica, within bounds", async (t) => {
  const world = new World(t, { heldRequests: 2 });
  await world.router.start();
  world.route([]);
  const waiting = [ask(world.base), ask(world.base), ask(world.base)];
  const refused = await Promise.race(waiting);
  t.match(refused, { status: 503, headers: { "sallyport-code": "DEPLOYMENT_UNREADY", "retry-after": "1" } });
  world.route([await world.replica("r1.0")]);
  const all = await Promise.all(waiting);
  t.same(
    all.map((one) => one.status).sort((a, b) => a - b),
    [200, 200, 503],
  );
  world.route([], 30);
  t.equal((await ask(world.base)).status, 503, "after holdMs");
  // Nothing listens at its address: it is passed over, and taken again when it is told anew.
  const path = world.socket();
  world.route([target("r2.0", path)]);
  const held = ask(world.base);
  await new Promise<void>((resolve) => world.router.onSuspect(() => resolve()));
  const server = createServer(echo("r2.0"));
  world.servers.push(server);
  await listen(server, path);
  t.equal((await held).status, 200);
});

t.test("bodies that wait are bounded in bytes, and none is lost", async (t) => {
  const world = new World(t, { bufferedBytes: 2 << 20 });
  await world.router.start();
  world.route([]);
  const body = Buffer.alloc(1 << 20, "b");
  const count: RequestListener = (request, response) => {
    let bytes = 0;
    request.on("data", (chunk: Buffer) => (bytes += chunk.length)).on("end", () => response.end(String(bytes)));
  };
  // Through the link, each is whole in memory: 64 MiB of them may wait.
  const linked = () =>
    world.router.request(ID, { method: "POST", path: "/v2/x", headers: {}, body, timeoutMs: 60_000 });
  const held = Array.from({ length: 64 }, linked);
  await t.rejects(linked(), { code: "DEPLOYMENT_UNREADY", message: /too many/ });
  await t.resolveMatch(ask(world.base, { body: [body] }), { status: 503 }, "a body that is kept counts as well");
  world.route([await world.replica("r1.0", count)]);
  for (const answer of await Promise.all(held)) {
    const chunks: Buffer[] = [];
    for await (const chunk of answer.body) chunks.push(chunk);
    if (Buffer.concat(chunks).toString() !== String(body.length)) t.fail("a body that waited came whole");
  }
  // More at once than all may keep: what does not fit is streamed.
  const waiting = Array.from({ length: 8 }, () => ask(world.base, { body: [body] }));
  for (const answer of await Promise.all(waiting)) t.match(answer, { status: 200, body: Buffer.from("1048576") });
});

t.test("replicas at an address: with their token, IPv6 as well", async (t) => {
  const world = new World(t);
  await world.router.start();
  const hosts = ["127.0.0.1"];
  if (networkInterfaces()["lo"]?.some((one) => one.family === "IPv6")) hosts.push("::1");
  const targets: ReplicaTarget[] = [];
  for (const [i, host] of hosts.entries()) {
    const name = `r1.${i}`;
    const server = createServer((request, response) => {
      if (request.headers.authorization !== `Bearer token-${i}`) return void response.writeHead(401).end();
      echo(name)(request, response);
    });
    world.servers.push(server);
    await new Promise<void>((resolve) => server.listen(0, host, resolve));
    const { port } = server.address() as AddressInfo;
    targets.push({ name, address: { kind: "tcp", host, port }, token: `token-${i}` });
  }
  for (const one of targets) {
    world.route([one]);
    t.equal(echoed(await ask(world.base, { body: [Buffer.from("a")] })).replica, one.name);
    t.match(await world.router.probe(one, "/v2/health/ready", 5000), { status: 200 });
    t.match(await world.router.probe({ ...one, token: "other" }, "/v2/health/ready", 5000), { status: 401 });
  }
  // Its token changed: the same address is another replica.
  world.route([{ ...targets[0]!, token: "other" }]);
  t.equal((await ask(world.base)).status, 401, "the replica's own answer");
});

t.test("by TLS", async (t) => {
  const world = new World(t);
  const { caFile, certFile, keyFile } = makeAuthority(world.dir);
  const replica = await world.replica("r1.0");
  const make = (cert: string) =>
    createRouter({
      listen: "127.0.0.1:0",
      advertise: null,
      tls: { cert, key: keyFile },
      clock: systemClock,
      log,
    });
  const router = make(certFile);
  t.teardown(() => router.close(0));
  await router.start();
  router.set({ deployment: ID, name: "m", key: KEY, replicas: [replica], holdMs: 1000 });
  t.match(router.endpoint("m"), /^https:\/\/127\.0\.0\.1:\d+\/m$/);
  const ca = readFileSync(caFile);
  const call = (options: object, key = KEY) =>
    new Promise<{ status: number; body: string }>((resolve, reject) => {
      const request = httpsRequest(
        `${router.endpoint("m")}/v2/x`,
        { method: "POST", agent: false, headers: { authorization: `Bearer ${key}` }, ...options },
        (response) => {
          let body = "";
          response.setEncoding("utf8").on("data", (text: string) => (body += text));
          response.on("error", reject).on("end", () => resolve({ status: response.statusCode!, body }));
        },
      );
      request.on("error", reject);
      request.end("hello");
    });
  const good = await call({ ca });
  t.equal((JSON.parse(good.body) as Echo).body, Buffer.from("hello").toString("base64"));
  t.match(await call({ ca }, "no"), { status: 401 });
  await t.rejects(call({}), "a client that does not know the authority");
  await t.rejects(call({ ca, maxVersion: "TLSv1.1" }));
  // Plain HTTP at that port: no answer in clear text, and the listener lives on.
  await t.rejects(ask(router.endpoint("m").replace("https", "http")));
  t.match(await call({ ca }), { status: 200 });

  const lacking = make(join(world.dir, "no-such-file.pem"));
  t.teardown(() => lacking.close(0));
  await lacking.start();
  t.match(lacking.problem, { code: "CONFIG_INVALID", message: /serving\.tls.*ENOENT/ });
});

t.test("connections to a replica: used again while that is safe, and never otherwise", async (t) => {
  const world = new World(t, { repeatableBytes: 2000 });
  await world.router.start();
  const connections = new Set<unknown>();
  const good = await world.replica("r1.0", (request, response) => {
    connections.add(request.socket);
    echo("r1.0")(request, response);
  });
  world.route([good]);
  const body = [Buffer.from("a")];
  for (let i = 0; i < 5; i++) t.equal((await ask(world.base, { body })).status, 200);
  t.equal(connections.size, 1);
  t.match(await ask(world.base, { method: "HEAD" }), { status: 200, body: Buffer.alloc(0) });
  t.equal((await ask(world.base, { body })).status, 200);
  t.equal(connections.size, 2, "not after HEAD");
  for (const headers of [{ "x-a": "b\r\nx-c: d" }, { "x a": "b" }, { "x-a": "\u2713" }])
    await t.resolveMatch(
      world.router
        .request(ID, { method: "GET", path: "/v2/x", headers, body: null, timeoutMs: 60_000 })
        .catch((error: unknown) => error),
      { code: "INPUT_INVALID" },
    );
  for (const path of ["/v2/x HTTP/1.1\r\nx: y", "/v2/ "])
    await t.rejects(world.router.request(ID, { method: "GET", path, headers: {}, body: null, timeoutMs: 60_000 }), {
      code: "INPUT_INVALID",
    });
  t.equal((await ask(world.base, { body })).status, 200);

  // Answers in odd manners, one for each connection: nothing of one request is taken for another's.
  const manners: [string, string][] = [
    ["before the body is here", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nearly"],
    [
      "with bytes left over",
      "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nleftHTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbad",
    ],
    ["until it closes", "HTTP/1.1 200 OK\r\n\r\nclose"],
    ["a word in between", "HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n103"],
    ["in chunks", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3;a=b\r\nthr\r\n2\r\nee\r\n0\r\nx: y\r\n\r\n"],
  ];
  const expected = ["early", "left", "close", "10", "three"];
  let manner = 0;
  const path = world.socket();
  const server = createTcp((socket) => {
    socket.on("error", () => {});
    socket.once("data", () => {
      const one = manners[manner]!;
      socket.write(one[1]);
      if (one[0] === "until it closes") socket.end();
    });
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  t.teardown(() => server.close());
  world.route([target("r2.0", path)]);
  for (; manner < manners.length; manner++) {
    const long = manner === 0 ? [Buffer.alloc(100_000)] : body;
    const answer = await ask(world.base, { body: long });
    t.equal(`${answer.status} ${answer.body}`, `200 ${expected[manner]}`, manners[manner]![0]);
    world.route([]);
    world.route([target("r2.0", path)]);
  }
  world.route([good]);
  t.equal(echoed(await ask(world.base, { body })).replica, "r1.0");
});

t.test("no client library is loaded for replicas, whether there is one or none", (t) => {
  const loaded = (replicas: string): string =>
    execFileSync(
      process.execPath,
      [
        "--input-type=module",
        "--eval",
        `import { createRequire } from "node:module";
        import { createRouter } from ${JSON.stringify(entryUrl(import.meta.url, "./index").href)};
        const clock = { now: Date.now, monotonic: () => performance.now(), after: () => ({ cancel() {} }) };
        const router = createRouter({ listen: "127.0.0.1:0", advertise: null, tls: null, clock, log: { info() {}, warn() {} } });
        await router.start();
        router.set({ deployment: "d", name: "m", key: "k", holdMs: 1, replicas: ${replicas} });
        const paths = Object.keys(createRequire(import.meta.url).cache);
        await router.close(0);
        console.log(paths.some((path) => /[/\\\\]undici[/\\\\]/.test(path)));`,
      ],
      { encoding: "utf8", env: { ...process.env, NODE_OPTIONS: "" } },
    ).trim();
  t.equal(loaded("[]"), "false");
  t.equal(loaded(`[{ name: "r1.0", address: { kind: "socket", path: "/nowhere" }, token: "t" }]`), "false");
  t.end();
});

t.test("bytes that are no clean request reach no replica", async (t) => {
  const world = new World(t, { maxBodyBytes: 1000, headersTimeoutMs: 1500, bodyTimeoutMs: 1500 });
  await world.router.start();
  let reached = 0;
  world.route([
    await world.replica("r1.0", (request, response) => {
      reached += 1;
      echo("r1.0")(request, response);
    }),
  ]);
  const port = Number(new URL(world.base).port);
  const raw = (text: string): Promise<string> =>
    new Promise((resolve) => {
      const socket = connect(port, "127.0.0.1", () => socket.write(text));
      let answer = "";
      socket.on("data", (chunk) => (answer += chunk.toString("latin1")));
      socket.on("error", () => {});
      socket.on("close", () => resolve(answer));
    });
  const head = `POST /m/v2/x HTTP/1.1\r\nhost: a\r\nauthorization: Bearer ${KEY}\r\nconnection: close\r\n`;
  const table: [string, string, RegExp][] = [
    [
      "both length and chunked",
      `${head}content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n`,
      /^HTTP\/1.1 400/,
    ],
    ["two lengths", `${head}content-length: 4\r\ncontent-length: 5\r\n\r\nabcde`, /^HTTP\/1.1 400/],
    ["a length with a sign", `${head}content-length: +4\r\n\r\nabcd`, /^HTTP\/1.1 400/],
    ["a list of lengths", `${head}content-length: 4, 4\r\n\r\nabcd`, /^HTTP\/1.1 400/],
    ["chunked not last", `${head}transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n`, /^HTTP\/1.1 400/],
    ["another coding first", `${head}transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n`, /^HTTP\/1.1 400/],
    [
      "two transfer-encodings",
      `${head}transfer-encoding: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n`,
      /^HTTP\/1.1 400/,
    ],
    ["a space before the colon", `${head}content-length : 4\r\n\r\nabcd`, /^HTTP\/1.1 400/],
    ["a folded header", `${head}x: a\r\n content-length: 4\r\n\r\nabcd`, /^HTTP\/1.1 400/],
    ["a bare line feed", `${head}x: a\ncontent-length: 4\r\n\r\nabcd`, /^HTTP\/1.1 400/],
    ["a NUL in a header", `${head}x: a\0b\r\n\r\n`, /^HTTP\/1.1 400/],
    ["a chunk length that is no number", `${head}transfer-encoding: chunked\r\n\r\nzz\r\n`, /^(?:HTTP\/1.1 400.*)?/s],
    ["no host", `POST /m/v2/x HTTP/1.1\r\nauthorization: Bearer ${KEY}\r\nconnection: close\r\n\r\n`, /^HTTP\/1.1 400/],
    [
      "an absolute address",
      `POST http://a/m/v2/x HTTP/1.1\r\nhost: a\r\nauthorization: Bearer ${KEY}\r\nconnection: close\r\n\r\n`,
      /^HTTP\/1.1 401/,
    ],
    ["headers too large", `${head}x: ${"a".repeat(20_000)}\r\n\r\n`, /^HTTP\/1.1 431/],
    [
      "too many headers",
      `${head}${Array.from({ length: 120 }, (_, i) => `x-${i}: 1\r\n`).join("")}\r\n`,
      /^HTTP\/1.1 431/,
    ],
    ["a body too large", `${head}content-length: 1001\r\n\r\n`, /^HTTP\/1.1 413/],
    ["headers that do not end", head, /^HTTP\/1.1 408/],
    ["a body that does not come", `${head}content-length: 10\r\n\r\nabc`, /^HTTP\/1.1 408/],
    ["a tunnel", `CONNECT /m/v2/x HTTP/1.1\r\nhost: a\r\nauthorization: Bearer ${KEY}\r\n\r\n`, /^$|^HTTP\/1.1 40/],
  ];
  for (const [what, text, expected] of table) t.match(await raw(text), expected, what);
  t.equal(reached, 0);
  t.match(
    await raw(`${head}upgrade: websocket\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\nhi`),
    /100 Continue.*200 OK/s,
  );
  t.match(
    await raw(`${head}transfer-encoding: chunked\r\n\r\n7d0\r\n${"a".repeat(2000)}\r\n0\r\n\r\n`),
    /^HTTP\/1.1 413/,
    "long without a length",
  );
  t.equal(reached, 1);
});

t.test("time over; clients that leave; clients that read slowly", async (t) => {
  const world = new World(t, { requestTimeoutMs: 300 });
  await world.router.start();
  let closed = 0;
  let reached = 0;
  const silent = await world.replica("r1.0", (request) => {
    reached += 1;
    request.socket.on("close", () => (closed += 1));
  });
  world.route([silent]);
  t.match(await ask(world.base), { status: 504, headers: { "sallyport-code": "TIMED_OUT" } });
  await until(() => closed === 1);
  const leaving = httpRequest(`${world.base}/v2/x`, { headers: { authorization: `Bearer ${KEY}` }, agent: false });
  leaving.on("error", () => {});
  leaving.end();
  await until(() => reached === 2);
  leaving.destroy();
  await until(() => closed === 2);
  t.equal(world.router.busy(ID, "r1.0"), 0);

  // 64 MiB for a client that does not read: most of it stays at the replica.
  let written = 0;
  let full: () => void = () => {};
  const stuck = new Promise<void>((resolve) => (full = resolve));
  const big = await world.replica("r1.1", (_, response) => {
    response.writeHead(200);
    const go = () => {
      while (written < 64 << 20) {
        written += 65536;
        if (!response.write(Buffer.alloc(65536))) return void response.once("drain", go);
      }
      response.end();
    };
    response.on("close", full);
    go();
  });
  world.route([big]);
  const socket = connect(Number(new URL(world.base).port), "127.0.0.1");
  socket.on("error", () => {});
  socket.write(`GET /m/v2/x HTTP/1.1\r\nhost: a\r\nauthorization: Bearer ${KEY}\r\n\r\n`);
  socket.pause();
  await stuck;
  t.ok(written < 32 << 20, `${written} bytes left the replica before the client was given up`);
  socket.destroy();
});

t.test("figures of a minute", async (t) => {
  const clock = new ManualClock(Date.UTC(2026, 0, 1, 12, 0, 30));
  const world = new World(t, {}, clock);
  await world.router.start();
  let answers = 0;
  world.route([await world.replica("r1.0", (_, response) => response.writeHead(++answers > 8 ? 500 : 200).end("x"))]);
  t.equal(world.router.rollup(ID), null);
  let told = 0;
  world.router.onRollup(() => (told += 1));
  for (let i = 0; i < 10; i++) await ask(world.base);
  await ask(world.base, { headers: { authorization: "Bearer no" } });
  await until(() => world.router.busy(ID, "r1.0") === 0);
  await clock.advance(30_000);
  t.equal(told, 1);
  t.match(world.router.rollup(ID), {
    at: Date.UTC(2026, 0, 1, 12, 1),
    requests: 10,
    errors: 2,
    retries: 0,
    p50Ms: Number,
  });
  await clock.advance(60_000);
  t.same(world.router.rollup(ID), {
    at: Date.UTC(2026, 0, 1, 12, 2),
    requests: 0,
    errors: 0,
    retries: 0,
    p50Ms: null,
    p95Ms: null,
    p99Ms: null,
  });
  t.equal(told, 2);
});

t.test("through the link: the same way, without key and listener", async (t) => {
  const world = new World(t);
  const ask = (path = "/v2/x", signal?: AbortSignal) =>
    world.router.request(ID, {
      method: "POST",
      path,
      headers: { "content-type": "application/json" },
      body: Buffer.from("{}"),
      timeoutMs: 20_000,
      ...(signal ? { signal } : {}),
    });
  await t.rejects(ask(), { code: "DEPLOYMENT_UNKNOWN" });
  const gone = target("r1.9", world.socket());
  const good = await world.replica("r1.0");
  world.route([gone, good]);
  const answer = await ask();
  const chunks: Buffer[] = [];
  for await (const chunk of answer.body) chunks.push(chunk);
  t.match(answer, { status: 200, mediaType: "application/json", replica: "r1.0" });
  t.equal((JSON.parse(Buffer.concat(chunks).toString()) as Echo).headers["authorization"], "Bearer replica-token");
  const stop = new AbortController();
  world.route([]);
  const held = ask("/v2/x", stop.signal);
  stop.abort();
  await t.rejects(held, { code: "CANCELLED" });
  t.match(await world.router.probe(good, "/v2/health/ready", 5000), { status: 200 });
  t.equal(await world.router.probe(gone, "/v2/health/ready", 5000), null);
});

t.test("a port that is taken is tried again", async (t) => {
  const other = createTcp();
  await new Promise<void>((resolve) => other.listen(0, "127.0.0.1", resolve));
  const { port } = other.address() as AddressInfo;
  const router = createRouter({
    listen: `127.0.0.1:${port}`,
    advertise: "https://models.internal/",
    tls: null,
    clock: systemClock,
    log,
    limits: { listenAgainMs: 20 },
  });
  t.teardown(() => router.close(0));
  await router.start();
  t.match(router.problem, { code: "PORT_TAKEN" });
  router.set({ deployment: ID, name: "m", key: KEY, replicas: [], holdMs: 10 });
  t.equal(router.endpoint("m"), "https://models.internal/m");
  const changed = new Promise<void>((resolve) => router.onChange(resolve));
  const keepAlive = setInterval(() => {}, 1000);
  await new Promise((resolve) => other.close(resolve));
  await changed;
  clearInterval(keepAlive);
  t.equal(router.problem, null);
  t.equal((await ask(`http://127.0.0.1:${port}/m`)).status, 503);
});
