// Raw TCP: what the machine gives when nothing is asked of it.
import { connect, createServer, type AddressInfo, type Socket } from "node:net";
import { CHUNK_BYTES, TRIP_BYTES, type Peer } from "./peer.ts";

export const tcp: Peer = {
  async near(startFar) {
    const server = createServer({ noDelay: true });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const connected = new Promise<Socket>((resolve) => server.once("connection", resolve));
    startFar(String((server.address() as AddressInfo).port));
    const socket = await connected;
    let wanted = 0;
    let bytes = 0;
    let done: (bytes: number) => void = () => {};
    socket.on("data", (data) => {
      bytes += data.length;
      if (bytes >= wanted) done(bytes);
    });
    const exchange = (request: Buffer, wantedBytes: number) =>
      new Promise<number>((resolve) => {
        bytes = 0;
        wanted = wantedBytes;
        done = resolve;
        socket.write(request);
      });
    const request = Buffer.alloc(TRIP_BYTES, "a");
    const order = Buffer.alloc(16);
    return {
      trip: async () => void (await exchange(request, TRIP_BYTES)),
      bulk(wantedBytes) {
        order.writeDoubleBE(wantedBytes, 8);
        return exchange(order, wantedBytes);
      },
    };
  },
  async far([port]) {
    const socket = connect({ port: Number(port), host: "127.0.0.1", noDelay: true });
    const chunk = Buffer.alloc(CHUNK_BYTES, 7);
    const bulk = async (bytes: number) => {
      for (let sent = 0; sent < bytes; sent += chunk.length)
        if (!socket.write(chunk)) await new Promise((resolve) => socket.once("drain", resolve));
    };
    // Requests are small enough to come whole on loopback, one at a time.
    socket.on("data", (data) => {
      if (data.length === 16) void bulk(data.readDoubleBE(8));
      else socket.write(data);
    });
  },
};
