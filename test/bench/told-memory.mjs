// Given to a program with --import: on SIGUSR2 it collects its garbage and prints what memory it holds.
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

process.on("SIGUSR2", () => {
  setFlagsFromString("--expose-gc");
  const gc = runInNewContext("gc");
  gc();
  setTimeout(() => {
    gc();
    process.stderr.write(
      `\nMEMORY ${JSON.stringify({ ...process.memoryUsage(), resources: process.getActiveResourcesInfo().length })}\n`,
    );
  }, 500);
});
