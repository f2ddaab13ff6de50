// The port of the audit: what the runner and the local control write into, before and after they act.
import type { CommandId } from "@sallyport/protocol";

/** Who, what, verdict, outcome. Never content: no input, no result, no path beyond the resource's name. */
export interface AuditEntry {
  event:
    | "agent.started"
    | "audit.gap"
    | "audit.recovered"
    | "audit.removed"
    | "agent.stopped"
    | "command.started"
    | "command.accepted"
    | "command.refused"
    | "command.ended"
    | "intake.paused"
    | "intake.resumed"
    | "local.stop"
    | "config.reloaded";
  /** `cloud:<kid of the dispatch>`, `author:<kid>` when a person signed, `local:<user id>`, or `agent`. */
  who: string;
  command?: CommandId;
  kind?: string;
  resource?: string;
  verdict?: "allowed" | "denied";
  /** Line of the policy that decided. */
  rule?: string;
  /** `succeeded`, or the code of the error. */
  outcome?: string;
  bytesOut?: number;
  /** Words of ours, e.g. the reason of a pause. */
  note?: string;
}

export interface Audit {
  /** Throws AUDIT_UNAVAILABLE when the last write failed or hangs: then nothing new may begin. */
  require(): void;
  /** Joins the next group commit, within 20 ms; nobody waits. For reads: a crash may lose the last batch of them. */
  append(entry: AuditEntry): void;
  /** Resolves after the fsync. For whatever has an effect, before it. Rejects with AUDIT_UNAVAILABLE. */
  commit(entry: AuditEntry): Promise<void>;
}
