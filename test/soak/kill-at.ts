// Given to a program of the product by --import: kills it, or the other program, at the boundary that a file names.
// The folder SALLYPORT_KILL_AT holds `plan` (boundaries.ts) and gets `fired-<id>`. Not imported by anything.
import { subscribe } from "node:diagnostics_channel";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { isMainThread } from "node:worker_threads";
import { BOUNDARIES, type KillPlan } from "./boundaries.ts";

const folder = process.env["SALLYPORT_KILL_AT"];
let passed = { id: "", count: 0 };

function planned(): KillPlan | null {
  try {
    return JSON.parse(readFileSync(join(folder!, "plan"), "utf8")) as KillPlan;
  } catch {
    return null;
  }
}

function pass(channel: string): void {
  const plan = planned();
  if (plan === null || !plan.channels.includes(channel)) return;
  if (passed.id !== plan.id) passed = { id: plan.id, count: 0 };
  passed.count += 1;
  if (passed.count !== plan.at) return;
  try {
    // Once, whichever process passes it and however often it is started anew.
    writeFileSync(join(folder!, `fired-${plan.id}`), channel, { flag: "wx" });
  } catch {
    return;
  }
  const kill = () => {
    try {
      process.kill(plan.pid, "SIGKILL");
    } catch {
      // Gone already, by the other kill of this case.
    }
  };
  if (plan.afterMs === null) kill();
  else if (plan.afterMs === 0) setImmediate(kill);
  else setTimeout(kill, plan.afterMs);
}

if (folder !== undefined && isMainThread) {
  for (const channel of new Set(BOUNDARIES.flatMap((boundary) => boundary.channels)))
    subscribe(channel, () => pass(channel));
}
