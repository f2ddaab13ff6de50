// Takeovers: work that went from a silent agent replica to another. A row for each, kept beside the command. The newest
// says who holds it; the others, who must let go of it. Nothing here decides that somebody is silent.
import { pipelineRun, type CommandId, type PoolId, type ReplicaId, type WorkspaceId } from "@sallyport/protocol";
import type { CommandRow, CommandState, Handoffs, HeldWork, Takeover } from "../store.ts";
import type { Tables } from "../tables.ts";
import { addEvent, bare, commandRows, toCommand, touch, type BareCommand } from "./command-rows.ts";
import { maybeTaken } from "./queue.ts";
import { prepared } from "./prepared.ts";
import { nextNumber, type Tx } from "./tx.ts";

/** Whoever moves a command offers it at once; one that was not offered after this may be moved again. */
const OFFERED_WITHIN_MS = 30_000;
const OPEN: readonly string[] = ["queued", "accepted", "running"] satisfies CommandState[];

const takeovers = (tx: Tx, workspace: string, commands: readonly string[]) =>
  tx.db
    .selectFrom("takeovers as t")
    .selectAll("t")
    .where("t.workspace_id", "=", workspace)
    .where("t.command_id", "in", commands)
    .orderBy("t.command_id")
    .orderBy("t.takeover_no");

const newestOf = prepared((db, later: { workspace: string; command: string }) =>
  db
    .selectFrom("takeovers")
    .selectAll()
    .where("workspace_id", "=", later.workspace)
    .where("command_id", "=", later.command)
    .orderBy("takeover_no", "desc")
    .limit(1),
);
/** The newest; null when it was never taken over. */
const newest = async (tx: Tx, workspace: string, command: string): Promise<Tables["takeovers"] | null> =>
  (await newestOf.first(tx, { workspace, command })) ?? null;

/** SQLite takes 32,766; a statement has others. */
const MOST_PARAMETERS = 32_000;
/**
 * The same set, its last repeated up to a power of two: a list of each length would be a text of its own, and prepared
 * statements are kept. For 10,000 replicas one takes a megabyte.
 */
function evenly<T>(list: readonly T[]): T[] {
  const size = Math.min(MOST_PARAMETERS, 2 ** Math.ceil(Math.log2(list.length)));
  return Array.from({ length: Math.max(list.length, size) }, (_, at) => list[Math.min(at, list.length - 1)]!);
}

/** Runs of a pool that others than these replicas hold, or may hold because an offer was never answered; oldest first. */
export async function heldWork(
  tx: Tx,
  workspace: WorkspaceId,
  pool: PoolId,
  live: ReplicaId[],
  limit: number,
): Promise<HeldWork[]> {
  const rows = await commandRows(tx, workspace)
    .select("u.spec as run_spec")
    .where("c.pool_id", "=", pool)
    .where("c.kind", "=", pipelineRun.kind)
    .where((eb) =>
      eb.or([
        eb.and([
          eb("c.state", "in", ["accepted", "running"]),
          ...(live.length === 0 ? [] : [eb("c.replica_id", "not in", evenly(live))]),
        ]),
        eb.and([eb("c.state", "=", "queued"), eb("c.offers", ">", 0), maybeTaken("c")]),
      ]),
    )
    .orderBy("c.created_at")
    .orderBy("c.command_id")
    .limit(limit)
    .execute();
  const held: HeldWork[] = [];
  for (const row of rows) {
    const command = toCommand(row);
    const holder = command.state === "queued" ? (command.offeredTo ?? null) : command.replica;
    if (holder === null || live.includes(holder) || row.run_spec === null) continue;
    held.push({ command, holder, engine: (JSON.parse(row.run_spec) as { engine: string }).engine });
  }
  return held;
}

/** Taken over, and not yet accepted by the one that is to have it: it is offered until it is. */
export async function unacceptedTakeovers(
  tx: Tx,
  workspace: WorkspaceId,
  pool: PoolId,
  limit: number,
): Promise<CommandRow[]> {
  const waiting = await tx.db
    .selectFrom("takeovers as t")
    .innerJoin("commands as c", (join) =>
      join
        .onRef("c.workspace_id", "=", "t.workspace_id")
        .onRef("c.command_id", "=", "t.command_id")
        .onRef("c.replica_id", "=", "t.to_replica"),
    )
    .select("t.command_id")
    .distinct()
    .where("t.workspace_id", "=", workspace)
    .where("t.accepted_at", "is", null)
    .where("c.pool_id", "=", pool)
    .where("c.state", "in", ["accepted", "running"])
    .limit(limit)
    .execute();
  if (waiting.length === 0) return [];
  const ids = waiting.map((row) => row.command_id);
  const rows = await commandRows(tx, workspace)
    .where("c.command_id", "in", ids)
    .orderBy("c.created_at")
    .orderBy("c.command_id")
    .execute();
  const last = new Map((await takeovers(tx, workspace, ids).execute()).map((row) => [row.command_id, row]));
  return rows
    .filter((row) => {
      const one = last.get(row.command_id);
      return one?.to_replica === row.replica_id && one.accepted_at === null;
    })
    .map(toCommand);
}

/**
 * Moves it from one replica to another, unless it has ended or somebody else has it by now (false). Of a queued command
 * only the maybe of `from` is moved: it stays queued. `holds`: whether `from` has, or may have, anything of it to let go.
 */
export async function takeOver(
  tx: Tx,
  workspace: WorkspaceId,
  id: CommandId,
  move: { from: ReplicaId; to: ReplicaId; reason: string; holds: boolean },
  now: number,
): Promise<boolean> {
  const row = await bare(tx, workspace, id);
  if (row === undefined || !OPEN.includes(row.state)) return false;
  if (row.state === "queued") {
    // The newest offer that was not refused tells who may have it.
    const asked = await tx.db
      .selectFrom("offers as o")
      .select("o.replica_id")
      .where("o.workspace_id", "=", workspace)
      .where("o.command_id", "=", id)
      .where("o.refusal", "is", null)
      .orderBy("o.attempt", "desc")
      .limit(1)
      .executeTakeFirst();
    if (asked?.replica_id !== move.from) return false;
    const last = await newest(tx, workspace, id);
    if (last?.from_replica === move.from && last.to_replica === move.to) return true;
    // Another process gave it to somebody a moment ago and is about to offer it there.
    if (last?.from_replica === move.from && last.at > now - OFFERED_WITHIN_MS && !(await wasOffered(tx, last)))
      return false;
  } else if (row.replica_id !== move.from) return false;
  await tx.db
    .insertInto("takeovers")
    .values({
      workspace_id: workspace,
      command_id: id,
      takeover_no: await nextNumber(
        tx.db
          .selectFrom("takeovers")
          .select((eb) => eb.fn.max("takeover_no").as("n"))
          .where("workspace_id", "=", workspace)
          .where("command_id", "=", id)
          .executeTakeFirst(),
      ),
      from_replica: move.from,
      to_replica: move.to,
      reason: move.reason,
      at: now,
      accepted_at: null,
      released_at: move.holds ? null : now,
      settled_at: null,
    })
    .execute();
  if (row.state !== "queued")
    await tx.db
      .updateTable("commands")
      .set({ replica_id: move.to })
      .where("workspace_id", "=", workspace)
      .where("command_id", "=", id)
      .execute();
  touch(tx, row);
  await addEvent(tx, workspace, id, {
    at: now,
    type: "taken-over",
    replica: move.to,
    detail: { from: move.from, fromName: await nameOf(tx, workspace, move.from), to: move.to, reason: move.reason },
  });
  return true;
}

const wasOffered = async (tx: Tx, move: Tables["takeovers"]): Promise<boolean> =>
  (await tx.db
    .selectFrom("offers")
    .select("attempt")
    .where("workspace_id", "=", move.workspace_id)
    .where("command_id", "=", move.command_id)
    .where("replica_id", "=", move.to_replica)
    .where("at", ">=", move.at)
    .limit(1)
    .executeTakeFirst()) !== undefined;

async function nameOf(tx: Tx, workspace: string, replica: string): Promise<string> {
  const row = await tx.db
    .selectFrom("replicas")
    .select("name")
    .where("workspace_id", "=", workspace)
    .where("replica_id", "=", replica)
    .executeTakeFirst();
  return row?.name ?? replica;
}

/** It is this replica's by a takeover that it has not accepted yet. */
export async function awaitsTakeover(tx: Tx, row: BareCommand, replica: string): Promise<boolean> {
  if (row.replica_id !== replica || !OPEN.includes(row.state)) return false;
  const last = await newest(tx, row.workspace_id, row.command_id);
  return last !== null && last.to_replica === replica && last.accepted_at === null;
}

const anyTakeover = prepared((db, later: { workspace: string }) =>
  db.selectFrom("takeovers").select("command_id").where("workspace_id", "=", later.workspace).limit(1),
);
/** Those of the commands that were ever taken over. */
export async function takenOver(tx: Tx, workspace: string, commands: readonly string[]): Promise<Set<string>> {
  if (commands.length === 0 || (await anyTakeover.first(tx, { workspace })) === undefined) return new Set();
  const rows = await takeovers(tx, workspace, commands).execute();
  return new Set(rows.map((row) => row.command_id));
}

/** Its present holder said, by acceptance or by a report, that it has it. True when that was awaited. */
export async function confirmTakeover(
  tx: Tx,
  workspace: string,
  id: string,
  replica: string,
  now: number,
): Promise<boolean> {
  const last = await newest(tx, workspace, id);
  if (last === null || last.to_replica !== replica || last.accepted_at !== null) return false;
  await tx.db
    .updateTable("takeovers")
    .set({ accepted_at: now })
    .where("workspace_id", "=", workspace)
    .where("command_id", "=", id)
    .where("takeover_no", "=", last.takeover_no)
    .execute();
  return true;
}

/**
 * How a replica that reports about a command stands to it. `returns`: it was taken from it, and nobody has accepted it
 * since: it is its own again.
 */
export async function standing(
  tx: Tx,
  row: BareCommand,
  replica: string,
): Promise<"holder" | "former" | "returns" | "none"> {
  const rows = await takeovers(tx, row.workspace_id, [row.command_id]).execute();
  const last = rows.at(-1);
  // Of a queued one that was moved, the one that it was moved to is as good as its holder.
  const holder = row.replica_id ?? last?.to_replica ?? null;
  if (holder === replica) return "holder";
  if (!rows.some((one) => one.from_replica === replica)) return "none";
  return last!.accepted_at === null && row.replica_id !== null && OPEN.includes(row.state) ? "returns" : "former";
}

/** A former holder follows it no more; one that got it back in between has to be offered it again. */
export async function releaseTakeovers(tx: Tx, row: BareCommand, replica: string, now: number): Promise<void> {
  const { workspace_id: workspace, command_id: id } = row;
  await tx.db
    .updateTable("takeovers")
    .set({ released_at: now })
    .where("workspace_id", "=", workspace)
    .where("command_id", "=", id)
    .where("from_replica", "=", replica)
    .where("released_at", "is", null)
    .execute();
  const last = await newest(tx, workspace, id);
  if (last?.to_replica !== replica || !OPEN.includes(row.state)) return;
  await tx.db
    .updateTable("takeovers")
    .set({ accepted_at: null })
    .where("workspace_id", "=", workspace)
    .where("command_id", "=", id)
    .where("takeover_no", "=", last.takeover_no)
    .execute();
}

const holderOf = (row: { state: string; replica_id: string | null }, last: { to_replica: string }): string =>
  row.replica_id ?? last.to_replica;

/** Of these commands: which a replica must let go, and which it must keep fenced because a former holder has not. */
export async function handoffsOf(
  tx: Tx,
  workspace: WorkspaceId,
  replica: ReplicaId,
  commands: readonly string[],
): Promise<Pick<Handoffs, "released" | "fenced">> {
  const released: CommandId[] = [];
  const fenced: CommandId[] = [];
  if (commands.length === 0) return { released, fenced };
  const rows = await tx.db
    .selectFrom("takeovers as t")
    .innerJoin("commands as c", (join) =>
      join.onRef("c.workspace_id", "=", "t.workspace_id").onRef("c.command_id", "=", "t.command_id"),
    )
    .innerJoin("replicas as f", (join) =>
      join.onRef("f.workspace_id", "=", "t.workspace_id").onRef("f.replica_id", "=", "t.from_replica"),
    )
    .selectAll("t")
    .select(["c.state", "c.replica_id", "f.revoked_at", "f.deleted_at"])
    .where("t.workspace_id", "=", workspace)
    .where("t.command_id", "in", commands)
    .orderBy("t.takeover_no")
    .execute();
  const byCommand = Map.groupBy(rows, (row) => row.command_id);
  for (const [id, all] of byCommand) {
    const holder = holderOf(all[0]!, all.at(-1)!);
    if (holder !== replica) {
      // Until somebody has accepted it, the one that had it may come back to it.
      if (all.at(-1)!.accepted_at === null && OPEN.includes(all[0]!.state)) continue;
      if (all.some((one) => one.from_replica === replica && one.released_at === null)) released.push(id as CommandId);
    } else if (all.some((one) => unreleased(one) && one.from_replica !== replica)) fenced.push(id as CommandId);
  }
  return { released, fenced };
}

/** A replica that was revoked or deleted is gone by a person's word: nobody waits for it. */
const unreleased = (one: { released_at: number | null; revoked_at: number | null; deleted_at: number | null }) =>
  one.released_at === null && one.revoked_at === null && one.deleted_at === null;

/** What a replica is to be told when its reports' stream begins, and when something of it changes. */
export async function handoffs(tx: Tx, workspace: WorkspaceId, replica: ReplicaId, limit: number): Promise<Handoffs> {
  const about = await tx.db
    .selectFrom("takeovers as t")
    .select("t.command_id")
    .distinct()
    .where("t.workspace_id", "=", workspace)
    .where("t.from_replica", "=", replica)
    .where("t.released_at", "is", null)
    .limit(limit)
    .execute();
  const { released } = await handoffsOf(
    tx,
    workspace,
    replica,
    about.map((row) => row.command_id),
  );
  const ended = await tx.db
    .selectFrom("takeovers as t")
    .innerJoin("commands as c", (join) =>
      join.onRef("c.workspace_id", "=", "t.workspace_id").onRef("c.command_id", "=", "t.command_id"),
    )
    .select("t.command_id")
    .distinct()
    .where("t.workspace_id", "=", workspace)
    .where("t.settled_at", "is", null)
    .where("c.replica_id", "=", replica)
    .where("c.state", "not in", [...OPEN])
    .limit(limit)
    .execute();
  const ids = ended.map((row) => row.command_id);
  const { fenced } = await handoffsOf(tx, workspace, replica, ids);
  const waiting = new Set<string>(fenced);
  return { released, fenced: [], settled: ids.filter((id) => !waiting.has(id)) as CommandId[] };
}

/** They were told. */
export async function markSettled(tx: Tx, workspace: WorkspaceId, commands: CommandId[], now: number): Promise<void> {
  if (commands.length === 0) return;
  await tx.db
    .updateTable("takeovers")
    .set({ settled_at: now })
    .where("workspace_id", "=", workspace)
    .where("command_id", "in", commands)
    .where("settled_at", "is", null)
    .execute();
}

/** Of these commands, newest takeover by command: for showing, and for whether it was accepted. */
export async function lastTakeovers(
  tx: Tx,
  workspace: WorkspaceId,
  commands: CommandId[],
): Promise<Record<string, Takeover>> {
  if (commands.length === 0) return {};
  const rows = await tx.db
    .selectFrom("takeovers as t")
    .innerJoin("replicas as f", (join) =>
      join.onRef("f.workspace_id", "=", "t.workspace_id").onRef("f.replica_id", "=", "t.from_replica"),
    )
    .selectAll("t")
    .select("f.name as from_name")
    .where("t.workspace_id", "=", workspace)
    .where("t.command_id", "in", commands)
    .orderBy("t.takeover_no")
    .execute();
  const found: Record<string, Takeover> = {};
  for (const row of rows)
    found[row.command_id] = {
      from: row.from_replica as ReplicaId,
      fromName: row.from_name,
      to: row.to_replica as ReplicaId,
      reason: row.reason,
      at: row.at,
      acceptedAt: row.accepted_at,
    };
  return found;
}
