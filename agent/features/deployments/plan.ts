// What to do next for one deployment, from what is wanted and what is seen. Pure: the same input, the same plan. It is
// asked again after each change, so a plan is one step, never a script.
//
// A seat is a replica's name with whatever is behind it: it is taken when a replica is first started and free again when
// nothing of it is left. Rolling: one seat more than wanted, and never fewer replicas that serve than before.

export const PHASES = ["down", "starting", "ready", "unready", "draining", "stopping"] as const;
/**
 * `down`: nothing runs (never began, crashed, cannot begin). `starting`: on the way. `unready`: was ready, does not
 * answer. `draining`: gets no new requests. `stopping`: on the way out, cannot be called back.
 */
export type Phase = (typeof PHASES)[number];

export interface Seat {
  revision: number;
  number: number;
  phase: Phase;
  /** Gets new requests. */
  routed: boolean;
  /** Of a draining one: nothing is under way any more, or its time is over. */
  drained: boolean;
  /** False: taken over after a restart and not heard of yet. It may serve, so it is left alone. */
  settled: boolean;
  /** Of a down one: not before; on the scale of `now`. Null = at once. */
  retryAt: number | null;
  /** In a row. */
  crashes: number;
}

export interface PlanInput {
  /** How many; 0 also when all of it goes. */
  wanted: number;
  /** Which. */
  revision: number;
  /** The last one that was there in full; null = none was yet. */
  serving: number | null;
  seats: readonly Seat[];
  now: number;
  /** For how many more seats there is room on this machine. */
  room: number;
}

export type ActionKind = "start" | "route" | "unroute" | "drain" | "stop" | "forget";
export interface Action {
  do: ActionKind;
  revision: number;
  number: number;
}

export interface Plan {
  actions: Action[];
  /** When there is something to do though nothing changes; null = not. */
  wakeAt: number | null;
  /** Seats that wait for room. */
  short: { revision: number; number: number }[];
  /** All that is wanted is there, and nothing else. */
  complete: boolean;
}

/** So many crashes in a row, and a seat of an old revision may go to make room for the new one. */
const HOPELESS = 3;

const serves = (seat: Seat): boolean => seat.phase === "ready" && seat.routed;

export function plan(input: PlanInput): Plan {
  const { wanted, revision, serving, now } = input;
  const result: Plan = { actions: [], wakeAt: null, short: [], complete: false };
  const act = (kind: ActionKind, seat: { revision: number; number: number }): void => {
    result.actions.push({ do: kind, revision: seat.revision, number: seat.number });
  };
  const isNew = (seat: Seat): boolean => seat.revision === revision && seat.number < wanted;
  const current = input.seats.filter(isNew);
  const others = input.seats.filter((seat) => !isNew(seat));

  const missing: number[] = [];
  for (let number = 0; number < wanted; number++)
    if (!current.some((seat) => seat.number === number)) missing.push(number);
  const spare = wanted + 1 - input.seats.length;
  const creating = missing.slice(0, Math.max(0, spare));
  const starting = creating.slice(0, Math.max(0, input.room));
  const noRoom = creating.slice(starting.length);

  // Of the others so many stay as the new ones do not make up for yet: those that serve first, low numbers first.
  const need = Math.max(0, wanted - current.filter(serves).length);
  const stays = (seat: Seat): boolean => {
    if (serves(seat) || seat.phase === "draining") return true;
    // What was there in full is also started again while the new one is not there.
    if (seat.revision !== serving || serving === revision) return false;
    return !(noRoom.length > 0 && seat.phase !== "ready" && seat.crashes >= HOPELESS);
  };
  const kept = new Set(
    others
      .filter((seat) => seat.phase !== "stopping" && stays(seat))
      .toSorted((a, b) => rank(a) - rank(b) || a.number - b.number || b.revision - a.revision)
      .slice(0, need),
  );

  let left = input.seats.filter(serves).length;
  const leaving = others
    .filter((seat) => !kept.has(seat))
    .toSorted((a, b) => a.revision - b.revision || b.number - a.number);
  for (const seat of leaving) {
    if (!seat.settled || seat.phase === "stopping") continue;
    if (seat.phase === "down") act("forget", seat);
    else if (serves(seat)) {
      if (left <= wanted) continue;
      left--;
      act("drain", seat);
    } else if (seat.phase !== "draining" || seat.drained) act("stop", seat);
  }

  for (const seat of [...current, ...kept]) {
    if (seat.phase === "draining" || (seat.phase === "ready" && !seat.routed)) act("route", seat);
    else if (seat.phase === "unready" && seat.routed) act("unroute", seat);
    else if (seat.phase === "down") {
      if (seat.retryAt === null || seat.retryAt <= now) act("start", seat);
      else result.wakeAt = Math.min(result.wakeAt ?? Infinity, seat.retryAt);
    }
  }
  for (const number of starting) act("start", { revision, number });
  result.short = noRoom.map((number) => ({ revision, number }));
  result.complete = others.length === 0 && current.length === wanted && current.every(serves);
  return result;
}

function rank(seat: Seat): number {
  if (serves(seat)) return 0;
  if (seat.phase === "ready" || seat.phase === "draining") return 1;
  return seat.phase === "down" ? 3 : 2;
}
