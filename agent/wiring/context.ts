// What every part of the wiring is given, from the program around it.
import type { Clock } from "@sallyport/protocol";
import type { Logger } from "pino";
import type { CompiledConfig } from "../config/index.ts";
import type { Redactor } from "../redaction/index.ts";

export interface AgentContext {
  readonly version: string;
  readonly clock: Clock;
  readonly log: Logger;
  readonly redactor: Redactor;
  /** The process's own: what is used once is taken out of it. */
  readonly environment: NodeJS.ProcessEnv;
  /** The file as it is now, and its name; a reload reads it again. */
  readonly readConfig: () => { text: string | null; source: string };
  /** In force now; a reload exchanges it. */
  compiled: CompiledConfig;
}
