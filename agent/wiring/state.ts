// What one agent alone may write in its state directory: the lock that says so, the audit and the journal.
import { join } from "node:path";
import { openAudit, type FileAudit } from "../audit/index.ts";
import { lockState } from "../control/index.ts";
import { openJournal, type SqliteJournal } from "../journal/sqlite-journal.ts";
import type { AgentContext } from "./context.ts";

const AUDIT_FILE_BYTES = 16 * 1024 ** 2;

export interface OpenState {
  readonly audit: FileAudit;
  readonly journal: SqliteJournal;
  /** In whatever state the agent is; never rejects. */
  close(): Promise<void>;
}

export async function openState({ compiled, clock, log }: AgentContext): Promise<OpenState> {
  const { state, limits } = compiled.config;
  const lock = lockState(state);
  let audit: FileAudit | null = null;
  try {
    audit = await openAudit({
      folder: join(state, "audit"),
      clock,
      totalBytes: limits.auditBytes,
      fileBytes: Math.min(AUDIT_FILE_BYTES, Math.ceil(limits.auditBytes / 8)),
      onFault: (error) => log.error({ code: error.code }, error.message),
    });
    const journal = await openJournal({
      file: join(state, "journal.db"),
      clock,
      onFault: (error, detail) => log.error({ code: error.code, detail }, error.message),
    });
    return { audit, journal, close: () => close(audit, journal) };
  } catch (error) {
    await close(audit, null);
    throw error;
  }

  async function close(...open: ({ close(): Promise<void> } | null)[]): Promise<void> {
    for (const one of open) await one?.close().catch(() => undefined);
    lock.release();
  }
}
