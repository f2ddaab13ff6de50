// Our link: the gateway and the agent's link as they ship, without what lies above them.
import { generateKeyPairSync } from "node:crypto";
import { parseEnrolmentSecret, type LinkStream } from "@sallyport/protocol";
import type { CloudSession } from "../../../cloud/link/index.ts";
import { startAgentEnd } from "../../contract/link/agent-end.ts";
import { startCloudEnd } from "../../contract/link/cloud-end.ts";
import { TRIP_BYTES, type Peer } from "./peer.ts";

/** As a store hands them over. */
const STORE_CHUNK_BYTES = 64 * 1024;

export const sallyport = (mac: boolean): Peer => ({
  async near(startFar, { tls }) {
    const cloud = await startCloudEnd({
      mac,
      identityKey: generateKeyPairSync("ed25519"),
      ...(tls === undefined ? {} : { tls }),
    });
    const online = new Promise<CloudSession>((resolve) => cloud.gateway.sessions.onOnline(resolve));
    startFar(cloud.url, cloud.enrolment().text, String(mac), ...(tls === undefined ? [] : [tls.ca]));
    const session = await online;
    const text = "a".repeat(TRIP_BYTES - 25);
    return {
      async trip() {
        await session.open({ type: "echo", text }, { lane: "interactive", end: true }).answer;
      },
      async bulk(wanted) {
        const stream = session.open({ type: "bulk", bytes: wanted }, { lane: "bulk", end: true });
        await stream.answer;
        let bytes = 0;
        for await (const chunk of stream.bytes) bytes += chunk.length;
        return bytes;
      },
    };
  },
  async far([url, secret, withMac, ca]) {
    const agent = startAgentEnd({
      url: url!,
      enrolment: parseEnrolmentSecret(secret!),
      mac: withMac === "true",
      ...(ca === undefined ? {} : { ca }),
    });
    // A buffer is the link's once it was written, so each write has its own, as from a store.
    const content = Buffer.alloc(STORE_CHUNK_BYTES, 7);
    const bulk = async (stream: LinkStream, bytes: number) => {
      for (let sent = 0; sent < bytes; sent += content.length) await stream.write(content);
      await stream.end();
    };
    agent.onStream = (stream) => {
      const head = stream.head as { type: "echo" } | { type: "bulk"; bytes: number };
      if (head.type === "echo") return stream.respond(head, { end: true });
      stream.respond({});
      bulk(stream, head.bytes).catch(() => undefined); // its reader has enough
    };
  },
});
