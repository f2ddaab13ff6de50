// One command told in plain words: where it stands, why, what to do, and what happened to it so far. Pure: made from a
// view and its history; what an agent said is repeated, never interpreted.
import type { CommandRow, HistoryRow, ReplicaRow } from "../store/store.ts";
import { at, duration, type Waiting } from "./waiting.ts";

export interface Explanation {
  /** Where it stands, in one sentence or two. */
  text: string;
  /** What to do; null: nothing is to be done. */
  fix: string | null;
  /** The silent agent that has it, or may have it; null: none, or it can be asked. */
  unknown: { agent: string; name: string; since: number | null; settles: string; canBeLost: boolean } | null;
  /** Oldest first. `applied` false = said after the end, kept beside it. */
  history: { at: number; type: string; text: string; agent: { id: string; name: string } | null; applied: boolean }[];
}

export interface Silence {
  replica: ReplicaRow | null;
  id: string;
  /** It is revoked or removed: it will not come back. */
  gone: boolean;
}

export function explain(
  row: CommandRow,
  waiting: Waiting | null,
  silence: Silence | null,
  /** What its agent has under way and may have under way; null = it does not say. */
  agent: { running: boolean; busy: number; slots: number } | null,
  history: HistoryRow[],
  now: number,
): Explanation {
  const lines = linesOf(history);
  const end = history.findLastIndex((event) => event.applied && event.type === row.state);
  const late = history.slice(end + 1).filter((event) => !event.applied);
  const beside =
    late.length === 0
      ? ""
      : ` After that ${late.at(-1)!.agent?.name ?? "its agent"} said: ${late.at(-1)!.type}; that is kept beside it and changes nothing.`;
  if (silence !== null) {
    const name = silence.replica?.name ?? silence.id;
    const since = silence.replica?.lastSeenAt ?? null;
    const has = row.state === "queued" ? "may have it" : "has it";
    const seen = since === null ? "was never seen" : `was last seen at ${at(since)}, ${duration(now - since)} ago`;
    const lost = `sallyport command lost ${row.id} --reason TEXT`;
    const settles = silence.gone
      ? `Its agent was ${silence.replica?.deletedAt == null && silence.replica !== null ? "revoked" : "removed"} and cannot report any more: only an operator's word ends it (${lost}).`
      : `The journal of ${name} settles it when that agent is connected again. If it never will be, an operator's word ends it (${lost}).`;
    return {
      text: `What became of it is not known: ${name}, which ${has}, ${silence.gone ? "was revoked or removed, and " : ""}${seen}. It may be running, and may have ended.`,
      fix: silence.gone ? `Declare it lost: ${lost}` : `Start agent ${name} again.`,
      unknown: { agent: silence.id, name, since, settles, canBeLost: true },
      history: lines,
    };
  }
  const on = row.replicaName ?? row.replica ?? "an agent";
  const told = (text: string, fix: string | null = null): Explanation => ({ text, fix, unknown: null, history: lines });
  const why = row.error === null ? "" : `: ${row.error.message}`;
  const fix = row.error?.fix ?? null;
  switch (row.state) {
    case "queued":
      return told(waiting === null ? "It waits." : waiting.text, waiting?.fix ?? null);
    case "accepted":
      return told(
        agent !== null && !agent.running && agent.busy >= agent.slots
          ? `${on} has it and has not begun: its ${agent.slots} ${agent.slots === 1 ? "slot is" : "slots are"} taken; it begins when one is free.`
          : `${on} has it and is about to begin.`,
      );
    case "running":
      return told(
        `It runs on ${on}${row.startedAt === null ? "" : `, since ${at(row.startedAt)} (${duration(now - row.startedAt)})`}.${takenOver(history)}`,
      );
    case "succeeded":
      return told(
        `It succeeded on ${on}${row.endedAt === null ? "" : ` at ${at(row.endedAt)}`}.${takenOver(history)}${beside}`,
      );
    case "failed":
      return told(`It failed on ${on}${why}${beside}`, fix);
    case "cancelled":
      return told(`It was cancelled${why}${beside}`, fix);
    case "expired":
      return told(`It expired at ${at(row.expires)}${why}${beside}`, fix);
    case "superseded":
      return told(`Something newer took its place${why}${beside}`, fix);
    case "refused":
      return told(`${on} refused it${why}${beside}`, fix);
    case "lost":
      return told(`${row.error?.message ?? "It was declared lost."}${beside}`, fix);
  }
}

const word = (detail: HistoryRow["detail"], key: string): string | null => {
  const value = detail?.[key];
  return typeof value === "string" && value !== "" ? value : null;
};

/** From whom it came to the one that has it, and when. */
function takenOver(history: HistoryRow[]): string {
  const last = history.findLast((event) => event.type === "taken-over");
  return last === undefined
    ? ""
    : ` It was taken over from ${word(last.detail, "fromName") ?? "another agent"} at ${at(last.at)}.`;
}

/** One line each; offers of a row that came to the same are one line. */
function linesOf(history: HistoryRow[]): Explanation["history"] {
  const lines: Explanation["history"] = [];
  let repeated: { key: string; times: number; text: string } | null = null;
  /** Agents that it was taken over from, and that do not have it again. */
  const former = new Set<string>();
  for (const event of history) {
    const { type, agent, applied, at: when } = event;
    if (type === "taken-over") {
      former.add(word(event.detail, "from") ?? "");
      former.delete(agent?.id ?? "");
    }
    const text = textOf(event, agent !== null && former.has(agent.id));
    const key = type === "offered" ? text : "";
    if (repeated !== null && key !== "" && key === repeated.key) {
      repeated.times++;
      const last = lines.at(-1)!;
      last.at = when;
      last.text = `${text} (the last of ${repeated.times} times)`;
      continue;
    }
    repeated = key === "" ? null : { key, times: 1, text };
    lines.push({ at: when, type, text, agent, applied });
  }
  return lines;
}

function textOf({ type, agent, applied, detail }: HistoryRow, former: boolean): string {
  const who = agent?.name ?? "an agent";
  const because = (word(detail, "message") ?? word(detail, "reason")) || null;
  const tail = because === null ? "" : `: ${because}`;
  const beside = applied ? "" : ` (${former ? "after it was taken over" : "after its end"}: kept, changes nothing)`;
  switch (type) {
    case "queued":
      return `asked for by ${word(detail, "name") ?? "someone"}, by ${word(detail, "via") ?? "the API"}`;
    case "offered": {
      const refusal = word(detail, "refusal");
      return refusal === null ? `offered to ${who}` : `offered to ${who}, which did not take it (${refusal})`;
    }
    case "taken-over": {
      const from = word(detail, "fromName") ?? "another agent";
      switch (word(detail, "reason")) {
        case "RETURNED":
          return `${who} is back before ${from} took it, and has it again`;
        case "HELD_ELSEWHERE":
          return `${from} did not take it: it goes to ${who}`;
        default:
          return `${from} was silent: ${who} takes over, on the engine that both ask`;
      }
    }
    case "released":
      return `${who} knows that it was taken over, and has let go of it`;
    case "accepted":
      return `${who} has it in its journal${beside}`;
    case "running":
      return `${who} began it${beside}`;
    case "succeeded":
      return `${who} finished it${beside}`;
    case "failed":
      return `it failed on ${who}${tail}${beside}`;
    case "refused":
      return `${who} refused it${tail}${beside}`;
    case "cancelled":
      return agent === null ? `cancelled by ${word(detail, "name") ?? "someone"}` : `${who} stopped it${beside}`;
    case "expired":
      return `expired${tail}${beside}`;
    case "superseded":
      return "something newer took its place";
    case "lost":
      return `${word(detail, "name") ?? "someone"} declared it lost${tail}`;
    case "step":
      return `${who} said that step ${word(detail, "step") ?? "?"} is ${word(detail, "state") ?? "?"}${beside}`;
    default:
      return `${type}${agent === null ? "" : ` (${who})`}${tail}${beside}`;
  }
}
