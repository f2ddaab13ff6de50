// Opaque bodies, signatures and the two signed layers of a command. Data and pure functions only: the keys are elsewhere.
//
// A signature covers a domain tag and the exact bytes sent: verify the bytes first, parse after. What is signed is kept
// as text (JSON) beside its signature, so a recorded frame can be read by a person.
import { createHash, hash, sign as edSign, verify as edVerify, type KeyObject } from "node:crypto";
import { z } from "zod";
import { ConnectorError } from "./errors.ts";
import {
  commandIdSchema,
  nameSchema,
  poolIdSchema,
  replicaIdSchema,
  sessionIdSchema,
  workspaceIdSchema,
} from "./ids.ts";

/** Largest text of an intent or dispatch. */
export const MAX_SIGNED_BYTES = 16 * 1024;
/** Largest body of a command or result that travels in one frame; larger content goes by DATA. */
export const MAX_BODY_BYTES = 512 * 1024;
/** No intent lives longer than this. */
export const MAX_INTENT_LIFETIME_MS = 7 * 24 * 3600 * 1000;
/** No dispatch lives longer than this. */
export const MAX_DISPATCH_LIFETIME_MS = 15 * 60 * 1000;

/**
 * Opaque bytes: input of a command, result, log line. The dispatcher routes by the header alone and never looks inside.
 * `encoding` says what the bytes are once `enc` is undone; `data` is the text itself for json and utf8 in the clear,
 * base64url otherwise. `enc: hpke` (sealed mode) has the reader's key id in `kid`; null means not encrypted.
 */
export const bodySchema = z.strictObject({
  encoding: z.enum(["json", "utf8", "bytes"]),
  enc: z.enum(["none", "hpke"]),
  kid: z.string().max(128).nullable(),
  data: z.string(),
});
export type Body = z.infer<typeof bodySchema>;

export const jsonBody = (value: unknown): Body => jsonTextBody(JSON.stringify(value));
/** Of a value that is JSON already. */
export const jsonTextBody = (data: string): Body => ({ encoding: "json", enc: "none", kid: null, data });
export const textBody = (text: string): Body => ({ encoding: "utf8", enc: "none", kid: null, data: text });

/** The exact bytes that a digest or a signature covers. */
export function bodyBytes(body: Body): Buffer {
  return Buffer.from(body.data, body.enc === "none" && body.encoding !== "bytes" ? "utf8" : "base64url");
}

/** Parses a JSON body in the clear. Throws INPUT_INVALID for anything else. */
export function readJsonBody(body: Body): unknown {
  if (body.enc !== "none" || body.encoding !== "json") {
    throw new ConnectorError(
      "INPUT_INVALID",
      `A JSON body in the clear is expected, not ${body.encoding}/${body.enc}.`,
    );
  }
  try {
    return JSON.parse(body.data) as unknown;
  } catch (cause) {
    throw new ConnectorError("INPUT_INVALID", "The body is not JSON.", { cause });
  }
}

export const sha256 = (bytes: string | Uint8Array): string => hash("sha256", bytes, "hex");

export const signatureSchema = z.strictObject({
  kid: z.string().min(1).max(128),
  alg: z.literal("ed25519"),
  /** base64url */
  sig: z.string().min(1).max(256),
});
export type Signature = z.infer<typeof signatureSchema>;

/** Text and the signature over domain tag + its UTF-8 bytes. */
export const signedSchema = z.strictObject({ text: z.string().max(MAX_SIGNED_BYTES), signature: signatureSchema });
export type Signed = z.infer<typeof signedSchema>;
/** An intent without an author's key carries no signature; only the cloud's dispatch vouches for it. */
export const maybeSignedSchema = z.strictObject({
  text: z.string().max(MAX_SIGNED_BYTES),
  signature: signatureSchema.nullable(),
});
export type MaybeSigned = z.infer<typeof maybeSignedSchema>;

/** Domain tags keep a signature made for one purpose from being used for another. */
export const DOMAIN = {
  intent: "sallyport/intent/1",
  dispatch: "sallyport/dispatch/1",
  helloCloud: "sallyport/hello/cloud/1",
  helloAgent: "sallyport/hello/agent/1",
  identityOffer: "sallyport/identity/offer/1",
  peerAcceptor: "sallyport/peer/acceptor/1",
  peerDialer: "sallyport/peer/dialer/1",
} as const;
export type Domain = (typeof DOMAIN)[keyof typeof DOMAIN];

const tagged = (domain: Domain, bytes: Uint8Array): Buffer => Buffer.concat([Buffer.from(`${domain}\0`), bytes]);

/** The port behind which the cloud's command key lives (file, environment, KMS). */
export interface Signer {
  readonly kid: string;
  sign(domain: Domain, bytes: Uint8Array): Signature;
}

/** A signer over an Ed25519 private key held in this process. */
export function keySigner(kid: string, key: KeyObject): Signer {
  return {
    kid,
    sign: (domain, bytes) => ({
      kid,
      alg: "ed25519",
      sig: edSign(null, tagged(domain, bytes), key).toString("base64url"),
    }),
  };
}

/** kid -> public key. A kid that is not in the map never verifies. */
export type KeyRing = ReadonlyMap<string, KeyObject>;

export function verifySignature(ring: KeyRing, domain: Domain, bytes: Uint8Array, signature: Signature): boolean {
  const key = ring.get(signature.kid);
  if (key === undefined || key.asymmetricKeyType !== "ed25519") return false;
  return edVerify(null, tagged(domain, bytes), key, Buffer.from(signature.sig, "base64url"));
}

/** Short name of a public key: sha-256 over its raw 32 bytes, base64url. What the enrolment secret pins. */
export function keyFingerprint(publicKey: KeyObject): string {
  const raw = Buffer.from((publicKey.export({ format: "jwk" }) as { x: string }).x, "base64url");
  return createHash("sha256").update(raw).digest("base64url");
}

export const COMMAND_CLASSES = ["interactive", "interactive-effect", "durable"] as const;
export type CommandClass = (typeof COMMAND_CLASSES)[number];

/**
 * What a person's key may sign: one wish, once. Unknown fields are refused. Times are ms since the epoch.
 * `resource` is what order of commit is kept within, e.g. `run:run_…` or `artifact:lake/a/b`.
 */
export const intentSchema = z.strictObject({
  workspace: workspaceIdSchema,
  pool: poolIdSchema,
  kind: z.string().min(3).max(64),
  resource: z.string().min(1).max(1200),
  command: commandIdSchema,
  notBefore: z.int().nonnegative(),
  expires: z.int().nonnegative(),
  /** Hex sha-256 of the body's exact bytes. */
  bodyDigest: z.string().regex(/^[0-9a-f]{64}$/),
});
export type Intent = z.infer<typeof intentSchema>;

/** Made by the cloud at each offer: this intent, to this replica, on this session, now. */
export const dispatchSchema = z.strictObject({
  /** Hex sha-256 of the intent's text. */
  intentDigest: z.string().regex(/^[0-9a-f]{64}$/),
  replica: replicaIdSchema,
  session: sessionIdSchema,
  /** Rises with each session of the replica. */
  epoch: z.int().nonnegative(),
  /** Changes when the cloud's database is restored from a backup. */
  incarnation: z.string().min(1).max(64),
  /** Rises with each dispatch to the replica, over all its sessions in one incarnation. */
  sequence: z.int().positive(),
  attempt: z.int().positive(),
  expires: z.int().nonnegative(),
  /** Another replica accepted the command in time, or may have, and has gone silent: past its expiry it may be taken if its work has begun. */
  takenOver: z.literal(true).optional(),
});
export type Dispatch = z.infer<typeof dispatchSchema>;

/** What OPEN carries for a command, cloud to agent. */
export const commandOpenSchema = z.strictObject({
  type: z.literal("command"),
  intent: maybeSignedSchema,
  dispatch: signedSchema,
  body: bodySchema,
  /**
   * W3C `traceparent` of whoever asks: for logs and spans, decides nothing, so nothing signs it. Absent or malformed = none.
   * Only for agents whose hello names the capability `trace`.
   */
  trace: z.string().optional().catch(undefined),
});
export type CommandOpen = z.infer<typeof commandOpenSchema>;

/** The agent's answer head to a command's OPEN. A refusal is a RESET with a code, never an answer. */
export const commandAnswerSchema = z.discriminatedUnion("type", [
  /** Interactive: the result; content, if the kind has any, follows as DATA. */
  z.object({ type: z.literal("result"), body: bodySchema }),
  /**
   * Uploads that outlive their stream: the bytes are to come from `offset` on. Lines of `uploadProgressSchema` follow as
   * DATA, the result as the last.
   */
  z.object({ type: z.literal("taking"), offset: z.int().nonnegative() }),
  /** Durable: journaled and fsynced. `known` when the command id was held already. */
  z.object({ type: z.literal("accepted"), known: z.boolean() }),
]);
export type CommandAnswer = z.infer<typeof commandAnswerSchema>;

/** What an agent says while it takes an upload that may outlive its stream. */
export const uploadProgressSchema = z.discriminatedUnion("type", [
  /** Bytes of the whole upload that need not be sent again as long as this agent process lives. */
  z.object({ type: z.literal("taken"), bytes: z.int().nonnegative() }),
  z.object({ type: z.literal("result"), body: bodySchema }),
]);

/** What a name of the agent's configuration may look like where a command refers to it. */
export const configNameSchema = nameSchema;
