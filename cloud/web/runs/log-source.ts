// Reads a log (of an attempt of a step, of a start of a replica) over HTTP: the end first, then on and on while it is written. A cut is mended from the last
// number seen, so no line is lost or doubled.
import { useCallback, useEffect, useRef, useState } from "react";
import { isApiError, query, send } from "../api/client.ts";
import type { LogRecord } from "../api/types.ts";
import { EMPTY_LOG, append, missingBefore, prepend, splitNdjson, type LogLines } from "./log-model.ts";

const TAIL = 2_000;
const PAGE = 5_000;
const RETRY_MS = [500, 1_000, 2_000, 5_000, 10_000];

export interface LogSource {
  log: LogLines;
  /** reading: the stream is open; cut: trying again; ended: the attempt is over and all was read. */
  state: "loading" | "reading" | "cut" | "ended" | "failed";
  error: unknown;
  loadEarlier: () => Promise<void>;
  loadingEarlier: boolean;
  retry: () => void;
}

/** Where a log is read, and what a reader calls it. */
export interface LogAddress {
  path: string;
  /** Which of the logs there: of an attempt, of a start. */
  which: Record<string, number>;
  /** Of what it is the log: "train", "replica r1.0". */
  name: string;
  /** What wrote it: "step", "replica". */
  writer: string;
  /** One of what has a log each: "attempt", "start". */
  one: string;
  file: string;
}
export const stepLog = (run: string, step: string, attempt: number): LogAddress => ({
  path: `/v1/runs/${encodeURIComponent(run)}/steps/${encodeURIComponent(step)}/logs`,
  which: { attempt },
  name: step,
  writer: "step",
  one: "attempt",
  file: `${run}.${step}.${attempt}.ndjson`,
});
export const replicaLog = (deployment: string, name: string, replica: string, start: number): LogAddress => ({
  path: `/v1/deployments/${encodeURIComponent(deployment)}/replicas/${encodeURIComponent(replica)}/logs`,
  which: { start },
  name: `replica ${replica}`,
  writer: "replica",
  one: "start",
  file: `${name}.${replica}.${start}.ndjson`,
});

const logUrl = (log: LogAddress, params: Record<string, string | number | boolean | undefined>) =>
  `${log.path}${query({ ...log.which, ...params })}`;
/** Everything, as a file. */
export const downloadUrl = (log: LogAddress): string => logUrl(log, { after: 0, limit: 100_000 });

async function readAll(response: Response, onRecords: (records: LogRecord[]) => void): Promise<void> {
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const cut = splitNdjson(pending, value);
    pending = cut.pending;
    if (cut.records.length > 0) onRecords(cut.records);
  }
}

/** `live`: what writes has not ended, so the stream's end is a cut. `around`: a line that must be among those loaded. */
export function useLogSource(address: LogAddress, live: boolean, around: number | undefined): LogSource {
  const to = useRef(address);
  to.current = address;
  const key = logUrl(address, {});
  const [log, setLog] = useState<LogLines>(EMPTY_LOG);
  const [state, setState] = useState<LogSource["state"]>("loading");
  const [error, setError] = useState<unknown>(null);
  const [turn, setTurn] = useState(0);
  const [loadingEarlier, setLoadingEarlier] = useState(false);
  const held = useRef<LogLines>(EMPTY_LOG);
  const isLive = useRef(live);
  isLive.current = live;
  const from = useRef(around);

  useEffect(() => {
    const stop = new AbortController();
    let frame: number | ReturnType<typeof setTimeout> | undefined;
    let gathered: LogRecord[] = [];
    let tries = 0;
    held.current = EMPTY_LOG;
    setLog(EMPTY_LOG);
    setState("loading");
    setError(null);
    const flush = () => {
      frame = undefined;
      held.current = append(held.current, gathered);
      gathered = [];
      setLog(held.current);
    };
    const onRecords = (records: LogRecord[]) => {
      tries = 0;
      gathered.push(...records);
      // Many lines a frame are one drawing.
      frame ??= setTimeout(flush, 40);
    };
    const loop = async () => {
      for (;;) {
        try {
          const last = gathered.length > 0 ? append(held.current, gathered).lastSeq : held.current.lastSeq;
          const start =
            last > 0
              ? { after: last }
              : from.current !== undefined
                ? { after: Math.max(0, from.current - 1_000) }
                : { tail: TAIL };
          const response = await send("GET", logUrl(to.current, { ...start, follow: true }), {
            signal: stop.signal,
            headers: { accept: "application/x-ndjson" },
          });
          setState("reading");
          setError(null);
          await readAll(response, onRecords);
          // What is gathered is drawn before the end is said: an empty log is a claim.
          clearTimeout(frame);
          flush();
          if (stop.signal.aborted) return;
          if (!isLive.current) {
            setState("ended");
            return;
          }
          // The stream ended although, as far as the page knows, the attempt has not: the run's state may just be on its way.
          if (tries > 1) setState("cut");
        } catch (caught) {
          if (stop.signal.aborted) return;
          setError(caught);
          const code = isApiError(caught) ? caught.problem : null;
          if (code && code.status >= 400 && code.status < 500 && code.status !== 429) {
            setState("failed");
            return;
          }
          setState("cut");
        }
        const delay = RETRY_MS[Math.min(tries++, RETRY_MS.length - 1)]!;
        await new Promise<void>((resolve) => {
          const timer = setTimeout(resolve, delay);
          stop.signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
        });
        if (stop.signal.aborted) return;
      }
    };
    void loop();
    return () => {
      stop.abort();
      clearTimeout(frame);
    };
  }, [key, turn]);

  const loadEarlier = useCallback(async () => {
    const before = missingBefore(held.current);
    if (before <= 0) return;
    setLoadingEarlier(true);
    try {
      const after = Math.max(0, before - PAGE);
      const response = await send("GET", logUrl(to.current, { after, limit: before - after }), {
        headers: { accept: "application/x-ndjson" },
      });
      const records: LogRecord[] = [];
      await readAll(response, (more) => records.push(...more));
      held.current = prepend(held.current, records);
      setLog(held.current);
    } catch (caught) {
      setError(caught);
    } finally {
      setLoadingEarlier(false);
    }
  }, []);

  return { log, state, error, loadEarlier, loadingEarlier, retry: () => setTurn((n) => n + 1) };
}
