// The process host as a process: `host-main <state>/host`. Started by the engine on demand, in a session of its own; it
// outlives the agent and ends itself when nobody needs it. Its few words go to host.log by its stderr.
import type { Clock } from "@sallyport/protocol";
import { startHostServer } from "./host-server.ts";

/** The same as the protocol's; written again here, since its door would load schemas that this process never uses. */
const clock: Clock = {
  now: () => Date.now(),
  monotonic: () => performance.now(),
  after(delayMs, fn, options) {
    const timer = setTimeout(fn, delayMs);
    if (options?.keepAlive !== true) timer.unref();
    return { cancel: () => clearTimeout(timer) };
  },
};

const folder = process.argv[2];
if (folder === undefined) throw new Error("usage: host-main <state>/host");
process.umask(0o077);
process.chdir(folder);
const server = startHostServer(folder, clock);
// Another host serves this folder already: nothing to do. Else what must end it is a kill, or itself.
if (server !== null) {
  process.on("SIGHUP", () => undefined);
  process.on("SIGINT", () => undefined);
  await server.ended;
}
process.exit(0);
