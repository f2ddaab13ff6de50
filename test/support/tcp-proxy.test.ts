import { once } from "node:events";
import { connect, createServer } from "node:net";
import type { AddressInfo, Socket } from "node:net";
import t from "tap";
import { waitFor } from "./launcher.ts";
import type { Teardown } from "./launcher.ts";
import { startTcpProxy } from "./tcp-proxy.ts";

/** Echoes; counts what it got. */
async function startEcho(t: Teardown) {
  const sockets = new Set<Socket>();
  const seen = { bytes: 0, closed: 0 };
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("data", (bytes) => {
      seen.bytes += bytes.length;
      socket.write(bytes);
    });
    socket.on("error", () => {});
    socket.on("close", () => {
      seen.closed += 1;
      sockets.delete(socket);
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.teardown(async () => {
    for (const socket of sockets) socket.destroy();
    await new Promise((resolve) => server.close(resolve));
  });
  return { port: (server.address() as AddressInfo).port, seen };
}

async function dial(t: Teardown, port: number) {
  const socket = connect({ host: "127.0.0.1", port });
  const got: Buffer[] = [];
  let closed = false;
  socket.on("data", (bytes) => got.push(bytes));
  socket.on("error", () => {});
  socket.on("close", () => {
    closed = true;
  });
  t.teardown(() => socket.destroy());
  await once(socket, "connect");
  return {
    socket,
    get text() {
      return Buffer.concat(got).toString();
    },
    get closed() {
      return closed;
    },
  };
}

t.test("passes bytes and ends", async (t) => {
  const echo = await startEcho(t);
  const proxy = await startTcpProxy(t, echo);
  const client = await dial(t, proxy.port);
  const big = "0123456789abcdef".repeat(1 << 16);
  client.socket.end(big);
  await waitFor("the close", () => client.closed);
  t.ok(client.text === big, "a mebibyte came back whole");
  await waitFor("the other half's close", () => proxy.connections.size === 0);
});

t.test("a cut closes both ends; the next connection works", async (t) => {
  const echo = await startEcho(t);
  const proxy = await startTcpProxy(t, echo);
  const client = await dial(t, proxy.port);
  client.socket.write("one");
  await waitFor("the echo", () => client.text === "one");
  proxy.cut();
  await waitFor("both ends to close", () => client.closed && echo.seen.closed === 1);
  const again = await dial(t, proxy.port);
  again.socket.write("two");
  await waitFor("the echo", () => again.text === "two");
  t.equal(proxy.accepted, 2);
});

t.test("stalled: nothing passes, nothing closes; afterwards all of it arrives", async (t) => {
  const echo = await startEcho(t);
  const proxy = await startTcpProxy(t, echo);
  const client = await dial(t, proxy.port);
  client.socket.write("before ");
  await waitFor("the echo", () => client.text === "before ");
  proxy.setMode("stall");
  client.socket.write("during");
  const other = await startEcho(t);
  const direct = await dial(t, other.port); // a round trip elsewhere gives the stalled bytes their chance
  direct.socket.write("x");
  await waitFor("the direct echo", () => direct.text === "x");
  t.equal(client.text, "before ");
  t.notOk(client.closed);
  proxy.setMode("flow");
  await waitFor("the rest", () => client.text === "before during");
});

t.test("swallowed: the sender goes on, and its end is not told", async (t) => {
  const echo = await startEcho(t);
  const proxy = await startTcpProxy(t, echo);
  const client = await dial(t, proxy.port);
  await waitFor("the connection", () => proxy.connections.size === 1);
  const [connection] = proxy.connections;
  proxy.setMode("swallow", ["up"]);
  client.socket.end("x".repeat(8 << 20));
  await waitFor("all of it to be taken", () => connection?.bytes.up === 8 << 20);
  t.equal(echo.seen.bytes, 0);
  t.equal(echo.seen.closed, 0);
});

t.test("delayed: later, in order, at full throughput", async (t) => {
  const echo = await startEcho(t);
  const proxy = await startTcpProxy(t, echo);
  proxy.setDelay(50);
  const client = await dial(t, proxy.port);
  const startedMs = performance.now();
  for (let i = 0; i < 10; i += 1) client.socket.write(String(i));
  await waitFor("the echo", () => client.text === "0123456789", { everyMs: 2 });
  const tookMs = performance.now() - startedMs;
  t.ok(tookMs >= 98, `${Math.round(tookMs)} ms there and back`);
});

t.test("refused: reset at once", async (t) => {
  const echo = await startEcho(t);
  const proxy = await startTcpProxy(t, echo);
  proxy.refuse(true);
  const client = await dial(t, proxy.port).catch(() => undefined);
  if (client) await waitFor("the reset", () => client.closed);
  t.equal(proxy.connections.size, 0);
});
