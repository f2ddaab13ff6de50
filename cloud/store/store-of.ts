// From operations, however they are run, to the store that the rest of the cloud sees. Nothing but cloud/store imports this.
import type { WorkspaceId } from "@sallyport/protocol";
import type { READS, WRITES } from "./operations/index.ts";
import { Recent } from "./recent.ts";
import type { ChangeRow, CredentialRow, PoolRow, Store } from "./store.ts";

/** A use of a credential is written down at most this often: reads do not wait for a disk. */
const USE_GRANULARITY_MS = 60_000;

type Drop<F> = F extends (tx: never, ...args: infer A) => infer R ? (...args: A) => R : never;
/** The operations without their transaction. */
export type Operations = { [K in keyof typeof WRITES]: Drop<(typeof WRITES)[K]> } & {
  [K in keyof typeof READS]: Drop<(typeof READS)[K]>;
};

export function storeOf(
  operations: Operations,
  listeners: Set<(workspace: WorkspaceId, changes: ChangeRow[]) => void>,
  close: () => Promise<void>,
): Store {
  const used = async (
    found: CredentialRow | null,
    now: number,
    write: () => Promise<void>,
  ): Promise<CredentialRow | null> => {
    if (found !== null && now - found.usedAt >= USE_GRANULARITY_MS) await write();
    return found;
  };
  const tokens = new Recent<CredentialRow>();
  const pools = new Recent<PoolRow>();
  listeners.add((_workspace, changes) => {
    if (changes.some((change) => change.entity === "token")) tokens.forget();
    if (changes.some((change) => change.entity === "pool")) pools.forget();
  });
  return {
    ...operations,
    async setPassword(...args) {
      await operations.setPassword(...args);
      tokens.forget();
    },
    poolByName: (scope, name) =>
      pools.get(`${scope.workspace} ${name}`, performance.now(), () => operations.poolByName(scope, name)),
    useWebSession: async (hash, now, idleMs) =>
      used(await operations.peekWebSession(hash, now, idleMs), now, () => operations.touchWebSession(hash, now)),
    async useToken(hash, now) {
      const found = await tokens.get(hash, now, () => operations.peekToken(hash, now));
      if (found === null || now >= (found.expiresAt ?? Infinity)) return null;
      return used(found, now, async () => {
        // First: the requests beside this one find it written.
        found.usedAt = now;
        await operations.touchToken(hash, now);
      });
    },
    onChange(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    close,
  } satisfies Store;
}
