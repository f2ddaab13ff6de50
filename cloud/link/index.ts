// The cloud's end of the links: upgrade, greeting, live sessions. It knows no command, no table and no route.
// main.ts wires it; dispatch and the API import the types in sessions.ts, the store's adapter those in directory.ts.
export * from "./sessions.ts";
export * from "./directory.ts";
export { askKeyChange } from "./ask-key-change.ts";
export {
  LinkGateway,
  revoked,
  type GatewayEvent,
  type GatewayLimits,
  type GatewayOptions,
  type SessionElsewhere,
} from "./gateway.ts";
export { NatsListener, type NatsListenerOptions } from "./nats-listener.ts";
