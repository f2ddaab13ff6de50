// Log records of a step's attempt, as they sit in local segments, cross the link and are shown. Redacted before written.
import { z } from "zod";
import { bodySchema } from "./envelope.ts";

/** Addressed by `seq`, 1 upwards without holes: what is missing is a gap record, never silence. */
export const logRecordSchema = z.union([
  z.object({
    seq: z.int().positive(),
    /** Agent's wall clock when the line was read, ms since the epoch. */
    ts: z.int().nonnegative(),
    /** `system`: words of the agent about the step. */
    stream: z.enum(["stdout", "stderr", "system"]),
    body: bodySchema,
    /** Present when the line goes on from the record of this stream before: it was too long, or came in pieces. */
    continued: z.literal(true).optional(),
  }),
  z.object({
    /** The gap stands for the records `from`..`to`, both included. */
    gap: z.literal(true),
    from: z.int().positive(),
    to: z.int().positive(),
    ts: z.int().nonnegative(),
    reason: z.string(),
  }),
]);
export type LogRecord = z.infer<typeof logRecordSchema>;
/** The highest number a record stands for. */
export const lastSeq = (record: LogRecord): number => ("gap" in record ? record.to : record.seq);
