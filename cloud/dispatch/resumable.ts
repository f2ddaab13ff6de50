// What a download, an upload and a followed log go on after.
import type { ErrorCode } from "@sallyport/protocol";

/** How long a broken one waits for its agent or pool to come back, or whoever reads or sends is told. */
export const RESUME_MS = 60_000;
/** The link's failures, and an agent on its way out or back: the next session may go on. */
export const RESUMABLE: ReadonlySet<ErrorCode> = new Set([
  "LINK_LOST",
  "GOING_AWAY",
  "SESSION_SUPERSEDED",
  "AGENT_OFFLINE",
  "AGENT_DRAINING",
  "STREAM_REFUSED",
]);
/** Before the first answer: only a link that broke while it was on its way. An offline agent is said at once. */
export const RETRIED: ReadonlySet<ErrorCode> = new Set(["LINK_LOST", "GOING_AWAY", "SESSION_SUPERSEDED"]);
