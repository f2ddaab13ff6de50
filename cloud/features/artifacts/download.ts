// One download of an artifact, over as many links as it takes. When a link breaks in the middle, the read is issued
// again from the next byte, of the same version, on the next live session; the reader of the bytes notices only a pause.
import { ConnectorError, artifactRead, toConnectorError, wait } from "@sallyport/protocol";
import type { z } from "zod";
import { RESUMABLE, RESUME_MS, RETRIED, type Dispatch, type PoolRef } from "../../dispatch/index.ts";
import type { Scope } from "../../store/store.ts";

export interface DownloadRequest {
  store: string;
  path: string;
  range?: { start: number; end?: number };
  suffixBytes?: number;
  ifMatch?: string;
}

export interface Download {
  head: z.output<typeof artifactRead.output>;
  /** Exactly `head.lengthBytes` bytes, or an error. Nothing is read ahead of who consumes it but the stream's window. */
  bytes: AsyncIterable<Buffer>;
}

const PAUSE_MS = { first: 50, most: 2_000 };
export async function openDownload(
  dispatch: Dispatch,
  scope: Scope,
  pool: PoolRef,
  request: DownloadRequest,
  signal: AbortSignal,
): Promise<Download> {
  const { clock } = dispatch;
  const read = (more: Partial<DownloadRequest>) =>
    dispatch.relay(
      scope,
      pool,
      artifactRead,
      { store: request.store, path: request.path, ...more },
      { resource: `artifact:${request.store}/${request.path}`, signal },
    );
  const { store: _store, path: _path, ...wanted } = request;

  /** Asks until it is answered, or for `RESUME_MS` after `failure`. */
  async function again<T>(failure: ConnectorError, ask: () => Promise<T>): Promise<T> {
    const deadline = clock.monotonic() + RESUME_MS;
    let last = failure;
    for (let pauseMs = PAUSE_MS.first; ; pauseMs = Math.min(pauseMs * 2, PAUSE_MS.most)) {
      const leftMs = deadline - clock.monotonic();
      if (leftMs <= 0 || (await dispatch.sessions.waitForPool(scope.workspace, pool.id, leftMs, signal)) === null)
        throw last;
      try {
        return await ask();
      } catch (error) {
        last = toConnectorError(error);
        if (!RESUMABLE.has(last.code) || signal.aborted) throw last;
        await wait(clock, pauseMs, signal);
      }
    }
  }

  const first = await read(wanted).catch((error: unknown) => {
    const failure = toConnectorError(error);
    if (!RETRIED.has(failure.code) || signal.aborted) throw failure;
    return again(failure, () => read(wanted));
  });
  const head = first.result;
  const totalBytes = head.lengthBytes;

  async function* body(): AsyncGenerator<Buffer> {
    let content = first.content!;
    let sentBytes = 0;
    for (;;) {
      try {
        for await (const chunk of content) {
          if (sentBytes + chunk.length > totalBytes)
            throw new ConnectorError(
              "PROTOCOL_ERROR",
              `The agent sent more than the ${totalBytes} bytes that it had announced.`,
            );
          sentBytes += chunk.length;
          yield chunk;
        }
        if (sentBytes === totalBytes) return;
        throw new ConnectorError("STORE_FAILED", `The content ended after ${sentBytes} of ${totalBytes} bytes.`, {
          fix: "Try again; if it repeats, the object may be damaged.",
        });
      } catch (error) {
        if (sentBytes === totalBytes) return;
        const failure = toConnectorError(error);
        if (!RESUMABLE.has(failure.code) || signal.aborted) throw failure;
        const from = head.start + sentBytes;
        content = await again(failure, async () => {
          const next = await read({ range: { start: from, end: head.start + totalBytes - 1 }, ifMatch: head.version });
          const { start, lengthBytes, version } = next.result;
          if (version !== head.version || start !== from || lengthBytes !== totalBytes - sentBytes) {
            throw new ConnectorError("PRECONDITION_FAILED", `${request.path} changed while it was read.`, {
              fix: "Read it again from the beginning.",
            });
          }
          return next.content!;
        });
        dispatch.metrics.resumed("download");
      }
    }
  }
  return { head, bytes: body() };
}
