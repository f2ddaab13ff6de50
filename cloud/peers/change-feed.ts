// Changes of all processes, in the order of their numbers. Those that were committed here come at once; those of others
// when a note says that there are some, or by the sweep. Whoever follows numbers must not hear 10 before 9: where one is
// missing, it is read first.
import type { Clock, Timer, WorkspaceId } from "@sallyport/protocol";
import type { Logger } from "pino";
import { SWEEP_MS, type Backplane } from "../backplane/index.ts";
import type { ChangeRow, Store } from "../store/store.ts";

type Listener = (workspace: WorkspaceId, changes: ChangeRow[]) => void;

export interface ChangeFeed {
  /** As the store's own. */
  onChange(listener: Listener): () => void;
  /** When it resolves, all that was committed before has been told. Rejects when it could not be read. */
  catchUp(): Promise<void>;
  start(): Promise<void>;
  stop(): void;
}

const PAGE = 500;
/** The others are told at most this often about one workspace. */
const TELL_MS = 20;

/** `onGap`: so many changes were missed that they are not kept any more; whoever follows must begin anew. */
export function changeFeed(deps: {
  store: Store;
  backplane: Backplane;
  clock: Clock;
  log: Logger;
  onGap: (workspace: WorkspaceId) => void;
}): ChangeFeed {
  const { store, backplane, clock, log } = deps;
  const listeners = new Set<Listener>();
  /** Number of the last change that was told, by workspace. Absent = none yet: a workspace begins at 0. */
  const told = new Map<WorkspaceId, number>();
  const reading = new Map<WorkspaceId, { again: boolean; done: Promise<void> }>();
  const telling = new Set<WorkspaceId>();
  let timer: Timer | null = null;
  let unsubscribe = (): void => {};
  let stopped = false;

  const tell = (workspace: WorkspaceId, changes: ChangeRow[]): void => {
    for (const listener of listeners) listener(workspace, changes);
  };

  function committed(workspace: WorkspaceId, changes: ChangeRow[]): void {
    announce(workspace);
    const last = told.get(workspace) ?? 0;
    if (!reading.has(workspace) && changes[0]?.n === last + 1) {
      told.set(workspace, changes.at(-1)!.n);
      return tell(workspace, changes);
    }
    read(workspace);
  }

  function announce(workspace: WorkspaceId): void {
    if (telling.has(workspace)) return;
    telling.add(workspace);
    clock.after(TELL_MS, () => {
      telling.delete(workspace);
      backplane.announce({ type: "changed", workspace });
    });
  }

  function read(workspace: WorkspaceId): void {
    readNow(workspace).catch((error: unknown) =>
      log.warn({ err: error }, "changes of other processes could not be read; the sweep tries again"),
    );
  }

  /** Once more when it is under way already. */
  function readNow(workspace: WorkspaceId): Promise<void> {
    if (stopped) return Promise.resolve();
    const under = reading.get(workspace);
    if (under !== undefined) {
      under.again = true;
      return under.done;
    }
    const mine = { again: false, done: Promise.resolve() };
    reading.set(workspace, mine);
    mine.done = (async () => {
      try {
        do {
          mine.again = false;
          await readOn(workspace);
        } while (mine.again && !stopped);
      } finally {
        reading.delete(workspace);
      }
    })();
    return mine.done;
  }

  async function readOn(workspace: WorkspaceId): Promise<void> {
    for (;;) {
      const last = told.get(workspace) ?? 0;
      const { items, oldest, newest } = await store.changesAfter(workspace, last, PAGE);
      if (stopped || newest <= last) return;
      told.set(workspace, items.at(-1)?.n ?? newest);
      if (oldest > last + 1) deps.onGap(workspace);
      else tell(workspace, items);
      if (items.length < PAGE) return;
    }
  }

  async function catchUp(): Promise<void> {
    const all = await store.changeNumbers();
    const behind = all.filter(({ workspace, n }) => n > (told.get(workspace) ?? 0));
    await Promise.all(behind.map(({ workspace }) => readNow(workspace)));
  }

  function arm(): void {
    timer = clock.after(SWEEP_MS, () => {
      catchUp()
        .catch(() => {})
        .finally(() => {
          if (!stopped) arm();
        });
    });
  }

  return {
    onChange(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    catchUp,
    async start() {
      // Whoever follows begins after this moment.
      for (const { workspace, n } of await store.changeNumbers()) told.set(workspace, n);
      unsubscribe = store.onChange(committed);
      backplane.onNote((note) => {
        if (note.type === "changed") read(note.workspace);
      });
      arm();
    },
    stop() {
      stopped = true;
      timer?.cancel();
      unsubscribe();
    },
  };
}
