// The other process of the link bench: an agent's end, or a bare WebSocket client.
import { parseEnrolmentSecret } from "@sallyport/protocol";
import { WebSocket } from "ws";
import { startAgentEnd } from "../contract/link/agent-end.ts";

const [kind, ...rest] = process.argv.slice(2);
const chunk = Buffer.alloc(64 * 1024, 7);

process.on("message", () => {
  const { user, system } = process.cpuUsage();
  process.send!({ cpuUs: user + system });
});
process.on("disconnect", () => process.exit(0));

if (kind === "bare") {
  const webSocket = new WebSocket(`ws://127.0.0.1:${rest[0]}`, { perMessageDeflate: false });
  webSocket.on("message", (data: Buffer, isBinary: boolean) => {
    if (isBinary) webSocket.send(data);
    else void bulk();
  });
  webSocket.on("close", () => process.exit(0));
  const total = Number(process.env["BENCH_BYTES"] ?? 1024 ** 3);
  const bulk = async () => {
    for (let sent = 0; sent < total; sent += chunk.length) {
      webSocket.send(chunk);
      if (webSocket.bufferedAmount > 1024 * 1024)
        await new Promise((resolve) => webSocket.send(Buffer.alloc(0), resolve));
    }
  };
} else {
  const agent = startAgentEnd({ url: rest[0]!, enrolment: parseEnrolmentSecret(rest[1]!), mac: rest[2] === "true" });
  process.on("SIGTERM", () => {
    agent.stop();
    process.exit(0);
  });
  agent.onStream = (stream) => {
    const head = stream.head as { type: "echo" } | { type: "bulk"; bytes: number };
    if (head.type === "echo") return stream.respond(head, { end: true });
    stream.respond({});
    void (async () => {
      for (let sent = 0; sent < head.bytes; sent += chunk.length) await stream.write(chunk);
      await stream.end();
    })();
  };
}
