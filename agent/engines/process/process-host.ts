// The process host's work: starts programs, knows them again after its own death, stops whole trees, keeps how they
// ended. One instance per state directory. It imports Node alone, so that it stays small and an update of the agent's
// libraries never touches it; time is a value that it is given.
import { spawn, type ChildProcess } from "node:child_process";
import { accessSync, closeSync, constants, existsSync, mkdirSync, openSync, readdirSync, rmSync } from "node:fs";
import { isAbsolute, join } from "node:path";
import type { Clock } from "@sallyport/protocol";
import type { WorkSpec, WorkStatus } from "../engine.ts";
import { countIn, memoryKills, type MemoryKills } from "./memory-kills.ts";
import { alive, bootId, readProc, signalProc, workTree, type ProcInfo } from "./proc.ts";
import {
  isWorkName,
  readBegan,
  readDone,
  readExit,
  readSpec,
  signalOf,
  stopAsked,
  syncFolder,
  WRAPPER,
  writeAtomic,
  type ExitedStatus,
} from "./work-folder.ts";

/** In the environment of all that belongs to a piece of work, so that descendants that left its session are found. */
const MARKER = "SALLYPORT_WORK";
/** How often work that is not our own child is looked at. */
const LOOK_MS = 200;
/** While something is about to happen: a wrapper's first write, the end of killed processes. */
const SOON_MS = 10;
/** What a killed wrapper gets to write the exit status. */
const WRAPPER_MS = 2000;
/** After KILL; longer means a process that the kernel cannot end (a dead disk). */
const UNKILLABLE_MS = 30_000;

interface Work {
  name: string;
  folder: string;
  /** Ours since its start; null = found after a restart of the host. */
  child: ChildProcess | null;
  childEnded: boolean;
  startedAt: number;
  /** The wrapper; null until it is known. */
  wrapper: { pid: number; startTime: string } | null;
  /** Monotonic; what is left of the tree when the program has ended is killed after this. */
  killAt: number;
  begun: Promise<void>;
  ended: Promise<ExitedStatus>;
  end: (status: ExitedStatus) => void;
  stopping: Promise<{ stopped: string[] }> | null;
}

export class ProcessHost {
  readonly #folder: string;
  readonly #clock: Clock;
  readonly #bootId = bootId();
  /** All that has begun, or is beginning, and has not ended. */
  readonly #running = new Map<string, Work>();
  /** Ends that a full disk did not take yet; written with the next look at them. */
  readonly #unwritten = new Map<string, ExitedStatus>();
  readonly #onChange: () => void;
  readonly #memoryKills: () => MemoryKills | null;
  /** Of each file that counts kills for lack of memory: up to which an end was put down to them. */
  readonly #explained = new Map<string, number>();

  /** `folder`: where the work folders are. `onChange`: the number of running pieces changed. `kills`: for lack of memory, where work begins. */
  constructor(folder: string, clock: Clock, onChange: () => void = () => undefined, kills = memoryKills) {
    this.#memoryKills = kills;
    this.#folder = folder;
    this.#clock = clock;
    this.#onChange = onChange;
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    for (const name of readdirSync(folder)) if (isWorkName(name)) this.#find(name);
  }

  get running(): number {
    return this.#running.size;
  }

  async start(spec: WorkSpec): Promise<WorkStatus> {
    if (!isWorkName(spec.name)) throw new Error("a work name has letters, digits, '.', '_' and '-', at most 200");
    const known = this.status(spec.name);
    if (known.state === "exited") return known;
    const running = this.#running.get(spec.name);
    if (running !== undefined) {
      await running.begun;
      return this.status(spec.name);
    }
    if (!isAbsolute(spec.executable)) throw new Error(`${spec.executable} is not an absolute path`);
    try {
      accessSync(spec.executable, constants.X_OK);
    } catch (error) {
      throw new Error(`${spec.executable} cannot be executed (${(error as NodeJS.ErrnoException).code})`);
    }
    if (!existsSync(spec.cwd)) throw new Error(`the working directory ${spec.cwd} is not there`);
    const folder = join(this.#folder, spec.name);
    // A folder without `began` is work that never began: its wrapper, should one still come, and ours meet at `began`.
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    syncFolder(this.#folder);
    const createdAt = this.#clock.now();
    writeAtomic(
      folder,
      "spec.json",
      JSON.stringify({
        format: 1,
        name: spec.name,
        bootId: this.#bootId,
        createdAt,
        executable: spec.executable,
        memoryKills: this.#memoryKills(),
      }),
    );
    const stdout = openSync(spec.stdout, "a", 0o600);
    let child: ChildProcess;
    try {
      const stderr = openSync(spec.stderr, "a", 0o600);
      try {
        child = spawn("/bin/sh", ["-c", WRAPPER, "sallyport-work", folder, spec.executable, ...spec.args], {
          cwd: spec.cwd,
          env: { ...spec.env, [MARKER]: spec.name },
          detached: true,
          stdio: ["ignore", stdout, stderr],
        });
      } finally {
        closeSync(stderr);
      }
    } finally {
      closeSync(stdout);
    }
    const work = this.#add(spec.name, createdAt, child);
    await work.begun;
    return this.status(spec.name);
  }

  status(name: string): WorkStatus {
    const work = this.#running.get(name);
    if (work !== undefined) return { state: "running", startedAt: work.startedAt, pid: work.wrapper?.pid ?? null };
    const unwritten = this.#unwritten.get(name);
    if (unwritten !== undefined) {
      this.#writeDone(join(this.#folder, name), name, unwritten);
      return unwritten;
    }
    return (isWorkName(name) ? readDone(join(this.#folder, name)) : null) ?? { state: "absent" };
  }

  /** Null when nothing of that name has begun. */
  async ended(name: string): Promise<ExitedStatus | null> {
    const work = this.#running.get(name);
    if (work !== undefined) return work.ended;
    const status = this.status(name);
    return status.state === "exited" ? status : null;
  }

  async stop(name: string, graceMs: number): Promise<{ stopped: string[] }> {
    const work = this.#running.get(name);
    if (work === undefined) return { stopped: [] };
    work.stopping ??= this.#stop(work, graceMs);
    return work.stopping;
  }

  list(): { name: string; status: WorkStatus }[] {
    return readdirSync(this.#folder)
      .filter((name) => isWorkName(name))
      .map((name) => ({ name, status: this.status(name) }))
      .filter((row) => row.status.state !== "absent");
  }

  forget(name: string): void {
    if (!isWorkName(name)) return;
    if (this.#running.has(name)) throw new Error(`${name} has not ended`);
    this.#unwritten.delete(name);
    rmSync(join(this.#folder, name), { recursive: true, force: true });
  }

  /** Takes up what an earlier host left. */
  #find(name: string): void {
    const folder = join(this.#folder, name);
    if (readDone(folder) !== null) return;
    const spec = readSpec(folder);
    const began = readBegan(folder);
    const sameBoot = spec?.bootId === this.#bootId;
    const wrapperMayLive = sameBoot && began === null && workTree(`${MARKER}=${name}`, null).length > 0;
    // Never began: after a crash of the machine even that is not sure, since `began` is not synced to disk.
    if (spec === null || (sameBoot && began === null && !wrapperMayLive)) return;
    this.#add(name, spec.createdAt, null);
  }

  #add(name: string, createdAt: number, child: ChildProcess | null): Work {
    let end!: Work["end"];
    const work: Work = {
      name,
      folder: join(this.#folder, name),
      child,
      childEnded: false,
      startedAt: createdAt,
      wrapper: null,
      killAt: 0,
      begun: Promise.resolve(),
      ended: new Promise((resolve) => (end = resolve)),
      end: (status) => end(status),
      stopping: null,
    };
    this.#running.set(name, work);
    this.#onChange();
    work.begun = this.#follow(work, child);
    // Whoever asked for the start hears of it; a found one has nobody.
    work.begun.catch(() => undefined);
    return work;
  }

  /** Resolves when it has begun; from then on the end is waited for. */
  async #follow(work: Work, child: ChildProcess | null): Promise<void> {
    let fault: Error | null = null;
    let wake: (() => void) | null = null;
    let told = false;
    child?.once("error", (error) => {
      fault = error;
      work.childEnded = true;
      wake?.();
    });
    child?.once("exit", () => {
      work.childEnded = true;
      wake?.();
    });
    const pause = (delayMs: number): Promise<void> =>
      new Promise((resolve) => {
        if (work.childEnded && !told) {
          told = true;
          return resolve();
        }
        const timer = this.#clock.after(delayMs, resolve, { keepAlive: true });
        wake = () => {
          timer.cancel();
          resolve();
        };
      });
    for (;;) {
      const began = readBegan(work.folder);
      if (began !== null && began !== "torn") {
        work.startedAt = began.at;
        if (began.bootId === this.#bootId) work.wrapper = { pid: began.pid, startTime: began.startTime };
        // Another host's wrapper was first: ours ended without effect.
        if (child !== null && child.pid !== began.pid) work.child = null;
        break;
      }
      if (work.childEnded || (child === null && !this.#wrapperMayCome(work))) {
        if (began === "torn" || (child === null && readSpec(work.folder)?.bootId !== this.#bootId)) break;
        // Never began. The folder stays without `began`: the name may be started again.
        this.#running.delete(work.name);
        this.#onChange();
        work.end({
          state: "exited",
          startedAt: work.startedAt,
          endedAt: work.startedAt,
          code: null,
          signal: null,
          reason: "unknown",
        });
        throw new Error(
          fault === null
            ? "the work's wrapper could not write in the state directory"
            : `/bin/sh did not start: ${(fault as Error).message}`,
        );
      }
      await pause(SOON_MS);
    }
    const rest = async (): Promise<void> => {
      while (!this.#isOver(work)) await pause(work.child === null || work.childEnded ? LOOK_MS : 60_000);
      await this.#finish(work);
    };
    void rest();
  }

  #wrapperMayCome(work: Work): boolean {
    return readSpec(work.folder)?.bootId === this.#bootId && workTree(`${MARKER}=${work.name}`, null).length > 0;
  }

  #wrapperAlive(work: Work): boolean {
    if (work.wrapper === null) return false;
    const info = readProc(work.wrapper.pid);
    return alive(info) && info.startTime === work.wrapper.startTime;
  }

  /** The program has ended, whatever it left behind. */
  #isOver(work: Work): boolean {
    if (work.child !== null && !work.childEnded) return false;
    if (readExit(work.folder) !== null) return true;
    if (this.#wrapperAlive(work)) return false;
    // The wrapper was killed: what carries the mark goes on without it.
    return this.#tree(work).length === 0;
  }

  #tree(work: Work): ProcInfo[] {
    const leader = work.wrapper;
    // While the leader lives, or was our child and nobody has its pid now, the session's number cannot be another's.
    const trusted =
      leader !== null && (this.#wrapperAlive(work) || (work.child !== null && readProc(leader.pid) === null));
    return workTree(
      `${MARKER}=${work.name}`,
      trusted ? leader.pid : null,
      new Set(leader === null ? [] : [leader.pid]),
    );
  }

  async #finish(work: Work): Promise<void> {
    const leftBy = this.#clock.monotonic() + UNKILLABLE_MS;
    for (;;) {
      const left = this.#tree(work);
      const now = this.#clock.monotonic();
      if (left.length === 0 || now > Math.max(leftBy, work.killAt + UNKILLABLE_MS)) break;
      if (now >= work.killAt) for (const p of left) signalProc(p, "SIGKILL");
      await this.#sleep(SOON_MS);
    }
    const exit = readExit(work.folder);
    const stopped = stopAsked(work.folder);
    const spec = readSpec(work.folder);
    // A wrapper that cannot write, on a full disk, still ends with the program's status: its parent knows it.
    const code = exit?.status ?? work.child?.exitCode ?? null;
    const signal = code === null ? (work.child?.signalCode ?? null) : signalOf(code);
    const starved = signal === "SIGKILL" && this.#starved(spec?.memoryKills ?? null);
    const known = code !== null || signal !== null;
    const status: ExitedStatus = {
      state: "exited",
      startedAt: work.startedAt,
      endedAt: Math.max(work.startedAt, exit?.at ?? this.#clock.now()),
      code: signal !== null ? null : code,
      signal,
      reason: stopped && code !== 0 ? "killed" : starved ? "out-of-memory" : !known ? "unknown" : "exit",
    };
    this.#writeDone(work.folder, work.name, status);
    this.#running.delete(work.name);
    work.end(status);
    this.#onChange();
  }

  #writeDone(folder: string, name: string, status: ExitedStatus): void {
    try {
      writeAtomic(folder, "done.json", JSON.stringify(status));
      this.#unwritten.delete(name);
    } catch {
      // A full disk: until there is room it stands here. A later host makes its word from what the wrapper could write.
      this.#unwritten.set(name, status);
    }
  }

  /** Whether the kernel has killed since `before` for lack of memory, and no other work's end was put down to that. */
  #starved(before: MemoryKills | null): boolean {
    const now = before === null ? null : countIn(before.file);
    if (now === null || now.count <= Math.max(before!.count, this.#explained.get(now.file) ?? 0)) return false;
    this.#explained.set(now.file, now.count);
    return true;
  }

  async #stop(work: Work, graceMs: number): Promise<{ stopped: string[] }> {
    await work.begun.catch(() => undefined);
    if (!this.#running.has(work.name)) return { stopped: [] };
    writeAtomic(work.folder, "stop", "");
    work.killAt = this.#clock.monotonic() + graceMs;
    const stopped = new Map<number, string>();
    const note = (left: ProcInfo[]): ProcInfo[] => {
      for (const p of left) stopped.set(p.pid, `${p.comm} (${p.pid})`);
      return left;
    };
    for (const p of note(this.#tree(work))) signalProc(p, "SIGTERM");
    let over = false;
    const ended = work.ended.then(() => {
      over = true;
    });
    const graceful = this.#timer(graceMs);
    await Promise.race([ended, graceful.fired]);
    graceful.cancel();
    const giveUpAt = this.#clock.monotonic() + UNKILLABLE_MS;
    const wrapperUntil = this.#clock.monotonic() + WRAPPER_MS;
    while (!over) {
      const left = note(this.#tree(work));
      for (const p of left) signalProc(p, "SIGKILL");
      const now = this.#clock.monotonic();
      if (left.length === 0 && now > wrapperUntil && work.wrapper !== null && this.#wrapperAlive(work)) {
        signalProc(readProc(work.wrapper.pid)!, "SIGKILL");
      }
      if (now > giveUpAt) {
        work.stopping = null;
        throw new Error(`${left.length} processes of ${work.name} do not end, even when killed`);
      }
      await Promise.race([ended, this.#sleep(SOON_MS)]);
    }
    return { stopped: [...stopped.values()] };
  }

  #timer(delayMs: number): { fired: Promise<void>; cancel(): void } {
    let cancel!: () => void;
    const fired = new Promise<void>((resolve) => {
      const timer = this.#clock.after(delayMs, resolve, { keepAlive: true });
      cancel = () => timer.cancel();
    });
    return { fired, cancel };
  }

  #sleep(delayMs: number): Promise<void> {
    return this.#timer(delayMs).fired;
  }
}
