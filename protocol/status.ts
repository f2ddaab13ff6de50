// What an agent says of itself: once after the handshake and whenever it changes, on one stream that the agent opens.
// NDJSON, newest wins, nothing is acknowledged: status is evidence with an age, not a record.
import { z } from "zod";
import { deploymentStatusSchema } from "./features/deployments.ts";
import { commandIdSchema, nameSchema, runIdSchema } from "./ids.ts";

export const statusOpenSchema = z.object({ type: z.literal("status") });

export const storeStatusSchema = z.object({
  id: nameSchema,
  kind: z.string(),
  /** Where it is, in words that hold no credential: `s3://bucket/prefix` or `file`. */
  label: z.string(),
  /** What the policy grants somewhere in the store. */
  grants: z.array(z.enum(["read", "write", "delete"])),
});

export const agentStatusSchema = z.object({
  /** ms since the epoch, agent's clock. */
  at: z.int().nonnegative(),
  version: z.string(),
  labels: z.record(z.string(), z.string()),
  /** Null = intake open; otherwise why and until when (ms, null = until resumed). */
  paused: z.object({ reason: z.string(), until: z.int().nullable() }).nullable(),
  draining: z.boolean(),
  stores: z.array(storeStatusSchema),
  /** Names of programs that steps may start. */
  programs: z.array(nameSchema),
  engines: z.array(z.string()),
  /**
   * Of the engines that other agents may be asking too: whose they are, the same word from each agent of one engine and
   * from none of another. An engine that is the agent's alone is not in it. Absent = none.
   */
  engineIds: z.record(z.string(), z.string()).optional(),
  /** Hex sha-256 of the effective policy. The cloud can see that it changed, not what it says. */
  policyDigest: z.string(),
  /** Command kinds that the policy allows. */
  commands: z.array(z.string()),
  limits: z.object({ runs: z.int(), steps: z.int() }),
  /** Upper limits that the policy sets for deployments; 0 = none are allowed. */
  ceilings: z
    .object({ deployments: z.int(), replicas: z.int(), cpus: z.number(), memoryBytes: z.int() })
    .default({ deployments: 0, replicas: 0, cpus: 0, memoryBytes: 0 }),
  /** Engines that can serve models here, with what they keep apart. */
  serving: z.array(z.object({ engine: z.string(), isolated: z.boolean() })).default([]),
  /** Every deployment that this agent holds. */
  deployments: z.array(deploymentStatusSchema).default([]),
  running: z.array(z.object({ command: commandIdSchema, run: runIdSchema.nullable(), kind: z.string() })),
  host: z.object({
    hostname: z.string(),
    platform: z.string(),
    cpus: z.int(),
    cpuLoad: z.number().nullable(),
    memoryTotalBytes: z.int(),
    memoryFreeBytes: z.int(),
    diskTotalBytes: z.int().nullable(),
    diskFreeBytes: z.int().nullable(),
  }),
  /** The agent's own process. Absent: an agent that does not say. */
  process: z
    .object({
      startedAt: z.int(),
      residentBytes: z.int(),
      /** Its clock minus the control plane's, as of this session; positive = it is ahead. Null = not known yet. */
      clockSkewMs: z.number().nullable(),
      /** How late its event loop was during the last quarter of a minute; null = not measured yet. */
      loopDelayMs: z.object({ p50: z.number(), p99: z.number(), max: z.number() }).nullable(),
    })
    .optional(),
});
export type AgentStatus = z.infer<typeof agentStatusSchema>;
