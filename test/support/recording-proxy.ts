// A terminating proxy that keeps every byte of both directions: what an agent sent can be read after TLS and, through
// WebSocketPayloadReader, after WebSocket's masking. It stands where an inspecting middle box would. Loopback only.
import { closeSync, createReadStream, openSync, writeSync } from "node:fs";
import { connect, createServer } from "node:net";
import type { AddressInfo, Server, Socket } from "node:net";
import { join } from "node:path";
import { connect as tlsConnect, createServer as createTlsServer } from "node:tls";
import { tempDir } from "./launcher.ts";
import type { Teardown } from "./launcher.ts";
import { WebSocketPayloadReader } from "./websocket-payload.ts";

export interface RecordingProxyOptions {
  readonly target: {
    readonly host?: string;
    readonly port: number;
    /** PEM of the authority of the target's certificate: re-originates TLS. Absent: plain. */
    readonly ca?: string | Buffer;
    /** Name to ask for; default localhost. */
    readonly servername?: string;
  };
  /** Terminates TLS with this certificate (PEM). Absent: plain. */
  readonly tls?: { readonly cert: string | Buffer; readonly key: string | Buffer };
}

/** One recorded connection. The files grow while it is open. */
export interface RecordedConnection {
  /** What the client sent, after TLS. */
  readonly upFile: string;
  /** What the target sent, after TLS. */
  readonly downFile: string;
  readonly bytes: { up: number; down: number };
  readonly openedAtMs: number;
  closed: boolean;
}

export interface RecordingProxy {
  readonly host: string;
  readonly port: number;
  /** All since the start, oldest first. */
  readonly connections: readonly RecordedConnection[];
  /** Folder of the recordings. */
  readonly dir: string;
  /** Bytes since the start, over all connections. */
  readonly bytes: { readonly up: number; readonly down: number };
  /** How many connections are open now. */
  readonly open: number;
  /** The plaintext that clients sent, connection by connection: HTTP and, after an upgrade, unmasked payloads. */
  sent(out: (bytes: Buffer, connection: RecordedConnection) => void): Promise<void>;
  /** The same for what clients received. */
  received(out: (bytes: Buffer, connection: RecordedConnection) => void): Promise<void>;
  /** Resets every open connection; new ones are still accepted. */
  cut(): void;
  close(): Promise<void>;
}

export async function startRecordingProxy(t: Teardown, options: RecordingProxyOptions): Promise<RecordingProxy> {
  const { target, tls } = options;
  const dir = tempDir(t, "recording");
  const connections: RecordedConnection[] = [];
  const sockets = new Set<Socket>();
  const bytes = { up: 0, down: 0 };

  const accept = (client: Socket) => {
    const host = target.host ?? "127.0.0.1";
    const upstream: Socket =
      target.ca === undefined
        ? connect({ host, port: target.port })
        : tlsConnect({ host, port: target.port, ca: target.ca, servername: target.servername ?? "localhost" });
    const number = connections.length;
    const recorded: RecordedConnection = {
      upFile: join(dir, `${number}-up.bin`),
      downFile: join(dir, `${number}-down.bin`),
      bytes: { up: 0, down: 0 },
      openedAtMs: Date.now(),
      closed: false,
    };
    connections.push(recorded);
    const ends = [
      { from: client, to: upstream, direction: "up", file: openSync(recorded.upFile, "w") },
      { from: upstream, to: client, direction: "down", file: openSync(recorded.downFile, "w") },
    ] as const;
    let open = ends.length;
    for (const { from, to, direction, file } of ends) {
      sockets.add(from);
      from.setNoDelay(true);
      from.on("data", (chunk: Buffer) => {
        // Recorded before it is handed on: a recording is never behind what the other side saw.
        writeSync(file, chunk);
        recorded.bytes[direction] += chunk.length;
        bytes[direction] += chunk.length;
        if (!to.writable || to.write(chunk)) return;
        from.pause();
        to.once("drain", () => from.resume());
      });
      from.on("end", () => to.end());
      from.on("error", () => to.destroy());
      from.on("close", () => {
        sockets.delete(from);
        closeSync(file);
        to.destroy();
        open -= 1;
        recorded.closed = open === 0;
      });
    }
  };

  const server: Server = tls ? createTlsServer({ cert: tls.cert, key: tls.key }, accept) : createServer(accept);
  server.on("tlsClientError", () => {}); // a client that refuses our certificate; the test sees it at the client
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(0, "127.0.0.1", resolve);
  });

  const cut = () => {
    for (const socket of sockets) {
      // A TLS socket cannot send a reset itself; destroying it is as abrupt for both peers.
      socket.destroy();
    }
  };
  const close = async () => {
    cut();
    if (server.listening) await new Promise((resolve) => server.close(resolve));
  };
  t.teardown(close);

  const read = async (
    file: (connection: RecordedConnection) => string,
    out: (bytes: Buffer, connection: RecordedConnection) => void,
  ) => {
    for (const connection of connections) {
      const reader = new WebSocketPayloadReader((payload) => out(payload, connection));
      for await (const chunk of createReadStream(file(connection), { highWaterMark: 1 << 20 }))
        reader.write(chunk as Buffer);
      reader.end();
    }
  };

  return {
    host: "127.0.0.1",
    port: (server.address() as AddressInfo).port,
    connections,
    dir,
    bytes,
    get open() {
      return connections.filter(({ closed }) => !closed).length;
    },
    sent: (out) => read(({ upFile }) => upFile, out),
    received: (out) => read(({ downFile }) => downFile, out),
    cut,
    close,
  };
}
