// What one process asks of another on their link: the head of each stream it opens there.
import { replicaIdSchema, sessionIdSchema, type ErrorCode } from "@sallyport/protocol";
import { z } from "zod";

export const askSchema = z.discriminatedUnion("type", [
  /** A stream to the agent of that session; answered, and carried on, as the agent does. */
  z.object({
    type: z.literal("open"),
    replica: replicaIdSchema,
    session: sessionIdSchema,
    lane: z.enum(["interactive", "bulk"]),
    /** No bytes follow from the asker. */
    end: z.boolean(),
    head: z.unknown(),
  }),
  /** Does the agent of that session answer? `{rttMs}`, or a RESET. */
  z.object({ type: z.literal("ping"), replica: replicaIdSchema, session: sessionIdSchema }),
  /** Its session is to end, with the reason that its agent is told. */
  z.object({
    type: z.literal("close"),
    replica: replicaIdSchema,
    /** Absent: whichever there is. */
    session: sessionIdSchema.optional(),
    reason: z.object({ code: z.string().max(64), message: z.string().max(4096), fix: z.string().max(2048).optional() }),
  }),
]);
export type Ask = z.infer<typeof askSchema>;
export type CloseReason = { code: ErrorCode; message: string; fix?: string | undefined };
export const pongSchema = z.object({ rttMs: z.number() });
