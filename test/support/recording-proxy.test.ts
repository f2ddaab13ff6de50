import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer as createHttpServer } from "node:http";
import { createServer as createHttpsServer } from "node:https";
import type { AddressInfo } from "node:net";
import t from "tap";
import { WebSocket, WebSocketServer } from "ws";
import { CanaryScanner, makeCanary, scanBytes } from "./canaries.ts";
import { makeAuthority } from "./certificates.ts";
import { tempDir, waitFor } from "./launcher.ts";
import type { Teardown } from "./launcher.ts";
import { startRecordingProxy } from "./recording-proxy.ts";
import { WebSocketPayloadReader } from "./websocket-payload.ts";

function certificate(t: Teardown) {
  const { caFile, certFile, keyFile } = makeAuthority(tempDir(t, "authority"));
  return { ca: readFileSync(caFile), cert: readFileSync(certFile), key: readFileSync(keyFile) };
}

async function startEcho(t: Teardown, tls?: { cert: Buffer; key: Buffer }) {
  const server = tls ? createHttpsServer(tls) : createHttpServer();
  server.on("request", (request, response) => {
    request.resume();
    request.on("end", () => response.end("hello"));
  });
  const sockets = new WebSocketServer({ server, perMessageDeflate: false, maxPayload: 1 << 26 });
  sockets.on("connection", (socket) => {
    socket.on("error", () => {});
    socket.on("message", (data, isBinary) => socket.send(data, { binary: isBinary }));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.teardown(async () => {
    for (const socket of sockets.clients) socket.terminate();
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  });
  return { port: (server.address() as AddressInfo).port };
}

for (const secure of [true, false]) {
  t.test(`what a WebSocket client sent is found, ${secure ? "TLS on both sides" : "plain"}`, async (t) => {
    const tls = secure ? certificate(t) : undefined;
    const echo = await startEcho(t, tls);
    const proxy = await startRecordingProxy(t, {
      target: tls ? { port: echo.port, ca: tls.ca } : { port: echo.port },
      ...(tls ? { tls } : {}),
    });
    const canary = makeCanary("sent");
    const url = `${secure ? "wss" : "ws"}://localhost:${proxy.port}/link`;
    const client = new WebSocket(url, { perMessageDeflate: false, ...(tls ? { ca: tls.ca } : {}) });
    t.teardown(() => client.terminate());
    await once(client, "open");
    const sizes = [0, 1, 125, 126, 65_535, 65_536, 3 << 20];
    const messages = sizes.map((size) => randomBytes(size));
    const back: Buffer[] = [];
    client.on("message", (data: Buffer) => back.push(data));
    for (const message of messages) client.send(message);
    client.send(`a message with ${canary.value} in it`);
    await waitFor("all echoes", () => back.length === messages.length + 1);

    // The search is worthless if it sees masked bytes, and a plain search must find nothing here: that is the proof.
    const [recorded] = proxy.connections;
    t.ok(recorded);
    if (recorded) t.same(scanBytes(readFileSync(recorded.upFile), [canary], "masked"), []);
    const scanner = new CanaryScanner([canary], "sent");
    const sent: Buffer[] = [];
    await proxy.sent((bytes) => {
      sent.push(Buffer.from(bytes));
      scanner.write(bytes);
    });
    t.match(scanner.hits, [{ canary: "sent", encoding: "raw" }]);
    const plaintext = Buffer.concat(sent);
    t.ok(plaintext.includes(Buffer.concat(messages)), "every payload, in order, byte for byte");
    t.match(plaintext.toString("latin1"), /^GET \/link HTTP\/1\.1\r\n/);
    const received: Buffer[] = [];
    await proxy.received((bytes) => received.push(Buffer.from(bytes)));
    t.ok(Buffer.concat(received).includes(canary.value), "the answer is recorded, too");

    t.equal(proxy.open, 1);
    proxy.cut();
    await once(client, "close");
    await waitFor("the connection's end", () => proxy.open === 0);
  });
}

t.test("HTTP before the upgrade passes as it is, in any split", async (t) => {
  const request = `POST /v1/enroll HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nsecret\r\n\n`;
  const upgrade = `GET /link HTTP/1.1\r\nHost: x\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n\r\n`;
  const mask = Buffer.from([9, 8, 7, 6]);
  const payload = Buffer.from("masked text");
  const masked = Buffer.from(payload.map((byte, i) => byte ^ (mask[i & 3] as number)));
  const frame = Buffer.concat([Buffer.from([0x82, 0x80 | payload.length]), mask, masked]);
  const bytes = Buffer.concat([Buffer.from(request + upgrade), frame, frame]);
  for (let split = 0; split <= bytes.length; split += 1) {
    const out: Buffer[] = [];
    const reader = new WebSocketPayloadReader((piece) => out.push(Buffer.from(piece)));
    reader.write(bytes.subarray(0, split));
    reader.write(bytes.subarray(split));
    reader.end();
    const text = Buffer.concat(out).toString();
    if (text !== `${request}${upgrade}masked textmasked text`) return t.equal(text, request, `split at ${split}`);
  }
  t.pass(`${bytes.length} splits`);
});

t.test("a compressed frame is an error, not a silence", async (t) => {
  const reader = new WebSocketPayloadReader(() => {});
  reader.write(Buffer.from("GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n"));
  t.throws(() => reader.write(Buffer.from([0xc2, 0x80, 1, 2, 3, 4])), { message: /compressed/ });
});
