// `sallyport-agent stop`: by the running agent, or at the engine itself when there is none.
import { existsSync } from "node:fs";
import { join } from "node:path";
import { ConnectorError, systemClock } from "@sallyport/protocol";
import type { Command } from "commander";
import { pino } from "pino";
import type { Config } from "../config/index.ts";
import { askAgent, stopWork } from "../control/index.ts";
import { findDocker } from "../engines/open-engines.ts";
import { createProcessEngine } from "../engines/process/index.ts";
import { EXIT, type LocalCommands } from "./local.ts";

/**
 * Without an agent only the work itself can be stopped; the next start of the agent finds it ended, and starts the
 * replicas of its deployments again.
 */
async function stopWithoutAgent(stateDir: string, config: Config, id: string | null): Promise<string[]> {
  const chosen = (name: string) => id === null || name === id || name.slice(0, 36) === id || name.startsWith(`${id}.`);
  return [...(await stopContainers(stateDir, config, chosen)), ...(await stopProcesses(stateDir, id === null, chosen))];
}

async function stopProcesses(stateDir: string, all: boolean, chosen: (name: string) => boolean): Promise<string[]> {
  if (!existsSync(join(stateDir, "host", "host.sock"))) return [];
  const engine = createProcessEngine({ stateDir, clock: systemClock });
  try {
    return await stopWork(engine, chosen);
  } finally {
    if (all) await engine.quitHost();
    engine.close();
  }
}

async function stopContainers(stateDir: string, config: Config, chosen: (name: string) => boolean): Promise<string[]> {
  const docker = await findDocker({
    stateDir,
    dockerSocket: config.engines.docker?.socket ?? null,
    clock: systemClock,
    log: pino({ enabled: false }),
  });
  if (docker === null) return [];
  try {
    return await stopWork(docker, chosen);
  } finally {
    await docker.close();
  }
}

async function stop(stateDir: string, config: Config, id: string | null): Promise<string[]> {
  try {
    return ((await askAgent(stateDir, { op: "stop", id })) as { stopped: string[] }).stopped;
  } catch (error) {
    if (!(error instanceof ConnectorError) || error.details?.["absent"] !== true) throw error;
    return stopWithoutAgent(stateDir, config, id);
  }
}

export function stopCommand(program: Command, local: LocalCommands): void {
  program
    .command("stop")
    .description("stop a run, a command, a step, a deployment or a replica of one, or everything")
    .argument("[id]", "as ps shows it")
    .option("-a, --all", "everything")
    .option(...local.configOption)
    .addHelpText(
      "after",
      `
A deployment stays stopped until it is applied again; a stopped replica of one comes back.
Works without a running agent too, by --all or the id of a run or command; the agent then
starts the replicas of its deployments again when it starts.`,
    )
    .action((id: string | undefined, options: { config?: string; all?: boolean }) =>
      local.perform(options.config, async (stateDir, config) => {
        if ((id === undefined) === (options.all !== true))
          throw new ConnectorError("INPUT_INVALID", "What is to be stopped?", { fix: "Give one id, or --all." });
        const stopped = await stop(stateDir, config, id ?? null);
        local.write(stopped.length === 0 ? "Nothing was running.\n" : `Stopped ${stopped.join(", ")}\n`);
        return id !== undefined && stopped.length === 0 ? EXIT.failed : EXIT.ok;
      }),
    );
}
