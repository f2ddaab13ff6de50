// The enrolment secret as a person carries it: one line that holds the right to join once, and what to trust.
//   spe_<enrolment id>.<secret, 32 bytes base64url>.<identity key fingerprint>.<CA fingerprint or "-">
import { createHash, randomBytes } from "node:crypto";
import { ConnectorError } from "./errors.ts";
import { enrollmentIdSchema, type EnrollmentId } from "./ids.ts";

export interface EnrolmentSecret {
  readonly id: EnrollmentId;
  /** 32 random bytes. The cloud keeps their sha-256 only. */
  readonly secret: Buffer;
  /** base64url sha-256 of the cloud's raw identity key (`keyFingerprint`). */
  readonly identityFingerprint: string;
  /** base64url sha-256 of the DER of the CA that the cloud made for itself; null: its certificate is publicly trusted. */
  readonly caFingerprint: string | null;
}

const PREFIX = "spe_";
const FINGERPRINT = /^[A-Za-z0-9_-]{43}$/;

export const newEnrolmentSecretBytes = (): Buffer => randomBytes(32);

export function formatEnrolmentSecret(secret: EnrolmentSecret): string {
  return `${PREFIX}${secret.id}.${secret.secret.toString("base64url")}.${secret.identityFingerprint}.${secret.caFingerprint ?? "-"}`;
}

/** Throws ENROLMENT_MALFORMED. The text itself is never repeated in an error. */
export function parseEnrolmentSecret(text: string): EnrolmentSecret {
  const trimmed = text.trim();
  const malformed = (what: string) =>
    new ConnectorError("ENROLMENT_MALFORMED", `The enrolment secret cannot be read: ${what}.`, {
      fix: "Copy the whole line again from the page Add agent, or make a new one there.",
    });
  if (!trimmed.startsWith(PREFIX)) throw malformed(`it does not begin with ${PREFIX}`);
  const parts = trimmed.slice(PREFIX.length).split(".");
  if (parts.length !== 4) throw malformed(`it has ${parts.length} parts where 4 are expected`);
  const [id, secret, identityFingerprint, caFingerprint] = parts as [string, string, string, string];
  const parsedId = enrollmentIdSchema.safeParse(id);
  if (!parsedId.success) throw malformed("its first part is not the id of an enrolment");
  if (!FINGERPRINT.test(secret)) throw malformed("its second part is not 32 bytes");
  if (!FINGERPRINT.test(identityFingerprint))
    throw malformed("its third part is not the fingerprint of an identity key");
  if (caFingerprint !== "-" && !FINGERPRINT.test(caFingerprint))
    throw malformed("its fourth part is not the fingerprint of a CA");
  return {
    id: parsedId.data,
    secret: Buffer.from(secret, "base64url"),
    identityFingerprint,
    caFingerprint: caFingerprint === "-" ? null : caFingerprint,
  };
}

/** What the cloud keeps of a secret: hex sha-256. */
export const hashEnrolmentSecret = (secret: Uint8Array): string => createHash("sha256").update(secret).digest("hex");

/** How a certificate is named in an enrolment secret: base64url sha-256 of its DER. */
export const certificateFingerprint = (der: Uint8Array): string => createHash("sha256").update(der).digest("base64url");
