// Log records of one start of a replica, from the agent that holds the deployment.
import { deploymentLogs, type DeploymentId, type LogRecord, type ReplicaId } from "@sallyport/protocol";
import { followRecords, type Dispatch, type PoolRef, type RecordsRequest } from "../../dispatch/index.ts";
import type { Scope } from "../../store/store.ts";

export interface ReplicaLogRequest extends RecordsRequest {
  deployment: DeploymentId;
  /** `r<revision>.<number>`. */
  replica: string;
  /** Absent = the newest. */
  start?: number;
}

/** Resolves when the agent has answered; the records then come as they are read. AGENT_OFFLINE is said at once. */
export const followReplicaLogs = (
  dispatch: Dispatch,
  scope: Scope,
  pool: PoolRef,
  owner: ReplicaId,
  request: ReplicaLogRequest,
  signal: AbortSignal,
): Promise<AsyncIterable<LogRecord>> =>
  followRecords(
    dispatch,
    request,
    signal,
    (input) =>
      dispatch.relay(scope, pool, deploymentLogs, input, {
        resource: `deployment:${request.deployment}`,
        replica: owner,
        signal,
      }),
    ({ start }) => ({ start }),
  );
