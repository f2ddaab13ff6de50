// HTTP/2 over the same WebSocket (a reverse tunnel as others build it): the agent is the HTTP/2 server.
import { connect, createServer as createHttp2Server, type ClientHttp2Session } from "node:http2";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { WebSocket, WebSocketServer, createWebSocketStream } from "ws";
import { CHUNK_BYTES, TRIP_BYTES, type Peer } from "./peer.ts";

const WINDOW_BYTES = 8 * 1024 * 1024;

export const http2OverWs: Peer = {
  async near(startFar) {
    const server = createServer();
    const webSockets = new WebSocketServer({ server, perMessageDeflate: false });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const connected = new Promise<WebSocket>((resolve) => webSockets.once("connection", resolve));
    startFar(String((server.address() as AddressInfo).port));
    const stream = createWebSocketStream(await connected);
    const session: ClientHttp2Session = connect("http://agent", {
      createConnection: () => stream,
      settings: { initialWindowSize: WINDOW_BYTES },
    });
    await new Promise((resolve) => session.once("connect", resolve));
    session.setLocalWindowSize(WINDOW_BYTES);
    const ask = (path: string, body: Buffer | null) =>
      new Promise<number>((resolve, reject) => {
        const request = session.request({ ":path": path, ":method": body === null ? "GET" : "POST" });
        let bytes = 0;
        request.on("data", (data: Buffer) => (bytes += data.length));
        request.once("error", reject).once("end", () => resolve(bytes));
        request.end(body ?? undefined);
      });
    const request = Buffer.alloc(TRIP_BYTES, "a");
    return {
      trip: async () => void (await ask("/", request)),
      bulk: (bytes) => ask(`/${bytes}`, null),
    };
  },
  async far([port]) {
    const server = createHttp2Server();
    const chunk = Buffer.alloc(CHUNK_BYTES, 7);
    server.on("stream", (stream, headers) => {
      const bytes = Number(headers[":path"]!.slice(1));
      if (bytes === 0) {
        stream.respond({ ":status": 200 });
        stream.pipe(stream);
        return;
      }
      stream.respond({ ":status": 200 });
      const bulk = async () => {
        for (let sent = 0; sent < bytes; sent += chunk.length)
          if (!stream.write(chunk)) await new Promise((resolve) => stream.once("drain", resolve));
        stream.end();
      };
      void bulk();
    });
    const webSocket = new WebSocket(`ws://127.0.0.1:${port}`, { perMessageDeflate: false });
    webSocket.once("open", () => server.emit("connection", createWebSocketStream(webSocket)));
  },
};
