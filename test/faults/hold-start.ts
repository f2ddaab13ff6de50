// Given to an agent with --import: while the file that SALLYPORT_TEST_HOLD names is there, it stands still right before an
// engine starts a step's work, its whole event loop, so that whatever is asked of it meanwhile meets a step that starts.
import { channel } from "node:diagnostics_channel";
import { existsSync, writeFileSync } from "node:fs";

const hold = process.env["SALLYPORT_TEST_HOLD"];
const cell = new Int32Array(new SharedArrayBuffer(4));
if (hold !== undefined)
  channel("sallyport:step.prepared").subscribe(() => {
    if (!existsSync(hold)) return;
    writeFileSync(`${hold}.held`, "");
    // Shorter than the silence after which its link counts as dead.
    for (let n = 0; n < 400 && existsSync(hold); n++) Atomics.wait(cell, 0, 0, 20);
  });
