// The program `sallyport-agent`: arguments, environment and the configuration's file come in here, signals too, and exit
// codes go out. What an agent is made of is in wiring/, the sub-commands for its own host in cli/. Nothing imports it.
import { existsSync, readFileSync } from "node:fs";
import { Command, CommanderError } from "commander";
import type { Logger } from "pino";
import { ConnectorError, systemClock, toConnectorError } from "@sallyport/protocol";
import { EXIT, explain, localCommands } from "./cli/index.ts";
import { configCommands, loadFor, type ConfigSource } from "./config/cli.ts";
import { loadConfig } from "./config/index.ts";
import { createLogger } from "./host/index.ts";
import { policyCommands } from "./policy/cli.ts";
import { createRedactor } from "./redaction/index.ts";
import { startAgent } from "./wiring/agent.ts";
import type { AgentContext } from "./wiring/context.ts";

const DEFAULT_CONFIG = "/etc/sallyport/agent.yaml";
/** For the log's last line, when a fault ends the agent while it starts. */
const CRASH_MS = 2000;
/** For closing the audit and the journal at the end. */
const ABANDON_MS = 1000;

const clock = systemClock;
// The compiled tree has its package.json beside it as well.
const { version } = JSON.parse(readFileSync(new URL("./package.json", import.meta.url), "utf8")) as { version: string };

const source: ConfigSource = {
  read(file) {
    const path = file ?? process.env["SALLYPORT_CONFIG"] ?? DEFAULT_CONFIG;
    if (file === undefined && process.env["SALLYPORT_CONFIG"] === undefined && !existsSync(path))
      return { text: null, source: `${path} (absent)` };
    try {
      return { text: readFileSync(path, "utf8"), source: path };
    } catch (cause) {
      throw new ConnectorError(
        "CONFIG_INVALID",
        `The configuration ${path} cannot be read (${(cause as NodeJS.ErrnoException).code}).`,
        { fix: "Name a file that the agent's user can read: --config FILE, or SALLYPORT_CONFIG.", cause },
      );
    }
  },
  environment: process.env,
  write: (text) => void process.stdout.write(text),
  writeError: (text) => void process.stderr.write(text),
  exit: (code) => (process.exitCode = code),
};

/** Answers with the exit code. */
async function run(configFile: string | undefined): Promise<number> {
  const redactor = createRedactor();
  let log: Logger | null = null;
  try {
    const readConfig = () => source.read(configFile);
    const { text, source: name } = readConfig();
    const compiled = loadConfig(text, name, process.env);
    process.stdout.on("error", () => undefined);
    log = createLogger({
      level: compiled.config.log.level,
      redactor,
      write: (line) => void process.stdout.write(line),
      pretty: process.stdout.isTTY,
    });
    return await runUntilStopped({ version, clock, log, redactor, environment: process.env, readConfig, compiled });
  } catch (caught) {
    const error = toConnectorError(caught);
    if (error.code === "INTERNAL") (log ?? console).error({ err: caught }, "the agent failed to start");
    return explain(ConnectorError.fromBody(redactor.json(error.toBody())), source.writeError);
  }
}

/** Until a signal, or a fault of its own. */
async function runUntilStopped(context: AgentContext): Promise<number> {
  const { log } = context;
  const ended = Promise.withResolvers<number>();
  const crashed = (error: unknown) => {
    log.fatal({ err: error }, "a fault of the agent itself: it ends, what runs goes on, and a new start takes it over");
    ended.resolve(EXIT.failed);
    // Also when it was still starting.
    clock.after(CRASH_MS, () => process.exit(EXIT.failed), { keepAlive: true });
  };
  process.on("uncaughtException", crashed);
  process.on("unhandledRejection", crashed);
  for (const warning of context.compiled.warnings) log.warn(warning);

  const agent = await startAgent(context);
  let stopping = false;
  const stop = (signal: NodeJS.Signals) => {
    if (stopping) {
      log.warn({ signal }, "stopping at once");
      return ended.resolve(EXIT.failed);
    }
    stopping = true;
    agent.drain(signal).then(
      () => ended.resolve(EXIT.ok),
      (error: unknown) => {
        log.error({ err: error }, "stopping went wrong");
        ended.resolve(EXIT.failed);
      },
    );
  };
  process.on("SIGTERM", stop);
  process.on("SIGINT", stop);
  process.on("SIGHUP", () => agent.reload());

  const code = await ended.promise;
  const late = new Promise<void>((resolve) => clock.after(ABANDON_MS, resolve, { keepAlive: true }));
  await Promise.race([agent.abandon(), late]);
  return code;
}

function buildProgram(): Command {
  const program = new Command("sallyport-agent")
    .description(
      "Acts inside this network for a control plane that it dials out to, with credentials and under a policy that stay here.",
    )
    .version(version);
  program.exitOverride();
  const config = [
    "-c, --config <file>",
    `the configuration file (default: $SALLYPORT_CONFIG, then ${DEFAULT_CONFIG})`,
  ] as const;
  program
    .command("run")
    .description("run the agent until it is told to stop (SIGTERM; SIGHUP reloads the configuration)")
    .option(...config)
    .action(async (options: { config?: string }) => {
      const code = await run(options.config);
      // What is still on its way (a worker, a socket) must not hold up the end.
      process.stdout.write("", () => process.exit(code));
    });
  configCommands(program, source);
  policyCommands(program, { ...source, load: (file) => loadFor(source, file)?.policy ?? null });
  localCommands(program, source, config);
  program
    .command("version")
    .description("print the version")
    .action(() => void process.stdout.write(`${version}\n`));
  return program;
}

try {
  await buildProgram().parseAsync(process.argv);
} catch (error) {
  if (!(error instanceof CommanderError)) throw error;
  // Help and version end here too, with 0.
  process.exitCode = error.exitCode === 0 ? EXIT.ok : EXIT.usage;
}
