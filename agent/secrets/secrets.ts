// The port of secrets: references of the configuration are resolved at use, and dropped after.

/**
 * A secret's value. It refuses to be printed, serialised or put in a template: only `reveal()` gives the text, to the
 * connector it is bound to. Every value made is known to the redactor from then on.
 */
export interface SecretValue {
  reveal(): string;
  toString(): string;
  toJSON(): string;
}

export interface Secrets {
  /**
   * Resolves text of the configuration: `${env:NAME}`, `${file:/run/secrets/x}`, `${vault:mount/path#field}`, or text
   * with such references in it; text without any is itself a secret value. Throws SECRET_UNKNOWN, SECRET_DENIED or
   * SECRET_UNREACHABLE, naming the reference and never its value.
   */
  resolve(text: string, signal?: AbortSignal): Promise<SecretValue>;
  /** A secret that a step may be given, by its name under `secrets.named` of the configuration. */
  named(name: string, signal?: AbortSignal): Promise<SecretValue>;
  /** Drops what is held for this text, so that the next `resolve` asks the provider again: after a refusal. */
  forget?(text: string): void;
}
