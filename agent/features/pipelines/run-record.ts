// What the journal remembers of runs, in the namespace `runs`: `<run>` for the run, `<run>/<step>` for each step, so that a
// change of one step writes one small record. In `run-cancels`: runs that somebody wants ended, also before they began.
import type { CommandId, ErrorBody, ProducedArtifact, RunId, StepState } from "@sallyport/protocol";

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
  /** Wall clock before which the next attempt does not begin; null = no attempt waits. */
  retryAt: number | null;
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
