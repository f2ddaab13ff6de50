// Whether the client of a request is still there. For routes that hold something open at an agent while they answer.
import { ConnectorError } from "@sallyport/protocol";
import type { FastifyReply } from "fastify";

/** Aborts when the client is gone before the answer was complete; aborted at once when it went before this was asked. */
export function clientGone(reply: FastifyReply): AbortSignal {
  const gone = new AbortController();
  const check = (): void => {
    if (!reply.raw.writableFinished)
      gone.abort(new ConnectorError("CANCELLED", "The client went away before the answer was complete."));
  };
  // Its only event is not repeated for those who come late.
  if (reply.raw.destroyed) check();
  else reply.raw.once("close", check);
  return gone.signal;
}
