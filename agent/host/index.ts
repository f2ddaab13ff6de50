// What the agent knows of its machine and says of itself: sampled facts, and the status made from them. It decides
// nothing and sends nothing. Main.ts wires it; nothing else imports it.
export { HostFacts, type HostSample } from "./facts.ts";
export { createLogger, type LoggerOptions } from "./logger.ts";
export { statusBuilder, type StatusSources } from "./status.ts";
