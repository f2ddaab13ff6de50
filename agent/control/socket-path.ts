// Where the control socket lies, and how to name it when its path is longer than a socket's address can be.
import { closeSync, openSync } from "node:fs";
import { join } from "node:path";

export const SOCKET = "agent.sock";
/** Room in a socket's address, less a little. */
const MAX_BYTES = 100;

/** `release` when the socket is bound or connected. */
export function socketAddress(stateDir: string): { path: string; release(): void } {
  const path = join(stateDir, SOCKET);
  if (process.platform !== "linux" || Buffer.byteLength(path) <= MAX_BYTES) return { path, release: () => undefined };
  const folder = openSync(stateDir, "r");
  return { path: `/proc/self/fd/${folder}/${SOCKET}`, release: () => closeSync(folder) };
}
