// Commands, their offers and events, reports, and runs. States move forward only; an end never flips.
import {
  ConnectorError,
  readJsonBody,
  reportBodySchema,
  pipelineRun,
  runCancel,
  type CommandId,
  type ErrorBody,
  type ParamValue,
  type Pipeline,
  type PoolId,
  type ProducedArtifact,
  type ReplicaId,
  type Report,
  type ReportBody,
  type RunId,
  type StepState,
  type WorkspaceId,
} from "@sallyport/protocol";
import { sql } from "kysely";
import type {
  AttemptRow,
  CommandRow,
  CommandState,
  CommittedReports,
  HistoryRow,
  IdempotencyEntry,
  IdempotentAnswer,
  NewCommand,
  Page,
  PageQuery,
  RunRow,
  Scope,
} from "../store.ts";
import type { Tables } from "../tables.ts";
import { countOn, findKey, rememberKey } from "./changes.ts";
import { deploymentEnded, deploymentTaken } from "./deployment-status.ts";
import { addEvent, bare, commandRows, move, toCommand, touch, type BareCommand } from "./command-rows.ts";
import { insertion, prepared, rowOf } from "./prepared.ts";
import { comesFirst, mayBegin, maybeTaken } from "./queue.ts";
import {
  awaitsTakeover,
  confirmTakeover,
  handoffsOf,
  releaseTakeovers,
  standing,
  takenOver,
  takeOver,
} from "./takeovers.ts";
import { afterCursor, pageOf, parseJson, toJson, ws, type Tx } from "./tx.ts";

const ENDS: ReadonlySet<string> = new Set<CommandState>([
  "succeeded",
  "failed",
  "cancelled",
  "expired",
  "superseded",
  "refused",
  "lost",
]);
/** Refused offers that a command keeps, for its history. */
const KEPT_REFUSED_OFFERS = 20;
/** Events, and offers, of one command that are shown. */
const KEPT_HISTORY = 200;
/** An offer that is older than this is journaled by now, or never will be. */
const JOURNALING_MS = 60_000;
const STEP_ENDS: ReadonlySet<string> = new Set<StepState>(["succeeded", "failed", "cancelled", "skipped"]);

/** Two intents that ask for the same: only the times may differ, which come from the moment of asking. */
function sameWish(one: string, other: string): boolean {
  if (one === other) return true;
  const wish = (text: string): string => {
    const { notBefore: _notBefore, expires: _expires, ...rest } = JSON.parse(text) as Record<string, unknown>;
    return JSON.stringify(rest);
  };
  return wish(one) === wish(other);
}

// -- life
export async function createCommand(
  tx: Tx,
  scope: Scope,
  input: NewCommand,
  idempotency?: IdempotencyEntry,
): Promise<{ command: CommandRow; replayed: IdempotentAnswer | null }> {
  if (idempotency !== undefined) {
    const earlier = await findKey(tx, scope, idempotency, input.createdAt);
    if (earlier !== null) {
      const first = earlier.command === null ? null : await command(tx, scope, earlier.command as CommandId);
      if (first === null)
        throw new ConnectorError("CONFLICT", "This Idempotency-Key was used for a request that made no command.", {
          fix: "Use a new key.",
        });
      return { command: first, replayed: earlier.answer };
    }
  }
  const run = input.run?.id ?? /^run:(run_[0-9a-f]{32})$/.exec(input.resource)?.[1] ?? null;
  const row: Tables["commands"] = {
    workspace_id: scope.workspace,
    command_id: input.id,
    pool_id: input.pool,
    kind: input.kind,
    resource: input.resource,
    state: "queued",
    intent: input.intent,
    body: JSON.stringify(input.body),
    actor_id: scope.actor.id,
    actor_name: scope.actor.name,
    actor_via: scope.actor.via,
    replica_id: null,
    run_id: run,
    created_at: input.createdAt,
    not_before: input.notBefore,
    expires_at: input.expires,
    accepted_at: null,
    started_at: null,
    ended_at: null,
    offers: 0,
    error: null,
    result: null,
    priority: input.priority ?? 0,
    // Rises with each commit, whatever the clock does.
    commit_no: await countOn(tx, scope.workspace, 1),
    requires: Object.keys(input.requires ?? {}).length === 0 ? null : toJson(input.requires),
    trace: scope.trace ?? null,
  };
  if ((await insertCommand.run(tx, row)) === 0) {
    const known = (await command(tx, scope, input.id))!;
    if (!sameWish(known.intent, input.intent))
      throw new ConnectorError("CONFLICT", `Command ${input.id} exists already and asks for something else.`, {
        fix: "Choose a new command id.",
      });
    // The key stands for this request from now on, though an earlier one made the command.
    if (idempotency !== undefined) await rememberKey(tx, scope, idempotency, input.createdAt, known.id);
    return { command: known, replayed: null };
  }
  if (input.run !== undefined)
    await insertRun.run(tx, {
      workspace_id: scope.workspace,
      run_id: input.run.id,
      command_id: input.id,
      pool_id: input.run.pool,
      pipeline: input.run.pipeline,
      spec: JSON.stringify(input.run.spec),
      params: JSON.stringify(input.run.params),
      created_at: input.run.createdAt,
      concurrency: input.run.spec.concurrency ?? null,
      rerun_of: input.run.rerunOf ?? null,
    });
  await addEvent(tx, scope.workspace, input.id, { at: input.createdAt, type: "queued", detail: scope.actor });
  if (idempotency !== undefined) await rememberKey(tx, scope, idempotency, input.createdAt, input.id);
  touch(tx, row);
  const pool = await poolName.first(tx, { workspace: scope.workspace, pool: input.pool });
  return {
    command: toCommand({
      ...row,
      pool_name: pool!.name,
      replica_name: null,
      offered_to: null,
      pipeline: input.run?.pipeline ?? null,
      concurrency: input.run?.spec.concurrency ?? null,
    }),
    replayed: null,
  };
}

const poolName = prepared((db, later: { workspace: string; pool: string }) =>
  db.selectFrom("pools").select("name").where("workspace_id", "=", later.workspace).where("pool_id", "=", later.pool),
);
const COMMAND_COLUMNS = [
  "workspace_id",
  "command_id",
  "pool_id",
  "kind",
  "resource",
  "state",
  "intent",
  "body",
  "actor_id",
  "actor_name",
  "actor_via",
  "replica_id",
  "run_id",
  "created_at",
  "not_before",
  "expires_at",
  "accepted_at",
  "started_at",
  "ended_at",
  "offers",
  "error",
  "result",
  "priority",
  "commit_no",
  "requires",
  "trace",
] as const satisfies readonly (keyof Tables["commands"])[];
const insertCommand = prepared((db, later: Tables["commands"]) =>
  db
    .insertInto("commands")
    .values(rowOf(later, COMMAND_COLUMNS))
    .onConflict((conflict) => conflict.columns(["workspace_id", "command_id"]).doNothing()),
);
const insertRun = insertion("runs");
const insertOffer = insertion("offers");
const oneCommand = prepared((db, later: { workspace: string; id: string }) =>
  commandRows({ db }, later.workspace).where("c.command_id", "=", later.id),
);

export async function command(tx: Tx, scope: Scope, id: CommandId): Promise<CommandRow | null> {
  const row = await oneCommand.first(tx, { workspace: scope.workspace, id });
  return row === undefined ? null : toCommand(row);
}

export async function commands(
  tx: Tx,
  scope: Scope,
  query: PageQuery & { state?: CommandState; kind?: string; pool?: PoolId; run?: RunId },
): Promise<Page<CommandRow>> {
  let select = commandRows(tx, scope.workspace).where(afterCursor("c.created_at", "c.command_id", query.cursor));
  if (query.state !== undefined) select = select.where("c.state", "=", query.state);
  if (query.kind !== undefined) select = select.where("c.kind", "=", query.kind);
  if (query.pool !== undefined) select = select.where("c.pool_id", "=", query.pool);
  if (query.run !== undefined) select = select.where("c.run_id", "=", query.run);
  const rows = await select
    .orderBy("c.created_at", "desc")
    .orderBy("c.command_id", "desc")
    .limit(query.limit + 1)
    .execute();
  return pageOf(rows, query, (row) => [row.created_at, row.command_id], toCommand);
}

/** Null when nobody is to have it now: it was cancelled, or expired, or a slot was taken, since it was looked up. */
export async function nextDispatch(
  tx: Tx,
  workspace: WorkspaceId,
  id: CommandId,
  replica: ReplicaId,
  floor: number,
  now: number,
  fenced = false,
): Promise<{ sequence: number; attempt: number } | null> {
  const before = await bare(tx, workspace, id);
  if (before === undefined) return null;
  if (fenced && before.state === "queued" && before.offers > 0) {
    const maybe = await maybeWith(tx, workspace, id);
    if (maybe !== null && maybe !== replica) return null;
  }
  if (
    before.state === "queued"
      ? !(await comesFirst(tx, before)) || !(await mayBegin(tx, before))
      : !(await awaitsTakeover(tx, before, replica))
  )
    return null;
  const row = await countOffer.first(tx, { workspace, id, state: before.state });
  if (row === undefined) return null;
  const sequence = await reserveDispatches(tx, workspace, replica, floor, 1);
  await insertOffer.run(tx, {
    workspace_id: workspace,
    command_id: id,
    attempt: row.offers,
    replica_id: replica,
    sequence,
    at: now,
    refusal: null,
  });
  return { sequence, attempt: row.offers };
}
const countOffer = prepared((db, later: { workspace: string; id: string; state: string }) =>
  db
    .updateTable("commands")
    .set((eb) => ({ offers: eb("offers", "+", 1) }))
    .where("workspace_id", "=", later.workspace)
    .where("command_id", "=", later.id)
    .where("state", "=", later.state)
    .returning("offers"),
);

const reserve = prepared((db, later: { workspace: string; replica: string; floor: number; count: number }) =>
  db
    .updateTable("dispatch_counters")
    .set({
      sequence: sql<number>`case when sequence > ${later.floor} then sequence else ${later.floor} end + ${later.count}`,
    })
    .where("workspace_id", "=", later.workspace)
    .where("replica_id", "=", later.replica)
    .returning("sequence"),
);
export async function reserveDispatches(
  tx: Tx,
  workspace: WorkspaceId,
  replica: ReplicaId,
  floor: number,
  count: number,
): Promise<number> {
  const counter = await reserve.first(tx, { workspace, replica, floor, count });
  if (counter === undefined)
    throw new ConnectorError("IDENTITY_UNKNOWN", `Replica ${replica} is not of this workspace.`);
  return counter.sequence - count + 1;
}

export async function markAccepted(
  tx: Tx,
  workspace: WorkspaceId,
  id: CommandId,
  replica: ReplicaId,
  now: number,
): Promise<CommandState | null> {
  const row = await bare(tx, workspace, id);
  if (row === undefined) return null;
  if (row.state !== "queued") {
    // Taken while a newer one took its place: it holds the deployment all the same, so the newer one is for it.
    if (row.state === "superseded") await deploymentTaken(tx, row, replica);
    if (row.replica_id !== replica)
      await addEvent(tx, workspace, id, { at: now, type: "accepted", replica, applied: false });
    else if (await confirmTakeover(tx, workspace, id, replica, now)) {
      await addEvent(tx, workspace, id, { at: now, type: "accepted", replica, applied: !ENDS.has(row.state) });
      touch(tx, row);
    }
    return row.state as CommandState;
  }
  await move(tx, row, { state: "accepted", replica_id: replica, accepted_at: now });
  await deploymentTaken(tx, row, replica);
  await confirmTakeover(tx, workspace, id, replica, now);
  await addEvent(tx, workspace, id, { at: now, type: "accepted", replica });
  return "accepted";
}

export async function markRefused(
  tx: Tx,
  workspace: WorkspaceId,
  id: CommandId,
  replica: ReplicaId,
  error: ErrorBody,
  now: number,
): Promise<void> {
  const row = await bare(tx, workspace, id);
  if (row === undefined) return;
  const applies = row.state === "queued";
  // Whoever may have had it says that it came too late: so nobody took it in time.
  const state = error.code === "COMMAND_EXPIRED" ? "expired" : "refused";
  if (applies) await move(tx, row, { state, replica_id: replica, ended_at: now, error: JSON.stringify(error) });
  await addEvent(tx, workspace, id, { at: now, type: state, replica, applied: applies, detail: error });
}

/**
 * The replica said so before it journaled anything. Its silence on earlier offers is settled by that too, but for young
 * ones: it may be journaling one of those right now. Answers the replica that may still have it.
 */
export async function markNotTaken(
  tx: Tx,
  workspace: WorkspaceId,
  id: CommandId,
  offer: { attempt: number; replica: ReplicaId; code: string },
  now: number,
): Promise<ReplicaId | null> {
  const { attempt } = offer;
  await tx.db
    .updateTable("offers")
    .set({ refusal: offer.code })
    .where("workspace_id", "=", workspace)
    .where("command_id", "=", id)
    .where("replica_id", "=", offer.replica)
    .where("refusal", "is", null)
    .where((eb) =>
      eb.or([eb("attempt", "=", attempt), eb.and([eb("attempt", "<", attempt), eb("at", "<=", now - JOURNALING_MS)])]),
    )
    .execute();
  await tx.db
    .deleteFrom("offers")
    .where("workspace_id", "=", workspace)
    .where("command_id", "=", id)
    .where("refusal", "is not", null)
    .where("attempt", "<=", attempt - KEPT_REFUSED_OFFERS)
    .execute();
  return (await maybeWith(tx, workspace, id)) as ReplicaId | null;
}

export async function cancelQueued(
  tx: Tx,
  scope: Scope,
  id: CommandId,
  now: number,
  untouched = false,
): Promise<boolean> {
  const row = await bare(tx, scope.workspace, id);
  if (row?.state !== "queued") return false;
  if (untouched && row.offers > 0 && (await maybeWith(tx, scope.workspace, id)) !== null) return false;
  const error: ErrorBody = { code: "CANCELLED", message: `Cancelled by ${scope.actor.name} before an agent took it.` };
  await move(tx, row, { state: "cancelled", ended_at: now, error: JSON.stringify(error) });
  await addEvent(tx, scope.workspace, id, { at: now, type: "cancelled", detail: scope.actor });
  return true;
}

export async function declareLost(
  tx: Tx,
  scope: Scope,
  id: CommandId,
  now: number,
  word: { reason: string; replica: ReplicaId | null } | null = null,
): Promise<boolean> {
  const row = await bare(tx, scope.workspace, id);
  if (row === undefined || ENDS.has(row.state)) return false;
  const holder = row.state === "queued" ? await maybeWith(tx, scope.workspace, id) : row.replica_id;
  if (holder === null || (word !== null && word.replica !== holder)) return false;
  const error: ErrorBody = {
    code: "DECLARED_LOST",
    message: `${scope.actor.name} declared it lost${word === null ? "." : `: ${word.reason}`}`,
    fix: "What its agent says of it later is kept beside this end. Start it again if it is to be done.",
  };
  const end = { state: "lost", ended_at: now, error: JSON.stringify(error) };
  await move(tx, row, { ...end, replica_id: holder });
  await addEvent(tx, scope.workspace, id, {
    at: now,
    type: "lost",
    replica: holder,
    detail: { ...scope.actor, ...(word === null ? {} : { reason: word.reason }) },
  });
  if (row.run_id === null || row.kind !== pipelineRun.kind) return true;
  // Nobody is left whom a stop of it could reach.
  const stops = await tx.db
    .selectFrom("commands")
    .selectAll()
    .where("workspace_id", "=", scope.workspace)
    .where("run_id", "=", row.run_id)
    .where("kind", "=", runCancel.kind)
    .where("state", "=", "queued")
    .execute();
  for (const stop of stops) {
    await move(tx, stop, { state: "superseded", ended_at: now, error: JSON.stringify(error) });
    await addEvent(tx, scope.workspace, stop.command_id, { at: now, type: "superseded" });
  }
  return true;
}

/** The replica that may have a queued command: the newest that was offered it and did not refuse. */
async function maybeWith(tx: Tx, workspace: string, id: string): Promise<string | null> {
  const offer = await tx.db
    .selectFrom("offers")
    .select("replica_id")
    .where("workspace_id", "=", workspace)
    .where("command_id", "=", id)
    .where("refusal", "is", null)
    .orderBy("attempt", "desc")
    .limit(1)
    .executeTakeFirst();
  return offer?.replica_id ?? null;
}

/** Queued commands about a deployment that a newer one makes needless. */
export async function supersede(
  tx: Tx,
  workspace: string,
  resource: string,
  reason: string,
  now: number,
): Promise<void> {
  const rows = await tx.db
    .selectFrom("commands")
    .selectAll()
    .where("workspace_id", "=", workspace)
    .where("resource", "=", resource)
    .where("state", "=", "queued")
    .execute();
  for (const row of rows) {
    const error: ErrorBody = { code: "GENERATION_STALE", message: reason };
    await move(tx, row, { state: "superseded", ended_at: now, error: JSON.stringify(error) });
    await addEvent(tx, workspace, row.command_id, { at: now, type: "superseded" });
  }
}

/**
 * Only what no agent can have: what one may have taken stays queued until that one answers, or is declared lost.
 * `workspace`: of that one alone.
 */
export async function expireQueued(tx: Tx, now: number, workspace?: string): Promise<number> {
  let due = tx.db
    .selectFrom("commands as c")
    .selectAll("c")
    .where("c.state", "=", "queued")
    .where("c.expires_at", "<=", now)
    .where((eb) => eb.not(maybeTaken("c")));
  if (workspace !== undefined) due = due.where("c.workspace_id", "=", workspace);
  const rows = await due.limit(500).execute();
  for (const row of rows) {
    const error: ErrorBody =
      row.offers === 0
        ? {
            code: "COMMAND_EXPIRED",
            message: "No agent of the pool took it before it expired.",
            fix: "Start it again when an agent of the pool is connected.",
          }
        : {
            code: "COMMAND_EXPIRED",
            message: "It expired before an agent of the pool could take it: each that was offered it said not now.",
            fix: "See in its history why they did not, then start it again.",
          };
    await move(tx, row, { state: "expired", ended_at: now, error: JSON.stringify(error) });
    await addEvent(tx, row.workspace_id, row.command_id, { at: now, type: "expired" });
  }
  return rows.length;
}

// -- what happened
/** Events and offers, oldest first. Of offers the newest are kept. */
export async function history(tx: Tx, scope: Scope, id: CommandId): Promise<HistoryRow[]> {
  const names = new Map(
    (
      await tx.db
        .selectFrom("replicas")
        .select(["replica_id", "name"])
        .where("workspace_id", "=", scope.workspace)
        .execute()
    ).map((row) => [row.replica_id, row.name]),
  );
  const agent = (replica: string | null) =>
    replica === null ? null : { id: replica as ReplicaId, name: names.get(replica) ?? replica };
  const events = await tx.db
    .selectFrom("command_events")
    .selectAll()
    .where("workspace_id", "=", scope.workspace)
    .where("command_id", "=", id)
    .orderBy("event_no", "desc")
    .limit(KEPT_HISTORY)
    .execute();
  const offers = await tx.db
    .selectFrom("offers")
    .selectAll()
    .where("workspace_id", "=", scope.workspace)
    .where("command_id", "=", id)
    .orderBy("attempt", "desc")
    .limit(KEPT_HISTORY)
    .execute();
  const rows: (HistoryRow & { place: number })[] = [
    ...events.map((row) => ({
      at: row.at,
      type: row.type,
      agent: agent(row.replica_id),
      applied: row.applied === 1,
      detail: parseJson<Record<string, unknown>>(row.detail),
      place: row.event_no === 1 ? 0 : 2,
    })),
    ...offers.map((row) => ({
      at: row.at,
      type: "offered",
      agent: agent(row.replica_id),
      applied: true,
      detail: { attempt: row.attempt, refusal: row.refusal },
      place: 1,
    })),
  ];
  // A clock that was set back changes no order: what was written later came later.
  const latest = new Map<boolean, number>();
  const ordered = rows.toReversed().map((row) => {
    const isOffer = row.place === 1;
    const after = Math.max(row.at, latest.get(isOffer) ?? 0);
    latest.set(isOffer, after);
    return { ...row, after };
  });
  // `toSorted` keeps the order of equals: events in theirs, offers in theirs.
  return ordered
    .toSorted((a, b) => Number(a.place !== 0) - Number(b.place !== 0) || a.after - b.after || a.place - b.place)
    .map(({ place: _place, after: _after, ...row }) => row);
}

// -- reports
type JournalKey = { workspace: string; replica: string; journal: string };
const journalOf = prepared((db, later: JournalKey) =>
  db
    .selectFrom("journals")
    .select(["committed_through", "ignored"])
    .where("workspace_id", "=", later.workspace)
    .where("replica_id", "=", later.replica)
    .where("journal_id", "=", later.journal),
);
const insertJournal = insertion("journals");
const setJournal = prepared((db, later: JournalKey & { through: number; ignored: number }) =>
  db
    .updateTable("journals")
    .set({ committed_through: later.through, ignored: later.ignored })
    .where("workspace_id", "=", later.workspace)
    .where("replica_id", "=", later.replica)
    .where("journal_id", "=", later.journal),
);

export async function commitReports(
  tx: Tx,
  workspace: WorkspaceId,
  replica: ReplicaId,
  journal: string,
  reports: Report[],
  now: number,
  lowestHeld = 1,
): Promise<CommittedReports> {
  const known = await journalOf.first(tx, { workspace, replica, journal });
  if (known === undefined)
    await insertJournal.run(tx, {
      workspace_id: workspace,
      replica_id: replica,
      journal_id: journal,
      committed_through: 0,
      ignored: 0,
      first_seen_at: now,
    });
  let through = Math.max(known?.committed_through ?? 0, lowestHeld - 1);
  let ignored = known?.ignored ?? 0;
  const about = [...new Set(reports.map((report) => report.command))];
  const moved = await takenOver(tx, workspace, about);
  for (const report of reports.filter((r) => r.journal === journal).sort((a, b) => a.sequence - b.sequence)) {
    if (report.sequence <= through) continue;
    if (report.sequence !== through + 1) break;
    if (!(await applyReport(tx, workspace, replica, report, now, moved))) ignored++;
    through = report.sequence;
  }
  await setJournal.run(tx, { workspace, replica, journal, through, ignored });
  if (moved.size === 0) return { committedThrough: through };
  const { released, fenced } = await handoffsOf(tx, workspace, replica, [...moved]);
  return {
    committedThrough: through,
    ...(released.length === 0 ? {} : { released }),
    ...(fenced.length === 0 ? {} : { fenced }),
  };
}

/** False when the report is not for a command of this replica, or not understood: it is counted and goes no further. */
async function applyReport(
  tx: Tx,
  workspace: WorkspaceId,
  replica: ReplicaId,
  report: Report,
  now: number,
  /** Commands that were ever taken over. */
  moved: ReadonlySet<string>,
): Promise<boolean> {
  let row = await bare(tx, workspace, report.command);
  if (row === undefined) return false;
  let stands = moved.has(report.command) ? await standing(tx, row, replica) : null;
  if (stands === "returns" && !isRelease(report)) {
    const move = { from: row.replica_id as ReplicaId, to: replica, reason: "RETURNED", holds: true };
    await takeOver(tx, workspace, report.command, move, now);
    row = (await bare(tx, workspace, report.command))!;
    stands = "holder";
  } else if (stands === "returns") stands = "former";
  if (stands === "former") return keepOfFormer(tx, row, replica, report, now);
  if (row.replica_id !== replica) {
    // The acceptance itself may have been lost on the way: an offer to this replica that nobody else took is proof enough.
    if (row.replica_id !== null) return false;
    const offer = await tx.db
      .selectFrom("offers")
      .select("attempt")
      .where("workspace_id", "=", workspace)
      .where("command_id", "=", report.command)
      .where("replica_id", "=", replica)
      .executeTakeFirst();
    if (offer === undefined) return false;
    if (row.state === "queued") {
      await markAccepted(tx, workspace, report.command, replica, now);
      row = (await bare(tx, workspace, report.command))!;
    }
  }
  const body = readReport(report);
  if (body === null) return false;
  if (body.type === "command.released") {
    if (stands === null) return false;
    await releaseTakeovers(tx, row, replica, now);
    return true;
  }
  if (stands === "holder") await confirmTakeover(tx, workspace, report.command, replica, now);
  // The agent's clock, kept between the asking and now: shown times never run backwards or ahead.
  const at = Math.min(Math.max(report.at, row.created_at), now);
  if (body.type === "step") return applyStep(tx, row, replica, body, at, retryOf(body, report.at, at, now));

  const ended = ENDS.has(row.state);
  const applies = !ended && !(body.type === "command.running" && row.state === "running");
  if (applies) {
    const started = row.started_at ?? at;
    switch (body.type) {
      case "command.running":
        await move(tx, row, { state: "running", started_at: started });
        break;
      case "command.succeeded":
        await move(tx, row, { state: "succeeded", started_at: started, ended_at: at, result: toJson(body.result) });
        await deploymentEnded(tx, row, at);
        break;
      case "command.failed":
        await move(tx, row, { state: "failed", started_at: started, ended_at: at, error: JSON.stringify(body.error) });
        break;
      case "command.cancelled":
        await move(tx, row, {
          state: "cancelled",
          started_at: started,
          ended_at: at,
          result: JSON.stringify({ stopped: body.stopped }),
        });
        break;
    }
  }
  const detail =
    body.type === "command.failed"
      ? body.error
      : body.type === "command.cancelled"
        ? { stopped: body.stopped }
        : body.type === "command.succeeded" && !applies
          ? { result: body.result }
          : undefined;
  await addEvent(tx, workspace, report.command, {
    at: now,
    type: body.type.slice("command.".length),
    replica,
    applied: applies,
    detail,
  });
  if (ended) touch(tx, row);
  return true;
}

/** What a replica says of work that another holds by now: kept, and nothing follows from it. */
async function keepOfFormer(tx: Tx, row: BareCommand, replica: string, report: Report, now: number): Promise<boolean> {
  const body = readReport(report);
  if (body === null) return false;
  if (body.type === "command.released") await releaseTakeovers(tx, row, replica, now);
  await addEvent(tx, row.workspace_id, row.command_id, {
    at: now,
    type: body.type === "step" ? "step" : body.type.slice("command.".length),
    replica,
    applied: body.type === "command.released",
    detail:
      body.type === "step"
        ? { step: body.step, attempt: body.attempt, state: body.state, exitCode: body.exitCode }
        : body.type === "command.failed"
          ? body.error
          : undefined,
  });
  touch(tx, row);
  return true;
}

const isRelease = (report: Report): boolean => readReport(report)?.type === "command.released";

/** Null when it is not one that this program understands. */
function readReport(report: Report): ReportBody | null {
  try {
    return reportBodySchema.parse(readJsonBody(report.body));
  } catch {
    return null;
  }
}

/** A duration of the agent's clock, laid onto ours: from when it said so, or from now when its clock is plainly wrong. */
function retryOf(body: Extract<ReportBody, { type: "step" }>, agentAt: number, at: number, now: number): number | null {
  if (body.retryAt == null) return null;
  return (at === agentAt ? at : now) + Math.max(0, body.retryAt - agentAt);
}

async function applyStep(
  tx: Tx,
  row: BareCommand,
  replica: string,
  body: Extract<ReportBody, { type: "step" }>,
  at: number,
  retryAt: number | null,
): Promise<boolean> {
  if (row.run_id !== body.run) return false;
  if (row.state === "lost") {
    await addEvent(tx, row.workspace_id, row.command_id, {
      at,
      type: "step",
      replica,
      applied: false,
      detail: { step: body.step, attempt: body.attempt, state: body.state, exitCode: body.exitCode },
    });
    touch(tx, row);
    return true;
  }
  const run = await tx.db
    .selectFrom("runs")
    .select("command_id")
    .where("workspace_id", "=", row.workspace_id)
    .where("run_id", "=", body.run)
    .executeTakeFirst();
  if (run?.command_id !== row.command_id) return false;
  const before = await tx.db
    .selectFrom("attempts")
    .selectAll()
    .where("workspace_id", "=", row.workspace_id)
    .where("run_id", "=", body.run)
    .where("step", "=", body.step)
    .where("attempt", "=", body.attempt)
    .executeTakeFirst();
  if (before !== undefined && STEP_ENDS.has(before.state)) return true;
  // Whoever takes a run over begins it over: what has begun does not go back.
  if (before !== undefined && body.state === "pending") return true;
  const ended = STEP_ENDS.has(body.state);
  const begun = body.state !== "pending" && body.state !== "skipped";
  const values = {
    state: body.state,
    started_at: before?.started_at ?? (begun ? at : null),
    ended_at: ended ? at : null,
    exit_code: body.exitCode,
    error: toJson(body.error),
    outputs: JSON.stringify(body.outputs),
    log_seq: Math.max(before?.log_seq ?? 0, body.logSeq),
    adopted: body.adopted || before?.adopted === 1 ? 1 : 0,
    retry_at: retryAt,
  };
  await tx.db
    .insertInto("attempts")
    .values({ workspace_id: row.workspace_id, run_id: body.run, step: body.step, attempt: body.attempt, ...values })
    .onConflict((conflict) => conflict.columns(["workspace_id", "run_id", "step", "attempt"]).doUpdateSet(values))
    .execute();
  tx.touch(row.workspace_id, "run", body.run);
  return true;
}

// -- runs
const toRun = (row: Tables["runs"]): RunRow => ({
  workspace: ws(row.workspace_id),
  id: row.run_id as RunId,
  command: row.command_id as CommandId,
  pool: row.pool_id as PoolId,
  pipeline: row.pipeline,
  spec: JSON.parse(row.spec) as Pipeline,
  params: JSON.parse(row.params) as Record<string, ParamValue>,
  rerunOf: row.rerun_of as RunId | null,
  createdAt: row.created_at,
});

async function whole(
  tx: Tx,
  scope: Scope,
  row: Tables["runs"],
): Promise<{ run: RunRow; command: CommandRow; attempts: AttemptRow[] }> {
  const attempts = await tx.db
    .selectFrom("attempts")
    .selectAll()
    .where("workspace_id", "=", scope.workspace)
    .where("run_id", "=", row.run_id)
    .execute();
  const order = new Map((JSON.parse(row.spec) as Pipeline).steps.map((step, index) => [step.name, index]));
  const place = (step: string) => order.get(step) ?? order.size;
  attempts.sort(
    (a, b) =>
      place(a.step) - place(b.step) || (a.step < b.step ? -1 : a.step > b.step ? 1 : 0) || a.attempt - b.attempt,
  );
  return {
    run: toRun(row),
    command: (await command(tx, scope, row.command_id as CommandId))!,
    attempts: attempts.map((a) => ({
      step: a.step,
      attempt: a.attempt,
      state: a.state as StepState,
      startedAt: a.started_at,
      endedAt: a.ended_at,
      exitCode: a.exit_code,
      error: parseJson<ErrorBody>(a.error),
      outputs: JSON.parse(a.outputs) as ProducedArtifact[],
      logSeq: a.log_seq,
      adopted: a.adopted === 1,
      retryAt: a.retry_at,
    })),
  };
}

export async function run(
  tx: Tx,
  scope: Scope,
  id: RunId,
): Promise<{ run: RunRow; command: CommandRow; attempts: AttemptRow[] } | null> {
  const row = await tx.db
    .selectFrom("runs")
    .selectAll()
    .where("workspace_id", "=", scope.workspace)
    .where("run_id", "=", id)
    .executeTakeFirst();
  return row === undefined ? null : whole(tx, scope, row);
}

export async function runs(
  tx: Tx,
  scope: Scope,
  query: PageQuery & { state?: CommandState; pipeline?: string },
): Promise<Page<{ run: RunRow; command: CommandRow; attempts: AttemptRow[] }>> {
  let select = tx.db
    .selectFrom("runs as r")
    .innerJoin("commands as c", (join) =>
      join.onRef("c.workspace_id", "=", "r.workspace_id").onRef("c.command_id", "=", "r.command_id"),
    )
    .selectAll("r")
    .where("r.workspace_id", "=", scope.workspace)
    .where(afterCursor("r.created_at", "r.run_id", query.cursor));
  if (query.state !== undefined) select = select.where("c.state", "=", query.state);
  if (query.pipeline !== undefined) select = select.where("r.pipeline", "=", query.pipeline);
  const rows = await select
    .orderBy("r.created_at", "desc")
    .orderBy("r.run_id", "desc")
    .limit(query.limit + 1)
    .execute();
  const page = pageOf(
    rows,
    query,
    (row) => [row.created_at, row.run_id],
    (row) => row,
  );
  const items: { run: RunRow; command: CommandRow; attempts: AttemptRow[] }[] = [];
  for (const row of page.items) items.push(await whole(tx, scope, row));
  return { items, nextCursor: page.nextCursor };
}
