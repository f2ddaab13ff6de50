// Agents that come over a NATS network: where one is configured, their hellos are listened for there, too.
import type { Clock } from "@sallyport/protocol";
import type { Logger } from "pino";
import { NatsListener, type LinkGateway } from "../link/index.ts";
import { connectNats, type NatsAccess } from "../nats/index.ts";

/** Goes on trying while the server is away. Returns what ends it. */
export function listenOnNats(access: NatsAccess, gateway: LinkGateway, clock: Clock, log: Logger): () => Promise<void> {
  const servers = access.servers.join(", ");
  const listener = new NatsListener({
    gateway,
    connect: (name) => connectNats(access, `sallyport-cloud ${name}`),
    ...(access.prefix === null ? {} : { prefix: access.prefix }),
    clock,
    onState: (problem) =>
      problem === null
        ? log.info({ servers }, "agents may come over NATS")
        : log.error({ err: problem.cause ?? problem, servers }, "no agent can come over NATS until its server is back"),
    onFailure: (error) => log.warn({ err: error.cause ?? error }, "an agent that came over NATS could not be taken"),
  });
  void listener.start();
  return () => listener.stop();
}
