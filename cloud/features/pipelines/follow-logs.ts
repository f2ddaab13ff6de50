// Log records of a step, from the replica that has them. Following goes on over the next link by the last number seen.
import {
  ConnectorError,
  lastSeq,
  logRecordSchema,
  readNdjson,
  runLogs,
  toConnectorError,
  wait,
  type ErrorCode,
  type LogRecord,
  type ReplicaId,
  type RunId,
} from "@sallyport/protocol";
import type { Dispatch, PoolRef } from "../../dispatch/index.ts";
import type { Scope } from "../../store/store.ts";

export interface LogRequest {
  run: RunId;
  step: string;
  attempt?: number;
  after: number;
  limit: number;
  follow: boolean;
  tail?: number;
}

/** An agent that was updated or lost its network is back within this, or the reader is told. */
const RESUME_MS = 60_000;
const PAUSE_MS = { first: 100, most: 2_000 };
const RESUMABLE: ReadonlySet<ErrorCode> = new Set(["LINK_LOST", "GOING_AWAY", "SESSION_SUPERSEDED", "AGENT_OFFLINE", "AGENT_DRAINING", "STREAM_REFUSED"]);

/** Resolves when the agent has answered; the records then come as they are read. AGENT_OFFLINE is said at once. */
export async function followLogs(dispatch: Dispatch, scope: Scope, pool: PoolRef, replica: ReplicaId, request: LogRequest, signal: AbortSignal): Promise<AsyncIterable<LogRecord>> {
  const { clock } = dispatch;
  const ask = (input: LogRequest) => dispatch.relay(scope, pool, runLogs, input, { resource: `run:${request.run}`, replica, signal });
  const first = await ask(request);

  return (async function* () {
    let answer = first;
    let after = request.after;
    let count = 0;
    // Named from here on: a newer attempt must not go on in the middle of this one.
    const attempt = first.result.attempt;
    for (;;) {
      try {
        for await (const line of readNdjson(answer.content!)) {
          const record = logRecordSchema.safeParse(line);
          if (!record.success) throw new ConnectorError("PROTOCOL_ERROR", "The agent sent a log record that is not of the agreed shape.");
          after = Math.max(after, lastSeq(record.data));
          count++;
          yield record.data;
        }
        return;
      } catch (error) {
        let last = toConnectorError(error);
        const deadline = clock.monotonic() + RESUME_MS;
        const { tail, ...rest } = request;
        // Nothing came of a tail yet: it is asked for again as it was.
        const next: LogRequest = { ...rest, attempt, after, ...(count === 0 && tail !== undefined ? { tail } : {}), limit: request.follow ? request.limit : request.limit - count };
        if (!request.follow && next.limit <= 0) return;
        for (let pauseMs = PAUSE_MS.first; ; pauseMs = Math.min(pauseMs * 2, PAUSE_MS.most)) {
          if (!RESUMABLE.has(last.code) || signal.aborted || clock.monotonic() >= deadline) throw last;
          await wait(clock, pauseMs, signal);
          try {
            answer = await ask(next);
            break;
          } catch (failed) {
            last = toConnectorError(failed);
          }
        }
        dispatch.metrics.resumed("logs");
      }
    }
  })();
}
