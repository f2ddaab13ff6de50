// Tells agents on their reports' stream what became of commands that were taken over: which they hold no more, and for
// which nobody else has anything left to let go. Said again on each new stream until it is answered for.
import type { Clock, CommandId, ReplicaId, ReportAck, WorkspaceId } from "@sallyport/protocol";
import type { Logger } from "pino";
import type { CloudSession } from "../link/sessions.ts";
import type { Store } from "../store/store.ts";

/** In one line; the rest follows when these are answered. */
const AT_ONCE = 200;

export interface Handoffs {
  /** A reports' stream began. Answers what ends this. */
  attach(session: CloudSession, send: (line: ReportAck) => Promise<void>): () => void;
  /** Something changed for this replica; null = for any of the workspace. */
  tell(workspace: WorkspaceId, replica: ReplicaId | null): void;
}

interface Listener {
  session: CloudSession;
  send: (line: ReportAck) => Promise<void>;
  telling: Promise<void>;
  /** Told on this stream. */
  told: Set<CommandId>;
}

export function makeHandoffs({ store, clock, log }: { store: Store; clock: Clock; log: Logger }): Handoffs {
  const listeners = new Set<Listener>();

  async function look({ session, send, told }: Listener): Promise<void> {
    const { workspace, replica } = session;
    const { released, settled } = await store.handoffs(workspace, replica, AT_ONCE);
    const news = released.filter((id) => !told.has(id));
    if (news.length === 0 && settled.length === 0) return;
    await send({
      committedThrough: 0,
      ...(news.length === 0 ? {} : { released: news }),
      ...(settled.length === 0 ? {} : { settled }),
    });
    for (const id of news) told.add(id);
    if (settled.length > 0) await store.markSettled(workspace, settled, clock.now());
  }

  function wake(listener: Listener): void {
    listener.telling = listener.telling
      .then(() => (listeners.has(listener) ? look(listener) : undefined))
      .catch((error: unknown) => {
        if (listeners.has(listener))
          log.warn({ err: error, agent: listener.session.replica }, "an agent could not be told what was taken over");
      });
  }

  return {
    attach(session, send) {
      const listener: Listener = { session, send, telling: Promise.resolve(), told: new Set() };
      listeners.add(listener);
      wake(listener);
      return () => listeners.delete(listener);
    },
    tell(workspace, replica) {
      for (const listener of listeners) {
        if (listener.session.workspace !== workspace) continue;
        if (replica !== null && listener.session.replica !== replica) continue;
        // It may have got one back and lost it again since.
        if (replica !== null) listener.told.clear();
        wake(listener);
      }
    },
  };
}
