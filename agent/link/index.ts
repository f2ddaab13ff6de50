// The agent's end of the link: dials out, proves who both are, keeps one session alive, hands streams up.
// It knows no command. main.ts wires it; nothing else of the agent imports more than the types in link.ts.
export * from "./link.ts";
export { dialNatsLink, isNatsUrl, type NatsRoute } from "./nats-dial.ts";
export { makeNatsRoute } from "./nats-route.ts";
export { GREETING_MS, WsLink, type WsLinkOptions } from "./ws-link.ts";
export { changeKey } from "./key-change.ts";
export { IdentityStore, type Identity } from "./identity.ts";
export { retryClass, type RetryClass } from "./retry-table.ts";
export { makeNetwork, readPem, type LinkNetwork, type NetworkOptions } from "./network.ts";
export { dial, findPinnedCa, shownChain, withDeadline, type DialTarget } from "./ws-dial.ts";
export { openWay, type HopFacts } from "./way.ts";
export { linkUrl } from "./address.ts";
export { toLinkFailure, type LinkFailure } from "./link-failure.ts";
export type { Finding, Hop, HopDetails } from "./hops.ts";
