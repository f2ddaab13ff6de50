// Secrets: turns references of the configuration into values, at use. It never writes one anywhere and knows nothing of
// who asks; what may be asked for is the policy's business. Stores, features and main.ts may import this door.
export { openSecrets, MIN_SECRET_CHARS, type ConfiguredSecrets, type SecretsOptions } from "./configured-secrets.ts";
export type { Secrets, SecretValue } from "./secrets.ts";
