// What a run's row, its command and its attempts come to. Pure.
import type { AttemptRow, CommandRow } from "../../store/store.ts";

export type RunState = "queued" | "running" | "succeeded" | "failed" | "cancelled" | "unknown";

/** `unknown`: an agent has it and is silent. Ends that are not the pipeline's own (refused, expired, lost) are failures. */
export function runStateOf(command: CommandRow, unknown: boolean): RunState {
  switch (command.state) {
    case "queued":
    case "succeeded":
    case "failed":
    case "cancelled":
      return command.state;
    case "accepted":
    case "running":
      return unknown ? "unknown" : "running";
    case "expired":
    case "superseded":
    case "refused":
    case "lost":
      return "failed";
  }
}

/** Steps that succeeded, whichever attempt did. */
export const stepsDone = (attempts: AttemptRow[]): number =>
  new Set(attempts.filter((one) => one.state === "succeeded").map((one) => one.step)).size;
