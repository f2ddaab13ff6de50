// Runs as the control plane sees them: checked before they are queued, shown as command, attempts and evidence say, their
// logs followed over as many links as it takes. Nothing of a log is stored. Routes import this.
export { startRun, type NewRun } from "./start-run.ts";
export { runStateOf, stepsDone, type RunState } from "./run-state.ts";
export { followLogs, type LogRequest } from "./follow-logs.ts";
