// The port of an engine: what runs a step's work or a deployment's replica. Its own record answers "did this happen?"
// after a crash: work has a name, and a second start of the same name starts nothing.
import type { CommandId, DeploymentId, Resources } from "@sallyport/protocol";

/** The name under which an engine knows one piece of work: what makes a second start of the same a conflict. */
export type WorkName = string & { readonly __work: never };
/** `<command id>.<step>.<attempt>`: unique for ever. */
export const workName = (command: string, step: string, attempt: number): WorkName =>
  `${command}.${step}.${attempt}` as WorkName;
/** The command that a step's work is of; null for a name of another form. */
export const commandOfWork = (name: string): CommandId | null =>
  (/^([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\..+\.\d+$/.exec(name)?.[1] as CommandId | undefined) ?? null;
/** `<deployment id>.r<revision>.<number>`: used again only after the one before was forgotten. */
export const replicaWorkName = (deployment: DeploymentId, revision: number, number: number): WorkName =>
  `${deployment}.r${revision}.${number}` as WorkName;

/** What an engine that runs containers is told beside; the rest of a container is fixed by its template. */
export interface ContainerSpec {
  /** `name@sha256:…` or `sha256:…`. */
  image: string;
  resources: Resources;
  /**
   * `none`: no network at all. `serving`: the engine's own internal network, on which the agent (and nothing else)
   * reaches `port`. Else a network of the engine, by name.
   */
  network: { kind: "none" } | { kind: "serving"; port: number } | { kind: "named"; name: string };
}

export interface WorkSpec {
  name: WorkName;
  /** Absolute path of the executable. "" on an engine with images: the image's own entry point. */
  executable: string;
  args: string[];
  /** The whole environment: nothing is inherited. May hold secret values; an engine never writes it to disk itself. */
  env: Record<string, string>;
  /**
   * Host folder with what the work gets; exists. It is the working directory. An engine with a file system of its own
   * places a copy of it at `Engine.inside(folder)` before the start, writable by the work alone.
   */
  cwd: string;
  /** Files that stdout and stderr are appended to: by the work itself, or by the engine while the agent runs. */
  stdout: string;
  stderr: string;
  /** Null on an engine without images. */
  container: ContainerSpec | null;
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
  /** The engine knows nothing of that name: it never began, or somebody removed it. */
  | { state: "absent" };

/** How the agent reaches a port of running work; null = not (yet), or the engine has no addresses. */
export type WorkAddress = { host: string; port: number } | null;

/** Of an engine that other agents of the pool may be asking too. */
export interface SharedEngine {
  /** The same word from each agent of this very engine, and from none of another; null = not known yet. */
  id(): string | null;
  /** Work of the command that the engine knows, whichever agent of the pool began it. */
  ofCommand(command: CommandId): Promise<WorkName[]>;
}

export interface Engine {
  readonly name: string;
  /**
   * Absent = no other agent can ask it. Where it can: work of a command that another agent of the pool began is known by
   * its name as if this one had, and `list` still tells only what this agent began.
   */
  readonly shared?: SharedEngine;
  /**
   * True when code in it cannot reach the host and is kept within its resources: shown to people. Such an engine starts
   * images, any other starts programs of this machine.
   */
  readonly isolated: boolean;
  /** The path by which work sees a host folder that it was given as `cwd`. The same path on an engine without an own file system. */
  inside(folder: string): string;
  /**
   * Makes an image present, pulling it when need be. Throws IMAGE_MISSING, IMAGE_DENIED, ENGINE_UNREACHABLE. Engines
   * without images resolve at once.
   */
  prepare(image: string | null, signal?: AbortSignal): Promise<void>;
  /** Starts once: when the name exists already (running or ended) it is left as it is and its status is answered. */
  start(spec: WorkSpec): Promise<WorkStatus>;
  status(name: WorkName): Promise<WorkStatus>;
  /** Goes on feeding `stdout` and `stderr` of work that was started earlier, where the engine does that. After a restart. */
  attach(name: WorkName, files: { stdout: string; stderr: string }): Promise<void>;
  /** Resolves when it has ended, and all that it wrote is in its files. Rejects only when the signal aborts or the engine is lost for good. */
  ended(name: WorkName, signal?: AbortSignal): Promise<Extract<WorkStatus, { state: "exited" }>>;
  /** Brings `outputs` of ended work back into the host folder that was its `cwd`; at most `maxBytes` (TOO_LARGE). Can be repeated. */
  fetchOutputs(name: WorkName, folder: string, maxBytes: number, signal?: AbortSignal): Promise<void>;
  address(name: WorkName, port: number): Promise<WorkAddress>;
  /** TERM to the whole tree, KILL after `graceMs`; resolves with what was stopped when all of it is gone. Idempotent. */
  stop(name: WorkName, graceMs: number): Promise<{ stopped: string[] }>;
  /** Everything of this agent that it knows, running or not yet forgotten. */
  list(): Promise<{ name: WorkName; status: WorkStatus }[]>;
  /** Drops the record of ended work, and what the engine kept for it. */
  forget(name: WorkName): Promise<void>;
}

/** The engines of this agent. Throws ENGINE_UNKNOWN, naming those there are, for one that is not configured. */
export interface Engines {
  readonly names: readonly string[];
  get(name: string): Engine;
}
