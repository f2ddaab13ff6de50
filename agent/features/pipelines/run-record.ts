// What the journal remembers of runs, in the namespace `runs`: `<run>` for the run, `<run>/<step>` for each step, so that a
// change of one step writes one small record. In `run-cancels`: runs that somebody wants ended, also before they began.
import type { CommandId, ErrorBody, ProducedArtifact, RunId, StepState } from "@sallyport/protocol";
import type { MachineTime } from "./machine-time.ts";

export const RUNS = "runs";
export const CANCELS = "run-cancels";

export interface RunRecord {
  format: 1;
  command: CommandId;
  pipeline: string;
  state: "running" | "succeeded" | "failed" | "cancelled";
  createdAt: number;
  endedAt: number | null;
  /** Present when failed or cancelled. */
  error: ErrorBody | null;
}

export interface StepRecord {
  state: StepState;
  /** Of the attempt that runs or ran last; 0 = none began. */
  attempt: number;
  /** Why a stop was asked for; written before the stop, so that a restart knows what the end means. */
  stopping: "cancel" | "timeout" | null;
  error: ErrorBody | null;
  exitCode: number | null;
  outputs: ProducedArtifact[];
  logSeq: number;
  adopted: boolean;
  /** The engine began the attempt: when it knows nothing of it later, somebody removed it. Absent = not known. */
  begun?: boolean;
  /** When that was, for a restart that asks how long it has run. Absent or null = not known. */
  begunAt?: MachineTime | null;
  /**
   * Attempts before this one that ended before the engine began anything, on an engine that other agents may be asking:
   * they use up no name there, so that whoever tries next, here or there, tries under the same one. Absent = 0.
   */
  misses?: number;
  /** Wall clock before which the next attempt does not begin; null = no attempt waits. */
  retryAt: number | null;
}

/**
 * What an engine keeps of a run that has ended here: a container for each attempt, without which another agent that has
 * the run, or thinks so, would begin its step again. In `run-fences`, by command.
 */
export const FENCES = "run-fences";
export interface FenceRecord {
  format: 1;
  engine: string;
  /** When the run ended here, or was let go of. */
  endedAt: number;
  /** Another agent has it or had it, and may not know how it stands: kept until that one has let go, or for long. */
  taken: boolean;
}

export interface CancelRecord {
  at: number;
  reason: string;
}

export const NEW_STEP: StepRecord = {
  state: "pending",
  attempt: 0,
  stopping: null,
  error: null,
  exitCode: null,
  outputs: [],
  logSeq: 0,
  adopted: false,
  retryAt: null,
};
export const runKey = (run: RunId): string => run;
export const stepKey = (run: RunId, step: string): string => `${run}/${step}`;
export const isOver = (state: StepState): boolean => state !== "pending" && state !== "running";
