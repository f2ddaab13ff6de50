// The port of an engine: what runs a step's work. Its own record answers "did this happen?" after a crash.

/** The name under which an engine knows one attempt: what makes a second start of the same a conflict. */
export type WorkName = string & { readonly __work: never };
/** `<command id>.<step>.<attempt>`: unique for ever. */
export const workName = (command: string, step: string, attempt: number): WorkName =>
  `${command}.${step}.${attempt}` as WorkName;

export interface WorkSpec {
  name: WorkName;
  /** Absolute path of the executable, from the agent's configuration. */
  executable: string;
  args: string[];
  /** The whole environment: nothing is inherited. May hold secret values; an engine never writes it to disk. */
  env: Record<string, string>;
  /** Working directory; exists. */
  cwd: string;
  /** Files that stdout and stderr are appended to, by the work itself: they grow with or without the agent. */
  stdout: string;
  stderr: string;
}

export type WorkStatus =
  | { state: "running"; startedAt: number; pid: number | null }
  /** `code` is null when a signal ended it. `reason` tells apart what an exit code cannot; `killed`: by `stop`. */
  | {
      state: "exited";
      startedAt: number;
      endedAt: number;
      code: number | null;
      signal: string | null;
      reason: "exit" | "killed" | "out-of-memory" | "unknown";
    }
  /** The engine knows nothing of that name: it never began. */
  | { state: "absent" };

export interface Engine {
  readonly name: string;
  /** True when code in it cannot reach the host: shown to people. */
  readonly isolated: boolean;
  /** Starts once: when the name exists already (running or ended) it is left as it is and its status is answered. */
  start(spec: WorkSpec): Promise<WorkStatus>;
  status(name: WorkName): Promise<WorkStatus>;
  /** Resolves when it has ended. Rejects only when the signal aborts or the engine is lost for good. */
  ended(name: WorkName, signal?: AbortSignal): Promise<Extract<WorkStatus, { state: "exited" }>>;
  /** TERM to the whole tree, KILL after `graceMs`; resolves with what was stopped when all of it is gone. Idempotent. */
  stop(name: WorkName, graceMs: number): Promise<{ stopped: string[] }>;
  /** Everything it knows, running or not yet forgotten. */
  list(): Promise<{ name: WorkName; status: WorkStatus }[]>;
  /** Drops the record of ended work. */
  forget(name: WorkName): Promise<void>;
}
