// Log records of a step, from the replica that has them. Following goes on over the next link by the last number seen.
import { runLogs, type LogRecord, type ReplicaId, type RunId } from "@sallyport/protocol";
import { followRecords, type Dispatch, type PoolRef, type RecordsRequest } from "../../dispatch/index.ts";
import type { Scope } from "../../store/store.ts";

export interface LogRequest extends RecordsRequest {
  run: RunId;
  step: string;
  attempt?: number;
}

/** Resolves when the agent has answered; the records then come as they are read. AGENT_OFFLINE is said at once. */
export const followLogs = (
  dispatch: Dispatch,
  scope: Scope,
  pool: PoolRef,
  replica: ReplicaId,
  request: LogRequest,
  signal: AbortSignal,
): Promise<AsyncIterable<LogRecord>> =>
  followRecords(
    dispatch,
    request,
    signal,
    (input) => dispatch.relay(scope, pool, runLogs, input, { resource: `run:${request.run}`, replica, signal }),
    ({ attempt }) => ({ attempt }),
  );
