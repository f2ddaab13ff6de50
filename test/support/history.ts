// Whether a history of concurrent calls can be explained by doing them one after the other (linearizability): the search
// of Wing and Gong, with what was tried remembered. Knows nothing of what the calls mean: the model says that.

/** One call as its caller saw it. The logical clock ticks at each call and at each answer. */
export interface Call<Op, Answer> {
  op: Op;
  called: number;
  /** `Infinity`: no answer ever came, so it was done at any time after the call, or never. */
  returned: number;
  /** Absent when no answer came. */
  answer?: Answer;
}

export interface Model<State, Op, Answer> {
  initial: State;
  /** The state after `op`; null when it cannot be answered so there. `answer` undefined: not known, whatever it was. */
  step(state: State, op: Op, answer: Answer | undefined): State | null;
  /** Equal for equal states. */
  key(state: State): string;
}

export type Explained<State, Op, Answer> =
  | { ok: true; order: Call<Op, Answer>[]; end: State; tried: number }
  /** `explained`: the longest order that was found; `stuck`: calls of which none can come next. */
  | { ok: false; explained: Call<Op, Answer>[]; stuck: Call<Op, Answer>[]; tried: number };

/** Too many calls that were never answered: each may have been done, at any time since, or not. */
export class Undecided extends Error {
  constructor(calls: number, steps: number) {
    super(`The history of ${calls} calls could not be judged in ${steps} steps.`);
  }
}

/** Throws when it had to try more than `most` steps: then nothing is known. */
export function explain<State, Op, Answer>(
  history: readonly Call<Op, Answer>[],
  model: Model<State, Op, Answer>,
  most = 500_000,
): Explained<State, Op, Answer> {
  const calls = history.toSorted((a, b) => a.called - b.called);
  const dead = new Set<string>();
  const order: number[] = [];
  const done = new Uint8Array(calls.length);
  let best: { order: number[]; stuck: number[] } = { order: [], stuck: [] };
  let tried = 0;

  /** Those that may come next: called before any other that is left was answered. All before `start` are done. */
  function candidates(start: number): number[] {
    let firstAnswer = Infinity;
    const found: number[] = [];
    for (let at = start; at < calls.length && calls[at]!.called < firstAnswer; at++) {
      if (done[at] === 1) continue;
      found.push(at);
      firstAnswer = Math.min(firstAnswer, calls[at]!.returned);
    }
    return found;
  }

  function search(state: State, before: number): State | null {
    let start = before;
    while (start < calls.length && done[start] === 1) start++;
    const next = candidates(start);
    // What was never answered need not have been done.
    if (next.every((at) => calls[at]!.returned === Infinity)) return state;
    const key = `${start}/${done.slice(start).join("")}/${model.key(state)}`;
    if (dead.has(key)) return null;
    for (const at of next) {
      if (++tried > most) throw new Undecided(calls.length, most);
      const after = model.step(state, calls[at]!.op, calls[at]!.answer);
      if (after === null) continue;
      done[at] = 1;
      order.push(at);
      const end = search(after, start);
      if (end !== null) return end;
      order.pop();
      done[at] = 0;
    }
    if (order.length >= best.order.length) best = { order: [...order], stuck: next };
    dead.add(key);
    return null;
  }

  const end = search(model.initial, 0);
  const pick = (at: number): Call<Op, Answer> => calls[at]!;
  return end === null
    ? { ok: false, explained: best.order.map(pick), stuck: best.stuck.map(pick), tried }
    : { ok: true, order: order.map(pick), end, tried };
}
