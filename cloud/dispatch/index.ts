// The dispatcher: from a wish of the API to a command on an agent, and from reports to the record. Not the link, not
// HTTP. main.ts makes one; routes and features see what is exported here.
import type { Clock, Signer } from "@sallyport/protocol";
import type { Logger } from "pino";
import type { Registry } from "prom-client";
import type { Sessions } from "../link/sessions.ts";
import type { Store } from "../store/store.ts";
import { makeDurable, type Durable } from "./durable.ts";
import { makeHandoffs } from "./handoffs.ts";
import { makeInteractive, type Interactive } from "./interactive.ts";
import { Sequences } from "./intents.ts";
import { dispatchMetrics, noMetrics, type DispatchMetrics } from "./metrics.ts";
import { serveReports } from "./reports.ts";

export type { CommandView, Durable, ExplainedCommand, SubmitKey, Submission } from "./durable.ts";
export type { Interactive, PoolRef, Relayed, RelayOptions } from "./interactive.ts";
export { followRecords, type RecordsRequest } from "./follow-records.ts";
export type { DispatchMetrics } from "./metrics.ts";
export { agentOffline, type Waiting } from "./waiting.ts";

export interface DispatchDeps {
  store: Store;
  sessions: Sessions;
  clock: Clock;
  /** The command key. */
  signer: Signer;
  /** Of this cloud's database: `store.incarnation()`. */
  incarnation: string;
  log: Logger;
  /** Absent = no metrics. */
  registry?: Registry;
}

export interface Dispatch extends Interactive, Durable {
  readonly sessions: Sessions;
  readonly clock: Clock;
  readonly metrics: DispatchMetrics;
}

/** `start()` it before the gateway takes sessions. */
export function makeDispatch(deps: DispatchDeps): Dispatch {
  const { store, sessions, clock, signer, incarnation } = deps;
  const metrics = deps.registry === undefined ? noMetrics : dispatchMetrics(deps.registry);
  const log = deps.log.child({ component: "dispatch" });
  const audit = deps.log.child({ component: "audit" });
  const sequences = new Sequences();
  const interactive = makeInteractive({ store, sessions, sequences, signer, incarnation, clock, audit, metrics });
  const handoffs = makeHandoffs({ store, clock, log });
  const durable = makeDurable({
    store,
    sessions,
    sequences,
    signer,
    incarnation,
    clock,
    log,
    metrics,
    told: handoffs.tell,
  });
  return {
    ...interactive,
    ...durable,
    sessions,
    clock,
    metrics,
    start() {
      serveReports({ store, sessions, clock, log, metrics, handoffs, ended: durable.poke });
      durable.start();
    },
  };
}
