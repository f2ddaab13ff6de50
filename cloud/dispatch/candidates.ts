// Which live sessions may be offered a command, and which of them first. Pure: from what they say of themselves.
import type { CommandRow } from "../store/store.ts";
import type { CloudSession } from "../link/sessions.ts";
import { missingLabels } from "./waiting.ts";

/** Beats come every 5 s: one that missed its last may be gone, and what it is offered is its own. */
const SUSPECT_MS = 6_500;

/** Its labels hold all that the command asks for. One that has not said yet what it has is asked only if nothing is. */
export const fits = (command: Pick<CommandRow, "requires">, session: CloudSession): boolean =>
  Object.keys(missingLabels(command.requires, session.status())).length === 0;

/** Lower goes first: those with free slots, the emptiest before the others; those that said no, or nothing, last. */
export function rank(session: CloudSession, kind: string, nowMs: number): number {
  const status = session.status();
  if (nowMs - session.lastSeenMs() > SUSPECT_MS) return 5;
  if (status === null) return 2;
  if (status.paused !== null || status.draining) return 4;
  if (!status.commands.includes(kind)) return 3;
  const running = status.running.length;
  const free = running < status.limits.runs;
  return (free ? 0 : 1) + running / (running + 1);
}
