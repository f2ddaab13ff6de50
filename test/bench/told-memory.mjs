// Given to a program with --import: on SIGUSR2 it collects its garbage, its workers theirs, and prints what memory it holds.
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { BroadcastChannel, isMainThread } from "node:worker_threads";

const channel = new BroadcastChannel("told-memory");
channel.unref();
let gc;
const collect = () => {
  setFlagsFromString("--expose-gc");
  gc ??= runInNewContext("gc");
  gc({ type: "major", execution: "sync", flavor: "last-resort" });
};
if (!isMainThread) channel.onmessage = collect;
else
  process.on("SIGUSR2", () => {
    channel.postMessage("collect");
    collect();
    setTimeout(() => {
      collect();
      process.stderr.write(
        `\nMEMORY ${JSON.stringify({ ...process.memoryUsage(), resources: process.getActiveResourcesInfo().length })}\n`,
      );
    }, 500);
  });
