// `sallyport-agent config show|validate|schema`, to be mounted by main.ts.
import type { Command } from "commander";
import { toConnectorError, type ConnectorError } from "@sallyport/protocol";
import { loadConfig, type CompiledConfig, type Environment } from "./config.ts";
import { configJsonSchema } from "./schema.ts";
import { showConfig } from "./show.ts";

/** What main.ts lends to sub-programs: they read nothing themselves. */
export interface ConfigSource {
  /** Text of the file (null: there is none) and its name. `--config FILE` of the command line first, then the default place. */
  read(file: string | undefined): { text: string | null; source: string };
  environment: Environment;
  write(text: string): void;
  writeError(text: string): void;
  exit(code: number): void;
}

/** Loads for a sub-program; tells what is wrong and exits 2 otherwise. */
export function loadFor(source: ConfigSource, file: string | undefined): CompiledConfig | null {
  try {
    const { text, source: name } = source.read(file);
    return loadConfig(text, name, source.environment);
  } catch (error) {
    source.writeError(describe(toConnectorError(error)));
    source.exit(2);
    return null;
  }
}

/** Every problem on its own line. */
export function describe(error: ConnectorError): string {
  const problems = error.details?.["problems"] as { line: number | null; sentence: string }[] | undefined;
  const lines =
    problems === undefined
      ? [error.message]
      : problems.map(
          (p) => `${String(error.details?.["source"])}${p.line === null ? "" : `:${p.line}`}: ${p.sentence}`,
        );
  return `${lines.join("\n")}\n${error.fix === undefined ? "" : `${error.fix}\n`}`;
}

export function configCommands(program: Command, source: ConfigSource): void {
  const config = program.command("config").description("look at the configuration");
  config
    .command("show")
    .description("print every value in effect, secrets as stars")
    .option("-c, --config <file>", "the configuration file")
    .option("--origin", "say beside each value where it came from")
    .action((options: { config?: string; origin?: boolean }) => {
      const loaded = loadFor(source, options.config);
      if (loaded !== null) source.write(showConfig(loaded, { origin: options.origin === true }));
    });
  config
    .command("validate")
    .description("check the file; exit code 2 when something is wrong")
    .option("-c, --config <file>", "the configuration file")
    .action((options: { config?: string }) => {
      const loaded = loadFor(source, options.config);
      if (loaded === null) return;
      for (const warning of loaded.warnings) source.writeError(`note: ${warning}\n`);
      source.write("The configuration is valid.\n");
    });
  config
    .command("schema")
    .description("print the JSON Schema of the file, for editors")
    .action(() => source.write(`${JSON.stringify(configJsonSchema(), null, 2)}\n`));
}
