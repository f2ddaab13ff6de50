// NATS: request and reply, and messages published one after the other, both through a NATS server. Core NATS has no
// back-pressure between publisher and subscriber: the reader's acknowledgement of every 8 MiB stands in for one.
import { connect } from "@nats-io/transport-node";
import { CHUNK_BYTES, TRIP_BYTES, type Peer } from "./peer.ts";

const WINDOW_BYTES = 8 * 1024 * 1024;

export const nats: Peer = {
  async near(startFar, { nats: options }) {
    const connection = await connect(options!);
    startFar(JSON.stringify(options));
    const request = Buffer.alloc(TRIP_BYTES, "a");
    for (let tries = 0; ; tries++) {
      try {
        await connection.request("echo", request, { timeout: 500 });
        break;
      } catch (error) {
        if (tries === 100) throw error;
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    }
    return {
      trip: async () => void (await connection.request("echo", request, { timeout: 10_000 })),
      bulk: (wanted) =>
        new Promise((resolve, reject) => {
          let bytes = 0;
          let acknowledged = 0;
          const subscription = connection.subscribe("bulk.data", {
            callback: (error, message) => {
              if (error !== null) return reject(error);
              bytes += message.data.length;
              if (bytes - acknowledged >= WINDOW_BYTES / 2) {
                acknowledged = bytes;
                connection.publish("bulk.ack", String(bytes));
              }
              if (bytes < wanted) return;
              subscription.unsubscribe();
              resolve(bytes);
            },
          });
          connection.flush().then(() => connection.publish("bulk.start", String(wanted)), reject);
        }),
    };
  },
  async far([options]) {
    const connection = await connect(JSON.parse(options!) as { servers: string });
    connection.subscribe("echo", { callback: (_error, message) => void message.respond(message.data) });
    const chunk = Buffer.alloc(CHUNK_BYTES, 7);
    let acknowledged = 0;
    let wake: () => void = () => {};
    connection.subscribe("bulk.ack", {
      callback: (_error, message) => {
        acknowledged = Number(message.string());
        wake();
      },
    });
    connection.subscribe("bulk.start", {
      callback: (_error, message) => {
        acknowledged = 0;
        const bytes = Number(message.string());
        const send = async () => {
          for (let sent = 0; sent < bytes; sent += chunk.length) {
            while (sent - acknowledged >= WINDOW_BYTES) await new Promise<void>((resolve) => (wake = resolve));
            connection.publish("bulk.data", chunk);
          }
        };
        void send();
      },
    });
  },
};
