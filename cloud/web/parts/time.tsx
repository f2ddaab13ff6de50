// Times relative to now, kept true by one shared tick a second; the absolute time is in the tool tip.
import { useSyncExternalStore } from "react";
import { nowMs } from "../api/clock.ts";
import { formatAgo, formatDuration, formatTime } from "./format.ts";

let tickMs = nowMs();
let timer: ReturnType<typeof setInterval> | undefined;
const listeners = new Set<() => void>();
function subscribe(listener: () => void) {
  listeners.add(listener);
  // Nobody ticked while nobody listened, and the last tick may be nearly a second old: what runs would begin below 0.
  if (Math.abs(nowMs() - tickMs) > 200) tickMs = nowMs();
  timer ??= setInterval(() => {
    tickMs = nowMs();
    for (const each of listeners) each();
  }, 1000);
  return () => {
    listeners.delete(listener);
    if (listeners.size === 0) {
      clearInterval(timer);
      timer = undefined;
    }
  };
}
const idle = () => () => undefined;
/** Now, in ms, moving once a second while `on`. */
export const useNow = (on = true): number => useSyncExternalStore(on ? subscribe : idle, () => tickMs);

export function Ago({ at, none = "never", className }: { at: number | null; none?: string; className?: string }) {
  const now = useNow(at !== null);
  if (at === null) return <span className="faint">{none}</span>;
  return (
    <time dateTime={new Date(at).toISOString()} title={formatTime(at)} className={className}>
      {formatAgo(at, Math.max(now, at > now && at - now < 5_000 ? at : now))}
    </time>
  );
}

/** How long something took, or has taken so far. */
export function Took({ from, to }: { from: number | null; to: number | null }) {
  const now = useNow(from !== null && to === null);
  if (from === null) return <span className="faint">–</span>;
  return <span className="num">{formatDuration((to ?? now) - from)}</span>;
}
