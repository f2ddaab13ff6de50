// Opens the engines that an agent is configured with: `process` always, `docker` where a socket is named. Its client is
// loaded only there. Wiring and the tools of the agent's own host import this.
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Clock } from "@sallyport/protocol";
import type { Logger } from "pino";
import type { DockerEngine } from "./docker/index.ts";
import type { Engines } from "./engine.ts";
import { makeEngines } from "./engines.ts";
import { createProcessEngine, type ProcessEngine } from "./process/index.ts";

/** In the folder of the engine docker: what its containers are labelled with. */
const AGENT_ID = "agent-id";

export interface EnginesOptions {
  stateDir: string;
  /** Null = the engine docker is not used. */
  dockerSocket: string | null;
  /** Stays the same as long as the state directory. */
  agentId: string;
  /** The agent's pool, once it has joined one. Absent = work of other agents is not known here. */
  pool?: () => string | null;
  /** Which engine it is became known, or changed. */
  met?: () => void;
  clock: Clock;
  log: Logger;
}

export interface OpenEngines extends Engines {
  /** Asking it starts its host where none runs. */
  readonly process: ProcessEngine;
  readonly docker: DockerEngine | null;
  /** What runs goes on. */
  close(): Promise<void>;
}

export async function openEngines(options: EnginesOptions): Promise<OpenEngines> {
  const { stateDir, agentId, clock } = options;
  const process = createProcessEngine({ stateDir, clock });
  let docker: DockerEngine | null = null;
  if (options.dockerSocket !== null) {
    mkdirSync(join(stateDir, "docker"), { recursive: true, mode: 0o700 });
    writeFileSync(join(stateDir, "docker", AGENT_ID), `${agentId}\n`, { mode: 0o600 });
    docker = await openDocker(options, options.dockerSocket);
  }
  return {
    ...makeEngines(docker === null ? [process] : [process, docker]),
    process,
    docker,
    async close() {
      process.close();
      await docker?.close();
    },
  };
}

async function openDocker(
  { stateDir, agentId, clock, log, pool, met }: EnginesOptions,
  socket: string,
): Promise<DockerEngine> {
  const { createDockerEngine } = await import("./docker/index.ts");
  return createDockerEngine({
    socket,
    agentId,
    stateDir,
    clock,
    log,
    ...(pool === undefined ? {} : { pool }),
    ...(met === undefined ? {} : { met }),
  });
}

/** For a tool beside an agent that does not run. Null = the agent never used the engine. */
export async function findDocker(options: Omit<EnginesOptions, "agentId">): Promise<DockerEngine | null> {
  const file = join(options.stateDir, "docker", AGENT_ID);
  if (options.dockerSocket === null || !existsSync(file)) return null;
  return openDocker({ ...options, agentId: readFileSync(file, "utf8").trim() }, options.dockerSocket);
}
