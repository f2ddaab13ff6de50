// The sub-commands for the agent's own host: audit verify, ps, pause, resume, stop, ready, endpoint, doctor. They read the state directory
// and speak to a running agent over its control socket; they are no part of it. Only main.ts imports this door.
import type { Command } from "commander";
import type { ConfigSource } from "../config/cli.ts";
import { auditCommands } from "./audit.ts";
import { doctorCommand } from "./doctor.ts";
import { endpointCommand } from "./endpoint.ts";
import { localCommandsOf, type LocalCommands } from "./local.ts";
import { pauseCommands } from "./pause.ts";
import { psCommand, readyCommand } from "./ps.ts";
import { stopCommand } from "./stop.ts";

export { EXIT, explain } from "./local.ts";

export function localCommands(
  program: Command,
  source: ConfigSource,
  configOption: LocalCommands["configOption"],
): void {
  const local = localCommandsOf(source, configOption);
  auditCommands(program, local);
  psCommand(program, local);
  pauseCommands(program, local);
  stopCommand(program, local);
  readyCommand(program, local);
  endpointCommand(program, local);
  doctorCommand(program, local);
}
