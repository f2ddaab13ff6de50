// The audit: who asked the agent for what, what was decided, what became of it, hash-chained on the customer's disk.
// It never holds content. Main.ts opens it; the runner and the local control write through the port in audit.ts.
export type { Audit, AuditEntry } from "./audit.ts";
export { FileAudit, openAudit, type AuditHead, type FileAuditOptions } from "./file-audit.ts";
export { verifyAudit, type AuditVerdict } from "./verify.ts";
