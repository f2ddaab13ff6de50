// grpc-js: unary calls, and one call that streams. The agent is the server, which no outbound-only agent could be.
import { Server, ServerCredentials, credentials, makeGenericClientConstructor } from "@grpc/grpc-js";
import { createServer, type AddressInfo } from "node:net";
import { CHUNK_BYTES, TRIP_BYTES, type Peer } from "./peer.ts";

const whole = (bytes: Buffer): Buffer => bytes;
const method = (path: string, responseStream: boolean) => ({
  path,
  requestStream: false,
  responseStream,
  requestSerialize: whole,
  requestDeserialize: whole,
  responseSerialize: whole,
  responseDeserialize: whole,
});
const SERVICE = { echo: method("/bench/echo", false), bulk: method("/bench/bulk", true) };
const OPTIONS = { "grpc.max_receive_message_length": -1, "grpc-node.flow_control_window": 8 * 1024 * 1024 };

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

export const grpc: Peer = {
  async near(startFar) {
    const port = await freePort();
    startFar(String(port));
    const Client = makeGenericClientConstructor(SERVICE, "bench");
    const client = new Client(`127.0.0.1:${port}`, credentials.createInsecure(), {
      ...OPTIONS,
      "grpc.initial_reconnect_backoff_ms": 100,
    });
    await new Promise<void>((resolve, reject) =>
      client.waitForReady(Date.now() + 10_000, (error) => (error === undefined ? resolve() : reject(error))),
    );
    const request = Buffer.alloc(TRIP_BYTES, "a");
    return {
      trip: () =>
        new Promise((resolve, reject) =>
          client.makeUnaryRequest(SERVICE.echo.path, whole, whole, request, (error: Error | null) =>
            error === null ? resolve() : reject(error),
          ),
        ),
      bulk: (wanted) =>
        new Promise((resolve, reject) => {
          const order = Buffer.alloc(8);
          order.writeDoubleBE(wanted);
          const call = client.makeServerStreamRequest(SERVICE.bulk.path, whole, whole, order);
          let bytes = 0;
          call.on("data", (data: Buffer) => (bytes += data.length));
          call.once("error", reject).once("end", () => resolve(bytes));
        }),
    };
  },
  async far([port]) {
    const server = new Server(OPTIONS);
    const chunk = Buffer.alloc(CHUNK_BYTES, 7);
    server.addService(SERVICE, {
      echo: (call: { request: Buffer }, callback: (error: null, answer: Buffer) => void) =>
        callback(null, call.request),
      bulk: (call: import("@grpc/grpc-js").ServerWritableStream<Buffer, Buffer>) => {
        const bytes = call.request.readDoubleBE();
        const send = async () => {
          for (let sent = 0; sent < bytes; sent += chunk.length)
            if (!call.write(chunk)) await new Promise((resolve) => call.once("drain", resolve));
          call.end();
        };
        void send();
      },
    });
    await new Promise<void>((resolve, reject) =>
      server.bindAsync(`127.0.0.1:${port}`, ServerCredentials.createInsecure(), (error) =>
        error === null ? resolve() : reject(error),
      ),
    );
  },
};
