// Numbered changes, and the answers that idempotency keys were given.
import { ConnectorError, type WorkspaceId } from "@sallyport/protocol";
import type { ChangeRow, IdempotencyEntry, IdempotentAnswer, Scope } from "../store.ts";
import type { Tx } from "./tx.ts";

/** Changes that can be replayed, per workspace. An older reader is told to fetch everything again. */
export const KEPT_CHANGES = 20_000;
/** Keys are remembered for a day. */
export const KEPT_KEYS_MS = 24 * 3600_000;

/** Called by the worker at the end of each operation, in its savepoint. The counter row makes commit order = number order. */
export async function numberChanges(
  tx: Tx,
  workspace: string,
  touched: { entity: ChangeRow["entity"]; id: string }[],
): Promise<ChangeRow[]> {
  const counter = await tx.db
    .updateTable("change_counters")
    .set((eb) => ({ n: eb("n", "+", touched.length) }))
    .where("workspace_id", "=", workspace)
    .returning("n")
    .executeTakeFirstOrThrow();
  const first = counter.n - touched.length + 1;
  const rows = touched.map(({ entity, id }, index) => ({ n: first + index, entity, id, version: first + index }));
  await tx.db
    .insertInto("changes")
    .values(rows.map(({ n, entity, id }) => ({ workspace_id: workspace, n, entity, entity_id: id })))
    .execute();
  if (Math.floor(first / 512) !== Math.floor((counter.n + 1) / 512)) {
    await tx.db
      .deleteFrom("changes")
      .where("workspace_id", "=", workspace)
      .where("n", "<=", counter.n - KEPT_CHANGES)
      .execute();
  }
  return rows;
}

export async function changesAfter(
  tx: Tx,
  workspace: WorkspaceId,
  n: number,
  limit: number,
): Promise<{ items: ChangeRow[]; oldest: number; newest: number }> {
  const counter = await tx.db
    .selectFrom("change_counters")
    .select("n")
    .where("workspace_id", "=", workspace)
    .executeTakeFirst();
  const newest = counter?.n ?? 0;
  const first = await tx.db
    .selectFrom("changes")
    .select("n")
    .where("workspace_id", "=", workspace)
    .orderBy("n")
    .limit(1)
    .executeTakeFirst();
  const rows = await tx.db
    .selectFrom("changes")
    .selectAll()
    .where("workspace_id", "=", workspace)
    .where("n", ">", n)
    .orderBy("n")
    .limit(limit)
    .execute();
  return {
    items: rows.map((row) => ({
      n: row.n,
      entity: row.entity as ChangeRow["entity"],
      id: row.entity_id,
      version: row.n,
    })),
    oldest: first?.n ?? newest + 1,
    newest,
  };
}

export async function idempotent(
  tx: Tx,
  scope: Scope,
  key: { key: string; method: string; route: string; requestDigest: string },
  now: number,
): Promise<IdempotentAnswer | null> {
  return (await findKey(tx, scope, key, now))?.answer ?? null;
}

export async function findKey(
  tx: Tx,
  scope: Scope,
  key: { key: string; method: string; route: string; requestDigest: string },
  now: number,
): Promise<{ answer: IdempotentAnswer; command: string | null } | null> {
  const row = await tx.db
    .selectFrom("idempotency_keys")
    .selectAll()
    .where("workspace_id", "=", scope.workspace)
    .where("actor_id", "=", scope.actor.id)
    .where("method", "=", key.method)
    .where("route", "=", key.route)
    .where("key", "=", key.key)
    .where("created_at", ">", now - KEPT_KEYS_MS)
    .executeTakeFirst();
  if (row === undefined) return null;
  if (row.request_digest !== key.requestDigest) {
    throw new ConnectorError("IDEMPOTENCY_MISMATCH", "This Idempotency-Key was sent before with another request.", {
      fix: "Use a new key for a new request; repeat the very same request to get its answer again.",
    });
  }
  return { answer: { status: row.status, body: JSON.parse(row.body) as unknown }, command: row.command_id };
}

export async function rememberKey(
  tx: Tx,
  scope: Scope,
  entry: IdempotencyEntry,
  now: number,
  command: string | null = null,
): Promise<void> {
  await tx.db
    .deleteFrom("idempotency_keys")
    .where("workspace_id", "=", scope.workspace)
    .where("created_at", "<=", now - KEPT_KEYS_MS)
    .execute();
  await tx.db
    .insertInto("idempotency_keys")
    .values({
      workspace_id: scope.workspace,
      actor_id: scope.actor.id,
      method: entry.method,
      route: entry.route,
      key: entry.key,
      request_digest: entry.requestDigest,
      status: entry.answer.status,
      body: JSON.stringify(entry.answer.body ?? null),
      command_id: command,
      created_at: now,
    })
    .execute();
}
