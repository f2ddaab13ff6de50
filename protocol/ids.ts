// The shapes of identifiers and names.
import { z } from "zod";
import { PREFIXES, type CommandId, type Id, type Prefixed } from "./new-id.ts";

export type * from "./new-id.ts";
export { newCommandId, newId, uuidv7 } from "./new-id.ts";

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
