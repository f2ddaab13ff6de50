// Identifiers and how they are made. A prefix says what one names, the UUIDv7 behind it sorts by time. Branded so two
// cannot be swapped. Their schemas are in ids.ts: this file loads nothing.
import { randomName } from "./random.ts";

declare const brand: unique symbol;
export type Id<Name extends string> = string & { readonly [brand]: Name };

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
  const bytes = randomName(16);
  bytes.writeUIntBE(nowMs, 0, 6);
  bytes[6] = (bytes[6]! & 0x0f) | 0x70;
  bytes[8] = (bytes[8]! & 0x3f) | 0x80;
  const hex = bytes.toString("hex");
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
}

export const PREFIXES = {
  workspace: "wsp",
  pool: "pool",
  replica: "rep",
  run: "run",
  enrollment: "enr",
  session: "ses",
  journal: "jrn",
  deployment: "dep",
} as const;
export type Prefixed = keyof typeof PREFIXES;

/** `rep_0199…`: prefix and 32 hex digits. */
export function newId<N extends Prefixed>(name: N, nowMs?: number): Id<N> {
  return `${PREFIXES[name]}_${uuidv7(nowMs).replaceAll("-", "")}` as Id<N>;
}
export const newCommandId = (nowMs?: number): CommandId => uuidv7(nowMs) as CommandId;
