// What the sub-commands of this folder share: the state directory of the configured agent, and where words go.
import { toConnectorError, type ConnectorError } from "@sallyport/protocol";
import type { Config } from "../config/index.ts";
import { describe, loadFor, type ConfigSource } from "../config/cli.ts";

/** 0 as asked; 1 it failed; 2 the configuration or the command line is wrong. */
export const EXIT = { ok: 0, failed: 1, usage: 2 } as const;

const USAGE_CODES: readonly string[] = ["CONFIG_INVALID", "INPUT_INVALID", "ENROLMENT_MALFORMED"];

/** Says a failure by its sentence and its remedy; answers with the exit code. */
export function explain(error: ConnectorError, writeError: (text: string) => void): number {
  writeError(`sallyport-agent: ${describe(error)}`);
  return USAGE_CODES.includes(error.code) ? EXIT.usage : EXIT.failed;
}

export interface LocalCommands {
  /** Flags and text of `--config`. */
  readonly configOption: readonly [flags: string, text: string];
  readonly environment: ConfigSource["environment"];
  write(text: string): void;
  /** Runs `action` for the agent of that configuration; its answer is the exit code. */
  perform(configFile: string | undefined, action: (stateDir: string, config: Config) => Promise<number>): Promise<void>;
}

export const localCommandsOf = (source: ConfigSource, configOption: LocalCommands["configOption"]): LocalCommands => ({
  configOption,
  environment: source.environment,
  write: (text) => source.write(text),
  async perform(configFile, action) {
    try {
      const loaded = loadFor(source, configFile);
      if (loaded !== null) source.exit(await action(loaded.config.state, loaded.config));
    } catch (error) {
      source.exit(explain(toConnectorError(error), source.writeError));
    }
  },
});
