// The engine `process` as the agent holds it: a client of the process host. It starts the host when none answers, and
// asks again when the host was lost on the way: each request may be repeated, for a name begins once.
import { spawn } from "node:child_process";
import { chmodSync, closeSync, mkdirSync, openSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { ConnectorError, entryUrl, wait, type Clock } from "@sallyport/protocol";
import type { Engine, WorkName, WorkSpec, WorkStatus } from "../engine.ts";
import { hostToken } from "./host-token.ts";
import {
  HOST_PROTOCOL,
  lineSplitter,
  type HostAnswer,
  type HostOperation,
  type HostOperations,
  type HostWelcome,
} from "./wire.ts";

export interface ProcessEngineOptions {
  /** The agent's state directory; the host's folder is `host` in it. */
  stateDir: string;
  clock: Clock;
}

/** A host that was started answers within this. */
const HOST_START_MS = 15_000;
const RETRY_MS = 50;
/** Before a host is started again because the last one does not answer. */
const SPAWN_AGAIN_MS = 2000;
/** A host that dies on the same request so often is not at fault. */
const MAX_TRIES = 5;
/** Room in a socket's address, less a little. */
const MAX_SOCKET_PATH = 100;

class HostLost extends Error {}

interface Connection {
  socket: Socket;
  waiting: Map<number, { resolve(output: unknown): void; reject(error: Error): void }>;
}

export function createProcessEngine(options: ProcessEngineOptions): ProcessEngine {
  return new ProcessEngine(options);
}

export class ProcessEngine implements Engine {
  readonly name = "process";
  readonly isolated = false;
  readonly #folder: string;
  readonly #clock: Clock;
  #connecting: Promise<Connection> | null = null;
  #connection: Connection | null = null;
  #nextId = 1;
  #closed = false;
  readonly #closing = new AbortController();

  constructor(options: ProcessEngineOptions) {
    this.#folder = join(options.stateDir, "host");
    this.#clock = options.clock;
  }

  async start(spec: WorkSpec): Promise<WorkStatus> {
    return this.#call("start", { spec });
  }

  async status(name: WorkName): Promise<WorkStatus> {
    return this.#call("status", { name });
  }

  /** Work sees the files of this machine. */
  inside(folder: string): string {
    return folder;
  }

  async prepare(image: string | null): Promise<void> {
    if (image !== null)
      throw new ConnectorError("ENGINE_FAILED", "The engine process starts programs of this machine, no images.");
  }

  /** The work itself writes its files. */
  async attach(): Promise<void> {}

  async fetchOutputs(): Promise<void> {}

  /** It keeps no track of ports. */
  async address(): Promise<null> {
    return null;
  }

  async ended(name: WorkName, signal?: AbortSignal): Promise<Extract<WorkStatus, { state: "exited" }>> {
    const status = await this.#call("ended", { name }, signal);
    if (status.state === "exited") return status;
    throw new ConnectorError("ENGINE_FAILED", `The process host knows nothing of work ${name}: it never began.`);
  }

  async stop(name: WorkName, graceMs: number): Promise<{ stopped: string[] }> {
    return this.#call("stop", { name, graceMs });
  }

  async list(): Promise<{ name: WorkName; status: WorkStatus }[]> {
    // Each name is a folder: where there is none, no host need be started to say so.
    const names = await readdir(join(this.#folder, "work")).catch(() => []);
    if (names.length === 0) return [];
    return (await this.#call("list", {})) as { name: WorkName; status: WorkStatus }[];
  }

  async forget(name: WorkName): Promise<void> {
    await this.#call("forget", { name });
  }

  /** Ends the host when nothing runs in it any more; false when something does, or the host is too old to be asked. */
  async quitHost(): Promise<boolean> {
    return this.#call("quit", {}).catch(() => false);
  }

  /** Leaves the host, which goes on. Requests on the way are rejected. */
  close(): void {
    this.#closed = true;
    this.#closing.abort(new ConnectorError("ENGINE_FAILED", "The engine was closed."));
    this.#connection?.socket.destroy();
  }

  async #call<Op extends HostOperation>(
    op: Op,
    input: HostOperations[Op]["input"],
    signal?: AbortSignal,
  ): Promise<HostOperations[Op]["output"]> {
    for (let tries = 1; ; tries++) {
      signal?.throwIfAborted();
      try {
        return (await this.#once(await this.#connected(), op, input, signal)) as HostOperations[Op]["output"];
      } catch (error) {
        if (!(error instanceof HostLost)) throw error;
        if (this.#closed || tries === MAX_TRIES) {
          throw new ConnectorError("ENGINE_FAILED", `The process host was lost while it was asked to ${op} work.`, {
            fix: `Look into ${join(this.#folder, "host.log")} on the agent's machine.`,
            cause: error,
          });
        }
        // A wait for an end lasts as long as the work: hosts lost in that time are not counted together.
        if (op === "ended") tries = 0;
      }
    }
  }

  #once(connection: Connection, op: HostOperation, input: unknown, signal?: AbortSignal): Promise<unknown> {
    return new Promise((resolve, reject) => {
      const id = this.#nextId++;
      const onAbort = (): void => {
        connection.waiting.delete(id);
        reject(signal?.reason as Error);
      };
      const settle =
        <T>(fn: (value: T) => void) =>
        (value: T): void => {
          signal?.removeEventListener("abort", onAbort);
          fn(value);
        };
      connection.waiting.set(id, { resolve: settle(resolve), reject: settle(reject) });
      signal?.addEventListener("abort", onAbort, { once: true });
      if (connection.socket.destroyed) {
        connection.waiting.delete(id);
        settle(reject)(new HostLost());
        return;
      }
      connection.socket.write(`${JSON.stringify({ id, op, input })}\n`);
    });
  }

  async #connected(): Promise<Connection> {
    if (this.#closed) throw new ConnectorError("ENGINE_FAILED", "The engine was closed.");
    if (this.#connection !== null) return this.#connection;
    this.#connecting ??= this.#connect().finally(() => {
      this.#connecting = null;
    });
    return this.#connecting;
  }

  async #connect(): Promise<Connection> {
    if (process.platform !== "linux") {
      throw new ConnectorError("ENGINE_FAILED", `The engine process runs on Linux only, not on ${process.platform}.`);
    }
    mkdirSync(this.#folder, { recursive: true, mode: 0o700 });
    chmodSync(this.#folder, 0o700);
    const token = hostToken(this.#folder);
    const until = this.#clock.monotonic() + HOST_START_MS;
    let spawnedAt = Number.NEGATIVE_INFINITY;
    for (;;) {
      const connection = await this.#dial(token);
      if (connection !== null) return connection;
      const now = this.#clock.monotonic();
      if (now > until) {
        throw new ConnectorError("ENGINE_FAILED", "The process host of this agent does not start.", {
          fix: `Look into ${join(this.#folder, "host.log")} on the agent's machine.`,
        });
      }
      if (now - spawnedAt > SPAWN_AGAIN_MS) {
        spawnedAt = now;
        this.#spawnHost();
      }
      await wait(this.#clock, RETRY_MS, this.#closing.signal);
    }
  }

  #spawnHost(): void {
    const log = openSync(join(this.#folder, "host.log"), "a", 0o600);
    try {
      const entry = fileURLToPath(entryUrl(import.meta.url, "./host-main"));
      // Nothing of the agent's environment: it may hold secrets, and the host lives longer.
      const host = spawn(process.execPath, ["--disable-warning=ExperimentalWarning", entry, this.#folder], {
        cwd: this.#folder,
        env: { PATH: "/usr/local/bin:/usr/bin:/bin" },
        detached: true,
        stdio: ["ignore", log, log],
      });
      host.on("error", () => undefined);
      host.unref();
    } finally {
      closeSync(log);
    }
  }

  /** Null when nobody listens, or the listener goes away before it says who it is. */
  #dial(token: string): Promise<Connection | null> {
    return new Promise((resolve) => {
      let path = join(this.#folder, "host.sock");
      let folder: number | null = null;
      if (Buffer.byteLength(path) > MAX_SOCKET_PATH) {
        folder = openSync(this.#folder, "r");
        path = `/proc/self/fd/${folder}/host.sock`;
      }
      const socket = connect(path);
      const connection: Connection = { socket, waiting: new Map() };
      let welcomed = false;
      const split = lineSplitter((text) => {
        const message = JSON.parse(text) as HostWelcome | HostAnswer;
        if (!welcomed) {
          welcomed = true;
          if ((message as HostWelcome).protocol !== HOST_PROTOCOL) return void socket.destroy();
          this.#connection = connection;
          return resolve(connection);
        }
        const answer = message as HostAnswer;
        const waiting = connection.waiting.get(answer.id);
        connection.waiting.delete(answer.id);
        if ("error" in answer)
          waiting?.reject(new ConnectorError("ENGINE_FAILED", `The process host refuses: ${answer.error}.`));
        else waiting?.resolve(answer.output);
      });
      socket.on("connect", () => socket.write(`${JSON.stringify({ protocol: HOST_PROTOCOL, token })}\n`));
      socket.on("data", (chunk) => {
        try {
          split(chunk);
        } catch {
          socket.destroy();
        }
      });
      socket.on("error", () => socket.destroy());
      socket.once("close", () => {
        if (folder !== null) closeSync(folder);
        if (this.#connection === connection) this.#connection = null;
        for (const waiting of connection.waiting.values()) waiting.reject(new HostLost());
        connection.waiting.clear();
        resolve(null);
      });
    });
  }
}
