// One key ring: Ed25519 keys of one purpose, each with a kid, the newest signing. In a file that its owner alone can read.
//
// Making a ring in the data directory is for a single process. Several processes share one ring that is given to them.
import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject } from "node:crypto";
import { readFileSync } from "node:fs";
import { ConnectorError, keyFingerprint, keySigner, type KeyRing, type Signer } from "@sallyport/protocol";
import { z } from "zod";
import { readPrivateFile, writePrivateFile } from "./private-file.ts";

/** `identity`: what agents pin at enrolment. `command`: signs dispatches; rotates without new enrolment. */
export type KeyPurpose = "identity" | "command";

const fileSchema = z.strictObject({
  format: z.literal("sallyport/key-ring/1"),
  purpose: z.enum(["identity", "command"]),
  /** Oldest first; the last signs. `privateKey`: PKCS#8 DER, base64. */
  keys: z.array(z.strictObject({ kid: z.string().min(1).max(128), createdAt: z.int(), privateKey: z.string() })).min(1),
});

export interface LoadedRing {
  readonly signer: Signer;
  readonly publicKey: KeyObject;
  /** Of the signing key: what the enrolment secret pins. */
  readonly fingerprint: string;
  /** Public halves of all keys, by kid. */
  readonly ring: KeyRing;
  /** For the database. */
  readonly publicRows: { kid: string; purpose: KeyPurpose; publicKey: string; createdAt: number }[];
}

const kidOf = (purpose: KeyPurpose, key: KeyObject): string => `${purpose}-${keyFingerprint(key).slice(0, 16)}`;

/**
 * Loads the ring, making it with one key when the file does not exist, unless it is to be `given`. A damaged file is an
 * error, never replaced.
 */
export function loadKeyRing(path: string, purpose: KeyPurpose, now: number, given = false): LoadedRing {
  if (readPrivateFile(path) === null) {
    if (given)
      throw new ConnectorError("CONFIG_INVALID", `There is no key ring ${path}.`, {
        fix: "Make the folder once with: sallyport-cloud keys FOLDER, and give every process a copy of it by --keys.",
      });
    const { privateKey, publicKey } = generateKeyPairSync("ed25519");
    const made = {
      format: "sallyport/key-ring/1",
      purpose,
      keys: [
        {
          kid: kidOf(purpose, publicKey),
          createdAt: now,
          privateKey: privateKey.export({ format: "der", type: "pkcs8" }).toString("base64"),
        },
      ],
    };
    writePrivateFile(path, `${JSON.stringify(made, null, 2)}\n`, { exclusive: true });
  }
  try {
    const file = fileSchema.parse(JSON.parse(readFileSync(path, "utf8")));
    if (file.purpose !== purpose) throw new Error(`it is a ring of ${file.purpose} keys`);
    const keys = file.keys.map((entry) => {
      const privateKey = createPrivateKey({
        key: Buffer.from(entry.privateKey, "base64"),
        format: "der",
        type: "pkcs8",
      });
      if (privateKey.asymmetricKeyType !== "ed25519") throw new Error(`key ${entry.kid} is not Ed25519`);
      return { ...entry, key: privateKey, publicKey: createPublicKey(privateKey) };
    });
    const current = keys.at(-1)!;
    return {
      signer: keySigner(current.kid, current.key),
      publicKey: current.publicKey,
      fingerprint: keyFingerprint(current.publicKey),
      ring: new Map(keys.map((entry) => [entry.kid, entry.publicKey])),
      publicRows: keys.map((entry) => ({
        kid: entry.kid,
        purpose,
        createdAt: entry.createdAt,
        publicKey: (entry.publicKey.export({ format: "jwk" }) as { x: string }).x,
      })),
    };
  } catch (cause) {
    throw new ConnectorError(
      "CONFIG_INVALID",
      `The key ring ${path} cannot be read${cause instanceof Error ? `: ${cause.name === "ZodError" ? "it has not the form of a ring" : cause.message}` : ""}.`,
      {
        fix: "Restore the file from a backup. Without it every agent must be enrolled anew.",
        cause,
      },
    );
  }
}
