// Passwords: scrypt with its parameters beside the hash, so that they can be raised later.
import { randomBytes, scrypt as scryptCallback, timingSafeEqual } from "node:crypto";
import { ConnectorError } from "@sallyport/protocol";

/** 32 MiB and about 0.1 s an attempt on a small core (OWASP's second choice; its first takes 128 MiB). */
const COST = { N: 2 ** 15, r: 8, p: 3 } as const;
const KEY_BYTES = 32;
/** Attempts that hash at the same time; further ones are refused: memory stays bounded. */
const MAX_CONCURRENT = 4;
let running = 0;

async function scrypt(password: string, salt: Buffer, cost: { N: number; r: number; p: number }): Promise<Buffer> {
  if (running >= MAX_CONCURRENT)
    throw new ConnectorError("RATE_LIMITED", "Too many sign-ins at the same time.", { fix: "Try again in a second." });
  running++;
  try {
    return await new Promise((resolve, reject) => {
      scryptCallback(
        password.normalize("NFKC"),
        salt,
        KEY_BYTES,
        { ...cost, maxmem: 256 * cost.N * cost.r },
        (error, key) => (error ? reject(error) : resolve(key)),
      );
    });
  } finally {
    running--;
  }
}

export async function hashPassword(password: string): Promise<string> {
  const salt = randomBytes(16);
  const key = await scrypt(password, salt, COST);
  return ["scrypt", COST.N, COST.r, COST.p, salt.toString("base64url"), key.toString("base64url")].join("$");
}

/** `hash` null (no such user, no password set): takes as long as a wrong password, answers false. */
export async function verifyPassword(password: string, hash: string | null): Promise<boolean> {
  const parts = hash?.split("$") ?? [];
  const [name, n, r, p, salt, key] = parts;
  if (name !== "scrypt" || salt === undefined || key === undefined) {
    await scrypt(password, Buffer.alloc(16), COST);
    return false;
  }
  const expected = Buffer.from(key, "base64url");
  const actual = await scrypt(password, Buffer.from(salt, "base64url"), { N: Number(n), r: Number(r), p: Number(p) });
  return expected.length === actual.length && timingSafeEqual(expected, actual);
}
