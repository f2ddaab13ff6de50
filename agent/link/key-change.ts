// The agent's part in changing its key: make the next one and keep it, offer it, take it up when that was answered.
import { ConnectorError, offerKey, toConnectorError, wait, type Clock } from "@sallyport/protocol";
import { channel } from "node:diagnostics_channel";
import type { IdentityStore } from "./identity.ts";
import type { AgentSession } from "./link.ts";

/** How long the control plane has to answer an offer. */
const ANSWER_MS = 10_000;

/** Crash points for tests, and events for whoever observes. */
const boundary = {
  made: channel("sallyport:agent:identity.made"),
  answered: channel("sallyport:agent:identity.answered"),
  changed: channel("sallyport:agent:identity.changed"),
};

/** Resolves when the next key is in use; rejects when it is not, and then the old one stays. May be repeated. */
export async function changeKey(identity: IdentityStore, session: AgentSession, clock: Clock): Promise<void> {
  const held = identity.load();
  if (held === null) throw new ConnectorError("CONFLICT", "The agent has no identity yet.");
  // Kept before it is shown: an offer whose answer was lost is repeated with the same key.
  const next = identity.nextKey();
  boundary.made.publish({});
  const over = new AbortController();
  const stream = session.open(offerKey({ session: session.id, replica: session.replica }, held.key, next), {
    lane: "interactive",
    end: true,
  });
  try {
    await Promise.race([
      stream.answer,
      wait(clock, ANSWER_MS, over.signal).then(() => {
        throw new ConnectorError("TIMED_OUT", "The control plane did not answer the offer of a new key.");
      }),
    ]);
  } catch (caught) {
    const error = toConnectorError(caught);
    stream.reset(error);
    throw error;
  } finally {
    over.abort();
  }
  boundary.answered.publish({});
  identity.takeNextKey();
  boundary.changed.publish({});
}
