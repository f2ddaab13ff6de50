// The router in the agent's network: one listener, and behind it an endpoint with a key of its own for each deployment.
// Balances, holds, sends again, counts. It starts no replica and knows no model: whoever runs replicas tells it routes.
// Imported by the agent's wiring; features see the port in router.ts alone.
import { LocalRouter, type RouterOptions } from "./local-router.ts";
import type { Router } from "./router.ts";

export type * from "./router.ts";
export { DEFAULT_ROUTER_LIMITS, type RouterLimits, type RouterOptions } from "./local-router.ts";

/** Nothing listens before `start`. */
export const createRouter = (options: RouterOptions): Router => new LocalRouter(options);
