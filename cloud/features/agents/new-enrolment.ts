// Makes an enrolment: a row that knows the secret's hash, and the secret itself, which nobody keeps.
import {
  formatEnrolmentSecret,
  hashEnrolmentSecret,
  newEnrolmentSecretBytes,
  newId,
  type EnrollmentId,
} from "@sallyport/protocol";
import type { EnrollmentRow, IdempotencyEntry, Scope, Store } from "../../store/index.ts";

const LIFETIME_MS = 3_600_000;

/** What a secret pins: the identity key's fingerprint, and that of the CA which this control plane made, if it did. */
export interface EnrolmentTrust {
  identityFingerprint: string;
  caFingerprint: string | null;
}

export async function newEnrolment(
  store: Store,
  scope: Scope,
  wanted: {
    pool: string;
    /** Of the agent that joins; null = made from the pool's. */
    name: string | null;
    now: number;
    trust: EnrolmentTrust;
    /** What a repeated request is answered; null = it has no key. */
    idempotency: ((id: EnrollmentId) => IdempotencyEntry) | null;
  },
): Promise<{ row: EnrollmentRow; secret: string }> {
  const { now, trust } = wanted;
  const id = newId("enrollment", now);
  const secret = newEnrolmentSecretBytes();
  const pool = await store.ensurePool(scope, wanted.pool, now);
  const row = await store.addEnrollment(
    scope,
    {
      id,
      pool: pool.id,
      name: wanted.name,
      secretHash: hashEnrolmentSecret(secret),
      createdAt: now,
      expiresAt: now + LIFETIME_MS,
    },
    wanted.idempotency?.(id),
  );
  return { row, secret: formatEnrolmentSecret({ id, secret, ...trust }) };
}
