// How cloud processes wake each other: a port of lossy notes, in process or over NATS. It carries no content, no command
// and no state: SQL has those. The wiring makes one; the dispatcher, the peers and the feed of changes are handed it.
export * from "./backplane.ts";
export { inProcessBackplane, sweepBackplane, type Hub } from "./in-process.ts";
export { natsBackplane, type NatsBackplaneOptions } from "./nats.ts";
