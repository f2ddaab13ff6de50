// People and their credentials: sign-in links, web sessions, API tokens. Secrets arrive hashed.
import { randomBytes } from "node:crypto";
import { ConnectorError, newId, uuidv7 } from "@sallyport/protocol";
import type { CredentialRow, IdempotencyEntry, Scope, TokenRow, UserRow } from "../store.ts";
import type { Tables } from "../tables.ts";
import { rememberKey } from "./changes.ts";
import { ws, type Tx } from "./tx.ts";

type Joined = Pick<Tables["users"], "workspace_id" | "user_id" | "name" | "role" | "password_hash"> & {
  workspace_name: string;
};
const toUser = (row: Joined): UserRow => ({
  workspace: ws(row.workspace_id),
  workspaceName: row.workspace_name,
  id: row.user_id,
  name: row.name,
  role: "admin",
  passwordHash: row.password_hash,
});

const people = (tx: Tx) =>
  tx.db
    .selectFrom("users as u")
    .innerJoin("workspaces as w", "w.workspace_id", "u.workspace_id")
    .select(["u.workspace_id", "u.user_id", "u.name", "u.role", "u.password_hash", "w.name as workspace_name"]);

export async function incarnation(tx: Tx): Promise<string> {
  const row = await tx.db.selectFrom("cloud").select("incarnation").executeTakeFirst();
  if (row !== undefined) return row.incarnation;
  const made = randomBytes(16).toString("hex");
  await tx.db.insertInto("cloud").values({ singleton: 1, incarnation: made, made_at: Date.now() }).execute();
  return made;
}

/** Public halves of this cloud's keys, for other processes and for later verification. Known ones are left alone. */
export async function putCloudKeys(
  tx: Tx,
  keys: { kid: string; purpose: string; publicKey: string; createdAt: number }[],
): Promise<void> {
  for (const key of keys) {
    await tx.db
      .insertInto("cloud_keys")
      .values({ kid: key.kid, purpose: key.purpose, public_key: key.publicKey, created_at: key.createdAt })
      .onConflict((conflict) => conflict.column("kid").doNothing())
      .execute();
  }
}

async function addWorkspace(tx: Tx, organisation: string, name: string, admin: string, now: number): Promise<UserRow> {
  const workspace = newId("workspace", now);
  const user = `usr_${uuidv7(now).replaceAll("-", "")}`;
  await tx.db
    .insertInto("workspaces")
    .values({ workspace_id: workspace, organisation_id: organisation, name, created_at: now })
    .execute();
  await tx.db.insertInto("change_counters").values({ workspace_id: workspace, n: 0 }).execute();
  await tx.db
    .insertInto("users")
    .values({
      workspace_id: workspace,
      user_id: user,
      name: admin,
      role: "admin",
      password_hash: null,
      created_at: now,
    })
    .execute();
  return { workspace, workspaceName: name, id: user, name: admin, role: "admin", passwordHash: null };
}

async function organisation(tx: Tx, now: number): Promise<string> {
  const row = await tx.db
    .selectFrom("organisations")
    .select("organisation_id")
    .orderBy("created_at")
    .executeTakeFirst();
  if (row !== undefined) return row.organisation_id;
  const id = `org_${uuidv7(now).replaceAll("-", "")}`;
  await tx.db.insertInto("organisations").values({ organisation_id: id, name: "default", created_at: now }).execute();
  return id;
}

export async function ensureAdmin(tx: Tx, name: string, workspaceName: string): Promise<UserRow> {
  const first = await people(tx).orderBy("u.created_at").orderBy("u.user_id").executeTakeFirst();
  if (first !== undefined) return toUser(first);
  const now = Date.now();
  return addWorkspace(tx, await organisation(tx, now), workspaceName, name, now);
}

export async function makeWorkspace(tx: Tx, workspaceName: string, adminName: string, now: number): Promise<UserRow> {
  if ((await userByName(tx, adminName)) !== null)
    throw new ConnectorError("CONFLICT", `There is a user named ${adminName} already.`, {
      fix: "Choose another name.",
    });
  return addWorkspace(tx, await organisation(tx, now), workspaceName, adminName, now);
}

export async function addSignIn(tx: Tx, user: string, secretHash: string, expiresAt: number): Promise<void> {
  const row = await people(tx).where("u.user_id", "=", user).executeTakeFirstOrThrow();
  await tx.db
    .insertInto("signins")
    .values({
      workspace_id: row.workspace_id,
      secret_hash: secretHash,
      user_id: user,
      expires_at: expiresAt,
      redeemed_at: null,
    })
    .execute();
}

export async function redeemSignIn(tx: Tx, secretHash: string, now: number): Promise<UserRow | null> {
  const used = await tx.db
    .updateTable("signins")
    .set({ redeemed_at: now })
    .where("secret_hash", "=", secretHash)
    .where("redeemed_at", "is", null)
    .where("expires_at", ">", now)
    .returning(["workspace_id", "user_id"])
    .executeTakeFirst();
  if (used === undefined) return null;
  return toUser(
    await people(tx)
      .where("u.workspace_id", "=", used.workspace_id)
      .where("u.user_id", "=", used.user_id)
      .executeTakeFirstOrThrow(),
  );
}

export async function hasSignedIn(tx: Tx, user: string): Promise<boolean> {
  const row = await people(tx).where("u.user_id", "=", user).executeTakeFirst();
  if (row === undefined) return false;
  if (row.password_hash !== null) return true;
  const used = await tx.db
    .selectFrom("signins")
    .select("secret_hash")
    .where("workspace_id", "=", row.workspace_id)
    .where("user_id", "=", user)
    .where("redeemed_at", "is not", null)
    .limit(1)
    .executeTakeFirst();
  return used !== undefined;
}

export async function userByName(tx: Tx, name: string): Promise<UserRow | null> {
  const row = await people(tx).where("u.name", "=", name).executeTakeFirst();
  return row === undefined ? null : toUser(row);
}

export async function setPassword(tx: Tx, scope: Scope, user: string, passwordHash: string): Promise<void> {
  const { numUpdatedRows } = await tx.db
    .updateTable("users")
    .set({ password_hash: passwordHash })
    .where("workspace_id", "=", scope.workspace)
    .where("user_id", "=", user)
    .executeTakeFirst();
  if (numUpdatedRows === 0n) throw new ConnectorError("NOT_FOUND", "There is no such user in this workspace.");
  // Whoever was signed in with the old password is out; the caller signs the person in anew.
  await tx.db
    .deleteFrom("web_sessions")
    .where("workspace_id", "=", scope.workspace)
    .where("user_id", "=", user)
    .execute();
}

export async function addWebSession(
  tx: Tx,
  user: UserRow,
  sessionHash: string,
  now: number,
  expiresAt: number,
): Promise<void> {
  await tx.db
    .deleteFrom("web_sessions")
    .where("workspace_id", "=", user.workspace)
    .where("expires_at", "<=", now)
    .execute();
  await tx.db
    .insertInto("web_sessions")
    .values({
      workspace_id: user.workspace,
      session_hash: sessionHash,
      user_id: user.id,
      created_at: now,
      used_at: now,
      expires_at: expiresAt,
    })
    .execute();
}

export async function peekWebSession(
  tx: Tx,
  sessionHash: string,
  now: number,
  idleMs: number,
): Promise<CredentialRow | null> {
  const row = await people(tx)
    .innerJoin("web_sessions as s", (join) =>
      join.onRef("s.workspace_id", "=", "u.workspace_id").onRef("s.user_id", "=", "u.user_id"),
    )
    .select(["s.used_at", "s.expires_at"])
    .where("s.session_hash", "=", sessionHash)
    .executeTakeFirst();
  if (row === undefined || row.expires_at <= now || row.used_at + idleMs <= now) return null;
  return { user: toUser(row), credential: null, usedAt: row.used_at };
}

export async function touchWebSession(tx: Tx, sessionHash: string, now: number): Promise<void> {
  await tx.db
    .updateTable("web_sessions")
    .set({ used_at: now })
    .where("session_hash", "=", sessionHash)
    .where("used_at", "<", now)
    .execute();
}

export async function removeWebSession(tx: Tx, sessionHash: string): Promise<void> {
  await tx.db.deleteFrom("web_sessions").where("session_hash", "=", sessionHash).execute();
}

const toToken = (row: Tables["api_tokens"]): TokenRow => ({
  id: row.token_id,
  label: row.label,
  hint: row.hint,
  createdAt: row.created_at,
  expiresAt: row.expires_at,
  lastUsedAt: row.last_used_at,
  revokedAt: row.revoked_at,
});

export async function addToken(
  tx: Tx,
  scope: Scope,
  token: { id: string; user: string; label: string; hint: string; hash: string; createdAt: number; expiresAt: number },
  idempotency?: IdempotencyEntry,
): Promise<TokenRow> {
  const row = {
    workspace_id: scope.workspace,
    token_id: token.id,
    user_id: token.user,
    label: token.label,
    hint: token.hint,
    token_hash: token.hash,
    created_at: token.createdAt,
    expires_at: token.expiresAt,
    last_used_at: null,
    revoked_at: null,
  };
  if (idempotency !== undefined) await rememberKey(tx, scope, idempotency, token.createdAt);
  await tx.db.insertInto("api_tokens").values(row).execute();
  tx.touch(scope.workspace, "token", token.id);
  return toToken(row);
}

export async function tokens(tx: Tx, scope: Scope): Promise<TokenRow[]> {
  const rows = await tx.db
    .selectFrom("api_tokens")
    .selectAll()
    .where("workspace_id", "=", scope.workspace)
    .orderBy("created_at", "desc")
    .orderBy("token_id")
    .execute();
  return rows.map(toToken);
}

export async function revokeToken(tx: Tx, scope: Scope, id: string, now: number): Promise<boolean> {
  const row = await tx.db
    .selectFrom("api_tokens")
    .select("revoked_at")
    .where("workspace_id", "=", scope.workspace)
    .where("token_id", "=", id)
    .executeTakeFirst();
  if (row === undefined) return false;
  if (row.revoked_at !== null) return true;
  await tx.db
    .updateTable("api_tokens")
    .set({ revoked_at: now })
    .where("workspace_id", "=", scope.workspace)
    .where("token_id", "=", id)
    .execute();
  tx.touch(scope.workspace, "token", id);
  return true;
}

export async function peekToken(tx: Tx, hash: string, now: number): Promise<CredentialRow | null> {
  const row = await people(tx)
    .innerJoin("api_tokens as t", (join) =>
      join.onRef("t.workspace_id", "=", "u.workspace_id").onRef("t.user_id", "=", "u.user_id"),
    )
    .select(["t.token_id", "t.label", "t.last_used_at", "t.expires_at"])
    .where("t.token_hash", "=", hash)
    .where("t.revoked_at", "is", null)
    .where("t.expires_at", ">", now)
    .executeTakeFirst();
  return row === undefined
    ? null
    : {
        user: toUser(row),
        credential: { id: row.token_id, label: row.label },
        usedAt: row.last_used_at ?? 0,
        expiresAt: row.expires_at,
      };
}

export async function touchToken(tx: Tx, hash: string, now: number): Promise<void> {
  await tx.db.updateTable("api_tokens").set({ last_used_at: now }).where("token_hash", "=", hash).execute();
}
