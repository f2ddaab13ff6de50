// Waiting for a session of a pool: what the registry of one process and the view of all processes share.
import { toConnectorError, type Clock, type PoolId, type WorkspaceId } from "@sallyport/protocol";
import type { CloudSession } from "./sessions.ts";

/**
 * The first of `online`'s sessions that is of the pool; null after `withinMs`. `online`: whoever is told of each new
 * session; taken out again at the end. Rejects when `signal` aborts.
 */
export function waitForSession(
  clock: Clock,
  online: ((session: CloudSession) => void)[],
  pool: { readonly workspace: WorkspaceId; readonly id: PoolId },
  withinMs: number,
  signal?: AbortSignal,
): Promise<CloudSession | null> {
  return new Promise((resolve, reject) => {
    const settle = () => {
      timer.cancel();
      signal?.removeEventListener("abort", onAbort);
      const at = online.indexOf(onOnline);
      if (at !== -1) online.splice(at, 1);
    };
    const onOnline = (session: CloudSession) => {
      if (session.workspace !== pool.workspace || session.pool !== pool.id) return;
      settle();
      resolve(session);
    };
    const onAbort = () => {
      settle();
      reject(toConnectorError(signal?.reason));
    };
    const timer = clock.after(
      withinMs,
      () => {
        settle();
        resolve(null);
      },
      { keepAlive: true },
    );
    if (signal?.aborted === true) return onAbort();
    signal?.addEventListener("abort", onAbort, { once: true });
    online.push(onOnline);
  });
}
