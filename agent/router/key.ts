// Compares a bearer token with a key, in a time that tells nothing of where they differ.
import { timingSafeEqual } from "node:crypto";

const DECOY = Buffer.alloc(43, "x");

/** `key` null: there is no such endpoint; the same work is done and the answer is no. */
export function shows(authorization: string | undefined, key: Buffer | null): boolean {
  if (authorization === undefined || authorization.slice(0, 7).toLowerCase() !== "bearer ") return false;
  const shown = Buffer.from(authorization.slice(7));
  const wanted = key ?? DECOY;
  if (shown.length !== wanted.length) return false;
  return timingSafeEqual(shown, wanted) && key !== null;
}
