// What one socket may take of a turn of the event loop, over a real WebSocket on loopback.
import { createServer } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import t from "tap";
import { WebSocket, WebSocketServer } from "ws";
import { webSocketTransport } from "./transport-ws.ts";
import type { Transport } from "./transport.ts";

const KIB = 1024;

t.test("bulk leaves each turn of the event loop to others after a few reads, and comes whole", async (t) => {
  const server = createServer();
  const webSockets = new WebSocketServer({ noServer: true, perMessageDeflate: false });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const far = new Promise<Transport>((resolve) =>
    server.on("upgrade", (request, socket, head) =>
      webSockets.handleUpgrade(request, socket, head, (webSocket) =>
        resolve(webSocketTransport(webSocket, socket as Socket)),
      ),
    ),
  );
  const near = new WebSocket(`ws://127.0.0.1:${(server.address() as AddressInfo).port}`, { perMessageDeflate: false });
  const receiver = await new Promise<Transport>((resolve) =>
    near.on("upgrade", (response) => resolve(webSocketTransport(near, response.socket))),
  );
  const sender = await far;
  t.teardown(() => {
    sender.destroy();
    receiver.destroy();
    server.close();
  });

  const messages = 400;
  let arrivedBytes = 0;
  let inTurn = 0;
  let mostInTurn = 0;
  const whole = new Promise<void>((resolve) =>
    receiver.onMessage(
      (part) => {
        arrivedBytes += part.length;
        inTurn += part.length;
        if (arrivedBytes === messages * 64 * KIB) resolve();
      },
      { inParts: true },
    ),
  );
  let over = false;
  const turn = () => {
    mostInTurn = Math.max(mostInTurn, inTurn);
    inTurn = 0;
    if (!over) setImmediate(turn);
  };
  setImmediate(turn);
  // More than the kernel takes at once: from then on there is always more to read.
  for (let n = 0; n < messages; n++) sender.send(Buffer.alloc(64 * KIB, n));
  await whole;
  over = true;
  // A few reads by Node, or one large one after the first.
  t.ok(mostInTurn <= 384 * KIB, `${mostInTurn} bytes in one turn`);
});
