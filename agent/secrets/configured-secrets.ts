// Resolves references of the configuration. Values are held for a minute at most, and never leave but by `reveal()`.
import { readFile, stat } from "node:fs/promises";
import { ConnectorError, type Clock, type Timer } from "@sallyport/protocol";
import type { Redactor } from "../redaction/index.ts";
import { parseReferences, type SecretReference } from "./reference.ts";
import { HeldSecret } from "./secret-value.ts";
import type { Secrets, SecretValue } from "./secrets.ts";
import { vaultReader, type VaultReader } from "./vault.ts";

export interface SecretsOptions {
  vault: { address: string; token: string; ca: string | null } | null;
  named: Readonly<Record<string, string>>;
  environment: Readonly<Record<string, string | undefined>>;
  redactor: Redactor;
  clock: Clock;
}

/** Shorter values cannot be told from ordinary text when they are redacted. */
export const MIN_SECRET_CHARS = 8;
const MAX_SECRET_BYTES = 64 * 1024;
/** How long a value is kept: what bounds calls to Vault, and how long a rotated value lives on. */
const CACHE_MS = 60_000;

export interface ConfiguredSecrets extends Secrets {
  forget(text: string): void;
  /** Drops everything held. */
  close(): void;
}

export function openSecrets(options: SecretsOptions): ConfiguredSecrets {
  const { redactor, clock, vault } = options;
  const reader: VaultReader | null = vault === null ? null : vaultReader(vault);
  const held = new Map<string, { value: string; timer: Timer }>();

  const drop = (key: string): void => {
    held.get(key)?.timer.cancel();
    held.delete(key);
  };

  const resolveReference = async (reference: SecretReference, signal?: AbortSignal): Promise<string> => {
    const known = held.get(reference.text);
    if (known !== undefined) return known.value;
    const value = await fetchReference(reference, signal);
    redactor.add(value);
    if (value.length < MIN_SECRET_CHARS) throw tooShort(reference.text);
    drop(reference.text);
    held.set(reference.text, { value, timer: clock.after(CACHE_MS, () => held.delete(reference.text)) });
    return value;
  };

  const fetchReference = async (reference: SecretReference, signal?: AbortSignal): Promise<string> => {
    switch (reference.provider) {
      case "env": {
        const value = Object.hasOwn(options.environment, reference.name)
          ? options.environment[reference.name]
          : undefined;
        if (value === undefined || value === "") {
          throw new ConnectorError(
            "SECRET_UNKNOWN",
            `${reference.text}: the agent's environment has no variable ${reference.name}.`,
            { fix: `Set ${reference.name} where the agent is started.` },
          );
        }
        return value;
      }
      case "file":
        return await readSecretFile(reference);
      case "vault": {
        if (reader === null || vault === null) {
          throw new ConnectorError("CONFIG_INVALID", `${reference.text}: secrets.vault is not set.`, {
            fix: "Set secrets.vault in the agent's configuration.",
          });
        }
        const token = await resolve(vault.token, signal);
        const fields = await reader
          .read(reference.mount, reference.path, token.reveal(), reference.text, signal)
          .catch((error: unknown) => {
            // The token may have been renewed since: the next use reads it again.
            if (error instanceof ConnectorError && error.code === "SECRET_DENIED") forget(vault.token);
            throw error;
          });
        const value = Object.hasOwn(fields, reference.field) ? fields[reference.field] : undefined;
        if (typeof value === "number") return String(value);
        if (typeof value !== "string" || value === "") {
          throw new ConnectorError(
            "SECRET_UNKNOWN",
            `${reference.text}: the secret is there, but its field ${reference.field} is ${value === undefined ? "missing" : "not text"}.`,
            {
              fix: "Correct the field after `#` in the reference, or write it to the secret.",
            },
          );
        }
        return value;
      }
    }
  };

  const resolve = async (text: string, signal?: AbortSignal): Promise<SecretValue> => {
    signal?.throwIfAborted();
    const parsed = parseReferences(text);
    if ("problem" in parsed)
      throw new ConnectorError("CONFIG_INVALID", `A secret of the configuration ${parsed.problem}.`);
    const values = await Promise.all(
      parsed.parts.map(async (p) => ("literal" in p ? p.literal : await resolveReference(p.reference, signal))),
    );
    const value = values.join("");
    redactor.add(value);
    if (value.length < MIN_SECRET_CHARS)
      throw tooShort(
        parsed.parts.length === 1 && "reference" in parsed.parts[0]!
          ? parsed.parts[0].reference.text
          : "A secret of the configuration",
      );
    return new HeldSecret(value);
  };

  const forget = (text: string): void => {
    const parsed = parseReferences(text);
    if ("parts" in parsed) for (const part of parsed.parts) if ("reference" in part) drop(part.reference.text);
  };

  return {
    resolve,
    forget,
    async named(name, signal) {
      const text = Object.hasOwn(options.named, name) ? options.named[name] : undefined;
      if (text === undefined) {
        const names = Object.keys(options.named);
        throw new ConnectorError(
          "SECRET_UNKNOWN",
          `The agent's configuration has no secret named ${JSON.stringify(name)}${names.length === 0 ? "" : `; it has ${names.join(", ")}`}.`,
          {
            fix: "Add it under secrets.named in the agent's configuration, and to policy.secrets.",
          },
        );
      }
      return await resolve(text, signal);
    },
    close() {
      for (const key of [...held.keys()]) drop(key);
    },
  };
}

const tooShort = (what: string): ConnectorError =>
  new ConnectorError(
    "CONFIG_INVALID",
    `${what} is shorter than ${MIN_SECRET_CHARS} characters, so it cannot be told from ordinary text and kept out of logs.`,
    { fix: "Use a longer value." },
  );

async function readSecretFile(reference: Extract<SecretReference, { provider: "file" }>): Promise<string> {
  try {
    const { size } = await stat(reference.path);
    if (size > MAX_SECRET_BYTES) {
      throw new ConnectorError("CONFIG_INVALID", `${reference.text}: the file is over ${MAX_SECRET_BYTES} bytes.`, {
        fix: "Point it at the secret itself.",
      });
    }
    // Editors and `echo` leave a newline at the end, which is no part of the secret.
    const value = (await readFile(reference.path, "utf8")).replace(/\r?\n$/, "");
    if (value === "")
      throw new ConnectorError("SECRET_UNKNOWN", `${reference.text}: the file is empty.`, {
        fix: "Write the secret to it.",
      });
    return value;
  } catch (error) {
    if (error instanceof ConnectorError) throw error;
    const { code } = error as NodeJS.ErrnoException;
    if (code === "EACCES" || code === "EPERM") {
      throw new ConnectorError("SECRET_DENIED", `${reference.text}: the agent's user may not read the file.`, {
        fix: "Let the agent's user read it.",
        cause: error,
      });
    }
    throw new ConnectorError("SECRET_UNKNOWN", `${reference.text}: the file cannot be read (${code ?? "unknown"}).`, {
      fix: "Correct the path or put the file there.",
      cause: error,
    });
  }
}
