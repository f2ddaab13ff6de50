// The way to the NATS servers that the configuration names: which they are, how to show them, one connection to them.
// It knows no subject. The configuration checks by it; whoever speaks NATS (agents' links, the backplane) connects by it.
export { connectNats, natsAccess, withoutNatsSecret, type NatsAccess } from "./nats.ts";
