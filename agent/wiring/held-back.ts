// Accepted commands that the policy no longer lets begin: said to whoever asks, and once in the log, because nothing else
// happens that would show it. They stay accepted, and begin when the ceiling is raised.
import type { Logger } from "pino";
import type { CommandRunner } from "../commands/runner.ts";
import type { HeldBack } from "../control/index.ts";
import type { PolicyGuard } from "../policy/action.ts";

/** Null while there is nothing to say: none waits, or those that wait have their turn. */
export function heldBack(runner: CommandRunner, policy: PolicyGuard): HeldBack | null {
  const { waiting } = runner;
  if (waiting === 0) return null;
  const verdict = policy.decide({ kind: "ceiling", ceiling: "concurrentRuns", value: 1 });
  return verdict.allowed ? null : { waiting, reason: verdict.reason, fix: verdict.fix };
}

/** To be called at each change; it speaks once for each time that commands come to be held back. */
export function heldBackLog(runner: CommandRunner, policy: PolicyGuard, log: Logger): () => void {
  let said = false;
  return () => {
    const held = heldBack(runner, policy);
    if (held !== null && !said)
      log.warn(
        { waiting: held.waiting, fix: held.fix },
        `accepted commands wait and none of them begins: ${held.reason}`,
      );
    said = held !== null;
  };
}
