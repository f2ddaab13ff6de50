// What cloud processes of one control plane tell each other in passing. A note is a hint to look into SQL now instead of
// at the next sweep: it may be lost, doubled or forged and nothing becomes wrong, only slower.
import { poolIdSchema, replicaIdSchema, workspaceIdSchema } from "@sallyport/protocol";
import { z } from "zod";

export const noteSchema = z.discriminatedUnion("type", [
  /** A session of this replica began or ended, or the replica was revoked. */
  z.object({ type: z.literal("presence"), replica: replicaIdSchema }),
  /** A process came or went. */
  z.object({ type: z.literal("processes") }),
  /** Something of this pool's queue may go now. */
  z.object({ type: z.literal("wake"), workspace: workspaceIdSchema, pool: poolIdSchema }),
  /** There may be something to tell agents about commands that were taken over; null = all of the workspace. */
  z.object({ type: z.literal("told"), workspace: workspaceIdSchema, replica: replicaIdSchema.nullable() }),
  /** Changes were committed. */
  z.object({ type: z.literal("changed"), workspace: workspaceIdSchema }),
]);
export type Note = z.infer<typeof noteSchema>;

export interface BackplaneHealth {
  /** `alone`: there is nobody to tell. `sweep`: there is nothing to tell them by. */
  readonly kind: "alone" | "sweep" | "in-process" | "nats";
  /** False: notes reach nobody at present. */
  readonly connected: boolean;
  /** In plain words, for people. */
  readonly text: string;
}

export interface Backplane {
  /** Never throws, never waits. */
  announce(note: Note): void;
  /** Notes of the others, never one's own. */
  onNote(listener: (note: Note) => void): void;
  readonly health: BackplaneHealth;
  /** Called when `connected` changed. */
  onHealth(listener: (health: BackplaneHealth) => void): void;
  close(): Promise<void>;
}

/** How soon whoever hears nothing looks by itself. */
export const SWEEP_MS = 5_000;
