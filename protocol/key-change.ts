// Changing the key of an agent replica over a live session: both keys sign, the control plane notes the new one, and
// from then on takes either until the new one was used once. So whatever is lost on the way, one of them opens the door.
import { createPublicKey, sign, verify, type KeyObject } from "node:crypto";
import { z } from "zod";
import { DOMAIN } from "./envelope.ts";
import { ed25519PublicKey, rawPublicKey } from "./handshake.ts";

const signature = z.string().regex(/^[A-Za-z0-9_-]{86}$/, "64 bytes in base64url");

/** Head of the stream by which an agent offers its next key. The answer, any, means that it is noted. */
export const keyOfferSchema = z.object({
  type: z.literal("identity.offer"),
  /** Raw Ed25519 key, base64url. */
  publicKey: z.string().regex(/^[A-Za-z0-9_-]{43}$/, "32 bytes in base64url"),
  byOld: signature,
  byNew: signature,
});
export type KeyOffer = z.infer<typeof keyOfferSchema>;

/** Head of the stream by which the control plane asks an agent to change its key. Answered when that is done. */
export const keyChangeSchema = z.object({ type: z.literal("identity.change") });

/** What both sign: good for this replica and this session alone. */
const signable = (about: { session: string; replica: string }, publicKey: string): Buffer =>
  Buffer.from(`${DOMAIN.identityOffer}\0${about.session}\0${about.replica}\0${publicKey}`);

export function offerKey(about: { session: string; replica: string }, old: KeyObject, next: KeyObject): KeyOffer {
  const publicKey = rawPublicKey(createPublicKey(next));
  const text = signable(about, publicKey);
  const by = (key: KeyObject) => sign(null, text, key).toString("base64url");
  return { type: "identity.offer", publicKey, byOld: by(old), byNew: by(next) };
}

/** Did the holders of both keys sign the offer? `old`: raw, base64url. */
export function provesOffer(about: { session: string; replica: string }, offer: KeyOffer, old: string): boolean {
  const text = signable(about, offer.publicKey);
  return (
    verify(null, text, ed25519PublicKey(old), Buffer.from(offer.byOld, "base64url")) &&
    verify(null, text, ed25519PublicKey(offer.publicKey), Buffer.from(offer.byNew, "base64url"))
  );
}
