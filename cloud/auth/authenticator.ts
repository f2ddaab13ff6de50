// From what a request carries to who sent it. Knows nothing of HTTP but the two strings it is given.
import type { Clock } from "@sallyport/protocol";
import type { CredentialRow, Store, UserRow } from "../store/index.ts";
import {
  hashSecret,
  isApiToken,
  newSecret,
  SESSION_IDLE_MS,
  SESSION_LIFETIME_MS,
  SIGN_IN_LIFETIME_MS,
} from "./credentials.ts";

export interface Credential {
  kind: "session" | "token";
  /** What the database knows it by. */
  hash: string;
}
export interface Authenticated {
  credential: Credential;
  found: CredentialRow;
}

export class Authenticator {
  readonly #store: Store;
  readonly #clock: Clock;

  constructor(store: Store, clock: Clock) {
    this.#store = store;
    this.#clock = clock;
  }

  /** The bearer token, if there is one, decides alone: a cookie beside it is not looked at. */
  async authenticate(carried: { bearer: string | null; cookie: string | null }): Promise<Authenticated | null> {
    if (carried.bearer !== null) {
      if (!isApiToken(carried.bearer)) return null;
      const hash = hashSecret(carried.bearer);
      const found = await this.#store.useToken(hash, this.#clock.now());
      return found === null ? null : { credential: { kind: "token", hash }, found };
    }
    if (carried.cookie === null || !/^[A-Za-z0-9_-]{43}$/.test(carried.cookie)) return null;
    const hash = hashSecret(carried.cookie);
    const found = await this.#store.useWebSession(hash, this.#clock.now(), SESSION_IDLE_MS);
    return found === null ? null : { credential: { kind: "session", hash }, found };
  }

  /** Whether a credential that let a stream in still would. Not counted as a use. */
  async stillGood(credential: Credential): Promise<boolean> {
    const now = this.#clock.now();
    const found =
      credential.kind === "token"
        ? await this.#store.peekToken(credential.hash, now)
        : await this.#store.peekWebSession(credential.hash, now, SESSION_IDLE_MS);
    return found !== null;
  }

  /** A new web session; answers the cookie's value, which is nowhere else. */
  async openSession(user: UserRow): Promise<{ secret: string; hash: string; maxAgeS: number }> {
    const secret = newSecret();
    const now = this.#clock.now();
    const hash = hashSecret(secret);
    await this.#store.addWebSession(user, hash, now, now + SESSION_LIFETIME_MS);
    return { secret, hash, maxAgeS: SESSION_LIFETIME_MS / 1000 };
  }

  /** A one-time sign-in secret for the user; what the URL carries behind `#`. */
  async offerSignIn(user: UserRow): Promise<string> {
    const secret = newSecret();
    await this.#store.addSignIn(user.id, hashSecret(secret), this.#clock.now() + SIGN_IN_LIFETIME_MS);
    return secret;
  }

  redeemSignIn(secret: string): Promise<UserRow | null> {
    return this.#store.redeemSignIn(hashSecret(secret), this.#clock.now());
  }
}

/** The fragment never leaves the browser by itself: no proxy or log sees the secret. */
export const signInUrl = (publicUrl: string, secret: string): string => `${publicUrl}/signin#${secret}`;
