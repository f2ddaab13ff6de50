// Secrets that let a person or a program in: how they are made, checked by form, and hashed for the database.
// All are 256 random bits, so a plain sha-256 at rest is enough; passwords are another matter (passwords.ts).
import { randomBytes } from "node:crypto";
import { crc32 } from "node:zlib";
import { sha256 } from "@sallyport/protocol";

/** One-time sign-in links: printed at first start and by `admin reset`. */
export const SIGN_IN_LIFETIME_MS = 15 * 60_000;
/** A web session's absolute end, and how long it may lie idle. */
export const SESSION_LIFETIME_MS = 12 * 3600_000;
export const SESSION_IDLE_MS = 2 * 3600_000;

const TOKEN_PREFIX = "spt_";
const TOKEN_FORM = /^spt_([A-Za-z0-9_-]{43})([0-9A-Za-z]{6})$/;
const BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/** CRC-32 in six base-62 digits, so that scanners know a token without asking and typos never reach the database. */
function checksum(text: string): string {
  let value = crc32(text);
  let digits = "";
  for (let i = 0; i < 6; i++) {
    digits = BASE62[value % 62]! + digits;
    value = Math.floor(value / 62);
  }
  return digits;
}

export const newSecret = (): string => randomBytes(32).toString("base64url");
export const hashSecret = (secret: string): string => sha256(secret);

export interface NewApiToken {
  token: string;
  hash: string;
  /** Enough to recognise it by, far too little to use. */
  hint: string;
}
export function newApiToken(): NewApiToken {
  const secret = newSecret();
  const token = `${TOKEN_PREFIX}${secret}${checksum(secret)}`;
  return { token, hash: hashSecret(token), hint: token.slice(0, 8) };
}

/** Whether the text has a token's form and checksum. Says nothing about whether it is known. */
export function isApiToken(text: string): boolean {
  const match = TOKEN_FORM.exec(text);
  return match !== null && checksum(match[1]!) === match[2];
}

/** Whether a text holds anything that begins as one of our secrets: such a text must not be in a URL. */
export const holdsSecret = (text: string): boolean => /sp[te]_[A-Za-z0-9_-]{16}/.test(text);
