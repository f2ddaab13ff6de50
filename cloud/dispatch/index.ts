// The dispatcher: from a wish of the API to a command on an agent, and from reports to the record. Not the link, not
// HTTP. main.ts makes one; routes and features see what is exported here.
import {
  keyChangeSchema,
  noSpans,
  type Clock,
  type PoolId,
  type ReplicaId,
  type Signer,
  type Spans,
  type WorkspaceId,
} from "@sallyport/protocol";
import type { Logger } from "pino";
import type { Registry } from "prom-client";
import type { CloudSession, Sessions } from "../link/sessions.ts";
import type { Store } from "../store/store.ts";
import { makeDurable, type Durable } from "./durable.ts";
import { makeHandoffs } from "./handoffs.ts";
import { makeInteractive, type Interactive } from "./interactive.ts";
import { completeOffer, Sequences } from "./intents.ts";
import { dispatchMetrics, noMetrics, type DispatchMetrics } from "./metrics.ts";
import { serveReports } from "./reports.ts";

export type { CommandView, Durable, ExplainedCommand, SubmitKey, Submission } from "./durable.ts";
export type { Interactive, PoolRef, Relayed, RelayOptions } from "./interactive.ts";
export { followRecords, type RecordsRequest } from "./follow-records.ts";
export { RESUMABLE, RESUME_MS, RETRIED } from "./resumable.ts";
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
  /** Where spans go; absent = nowhere. */
  spans?: Spans;
  /** Of several processes. Absent = this one is alone. */
  others?: Others;
}

/** What the dispatcher needs to know of the other processes. */
export interface Others {
  /** Sessions that this process holds itself: to those alone it offers what is durable. */
  readonly held: Sessions;
  /** Something of this pool may go now. It may be lost: each process looks by itself, a little later. */
  wake(workspace: WorkspaceId, pool: PoolId): void;
  onWake(listener: (workspace: WorkspaceId, pool: PoolId) => void): void;
  /** There may be something to tell replicas of commands that were taken over; null = all. It may be lost. */
  told(workspace: WorkspaceId, replica: ReplicaId | null): void;
  onTold(listener: (workspace: WorkspaceId, replica: ReplicaId | null) => void): void;
}

export interface Dispatch extends Interactive, Durable {
  readonly sessions: Sessions;
  readonly clock: Clock;
  readonly metrics: DispatchMetrics;
  /** The head that goes to the agent of a session held here, from what another process sent for it. */
  headFor(session: CloudSession, head: unknown): unknown;
}

/** `start()` it before the gateway takes sessions. */
export function makeDispatch(deps: DispatchDeps): Dispatch {
  const { store, sessions, clock, signer, incarnation } = deps;
  const metrics = deps.registry === undefined ? noMetrics : dispatchMetrics(deps.registry);
  const spans = deps.spans ?? noSpans;
  const log = deps.log.child({ component: "dispatch" });
  const audit = deps.log.child({ component: "audit" });
  const sequences = new Sequences();
  const interactive = makeInteractive({
    store,
    sessions,
    sequences,
    signer,
    incarnation,
    clock,
    audit,
    metrics,
    spans,
  });
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
    others: deps.others ?? null,
    tellHeld: (workspace) => handoffs.tell(workspace, null),
    told(workspace, replica) {
      handoffs.tell(workspace, replica);
      deps.others?.told(workspace, replica);
    },
    spans,
  });
  const held = deps.others?.held ?? sessions;
  return {
    ...interactive,
    ...durable,
    sessions,
    clock,
    metrics,
    // What needs no signature of the dispatcher passes as it is.
    headFor: (session, head) =>
      keyChangeSchema.safeParse(head).success
        ? keyChangeSchema.parse(head)
        : completeOffer(signer, sequences, session, head, incarnation, clock.now()),
    start() {
      serveReports({
        store,
        sessions,
        clock,
        log,
        metrics,
        handoffs: {
          attach: handoffs.attach,
          tell(workspace, replica) {
            handoffs.tell(workspace, replica);
            deps.others?.told(workspace, replica);
          },
        },
        ended(workspace, pool) {
          durable.poke(workspace, pool);
          if (sessions.ofPool(workspace, pool).length > held.ofPool(workspace, pool).length)
            deps.others?.wake(workspace, pool);
        },
      });
      deps.others?.onTold((workspace, replica) => handoffs.tell(workspace, replica));
      durable.start();
    },
  };
}
