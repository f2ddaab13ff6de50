// Both ends of a link in one process, cut and made again: told how often by a message, answers with what the process
// holds after a forced collection. Started with --expose-gc.
import { readdirSync } from "node:fs";
import { parseEnrolmentSecret } from "@sallyport/protocol";
import { startAgentEnd } from "../contract/link/agent-end.ts";
import { startCloudEnd } from "../contract/link/cloud-end.ts";
import { startTcpProxy } from "../support/tcp-proxy.ts";

export interface Held {
  sockets: number;
  timers: number;
  heapBytes: number;
}

const cloud = await startCloudEnd();
const proxy = await startTcpProxy({ teardown: () => undefined }, { port: cloud.port });
// No spread: the next dial follows at once.
const agent = startAgentEnd({
  url: `http://127.0.0.1:${proxy.port}`,
  enrolment: parseEnrolmentSecret(cloud.enrolment().text),
  random: () => 0,
});
await agent.online();

async function reconnect(): Promise<void> {
  const { id } = await agent.online();
  proxy.cut();
  for (;;) {
    const session = await agent.online();
    if (session.id !== id) break;
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  const session = [...cloud.directory.replicas.keys()].map((replica) =>
    cloud.gateway.sessions.ofReplica(cloud.directory.workspace, replica),
  )[0];
  if (session === null || session === undefined) return;
  const stream = session.open({ type: "any" }, { lane: "interactive", end: true });
  await stream.answer.catch(() => undefined);
}
agent.onStream = (stream) => stream.respond({}, { end: true });

process.on("disconnect", () => process.exit(0));
process.on("message", (times: number) => {
  const run = async (): Promise<Held> => {
    for (let n = 0; n < times; n++) await reconnect();
    // What tests keep for looking at.
    agent.events.length = 0;
    cloud.events.length = 0;
    cloud.directory.opens.length = 0;
    cloud.directory.closes.length = 0;
    cloud.directory.statuses.length = 0;
    await new Promise((resolve) => setTimeout(resolve, 3_000));
    for (let n = 0; n < 4; n++) {
      (globalThis as { gc?: () => void }).gc?.();
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    const resources = process.getActiveResourcesInfo();
    return {
      sockets: readdirSync("/proc/self/fd").length,
      timers: resources.filter((name) => name === "Timeout").length,
      heapBytes: process.memoryUsage().heapUsed,
    };
  };
  void run().then((held) => process.send!(held));
});
process.send!("ready");
