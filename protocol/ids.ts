// Identifiers. A prefix says what it names, the UUIDv7 behind it sorts by time. Branded so two cannot be swapped.
import { randomBytes } from "node:crypto";
import { z } from "zod";

declare const brand: unique symbol;
type Id<Name extends string> = string & { readonly [brand]: Name };

export type WorkspaceId = Id<"workspace">;
export type PoolId = Id<"pool">;
/** One agent replica: its own key, in one pool. */
export type ReplicaId = Id<"replica">;
/** UUIDv7 without prefix, chosen by the client that asks for the command. */
export type CommandId = Id<"command">;
export type RunId = Id<"run">;
export type EnrollmentId = Id<"enrollment">;
export type SessionId = Id<"session">;
export type JournalId = Id<"journal">;
export type DeploymentId = Id<"deployment">;

/** UUIDv7 (RFC 9562): 48 bits of ms since the epoch, then random. */
export function uuidv7(nowMs: number = Date.now()): string {
  const bytes = randomBytes(16);
  bytes.writeUIntBE(nowMs, 0, 6);
  bytes[6] = (bytes[6]! & 0x0f) | 0x70;
  bytes[8] = (bytes[8]! & 0x3f) | 0x80;
  const hex = bytes.toString("hex");
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
}

const PREFIXES = {
  workspace: "wsp",
  pool: "pool",
  replica: "rep",
  run: "run",
  enrollment: "enr",
  session: "ses",
  journal: "jrn",
  deployment: "dep",
} as const;
type Prefixed = keyof typeof PREFIXES;

/** `rep_0199…`: prefix and 32 hex digits. */
export function newId<N extends Prefixed>(name: N, nowMs?: number): Id<N> {
  return `${PREFIXES[name]}_${uuidv7(nowMs).replaceAll("-", "")}` as Id<N>;
}
export const newCommandId = (nowMs?: number): CommandId => uuidv7(nowMs) as CommandId;

const idSchema = <N extends Prefixed>(name: N) =>
  z
    .string()
    .regex(
      new RegExp(`^${PREFIXES[name]}_[0-9a-f]{32}$`),
      `an id such as ${PREFIXES[name]}_… is expected`,
    ) as unknown as z.ZodType<Id<N>, string>;

export const workspaceIdSchema = idSchema("workspace");
export const poolIdSchema = idSchema("pool");
export const replicaIdSchema = idSchema("replica");
export const runIdSchema = idSchema("run");
export const enrollmentIdSchema = idSchema("enrollment");
export const sessionIdSchema = idSchema("session");
export const journalIdSchema = idSchema("journal");
export const deploymentIdSchema = idSchema("deployment");
export const commandIdSchema = z
  .string()
  .regex(
    /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/,
    "a UUIDv7 is expected",
  ) as unknown as z.ZodType<CommandId, string>;

/** Names people give: pools, stores, programs, steps. Lower case, digits, `-`, `_`, `.`; 1 to 63 characters. */
export const nameSchema = z
  .string()
  .regex(
    /^[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?$/,
    "1 to 63 of a-z, 0-9, '.', '_' and '-', beginning and ending with a letter or digit",
  );
/** Sha-256 as people write it. */
export const digestSchema = z.string().regex(/^sha256:[0-9a-f]{64}$/, "sha256: and 64 hex digits");
export type Digest = `sha256:${string}`;
