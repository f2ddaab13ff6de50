// Bare `ws`: what the link is held against. Masks as RFC 6455 wants them, by `bufferutil` where it is, as in ours.
import { createServer } from "node:http";
import { createServer as createTlsServer } from "node:https";
import type { AddressInfo } from "node:net";
import { WebSocket, WebSocketServer } from "ws";
import { CHUNK_BYTES, TRIP_BYTES, type Peer } from "./peer.ts";

const BUFFERED_BYTES = 1024 * 1024;

export const bareWs: Peer = {
  async near(startFar, { tls }) {
    const server = tls === undefined ? createServer() : createTlsServer(tls);
    const webSockets = new WebSocketServer({ server, perMessageDeflate: false, maxPayload: 1 << 21 });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const connected = new Promise<WebSocket>((resolve) => webSockets.once("connection", resolve));
    startFar(
      `${tls === undefined ? "ws" : "wss"}://127.0.0.1:${(server.address() as AddressInfo).port}`,
      ...(tls === undefined ? [] : [tls.ca]),
    );
    const webSocket = await connected;
    let onMessage: (data: Buffer) => void = () => {};
    webSocket.on("message", (data: Buffer) => onMessage(data));
    const request = Buffer.alloc(TRIP_BYTES, "a");
    return {
      trip: () =>
        new Promise((resolve) => {
          onMessage = () => resolve();
          webSocket.send(request);
        }),
      bulk: (wanted) =>
        new Promise((resolve) => {
          let bytes = 0;
          onMessage = (data) => {
            bytes += data.length;
            if (bytes >= wanted) resolve(bytes);
          };
          webSocket.send(String(wanted));
        }),
    };
  },
  async far([url, ca]) {
    const webSocket = new WebSocket(url!, { perMessageDeflate: false, ...(ca === undefined ? {} : { ca: [ca] }) });
    const chunk = Buffer.alloc(CHUNK_BYTES, 7);
    const bulk = async (bytes: number) => {
      for (let sent = 0; sent < bytes; sent += chunk.length) {
        if (webSocket.bufferedAmount < BUFFERED_BYTES) webSocket.send(chunk);
        else await new Promise((resolve) => webSocket.send(chunk, resolve));
      }
    };
    webSocket.on("message", (data: Buffer, isBinary: boolean) => {
      if (isBinary) webSocket.send(data);
      else void bulk(Number(data.toString()));
    });
  },
};
