// What the feature is made from.
import type { Clock, CommandId, RunId } from "@sallyport/protocol";
import type { Logger } from "pino";
import type { Engines } from "../../engines/engine.ts";
import type { Journal } from "../../journal/journal.ts";
import type { LogStore } from "../../logs/index.ts";
import type { PolicyGuard } from "../../policy/action.ts";
import type { Redactor } from "../../redaction/redactor.ts";
import type { Secrets } from "../../secrets/secrets.ts";
import type { Stores } from "../../stores/store.ts";
import type { Known } from "./check.ts";

/** From the agent's configuration. */
export interface Program {
  /** Absolute path of the executable; with `image`, as the image has it. */
  path: string;
  /** By digest; null or absent = a program of this machine. */
  image?: string | null | undefined;
  /** Come before the step's. */
  args?: readonly string[] | undefined;
  env?: Readonly<Record<string, string>> | undefined;
}

export interface PipelinesDeps {
  journal: Journal;
  engines: Engines;
  stores: Stores;
  secrets: Secrets;
  redactor: Redactor;
  logs: LogStore;
  /** The one in force, whenever it is asked. */
  policy: PolicyGuard;
  /** By name; asked at each use, so that a reload of the configuration shows. */
  programs: () => ReadonlyMap<string, Program>;
  stateDir: string;
  clock: Clock;
  log: Logger;
  /** limits.concurrentSteps of the configuration; the policy's ceiling counts too. Absent = that alone. */
  maxSteps?: () => number;
  /** limits.workBytes: inputs of one step, its outputs in an engine with an own file system, work folders kept after failures. */
  workBytes: number;
  /** Ends an accepted run that has not begun; false = it has, or is not known. Absent = each waits for its turn to end. */
  withdraw?: (command: CommandId, run: RunId) => Promise<boolean>;
  /** Between TERM and KILL. Default 10 s. */
  graceMs?: number;
}

export const DEFAULT_GRACE_MS = 10_000;

/** What a pipeline may name, at this moment. */
export const knownBy = (deps: PipelinesDeps): Known => ({
  engines: deps.engines,
  programs: deps.programs(),
  stores: new Set(deps.stores.ids),
});
