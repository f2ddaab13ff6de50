// `sallyport-agent stop`: by the running agent, or at the engine itself when there is none.
import { existsSync } from "node:fs";
import { join } from "node:path";
import { ConnectorError, systemClock } from "@sallyport/protocol";
import type { Command } from "commander";
import { askAgent, stopWork } from "../control/index.ts";
import { createProcessEngine } from "../engines/process/index.ts";
import { EXIT, type LocalCommands } from "./local.ts";

/** Without an agent only the work itself can be stopped; the next start of the agent finds it ended. */
async function stopWithoutAgent(stateDir: string, id: string | null): Promise<string[]> {
  if (!existsSync(join(stateDir, "host", "host.sock"))) return [];
  const engine = createProcessEngine({ stateDir, clock: systemClock });
  try {
    return await stopWork(engine, (name) => id === null || name === id || name.slice(0, 36) === id);
  } finally {
    if (id === null) await engine.quitHost();
    engine.close();
  }
}

async function stop(stateDir: string, id: string | null): Promise<string[]> {
  try {
    return ((await askAgent(stateDir, { op: "stop", id })) as { stopped: string[] }).stopped;
  } catch (error) {
    if (!(error instanceof ConnectorError) || error.details?.["absent"] !== true) throw error;
    return stopWithoutAgent(stateDir, id);
  }
}

export function stopCommand(program: Command, local: LocalCommands): void {
  program
    .command("stop")
    .description(
      "stop a run, a command or a step (its id as ps shows it), or everything; works without a running agent",
    )
    .argument("[id]", "what to stop")
    .option("-a, --all", "everything")
    .option(...local.configOption)
    .action((id: string | undefined, options: { config?: string; all?: boolean }) =>
      local.perform(options.config, async (stateDir) => {
        if ((id === undefined) === (options.all !== true))
          throw new ConnectorError("INPUT_INVALID", "What is to be stopped?", { fix: "Give one id, or --all." });
        const stopped = await stop(stateDir, id ?? null);
        local.write(stopped.length === 0 ? "Nothing was running.\n" : `Stopped ${stopped.join(", ")}\n`);
        return id !== undefined && stopped.length === 0 ? EXIT.failed : EXIT.ok;
      }),
    );
}
