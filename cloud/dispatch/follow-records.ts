// Log records from the one replica that has them, over as many links as it takes: a reader that follows goes on over the
// next link by the last number seen. Nothing of a log is stored. Features say what to ask for.
import {
  ConnectorError,
  lastSeq,
  logRecordSchema,
  readNdjson,
  toConnectorError,
  wait,
  type LogRecord,
} from "@sallyport/protocol";
import type { Dispatch } from "./index.ts";
import type { Relayed } from "./interactive.ts";
import { RESUMABLE, RESUME_MS, RETRIED } from "./resumable.ts";

/** What every kind of log takes. */
export interface RecordsRequest {
  after: number;
  limit: number;
  follow: boolean;
  tail?: number;
}

const PAUSE_MS = { first: 100, most: 2_000 };

/**
 * Resolves when the agent has answered; the records then come as they are read. AGENT_OFFLINE is said at once.
 * `pin`: from the first answer, what names this very log: a newer attempt must not go on in the middle of this one.
 */
export async function followRecords<R extends RecordsRequest, O>(
  dispatch: Dispatch,
  request: R,
  signal: AbortSignal,
  ask: (input: R) => Promise<Relayed<O>>,
  pin: (result: O) => Partial<R>,
): Promise<AsyncIterable<LogRecord>> {
  const { clock } = dispatch;

  /** Asks until it answers, or for `RESUME_MS` after `failure`. */
  async function again(failure: ConnectorError, input: R): Promise<Relayed<O>> {
    const deadline = clock.monotonic() + RESUME_MS;
    let last = failure;
    for (let pauseMs = PAUSE_MS.first; ; pauseMs = Math.min(pauseMs * 2, PAUSE_MS.most)) {
      if (!RESUMABLE.has(last.code) || signal.aborted || clock.monotonic() >= deadline) throw last;
      await wait(clock, pauseMs, signal);
      try {
        return await ask(input);
      } catch (failed) {
        last = toConnectorError(failed);
      }
    }
  }

  const first = await ask(request).catch((error: unknown) => {
    const failure = toConnectorError(error);
    if (!RETRIED.has(failure.code)) throw failure;
    return again(failure, request);
  });

  return (async function* () {
    let answer = first;
    let after = request.after;
    let count = 0;
    const pinned = pin(first.result);
    for (;;) {
      try {
        for await (const line of readNdjson(answer.content!)) {
          const record = logRecordSchema.safeParse(line);
          if (!record.success)
            throw new ConnectorError("PROTOCOL_ERROR", "The agent sent a log record that is not of the agreed shape.");
          after = Math.max(after, lastSeq(record.data));
          count++;
          yield record.data;
        }
        return;
      } catch (error) {
        const limit = request.follow ? request.limit : request.limit - count;
        if (limit <= 0) return;
        // Nothing came of a tail yet: it is asked for again as it was.
        const next: R = { ...request, ...pinned, after, limit };
        if (count > 0) delete next.tail;
        answer = await again(toConnectorError(error), next);
        dispatch.metrics.resumed("logs");
      }
    }
  })();
}
