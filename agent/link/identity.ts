// Who this replica is: a key that never leaves the state directory, and what enrolment taught. A restart needs nothing else.
import { createPrivateKey, generateKeyPairSync, type KeyObject } from "node:crypto";
import {
  chmodSync,
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  statSync,
  writeSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { z } from "zod";
import { ConnectorError, poolIdSchema, replicaIdSchema, workspaceIdSchema } from "@sallyport/protocol";

const KEY_FILE = "identity.key";
const NEXT_KEY_FILE = "identity.next.key";
const FILE = "identity.json";

export const identitySchema = z.object({
  version: z.literal(1),
  replica: replicaIdSchema,
  workspace: workspaceIdSchema,
  pool: poolIdSchema,
  /** For people; the ids are what counts. */
  names: z.object({ replica: z.string(), pool: z.string(), workspace: z.string() }),
  /** Where it enrolled. The configuration's address, when there is one, wins. */
  cloudUrl: z.string(),
  /** Identity keys of the control plane that are believed. */
  identityFingerprints: z.array(z.string()).min(1),
  /** The CA pinned at enrolment, PEM; null: the configuration's, or the machine's list. */
  ca: z.string().nullable(),
});
export type Identity = z.infer<typeof identitySchema>;

export class IdentityStore {
  readonly #directory: string;

  constructor(stateDirectory: string) {
    this.#directory = stateDirectory;
  }

  /** Null before enrolment. Throws CONFIG_INVALID when the files are there and not usable. */
  load(): { identity: Identity; key: KeyObject } | null {
    const path = join(this.#directory, FILE);
    if (!existsSync(path)) return null;
    try {
      return { identity: identitySchema.parse(JSON.parse(readFileSync(path, "utf8"))), key: this.#readKey() };
    } catch (cause) {
      throw new ConnectorError("CONFIG_INVALID", `The agent's identity in ${this.#directory} cannot be read.`, {
        fix: "Restore the state directory from a backup, or empty it and enrol the agent again.",
        cause,
      });
    }
  }

  /**
   * The key to enrol with. Made once and kept before it is first shown, so that an enrolment whose answer was lost can be
   * repeated with the same key (and is then the same replica).
   */
  enrolmentKey(): KeyObject {
    return this.#madeKey(KEY_FILE);
  }

  /** The key to change to. Made once, and the same until it is taken: an offer whose answer was lost is repeated. */
  nextKey(): KeyObject {
    return this.#madeKey(NEXT_KEY_FILE);
  }

  /** A change was begun and not ended. */
  get changing(): boolean {
    return existsSync(join(this.#directory, NEXT_KEY_FILE));
  }

  /** From now on the next key is the key. One step: before it the old one is there, after it the new one. */
  takeNextKey(): void {
    renameSync(join(this.#directory, NEXT_KEY_FILE), join(this.#directory, KEY_FILE));
    syncDirectory(this.#directory);
  }

  /** When the key was made, ms since the epoch. */
  keyMadeAt(): number {
    return statSync(join(this.#directory, KEY_FILE)).mtimeMs;
  }

  save(identity: Identity): void {
    writeDurably(join(this.#directory, FILE), `${JSON.stringify(identity, null, 2)}\n`);
  }

  #madeKey(file: string): KeyObject {
    const path = join(this.#directory, file);
    if (!existsSync(path)) {
      mkdirSync(this.#directory, { recursive: true, mode: 0o700 });
      const { privateKey } = generateKeyPairSync("ed25519");
      writeDurably(path, privateKey.export({ format: "pem", type: "pkcs8" }) as string);
    }
    return this.#readKey(file);
  }

  #readKey(file = KEY_FILE): KeyObject {
    const path = join(this.#directory, file);
    chmodSync(path, 0o600);
    return createPrivateKey(readFileSync(path, "utf8"));
  }
}

/** All or nothing, also across a power cut: a new file, fsynced, renamed over, and the directory fsynced. */
function writeDurably(path: string, text: string): void {
  const temporary = `${path}.${process.pid}.tmp`;
  const file = openSync(temporary, "w", 0o600);
  try {
    writeSync(file, text);
    fsyncSync(file);
  } finally {
    closeSync(file);
  }
  renameSync(temporary, path);
  syncDirectory(dirname(path));
}

function syncDirectory(path: string): void {
  const directory = openSync(path, "r");
  try {
    fsyncSync(directory);
  } finally {
    closeSync(directory);
  }
}
