// The other way from process to process, for where they do not reach each other: the transport by which agents come over
// NATS, on subjects of the processes. Handshake, MACs and frames are those of the socket; only TLS to the NATS servers
// hides bulk content, and they see it.
import { createHash, randomBytes } from "node:crypto";
import type { NatsConnection } from "@nats-io/nats-core";
import { NATS_PREFIX, dialNats, natsSocket, natsSubjects, type Clock, type Transport } from "@sallyport/protocol";
import { PEER_GREETING_MS } from "./peer-socket.ts";

/** Where the processes of one control plane find each other: `PREFIX.INCARNATION.peer.up.NAME.>` and `.down.NAME.>`. */
export const peerPrefix = (prefix: string | null, incarnation: string): string =>
  `${prefix ?? NATS_PREFIX}.${incarnation.replace(/[^A-Za-z0-9_-]/g, "_")}.peer`;

/** A process's id has characters that no part of a subject may have. */
export const peerName = (process: string): string => createHash("sha256").update(process).digest("hex").slice(0, 32);

/** What a process subscribes to in order to be found. */
export const peerHello = (prefix: string, process: string): string =>
  natsSubjects(prefix, peerName(process), "none").hello;

/** The connection is made for this one link, and ends with it. */
export async function dialPeerOverNats(options: {
  connect(): Promise<NatsConnection>;
  prefix: string;
  process: string;
  clock: Clock;
}): Promise<Transport> {
  const { prefix, process, clock } = options;
  const connection = await options.connect();
  // Closed, it ends the transport that is being made, too.
  const deadline = clock.after(PEER_GREETING_MS, () => void connection.close(), { keepAlive: true });
  try {
    return await dialNats({
      connection,
      socket: natsSocket(connection),
      prefix,
      name: peerName(process),
      session: randomBytes(16).toString("hex"),
      clock,
    });
  } catch (error) {
    void connection.close();
    throw error;
  } finally {
    deadline.cancel();
  }
}
