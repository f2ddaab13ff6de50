// Numbered changes, and the answers that idempotency keys were given.
import { ConnectorError, type WorkspaceId } from "@sallyport/protocol";
import type { ChangeRow, IdempotencyEntry, IdempotentAnswer, Scope } from "../store.ts";
import type { Tables } from "../tables.ts";
import { prepared, type Prepared } from "./prepared.ts";
import type { Tx } from "./tx.ts";

/** Changes that can be replayed, per workspace. An older reader is told to fetch everything again. */
export const KEPT_CHANGES = 20_000;
/** Keys are remembered for a day. */
export const KEPT_KEYS_MS = 24 * 3600_000;

const count = prepared((db, later: { workspace: string; count: number }) =>
  db
    .updateTable("change_counters")
    .set((eb) => ({ n: eb("n", "+", later.count) }))
    .where("workspace_id", "=", later.workspace)
    .returning("n"),
);
/** The workspace's counter, `by` further. Its row is locked until the commit: order of numbers is order of commit. */
export async function countOn(tx: Tx, workspace: string, by: number): Promise<number> {
  const counter = await count.first(tx, { workspace, count: by });
  if (counter === undefined) throw new Error(`Workspace ${workspace} has no counter.`);
  return counter.n;
}

/** Inserts of so many rows at once; what is left over goes in smaller ones. */
const CHANGE_ROWS = [64, 16, 4, 1].map((size) => ({ size, insert: insertChanges(size) }));
function insertChanges(size: number): Prepared<Record<string, string | number>, unknown> {
  return prepared((db, later: Record<string, string | number>) =>
    db.insertInto("changes").values(
      Array.from({ length: size }, (_, at) => ({
        workspace_id: later["workspace"] as string,
        n: later[`n${at}`] as number,
        entity: later[`entity${at}`] as string,
        entity_id: later[`id${at}`] as string,
      })),
    ),
  );
}

/** Called at the end of an operation, or of several in one transaction. The counter row makes commit order = number order. */
export async function numberChanges(
  tx: Tx,
  workspace: string,
  touched: { entity: ChangeRow["entity"]; id: string }[],
): Promise<ChangeRow[]> {
  const last = await countOn(tx, workspace, touched.length);
  const first = last - touched.length + 1;
  const rows = touched.map(({ entity, id }, index) => ({ n: first + index, entity, id, version: first + index }));
  let from = 0;
  for (const { size, insert } of CHANGE_ROWS)
    for (; rows.length - from >= size; from += size) {
      const values: Record<string, string | number> = { workspace };
      for (let at = 0; at < size; at++) {
        const { n, entity, id } = rows[from + at]!;
        values[`n${at}`] = n;
        values[`entity${at}`] = entity;
        values[`id${at}`] = id;
      }
      await insert.run(tx, values);
    }
  if (Math.floor(first / 512) !== Math.floor((last + 1) / 512)) {
    await tx.db
      .deleteFrom("changes")
      .where("workspace_id", "=", workspace)
      .where("n", "<=", last - KEPT_CHANGES)
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

/** How far each workspace is. */
export async function changeNumbers(tx: Tx): Promise<{ workspace: WorkspaceId; n: number }[]> {
  const rows = await tx.db.selectFrom("change_counters").selectAll().execute();
  return rows.map((row) => ({ workspace: row.workspace_id as WorkspaceId, n: row.n }));
}

export async function idempotent(
  tx: Tx,
  scope: Scope,
  key: { key: string; method: string; route: string; requestDigest: string },
  now: number,
): Promise<IdempotentAnswer | null> {
  return (await findKey(tx, scope, key, now))?.answer ?? null;
}

type KeyColumns = Pick<
  Tables["idempotency_keys"],
  "workspace_id" | "actor_id" | "method" | "route" | "key" | "created_at"
>;
const keyOf = prepared((db, later: KeyColumns) =>
  db
    .selectFrom("idempotency_keys")
    .select(["request_digest", "status", "body", "command_id"])
    .where("workspace_id", "=", later.workspace_id)
    .where("actor_id", "=", later.actor_id)
    .where("method", "=", later.method)
    .where("route", "=", later.route)
    .where("key", "=", later.key)
    .where("created_at", ">", later.created_at),
);
export async function findKey(
  tx: Tx,
  scope: Scope,
  key: { key: string; method: string; route: string; requestDigest: string },
  now: number,
): Promise<{ answer: IdempotentAnswer; command: string | null } | null> {
  const row = await keyOf.first(tx, {
    workspace_id: scope.workspace,
    actor_id: scope.actor.id,
    method: key.method,
    route: key.route,
    key: key.key,
    created_at: now - KEPT_KEYS_MS,
  });
  if (row === undefined) return null;
  if (row.request_digest !== key.requestDigest) {
    throw new ConnectorError("IDEMPOTENCY_MISMATCH", "This Idempotency-Key was sent before with another request.", {
      fix: "Use a new key for a new request; repeat the very same request to get its answer again.",
    });
  }
  return { answer: { status: row.status, body: JSON.parse(row.body) as unknown }, command: row.command_id };
}

const insertKey = prepared((db, later: Tables["idempotency_keys"] & { tooOld: number }) => {
  const rest = {
    request_digest: later.request_digest,
    status: later.status,
    body: later.body,
    command_id: later.command_id,
    created_at: later.created_at,
  };
  return db
    .insertInto("idempotency_keys")
    .values({
      workspace_id: later.workspace_id,
      actor_id: later.actor_id,
      method: later.method,
      route: later.route,
      key: later.key,
      ...rest,
    })
    .onConflict((conflict) =>
      conflict
        .columns(["workspace_id", "actor_id", "method", "route", "key"])
        .doUpdateSet(rest)
        .where("idempotency_keys.created_at", "<=", later.tooOld),
    );
});
/** One that is too old to be found is written over; one that is not was given to another request meanwhile. */
export async function rememberKey(
  tx: Tx,
  scope: Scope,
  entry: IdempotencyEntry,
  now: number,
  command: string | null = null,
): Promise<void> {
  const written = await insertKey.run(tx, {
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
    tooOld: now - KEPT_KEYS_MS,
  });
  if (written === 0)
    throw new ConnectorError("CONFLICT", "This Idempotency-Key came with another request a moment ago.", {
      fix: "Send the request again: it is answered as that one was.",
    });
}
