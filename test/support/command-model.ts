// What the store says of commands, told once more as a small pure machine: for judging histories of the real one. Written
// from the words of cloud/store/store.ts, not from its queries. No clock and no chance: every time comes with the call.
import type { CommandState } from "../../cloud/store/index.ts";
import type { Model } from "./history.ts";

const KEY_MS = 24 * 3600_000;
/** An unanswered offer that is older may be taken for settled by a later "not taken". */
const JOURNALING_MS = 60_000;
export const RUN = "pipeline.run";
export const STOP = "run.cancel";

export type ReportOf = { sequence: number; command: string; mark: string } & (
  | { type: "running" | "succeeded" | "failed" | "cancelled" | "released" | "nonsense" }
  | { type: "step"; run: string; step: string; attempt: number; ends: boolean; logSeq: number }
);
export interface Wish {
  id: string;
  kind: string;
  resource: string;
  /** Of a run and of what stops it. */
  run: string | null;
  pipeline: string | null;
  concurrency: number | null;
  priority: number;
  notBefore: number;
  expires: number;
  /** What it asks for: an id stands for one. */
  asks: string;
}
export type Op =
  | { name: "create"; wish: Wish; key: { key: string; digest: string; answer: string } | null; now: number }
  | { name: "dispatch"; id: string; replica: string; floor: number; now: number }
  | { name: "accepted"; id: string; replica: string; now: number }
  | { name: "refused"; id: string; replica: string; code: string; now: number }
  | { name: "notTaken"; id: string; replica: string; attempt: number; now: number }
  | { name: "cancel"; id: string; now: number }
  | { name: "lost"; id: string; replica: string | null | undefined; now: number }
  | { name: "expire"; now: number }
  | { name: "takeOver"; id: string; from: string; to: string; holds: boolean; now: number }
  | { name: "settled"; ids: string[]; now: number }
  | { name: "reports"; replica: string; journal: string; reports: ReportOf[]; lowestHeld: number; now: number }
  | { name: "limit"; maxRuns: number | null }
  | { name: "read"; id: string }
  | { name: "steps"; run: string }
  | { name: "offerable"; now: number }
  | { name: "moved" }
  | { name: "handoffs"; replica: string };
/** Plain data; a refusal is { code }. */
export type Answer = unknown;

interface Offer {
  attempt: number;
  replica: string;
  at: number;
  refused: boolean;
}
/** The new one has this long to be offered a queued command before it may be moved again. */
const OFFERED_WITHIN_MS = 30_000;
interface Move {
  from: string;
  to: string;
  at: number;
  accepted: boolean;
  released: boolean;
  settled: boolean;
}
interface Command extends Wish {
  /** Order of commit. */
  n: number;
  state: CommandState;
  replica: string | null;
  offered: number;
  offers: readonly Offer[];
  moves: readonly Move[];
  /** What it ended with, told by the report that ended it. */
  mark: string | null;
  steps: Readonly<Record<string, { ends: boolean; logSeq: number; mark: string }>>;
}
export interface State {
  commands: Readonly<Record<string, Command>>;
  keys: Readonly<Record<string, { digest: string; id: string; answer: string; at: number }>>;
  /** Committed through, by replica and journal. */
  journals: Readonly<Record<string, number>>;
  sequences: Readonly<Record<string, number>>;
  maxRuns: number | null;
}
export const EMPTY: State = { commands: {}, keys: {}, journals: {}, sequences: {}, maxRuns: null };

const OPEN: ReadonlySet<string> = new Set(["queued", "accepted", "running"]);
const open = (one: Command): boolean => OPEN.has(one.state);
const all = (state: State): Command[] => Object.values(state.commands);
const queued = (state: State): Command[] => all(state).filter((one) => one.state === "queued");
/** Who may have journaled it without having said so. */
const maybe = (one: Command): string | null => one.offers.findLast((offer) => !offer.refused)?.replica ?? null;
const holdsSlot = (one: Command): boolean =>
  one.kind === RUN &&
  (one.state === "accepted" || one.state === "running" || (one.state === "queued" && maybe(one) !== null));
const isFirst = (state: State, one: Command): boolean =>
  queued(state).every((other) => other.resource !== one.resource || other.n >= one.n);

function mayBegin(state: State, one: Command): boolean {
  if (one.kind !== RUN || maybe(one) !== null) return true;
  const others = all(state).filter((other) => other.id !== one.id && holdsSlot(other));
  return (
    (state.maxRuns === null || others.length < state.maxRuns) &&
    (one.concurrency === null || others.filter((other) => other.pipeline === one.pipeline).length < one.concurrency)
  );
}

const put = (state: State, one: Command): State => ({ ...state, commands: { ...state.commands, [one.id]: one } });

/** It has it by now, if a takeover waited for that. */
const confirmed = (one: Command, replica: string): Command => {
  const last = one.moves.at(-1);
  return last === undefined || last.to !== replica || last.accepted
    ? one
    : { ...one, moves: one.moves.with(-1, { ...last, accepted: true }) };
};
const accepted = (one: Command, replica: string): Command => {
  if (one.state === "queued") return confirmed({ ...one, state: "accepted", replica }, replica);
  return one.replica === replica ? confirmed(one, replica) : one;
};
const letGo = (one: Command, replica: string): Command => {
  const moves = one.moves.map((move) => (move.from === replica ? { ...move, released: true } : move));
  const last = moves.at(-1);
  if (last?.to === replica && open(one)) moves[moves.length - 1] = { ...last, accepted: false };
  return { ...one, moves };
};
const movedTo = (one: Command, from: string, to: string, holds: boolean, at: number): Command => ({
  ...one,
  replica: one.state === "queued" ? one.replica : to,
  moves: [...one.moves, { from, to, at, accepted: false, released: !holds, settled: false }],
});
const holderOf = (one: Command): string | null => one.replica ?? one.moves.at(-1)?.to ?? null;

/** Those to let go of, and those to keep closed against a former holder. */
function handoffs(commands: Command[], replica: string): { released: string[]; fenced: string[] } {
  const released: string[] = [];
  const fenced: string[] = [];
  for (const one of commands) {
    if (one.moves.length === 0) continue;
    if (holderOf(one) === replica) {
      if (one.moves.some((move) => !move.released && move.from !== replica)) fenced.push(one.id);
    } else if (!open(one) || one.moves.at(-1)!.accepted) {
      if (one.moves.some((move) => move.from === replica && !move.released)) released.push(one.id);
    }
  }
  return { released: released.sort(), fenced: fenced.sort() };
}

function reported(before: Command, replica: string, report: ReportOf): Command {
  let one = before;
  const taken = one.moves.length > 0;
  if (taken && holderOf(one) !== replica && one.moves.some((move) => move.from === replica)) {
    const nobodyTook = !one.moves.at(-1)!.accepted && one.replica !== null && open(one);
    // Taken from it, and nobody has it since: what it says makes it its own again.
    if (!nobodyTook || report.type === "released") return report.type === "released" ? letGo(one, replica) : one;
    one = movedTo(one, one.replica!, replica, true, 0);
  }
  if (one.replica !== replica) {
    if (one.replica !== null || !one.offers.some((offer) => offer.replica === replica)) return one;
    one = accepted(one, replica);
  }
  if (report.type === "nonsense") return one;
  if (report.type === "released") return taken ? letGo(one, replica) : one;
  if (taken) one = confirmed(one, replica);
  if (report.type === "step") {
    const key = `${report.step}/${report.attempt}`;
    const had = one.steps[key];
    if (one.run !== report.run || one.kind !== RUN || one.state === "lost" || had?.ends === true) return one;
    const { ends, mark } = report;
    return {
      ...one,
      steps: { ...one.steps, [key]: { ends, mark, logSeq: Math.max(had?.logSeq ?? 0, report.logSeq) } },
    };
  }
  if (!open(one)) return one;
  if (report.type === "running") return { ...one, state: "running" };
  return { ...one, state: report.type, mark: report.mark };
}

/** The state after it and what it answers. `offerable` has several right answers: see `mayOffer`. */
export function perform(state: State, op: Op): { state: State; answer: Answer } {
  const same = (answer: Answer) => ({ state, answer });
  const id = "id" in op ? op.id : "";
  const one = state.commands[id];
  switch (op.name) {
    case "create": {
      const { wish, key, now } = op;
      const known = key === null ? undefined : state.keys[key.key];
      if (known !== undefined && known.at > now - KEY_MS) {
        if (known.digest !== key!.digest) return same({ code: "IDEMPOTENCY_MISMATCH" });
        return same({ id: known.id, state: state.commands[known.id]!.state, replayed: known.answer });
      }
      const existing = state.commands[wish.id];
      if (existing !== undefined && existing.asks !== wish.asks) return same({ code: "CONFLICT" });
      const n = all(state).length + 1;
      const made: Command = existing ?? {
        ...wish,
        n,
        state: "queued",
        replica: null,
        offered: 0,
        offers: [],
        moves: [],
        mark: null,
        steps: {},
      };
      const next = put(state, made);
      if (key !== null) {
        const { digest, answer } = key;
        return {
          state: { ...next, keys: { ...state.keys, [key.key]: { digest, id: wish.id, answer, at: now } } },
          answer: { id: wish.id, state: made.state, replayed: null },
        };
      }
      return { state: next, answer: { id: wish.id, state: made.state, replayed: null } };
    }
    case "dispatch": {
      if (one === undefined) return same(null);
      const last = one.moves.at(-1);
      const goes =
        one.state === "queued"
          ? isFirst(state, one) && mayBegin(state, one)
          : open(one) && one.replica === op.replica && last?.to === op.replica && !last.accepted;
      if (!goes) return same(null);
      const sequence = Math.max(state.sequences[op.replica] ?? 0, op.floor) + 1;
      const attempt = one.offered + 1;
      const offers = [...one.offers, { attempt, replica: op.replica, at: op.now, refused: false }];
      return {
        state: {
          ...put(state, { ...one, offered: attempt, offers }),
          sequences: { ...state.sequences, [op.replica]: sequence },
        },
        answer: { sequence, attempt },
      };
    }
    case "accepted": {
      if (one === undefined) return same(null);
      const next = accepted(one, op.replica);
      return { state: put(state, next), answer: next.state };
    }
    case "refused": {
      if (one?.state !== "queued") return same(null);
      const end = op.code === "COMMAND_EXPIRED" ? "expired" : "refused";
      return { state: put(state, { ...one, state: end, replica: op.replica }), answer: null };
    }
    case "notTaken": {
      if (one === undefined) return same(null);
      const settles = (offer: Offer): boolean =>
        offer.replica === op.replica &&
        (offer.attempt === op.attempt || (offer.attempt < op.attempt && offer.at <= op.now - JOURNALING_MS));
      const offers = one.offers.map((offer) => (settles(offer) ? { ...offer, refused: true } : offer));
      const next = { ...one, offers };
      return { state: put(state, next), answer: maybe(next) };
    }
    case "cancel":
      if (one?.state !== "queued") return same(false);
      return { state: put(state, { ...one, state: "cancelled" }), answer: true };
    case "lost": {
      if (one === undefined || !open(one)) return same(false);
      const holder = one.state === "queued" ? maybe(one) : one.replica;
      if (holder === null || (op.replica !== undefined && op.replica !== holder)) return same(false);
      let next = put(state, { ...one, state: "lost", replica: holder });
      if (one.kind === RUN)
        for (const stop of queued(next))
          if (stop.kind === STOP && stop.run === one.run) next = put(next, { ...stop, state: "superseded" });
      return { state: next, answer: true };
    }
    case "expire": {
      const due = queued(state).filter((each) => each.expires <= op.now && maybe(each) === null);
      return {
        state: due.reduce((next, each) => put(next, { ...each, state: "expired" }), state),
        answer: due.length,
      };
    }
    case "takeOver": {
      if (one === undefined || !open(one)) return same(false);
      if (one.state !== "queued") {
        if (one.replica !== op.from) return same(false);
      } else {
        if (maybe(one) !== op.from) return same(false);
        const last = one.moves.at(-1);
        if (last?.from === op.from && last.to === op.to) return same(true);
        const offered = one.offers.some((offer) => offer.replica === last?.to && offer.at >= last.at);
        if (last?.from === op.from && last.at > op.now - OFFERED_WITHIN_MS && !offered) return same(false);
      }
      return { state: put(state, movedTo(one, op.from, op.to, op.holds, op.now)), answer: true };
    }
    case "settled": {
      const next = op.ids.reduce((after, each) => {
        const of = after.commands[each];
        return of === undefined ? after : put(after, { ...of, moves: of.moves.map((m) => ({ ...m, settled: true })) });
      }, state);
      return { state: next, answer: null };
    }
    case "reports": {
      const key = `${op.replica} ${op.journal}`;
      let through = Math.max(state.journals[key] ?? 0, op.lowestHeld - 1);
      const about = new Set(op.reports.map((report) => report.command));
      const moved = [...about].filter((each) => (state.commands[each]?.moves.length ?? 0) > 0);
      let next = state;
      for (const report of op.reports.toSorted((a, b) => a.sequence - b.sequence)) {
        if (report.sequence <= through) continue;
        if (report.sequence > through + 1) break;
        const of = next.commands[report.command];
        if (of !== undefined) next = put(next, reported(of, op.replica, report));
        through = report.sequence;
      }
      next = { ...next, journals: { ...next.journals, [key]: through } };
      const told = handoffs(
        moved.map((each) => next.commands[each]!),
        op.replica,
      );
      return { state: next, answer: { through, ...told } };
    }
    case "limit":
      return { state: { ...state, maxRuns: op.maxRuns }, answer: null };
    case "read":
      return same(
        one === undefined
          ? null
          : { state: one.state, replica: one.replica, offers: one.offered, offeredTo: maybe(one), mark: one.mark },
      );
    case "steps": {
      const of = all(state).find((each) => each.kind === RUN && each.run === op.run);
      return same(
        of === undefined
          ? null
          : {
              state: of.state,
              steps: Object.entries(of.steps)
                .map(([step, { mark, logSeq }]) => `${step} ${mark} ${logSeq}`)
                .sort(),
            },
      );
    }
    case "offerable": {
      const due = queued(state).filter((each) => mayOffer(state, each, op.now));
      return same(inOrder(due).map((each) => each.id));
    }
    case "moved":
      return same(
        all(state)
          .filter((each) => {
            const last = each.moves.at(-1);
            return (
              (each.state === "accepted" || each.state === "running") &&
              last !== undefined &&
              last.to === each.replica &&
              !last.accepted
            );
          })
          .map((each) => each.id)
          .sort(),
      );
    case "handoffs": {
      const { released } = handoffs(all(state), op.replica);
      const ended = all(state).filter(
        (each) => !open(each) && each.replica === op.replica && each.moves.some((move) => !move.settled),
      );
      const { fenced } = handoffs(ended, op.replica);
      return same({
        released,
        settled: ended
          .map((each) => each.id)
          .filter((each) => !fenced.includes(each))
          .sort(),
      });
    }
  }
}

const inOrder = (commands: Command[]): Command[] => commands.toSorted((a, b) => b.priority - a.priority || a.n - b.n);

/** Each by itself; together they must leave room for each other. */
const mayOffer = (state: State, one: Command, now: number): boolean =>
  isFirst(state, one) && one.notBefore <= now && (one.expires > now || maybe(one) !== null) && mayBegin(state, one);

/** What may be offered is told in order, none that may not; those without a limit are all told, and of the others some. */
function rightOffers(state: State, now: number, told: readonly string[]): boolean {
  const may = perform(state, { name: "offerable", now }).answer as string[];
  if (may.filter((id) => told.includes(id)).join() !== told.join()) return false;
  const fresh = (id: string): boolean => state.commands[id]!.kind === RUN && maybe(state.commands[id]!) === null;
  const limited = (id: string): boolean =>
    fresh(id) && (state.maxRuns !== null || state.commands[id]!.concurrency !== null);
  if (may.some((id) => !limited(id) && !told.includes(id))) return false;
  const held = all(state).filter(holdsSlot).length;
  if (state.maxRuns !== null && told.filter(fresh).length > Math.max(0, state.maxRuns - held)) return false;
  // Runs of one pipeline begin in their order, also where they do not agree about its limit.
  const due = queued(state).filter((one) => isFirst(state, one) && one.notBefore <= now && one.expires > now);
  const order = inOrder(due).map((one) => one.id);
  const keptBack = (id: string): boolean =>
    order
      .slice(0, Math.max(0, order.indexOf(id)))
      .some((other) => state.commands[other]!.pipeline === state.commands[id]!.pipeline && !may.includes(other));
  // Nobody starves: where one may begin, one is told.
  return !may.some((id) => fresh(id) && !keptBack(id)) || told.some(fresh);
}

export const commandModel: Model<State, Op, Answer> = {
  initial: EMPTY,
  step(state, op, answer) {
    if (op.name === "offerable")
      return answer === undefined || rightOffers(state, op.now, answer as string[]) ? state : null;
    const done = perform(state, op);
    return answer === undefined || isSame(done.answer, answer) ? done.state : null;
  },
  key: (state) => JSON.stringify(state),
};

function isSame(a: unknown, b: unknown): boolean {
  if (a === b) return true;
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return false;
  const keys = Object.keys(a);
  return (
    keys.length === Object.keys(b).length &&
    keys.every((key) => isSame((a as Record<string, unknown>)[key], (b as Record<string, unknown>)[key]))
  );
}
