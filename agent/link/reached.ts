// Waits for a socket to get where it should.
import type { Socket } from "node:net";
import type { LinkFailure } from "./link-failure.ts";

/** Until `event`; an error or an end before it is explained, the signal ends it. The socket is destroyed on failure. */
export function reached(
  socket: Socket,
  event: "connect" | "secureConnect",
  signal: AbortSignal,
  explain: (error: Error) => LinkFailure,
): Promise<void> {
  return new Promise((resolve, reject) => {
    const settle = () => {
      socket.removeListener(event, onReached);
      socket.removeListener("error", onError);
      socket.removeListener("close", onClose);
      signal.removeEventListener("abort", onAbort);
    };
    const fail = (reason: unknown) => {
      settle();
      reject(reason);
      socket.destroy();
    };
    const onReached = () => {
      settle();
      resolve();
    };
    const onError = (error: Error) => fail(explain(error));
    const onClose = () => onError(Object.assign(new Error("closed"), { code: "ECONNRESET" }));
    const onAbort = () => fail(signal.reason);
    // Stays for good: an error that comes later must not be without a listener.
    socket.on("error", () => {});
    socket.once(event, onReached);
    socket.once("error", onError);
    socket.once("close", onClose);
    signal.addEventListener("abort", onAbort, { once: true });
    if (signal.aborted) onAbort();
  });
}
