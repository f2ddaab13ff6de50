// Asks an agent to change its key: it offers the next one over the same session, and answers when it has taken it up.
import { ConnectorError, wait, type Clock } from "@sallyport/protocol";
import type { CloudSession } from "./sessions.ts";

const CHANGE_MS = 15_000;

export async function askKeyChange(session: CloudSession, clock: Clock): Promise<void> {
  const stream = session.open({ type: "identity.change" }, { lane: "interactive", end: true });
  const over = new AbortController();
  const late = wait(clock, CHANGE_MS, over.signal).then(() => {
    throw new ConnectorError("TIMED_OUT", `The agent did not change its key within ${CHANGE_MS / 1000} s.`, {
      fix: "Nothing is lost: its old key is taken until the new one was used. Ask again.",
    });
  });
  try {
    await Promise.race([stream.answer, late]);
  } finally {
    late.catch(() => undefined);
    over.abort();
    stream.reset(new ConnectorError("CANCELLED", "Nobody waits for the answer any more."));
  }
}
