// `sallyport-agent ps` and `ready`: what the running agent says of itself.
import type { Command } from "commander";
import { askAgent, renderPs, type PsAnswer } from "../control/index.ts";
import { EXIT, type LocalCommands } from "./local.ts";

const READY_MS = 5000;

export function psCommand(program: Command, local: LocalCommands): void {
  program
    .command("ps")
    .description("what the agent does now, also while the control plane is away")
    .option(...local.configOption)
    .option("-o, --output <format>", "text or json", "text")
    .action((options: { config?: string; output: string }) =>
      local.perform(options.config, async (stateDir) => {
        const answer = (await askAgent(stateDir, { op: "ps" })) as PsAnswer;
        local.write(options.output === "json" ? `${JSON.stringify(answer)}\n` : renderPs(answer));
        return EXIT.ok;
      }),
    );
}

export function readyCommand(program: Command, local: LocalCommands): void {
  program
    .command("ready")
    .description("exit code 0 when the link is up; for probes")
    .option(...local.configOption)
    .action((options: { config?: string }) =>
      local.perform(options.config, async (stateDir) => {
        const { ready, why } = (await askAgent(stateDir, { op: "ready" }, READY_MS)) as { ready: boolean; why: string };
        local.write(`${why}\n`);
        return ready ? EXIT.ok : EXIT.failed;
      }),
    );
}
