// The engine `docker` as the agent holds it. The Engine's own record decides what happened: a container's name is the
// fence, its label says whose it is. What the Engine cannot keep is in `<state>/docker/`: that a stop was asked for.
import { mkdirSync } from "node:fs";
import { open, rm } from "node:fs/promises";
import { join } from "node:path";
import { ConnectorError, sha256, wait, type Clock, type CommandId } from "@sallyport/protocol";
import type { Logger } from "pino";
import {
  commandOfWork,
  type Engine,
  type WorkAddress,
  type WorkName,
  type WorkSpec,
  type WorkStatus,
} from "../engine.ts";
import { signalOf } from "../process/work-folder.ts";
import { packFolder, unpackOutputs } from "./archive.ts";
import { DockerClient, EngineRefusal, refused } from "./client.ts";
import { Images } from "./images.ts";
import { LogFollower } from "./log-follower.ts";
import { Networks } from "./networks.ts";
import {
  containerBody,
  containerName,
  isWorkName,
  LABEL_AGENT,
  LABEL_POOL,
  LABEL_WORK,
  VOLUME_TARGET,
  WORK_FOLDER,
} from "./template.ts";

export interface DockerEngineOptions {
  /** Path of the Engine's socket. */
  socket: string;
  /** Stays the same as long as the state directory: what carries another's id is never touched. */
  agentId: string;
  /** The agent's state directory; the engine's folder is `docker` in it. */
  stateDir: string;
  clock: Clock;
  log: Logger;
  /** The agent's pool: steps that another agent of it began are known here too. Absent or null = nobody else's are. */
  pool?: () => string | null;
  /** The Engine told which it is. */
  met?: () => void;
  /** Whom work runs as. Default 65532:65532, nobody's on most machines. */
  user?: { uid: number; gid: number };
}

const DEFAULT_USER = { uid: 65_532, gid: 65_532 };
/** Engines before this have known ways out of a container or into their unpacking of archives. */
const SAFE_VERSION = [29, 5, 1];
const RETRY_MS = 250;
const MAX_RETRY_MS = 5000;
const START_MS = 120_000;
const FILL_MS = 60 * 60_000;
const STOP_EXTRA_MS = 60_000;
/** A wait for an end is asked for anew so often: an Engine that lost track of it does not hold it up for longer. */
const WAIT_AGAIN_MS = 60_000;
/** A container that another agent made and did not start is its own for this long. */
const PEER_START_MS = 15_000;
const STARTS = 20;
const MAKING_MS = 10_000;
/** Another Engine may answer at the same socket one day. */
const IDENTITY_MS = 60_000;

type Exited = Extract<WorkStatus, { state: "exited" }>;

interface ContainerInfo {
  Id: string;
  Name: string;
  State: {
    Status: string;
    Running: boolean;
    OOMKilled: boolean;
    Pid: number;
    ExitCode: number;
    StartedAt: string;
    FinishedAt: string;
  };
  Config: { Labels?: Record<string, string> | null };
  HostConfig: { NetworkMode: string };
  NetworkSettings: { Networks?: Record<string, { IPAddress: string }> | null };
}

export function createDockerEngine(options: DockerEngineOptions): DockerEngine {
  return new DockerEngine(options);
}

export class DockerEngine implements Engine {
  readonly name = "docker";
  readonly isolated = true;
  readonly shared = { id: () => this.#identity(), ofCommand: (command: CommandId) => this.#ofCommand(command) };
  readonly #agentId: string;
  readonly #pool: () => string | null;
  readonly #told: () => void;
  readonly #folder: string;
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #user: { uid: number; gid: number };
  readonly #client: DockerClient;
  readonly #images: Images;
  readonly #networks: Networks;
  readonly #starting = new Map<WorkName, Promise<WorkStatus>>();
  readonly #followers = new Map<WorkName, LogFollower>();
  #met: Promise<void> | null = null;
  #id: string | null = null;
  #idAskedMs = Number.NEGATIVE_INFINITY;

  constructor(options: DockerEngineOptions) {
    if (!/^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$/.test(options.agentId))
      throw new ConnectorError("CONFIG_INVALID", "The agent's id cannot be part of the name of a network.");
    this.#agentId = options.agentId;
    this.#pool = options.pool ?? (() => null);
    this.#told = options.met ?? (() => undefined);
    this.#folder = join(options.stateDir, "docker");
    this.#clock = options.clock;
    this.#log = options.log;
    this.#user = options.user ?? DEFAULT_USER;
    mkdirSync(this.#folder, { recursive: true, mode: 0o700 });
    this.#client = new DockerClient(options.socket);
    this.#images = new Images(this.#client, options.clock);
    this.#networks = new Networks(this.#client, options.agentId, options.log);
  }

  /** The work folder has one place in every container; what lies in it keeps its relative path. */
  inside(_folder: string): string {
    return WORK_FOLDER;
  }

  async prepare(image: string | null, signal?: AbortSignal): Promise<void> {
    if (image === null)
      throw new ConnectorError("IMAGE_INVALID", "The engine docker runs images only, and none is named.", {
        fix: "Name an image by its digest.",
      });
    await this.#meet();
    await this.#images.prepare(image, signal);
  }

  async start(spec: WorkSpec): Promise<WorkStatus> {
    let starting = this.#starting.get(spec.name);
    if (starting === undefined) {
      starting = this.#start(spec).finally(() => this.#starting.delete(spec.name));
      this.#starting.set(spec.name, starting);
    }
    return starting;
  }

  async status(name: WorkName): Promise<WorkStatus> {
    // What is being started is neither there nor absent.
    await this.#starting.get(name)?.catch(() => undefined);
    return this.#statusOf(name, await this.#find(name));
  }

  async attach(name: WorkName, files: { stdout: string; stderr: string }): Promise<void> {
    const found = await this.#find(name);
    if (found !== null && begun(found)) await this.#follow(name, found.Id, files);
  }

  async ended(name: WorkName, signal?: AbortSignal): Promise<Exited> {
    for (let failures = 0; ;) {
      signal?.throwIfAborted();
      try {
        const found = await this.#find(name, signal);
        const status = await this.#statusOf(name, found);
        if (status.state === "absent")
          throw new ConnectorError(
            "ENGINE_FAILED",
            `The Docker Engine knows nothing of work ${name}: it never began, or its container was removed.`,
          );
        if (status.state === "exited") {
          await orAborted(this.#followers.get(name)?.finish() ?? Promise.resolve(), signal);
          return status;
        }
        failures = 0;
        await this.#untilNotRunning(found!.Id, signal);
      } catch (error) {
        signal?.throwIfAborted();
        this.#client.closed.throwIfAborted();
        // An Engine that is away does not end the work: it is asked again until it says how it stands.
        if (error instanceof ConnectorError && error.code !== "ENGINE_UNREACHABLE") throw error;
        await wait(this.#clock, Math.min(MAX_RETRY_MS, RETRY_MS * 2 ** Math.min(failures++, 10)), this.#signal(signal));
      }
    }
  }

  async fetchOutputs(name: WorkName, folder: string, maxBytes: number, signal?: AbortSignal): Promise<void> {
    const status = await this.status(name);
    if (status.state !== "exited")
      throw new ConnectorError("ENGINE_FAILED", `The outputs of work ${name} cannot be fetched: it has not ended.`);
    const path = `${WORK_FOLDER}/outputs`;
    let archive;
    try {
      archive = await this.#client.stream("GET", `/containers/${containerName(name)}/archive`, {
        query: { path },
        signal,
        timeoutMs: FILL_MS,
      });
    } catch (error) {
      // The work removed the whole folder: it left nothing.
      if (error instanceof EngineRefusal && error.status === 404)
        return rm(join(folder, "outputs"), { recursive: true, force: true });
      throw refused(`The outputs of work ${name} cannot be fetched`, error);
    }
    try {
      await unpackOutputs(archive, folder, maxBytes, signal);
    } catch (error) {
      if (error instanceof ConnectorError || isDiskError(error)) throw error;
      throw new ConnectorError(
        "ENGINE_UNREACHABLE",
        `The outputs of work ${name} did not come whole from the Docker Engine.`,
        {
          fix: "They are fetched again by themselves.",
          cause: error,
        },
      );
    }
  }

  async address(name: WorkName, port: number): Promise<WorkAddress> {
    const found = await this.#find(name);
    if (found === null || !found.State.Running) return null;
    const networks = found.NetworkSettings.Networks ?? {};
    // An agent that is a container itself, and a new one since this was started, has to be in the network too.
    if (networks[this.#networks.servingName] !== undefined) await this.#networks.serving();
    const host = Object.values(networks).find((network) => network.IPAddress !== "")?.IPAddress;
    return host === undefined ? null : { host, port };
  }

  async stop(name: WorkName, graceMs: number): Promise<{ stopped: string[] }> {
    await this.#starting.get(name)?.catch(() => undefined);
    const found = await this.#find(name);
    if (found === null || !found.State.Running) return { stopped: [] };
    await this.#noteStop(name, found.Id);
    const t = Math.ceil(Math.max(0, graceMs) / 1000);
    try {
      await this.#client.call("POST", `/containers/${found.Id}/stop`, {
        query: { t },
        timeoutMs: t * 1000 + STOP_EXTRA_MS,
      });
    } catch (error) {
      if (!(error instanceof EngineRefusal) || error.status !== 404)
        throw refused(`Work ${name} cannot be stopped`, error);
    }
    return { stopped: [`container ${containerName(name)} (${found.Id.slice(0, 12)})`] };
  }

  async list(): Promise<{ name: WorkName; status: WorkStatus }[]> {
    await this.#meet();
    const list: { name: WorkName; status: WorkStatus }[] = [];
    for (const name of await this.#names()) {
      const found = await this.#find(name);
      if (found === null || this.#starting.has(name)) continue;
      if (begun(found)) list.push({ name, status: await this.#statusOf(name, found) });
      else await this.#remove(found.Id, `Work ${name}`);
    }
    return list;
  }

  async forget(name: WorkName): Promise<void> {
    await this.#starting.get(name)?.catch(() => undefined);
    const found = await this.#find(name);
    if (found !== null) {
      // Not forced: what runs is stopped first.
      await this.#remove(found.Id, `Work ${name}`);
    }
    await this.#followers.get(name)?.close();
    this.#followers.delete(name);
    if (isWorkName(name)) await rm(join(this.#folder, `${name}.stop`), { force: true });
  }

  /** Leaves the Engine, where work goes on. Requests on the way are rejected. */
  async close(): Promise<void> {
    this.#client.close();
    await Promise.all([...this.#followers.values()].map((follower) => follower.close()));
    await Promise.allSettled(this.#starting.values());
  }

  async #start(spec: WorkSpec): Promise<WorkStatus> {
    const { name, container } = spec;
    if (!isWorkName(name)) throw new ConnectorError("ENGINE_FAILED", "The work's name cannot be a container's name.");
    if (container === null)
      throw new ConnectorError(
        "ENGINE_FAILED",
        `Work ${name} names no image, and the engine docker runs nothing else.`,
      );
    await this.#meet();
    let patienceMs = PEER_START_MS;
    for (let tries = 0; ; tries++) {
      const before = await this.#settledContainer(name, patienceMs);
      if (before !== null) return this.#known(spec, before);
      const imageId = await this.#images.find(container.image);
      if (imageId === null)
        throw new ConnectorError("IMAGE_MISSING", `Image ${container.image} is not at the Engine any more.`, {
          fix: "Start the work again: the image is pulled before.",
        });
      const made = await this.#create(spec, imageId);
      if (made === null) continue;
      try {
        await this.#client.call("PUT", `/containers/${made}/archive`, {
          query: { path: VOLUME_TARGET },
          file: packFolder(spec.cwd, "work", this.#user),
          timeoutMs: FILL_MS,
        });
        await this.#client.call("POST", `/containers/${made}/start`, { timeoutMs: START_MS });
      } catch (error) {
        // The answer may be what was lost: then the Engine is asked, now or by the next who starts this name.
        const now = await this.#find(name).catch(() => undefined);
        if (now === undefined) throw error;
        if (now !== null && begun(now)) return this.#known(spec, now);
        if (now?.Id !== made && tries < STARTS && this.#pool() !== null) {
          // Another agent took this one for left behind, and makes its own: it is let be.
          patienceMs = FILL_MS;
          continue;
        }
        if (now !== null) await this.#remove(now.Id, `Work ${name}`).catch(() => undefined);
        throw refused(
          `Work ${name} cannot be started`,
          error,
          "Look at the image and its executable, and at the Engine's log.",
        );
      }
      const there = await this.#find(name);
      if (there !== null) return this.#known(spec, there);
      throw new ConnectorError("ENGINE_FAILED", `The container of work ${name} was removed as soon as it was started.`);
    }
  }

  /**
   * The container of that name once it has begun; null when there is none. One that was made and not started is removed:
   * at once if this agent was killed in between, after `patienceMs` if another agent made it, which may be filling it.
   * Never forced: if it starts just now, it stays.
   */
  async #settledContainer(name: WorkName, patienceMs: number): Promise<ContainerInfo | null> {
    const until = this.#clock.monotonic() + patienceMs;
    for (;;) {
      const found = await this.#find(name);
      if (found === null || begun(found)) return found;
      const ours = found.Config.Labels?.[LABEL_AGENT] === this.#agentId;
      if (ours || this.#clock.monotonic() >= until) {
        try {
          await this.#remove(found.Id, `Work ${name}`);
        } catch (error) {
          const now = await this.#find(name);
          if (now === null || !begun(now)) throw error;
        }
        continue;
      }
      await wait(this.#clock, RETRY_MS, this.#client.closed);
    }
  }

  /** The id; null when somebody made it just before. */
  async #create(spec: WorkSpec, imageId: string): Promise<string | null> {
    const container = spec.container!;
    for (let again = false; ; again = true) {
      const { network: wanted } = container;
      const network =
        wanted.kind === "none"
          ? ({ kind: "none" } as const)
          : wanted.kind === "serving"
            ? { kind: wanted.kind, id: await this.#networks.serving() }
            : { kind: wanted.kind, id: await this.#networks.named(wanted.name) };
      const body = containerBody(
        { ...spec, container },
        { agentId: this.#agentId, pool: this.#pool(), imageId, network, user: this.#user },
      );
      try {
        const made = await this.#client.call<{ Id: string }>("POST", "/containers/create", {
          query: { name: containerName(spec.name) },
          body,
        });
        return made.Id;
      } catch (error) {
        if (!(error instanceof EngineRefusal)) throw error;
        if (error.status === 409) {
          if (await this.#beingMade(spec.name)) return null;
          throw new ConnectorError(
            "ENGINE_FAILED",
            `The name ${containerName(spec.name)} is taken at the Engine by a container that is not this agent's.`,
            {
              fix: "Look at its labels sallyport.agent and sallyport.pool.",
              cause: error,
            },
          );
        }
        if (error.status === 404 && wanted.kind === "serving" && !again) {
          this.#networks.forget();
          continue;
        }
        throw refused(`The container of work ${spec.name} cannot be made`, error);
      }
    }
  }

  /** The Engine keeps a name for whoever asked for it first before it shows the container. */
  async #beingMade(name: WorkName): Promise<boolean> {
    const until = this.#clock.monotonic() + MAKING_MS;
    for (;;) {
      if ((await this.#find(name)) !== null) return true;
      const there = await this.#client.find<ContainerInfo>(`/containers/${containerName(name)}/json`);
      // It may have come into sight between the two looks.
      if (there !== null) return (await this.#find(name)) !== null;
      if (this.#clock.monotonic() >= until) return false;
      await wait(this.#clock, RETRY_MS, this.#client.closed);
    }
  }

  async #known(spec: WorkSpec, found: ContainerInfo): Promise<WorkStatus> {
    await this.#follow(spec.name, found.Id, spec);
    return this.#statusOf(spec.name, found);
  }

  async #follow(name: WorkName, id: string, files: { stdout: string; stderr: string }): Promise<void> {
    const present = this.#followers.get(name);
    if (present?.id === id || this.#client.closed.aborted) return;
    this.#followers.delete(name);
    await present?.close();
    if (this.#followers.has(name)) return;
    this.#followers.set(
      name,
      new LogFollower({
        client: this.#client,
        clock: this.#clock,
        log: this.#log,
        name: containerName(name),
        id,
        stdout: files.stdout,
        stderr: files.stderr,
        isOver: async () => {
          const found = await this.#find(name);
          return found === null || found.Id !== id ? null : !found.State.Running;
        },
      }),
    );
  }

  async #untilNotRunning(id: string, signal?: AbortSignal): Promise<void> {
    try {
      await this.#client.call("POST", `/containers/${id}/wait`, {
        query: { condition: "not-running" },
        signal,
        timeoutMs: WAIT_AGAIN_MS,
      });
    } catch (error) {
      signal?.throwIfAborted();
      if (error instanceof EngineRefusal && error.status === 404) return;
      // Also when it was only long: whether the Engine is away shows when it is asked how the work stands.
      if (error instanceof ConnectorError && error.code === "ENGINE_UNREACHABLE") {
        await wait(this.#clock, RETRY_MS, this.#signal(signal));
        return;
      }
      throw refused(`The end of container ${id.slice(0, 12)} cannot be waited for`, error);
    }
  }

  #signal(signal?: AbortSignal): AbortSignal {
    return signal === undefined ? this.#client.closed : AbortSignal.any([signal, this.#client.closed]);
  }

  /** This agent's container of that name, or that of another agent of its pool; null when there is none, also when it is a stranger's. */
  async #find(name: WorkName, signal?: AbortSignal): Promise<ContainerInfo | null> {
    if (!isWorkName(name)) return null;
    let found: ContainerInfo | null;
    try {
      found = await this.#client.find<ContainerInfo>(`/containers/${containerName(name)}/json`, { signal });
    } catch (error) {
      throw refused(`Work ${name} cannot be looked up`, error);
    }
    return found !== null && this.#isOurs(name, found.Name, found.Config.Labels) ? found : null;
  }

  /** By name and labels: an image can bring labels, but no name. */
  #isOurs(name: string, full: string, labels: Record<string, string> | null | undefined): boolean {
    if (full !== `/sallyport.${name}` || labels?.[LABEL_WORK] !== name) return false;
    return labels[LABEL_AGENT] === this.#agentId || this.#isPeers(name, labels);
  }

  /** A step of a run: what deployments are made of stays with the agent that made it. */
  #isPeers(name: string, labels: Record<string, string>): boolean {
    const pool = this.#pool();
    return pool !== null && labels[LABEL_POOL] === pool && commandOfWork(name) !== null;
  }

  async #ofCommand(command: CommandId): Promise<WorkName[]> {
    await this.#meet();
    try {
      const all = await this.#client.call<{ Names?: string[]; Labels?: Record<string, string> }[]>(
        "GET",
        "/containers/json",
        { query: { all: 1, filters: { name: [`^/?sallyport\\.${command}\\.`] } } },
      );
      return all
        .map(({ Names, Labels }) => ({ name: Labels?.[LABEL_WORK] ?? "", Names, Labels }))
        .filter(
          ({ name, Names, Labels }) =>
            isWorkName(name) &&
            commandOfWork(name) === command &&
            (Names ?? []).some((full) => this.#isOurs(name, full, Labels)),
        )
        .map(({ name }) => name as WorkName);
    } catch (error) {
      throw refused(`The containers of command ${command} cannot be listed`, error);
    }
  }

  /** As last heard; asked for again in the background. */
  #identity(): string | null {
    const now = this.#clock.monotonic();
    if (now - this.#idAskedMs >= IDENTITY_MS) {
      this.#idAskedMs = now;
      this.#askIdentity().catch(() => undefined);
    }
    return this.#id;
  }

  async #askIdentity(): Promise<void> {
    const { ID, Name } = await this.#client.call<{ ID?: string; Name?: string }>("GET", "/info");
    // A machine that was copied has the same ID, and another name.
    const id = ID === undefined || ID === "" ? null : sha256(`${ID}\n${Name ?? ""}`).slice(0, 32);
    if (id === this.#id) return;
    this.#id = id;
    this.#told();
  }

  async #names(): Promise<WorkName[]> {
    try {
      const all = await this.#client.call<{ Names?: string[]; Labels?: Record<string, string> }[]>(
        "GET",
        "/containers/json",
        {
          query: { all: 1, filters: { label: [`${LABEL_AGENT}=${this.#agentId}`] } },
        },
      );
      return all
        .map(({ Names, Labels }) => ({ name: Labels?.[LABEL_WORK] ?? "", Names, Labels }))
        .filter(
          ({ name, Names, Labels }) =>
            isWorkName(name) && (Names ?? []).some((full) => this.#isOurs(name, full, Labels)),
        )
        .map(({ name }) => name as WorkName);
    } catch (error) {
      throw refused("The containers of this agent cannot be listed", error);
    }
  }

  async #statusOf(name: WorkName, found: ContainerInfo | null): Promise<WorkStatus> {
    if (found === null || !begun(found)) return { state: "absent" };
    const { State } = found;
    const startedAt = Date.parse(State.StartedAt);
    if (State.Running) return { state: "running", startedAt, pid: State.Pid > 0 ? State.Pid : null };
    const signal = signalOf(State.ExitCode);
    const stopped = State.ExitCode !== 0 && (await this.#stopNoted(name, found.Id));
    const endedAt = Date.parse(State.FinishedAt);
    return {
      state: "exited",
      startedAt,
      endedAt: endedAt >= startedAt ? endedAt : startedAt,
      code: signal === null ? State.ExitCode : null,
      signal,
      reason: stopped ? "killed" : State.OOMKilled && State.ExitCode !== 0 ? "out-of-memory" : "exit",
    };
  }

  /** With its volume. Refused by the Engine while it runs. */
  async #remove(id: string, what: string): Promise<void> {
    const until = this.#clock.monotonic() + START_MS;
    for (;;) {
      try {
        await this.#client.call("DELETE", `/containers/${id}`, { query: { v: 1, force: 0 }, timeoutMs: START_MS });
        return;
      } catch (error) {
        if (error instanceof EngineRefusal && error.status === 404) return;
        const conflict = error instanceof EngineRefusal && error.status === 409;
        const there = conflict ? await this.#client.find<ContainerInfo>(`/containers/${id}/json`) : null;
        if (conflict && there === null) return;
        if (there === null || there.State.Running || this.#clock.monotonic() >= until)
          throw refused(`${what} cannot be forgotten`, error);
        // Another request removes it already: it is gone soon.
        await wait(this.#clock, RETRY_MS, this.#client.closed);
      }
    }
  }

  /** Of this very container: a name may be used again. */
  async #noteStop(name: WorkName, id: string): Promise<void> {
    const file = await open(join(this.#folder, `${name}.stop`), "w", 0o600);
    try {
      await file.writeFile(`${id}\n`);
      await file.sync();
    } finally {
      await file.close();
    }
  }

  async #stopNoted(name: WorkName, id: string): Promise<boolean> {
    try {
      const file = await open(join(this.#folder, `${name}.stop`), "r");
      try {
        return (await file.readFile("utf8")).trim() === id;
      } finally {
        await file.close();
      }
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return false;
      throw error;
    }
  }

  /** Once, as soon as the Engine answers. */
  async #meet(): Promise<void> {
    this.#met ??= this.#look();
    const mine = this.#met;
    try {
      await mine;
    } catch (error) {
      if (this.#met === mine) this.#met = null;
      throw refused("The Engine says nothing of itself", error);
    }
  }

  async #look(): Promise<void> {
    this.#idAskedMs = this.#clock.monotonic();
    await this.#askIdentity();
    const about = await this.#client.call<{ Version: string; ApiVersion: string }>("GET", "/version");
    if (isBelow(about.Version, SAFE_VERSION)) {
      this.#log.warn(
        { version: about.Version, wanted: SAFE_VERSION.join(".") },
        "this Docker Engine is older than the first without known ways out of a container; update it",
      );
    }
    await this.#dropLostVolumes();
  }

  /** Volumes of containers that somebody removed without them. */
  async #dropLostVolumes(): Promise<void> {
    const { Volumes } = await this.#client.call<{
      Volumes?: { Name: string; Labels?: Record<string, string> | null }[] | null;
    }>("GET", "/volumes", { query: { filters: { dangling: ["true"], label: [`${LABEL_AGENT}=${this.#agentId}`] } } });
    for (const { Name, Labels } of Volumes ?? []) {
      if (Labels?.[LABEL_AGENT] !== this.#agentId || !/^[A-Za-z0-9][A-Za-z0-9_.-]*$/.test(Name)) continue;
      await this.#client.call("DELETE", `/volumes/${Name}`).catch((error: unknown) => {
        if (!(error instanceof EngineRefusal)) throw error;
      });
    }
  }
}

/** It ran at least once: an Engine says the year 1 of one that did not. */
const begun = ({ State }: ContainerInfo): boolean =>
  State.Running || !(Date.parse(State.StartedAt) < 0 || State.StartedAt.startsWith("0001"));

export function isBelow(version: string, wanted: readonly number[]): boolean {
  const numbers = /^(\d+)\.(\d+)(?:\.(\d+))?/
    .exec(version)
    ?.slice(1)
    .map((n) => Number(n ?? 0));
  if (numbers === undefined) return true;
  for (const [i, least] of wanted.entries()) if (numbers[i]! !== least) return numbers[i]! < least;
  return false;
}

const isDiskError = (error: unknown): boolean =>
  ["ENOSPC", "EDQUOT", "EEXIST"].includes((error as NodeJS.ErrnoException).code ?? "");

function orAborted<T>(work: Promise<T>, signal?: AbortSignal): Promise<T> {
  if (signal === undefined) return work;
  return new Promise((resolve, reject) => {
    const onAbort = (): void => reject(signal.reason as Error);
    if (signal.aborted) return onAbort();
    signal.addEventListener("abort", onAbort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener("abort", onAbort));
  });
}
