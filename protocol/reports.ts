// Reports: what an agent has done, numbered once per journal and repeated until the cloud has committed them.
// They travel on one stream that the agent opens: NDJSON reports one way, NDJSON acknowledgements the other.
import { z } from "zod";
import { bodySchema } from "./envelope.ts";
import { commandIdSchema, digestSchema, journalIdSchema, nameSchema, runIdSchema } from "./ids.ts";

export const reportsOpenSchema = z.object({
  type: z.literal("reports"),
  journal: journalIdSchema,
  /**
   * The lowest report that the agent still holds, hence the first on this stream; what lies before was acknowledged. With
   * nothing held: the number that the next one will have. Absent (an older agent): the number of the first that comes.
   */
  from: z.int().positive().optional(),
});
/**
 * Cloud to agent: every report of this journal up to and including this number is committed. The lists say who holds
 * what; the agent writes them down before it takes the number for true. Each may come again, and at any time.
 */
export const reportAckSchema = z.object({
  committedThrough: z.int().nonnegative(),
  /** Taken over by another replica: follow them no more, stop nothing of theirs, answer each with `command.released`. */
  released: z.array(commandIdSchema).optional(),
  /** Ended here, but a former holder has not let go yet: what keeps it from starting work again must stay. */
  fenced: z.array(commandIdSchema).optional(),
  /** Every former holder has let go: what was kept for that may go. */
  settled: z.array(commandIdSchema).optional(),
});
export type ReportAck = z.infer<typeof reportAckSchema>;

/** The record. The cloud deduplicates by (replica, journal, sequence). `body` holds one of `reportBodySchema`. */
export const reportSchema = z.object({
  journal: journalIdSchema,
  sequence: z.int().positive(),
  /** Agent's wall clock, ms since the epoch: for showing only. */
  at: z.int().nonnegative(),
  /** The durable command this belongs to. */
  command: commandIdSchema,
  body: bodySchema,
});
export type Report = z.infer<typeof reportSchema>;

export const errorBodySchema = z.object({
  code: z.string(),
  message: z.string(),
  fix: z.string().optional(),
  details: z.record(z.string(), z.unknown()).optional(),
});

/** An artifact that a step made: pointer, size, type, digest. Never content. */
export const producedArtifactSchema = z.object({
  name: nameSchema,
  store: nameSchema,
  path: z.string(),
  kind: z.enum(["file", "tree"]),
  sizeBytes: z.int().nonnegative(),
  digest: digestSchema,
  mediaType: z.string(),
});
export type ProducedArtifact = z.infer<typeof producedArtifactSchema>;

export const STEP_STATES = ["pending", "running", "succeeded", "failed", "cancelled", "skipped"] as const;
export type StepState = (typeof STEP_STATES)[number];

/** Command states that the agent reports. Terminal ones never flip. */
export const reportBodySchema = z.discriminatedUnion("type", [
  z.object({ type: z.literal("command.running") }),
  z.object({ type: z.literal("command.succeeded"), result: z.unknown() }),
  z.object({ type: z.literal("command.failed"), error: errorBodySchema }),
  z.object({ type: z.literal("command.cancelled"), stopped: z.array(z.string()) }),
  /** Another replica took it over, and this one has let go: no report about it follows unless it is offered again. */
  z.object({ type: z.literal("command.released") }),
  z.object({
    type: z.literal("step"),
    run: runIdSchema,
    step: nameSchema,
    attempt: z.int().positive(),
    state: z.enum(STEP_STATES),
    /** Present when failed or cancelled. */
    error: errorBodySchema.nullable(),
    exitCode: z.int().nullable(),
    outputs: z.array(producedArtifactSchema),
    /** Highest log sequence written for this attempt; 0 = none. */
    logSeq: z.int().nonnegative(),
    /** True when a restarted agent found this attempt running and took it over. */
    adopted: z.boolean(),
    /** Failed, and to be tried again: when the next attempt begins, agent's clock. Absent or null: no further attempt. */
    retryAt: z.int().nonnegative().nullable().optional(),
  }),
]);
export type ReportBody = z.infer<typeof reportBodySchema>;
