// The agent's configuration: one YAML file and a few variables, in three stages. It reads no file and no environment
// itself; main.ts hands both over. main.ts and the doors of config's consumers may import it (types only for the latter).
export {
  compileConfig,
  defaultConfig,
  DEFAULT_LIMITS,
  DEFAULT_STATE,
  loadConfig,
  parseConfig,
  reload,
  withStars,
  type CompiledConfig,
  type Config,
  type Environment,
  type FsStoreConfig,
  type LimitsConfig,
  type LogLevel,
  type ProgramConfig,
  type Reloaded,
  type S3StoreConfig,
  type SecretsConfig,
  type StoreConfig,
  type VaultConfig,
} from "./config.ts";
export { configJsonSchema, type RawConfig } from "./schema.ts";
export { showConfig } from "./show.ts";
