// The doctor: walks from this machine to the control plane hop by hop and says which one fails, why and what to do. It
// opens no session, uses up no enrolment and needs no running agent. Only the sub-command of agent/cli imports this door.
export { diagnose, type DoctorOptions } from "./diagnose.ts";
export type { Known } from "./known.ts";
export { renderDiagnosis, type AddressReport, type Diagnosis, type HopReport } from "./report.ts";
