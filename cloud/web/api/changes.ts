// Live updates: one EventSource for the page. A change only names what to fetch again; no content rides on it.
import type { QueryClient } from "@tanstack/react-query";
import { useSyncExternalStore } from "react";
import type { Change } from "./types.ts";

/** Which queries a change of an entity makes old, by the first part of their key. */
const TOUCHES: Record<Change["entity"], string[]> = {
  // What a run, a command or a deployment shows (unknown, waiting) depends on its agent.
  agent: ["agents", "pools", "runs", "commands", "enrollments", "deployments"],
  pool: ["pools"],
  enrollment: ["enrollments"],
  command: ["commands"],
  run: ["runs"],
  token: ["tokens"],
  deployment: ["deployments"],
};
/** Changes come in bursts; one round of fetching serves all of a burst. */
const GATHER_MS = 150;
const RETRY_MS = 3_000;

let live = true;
const listeners = new Set<() => void>();
function setLive(next: boolean) {
  if (live === next) return;
  live = next;
  for (const listener of listeners) listener();
}

/** False while the page hears nothing from the control plane. */
export const useLive = (): boolean =>
  useSyncExternalStore(
    (listener) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    () => live,
  );

/** Starts listening; the returned function stops. */
export function followChanges(client: QueryClient): () => void {
  let source: EventSource | undefined;
  let gather: ReturnType<typeof setTimeout> | undefined;
  let retry: ReturnType<typeof setTimeout> | undefined;
  let missed = false;
  let last = 0;
  const touched = new Set<string>();

  const flush = () => {
    gather = undefined;
    for (const key of touched) void client.invalidateQueries({ queryKey: [key] });
    // What failed for want of an agent is asked for again when one comes; what is shown is left alone.
    if (touched.has("agents")) {
      void client.invalidateQueries({
        predicate: (query) => query.queryKey[0] === "artifacts" && query.state.status === "error",
      });
    }
    touched.clear();
  };
  const open = () => {
    source = new EventSource(`/v1/changes${last > 0 ? `?after=${last}` : ""}`);
    source.addEventListener("open", () => {
      setLive(true);
      // What happened while nobody listened is replayed by number; derived states have none, so ask for all.
      if (missed) void client.invalidateQueries({ predicate: (q) => q.queryKey[0] !== "artifacts" });
      missed = false;
    });
    source.addEventListener("change", (event) => {
      try {
        const change = JSON.parse((event as MessageEvent<string>).data) as Change;
        last = Math.max(last, change.n);
        for (const key of TOUCHES[change.entity] ?? []) touched.add(key);
        gather ??= setTimeout(flush, GATHER_MS);
      } catch {
        // A line that is not a change is of a newer control plane: not ours to judge.
      }
    });
    // More changes than are kept: everything shown may be old.
    source.addEventListener("reset", () => {
      last = 0;
      void client.invalidateQueries({ predicate: (query) => query.queryKey[0] !== "artifacts" });
    });
    source.addEventListener("error", () => {
      missed = true;
      setLive(false);
      // The browser redials by itself unless the answer was an error.
      if (source?.readyState === EventSource.CLOSED) {
        clearTimeout(retry);
        retry = setTimeout(open, RETRY_MS);
      }
    });
  };
  open();
  return () => {
    clearTimeout(gather);
    clearTimeout(retry);
    source?.close();
    setLive(true);
  };
}
