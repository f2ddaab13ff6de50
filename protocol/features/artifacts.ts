// Commands of the artifacts feature: look at, read, write and delete what lies in a store of the agent.
import { z } from "zod";
import { defineCommand } from "../command.ts";
import { digestSchema, nameSchema } from "../ids.ts";

/** Longest path, in UTF-8 bytes. */
export const MAX_PATH_BYTES = 1024;
/** Relative, `/` between segments, decoded. Shape is checked by the agent's store; "" is the root. */
export const artifactPathSchema = z.string().max(MAX_PATH_BYTES);
const target = { store: nameSchema, path: artifactPathSchema };
/** Opaque: changes when the object changes (S3: ETag and version id; fs: mtime, size, inode). Never a digest. */
const version = z.string().max(256);

export const artifactEntrySchema = z.object({
  name: z.string(),
  path: artifactPathSchema,
  kind: z.enum(["file", "tree"]),
  /** Null for trees. */
  sizeBytes: z.int().nonnegative().nullable(),
  modifiedAt: z.int().nonnegative().nullable(),
  version: version.nullable(),
  mediaType: z.string().nullable(),
});
export type ArtifactEntry = z.infer<typeof artifactEntrySchema>;

export const artifactList = defineCommand({
  kind: "artifact.list",
  class: "interactive",
  idempotent: true,
  timeoutMs: 30_000,
  content: "none",
  input: z.strictObject({
    ...target,
    cursor: z.string().max(4096).optional(),
    limit: z.int().min(1).max(1000).default(200),
  }),
  output: z.object({ entries: z.array(artifactEntrySchema), nextCursor: z.string().nullable() }),
});

export const artifactStatOutputSchema = artifactEntrySchema.extend({
  /** Null = not asked for, or unknown. */
  digest: digestSchema.nullable(),
});
export const artifactStat = defineCommand({
  kind: "artifact.stat",
  class: "interactive",
  idempotent: true,
  timeoutMs: 10 * 60_000,
  content: "none",
  /** `digest: true` reads the whole object (or tree) on the agent to compute it, unless the agent knows it. */
  input: z.strictObject({ ...target, digest: z.boolean().default(false) }),
  output: artifactStatOutputSchema,
});

const cell = z.union([z.string(), z.number(), z.boolean(), z.null()]);
/** Bounded and typed; made on the agent. `truncated` says that there is more than is shown. */
export const previewSchema = z.discriminatedUnion("type", [
  z.object({ type: z.literal("text"), language: z.string().nullable(), text: z.string(), truncated: z.boolean() }),
  z.object({ type: z.literal("markdown"), text: z.string(), truncated: z.boolean() }),
  z.object({ type: z.literal("json"), value: z.unknown(), text: z.string(), truncated: z.boolean() }),
  z.object({
    type: z.literal("table"),
    columns: z.array(z.object({ name: z.string(), kind: z.enum(["text", "number", "boolean", "mixed", "empty"]) })),
    rows: z.array(z.array(cell)),
    /** Null = the file was too long to count. */
    totalRows: z.int().nonnegative().nullable(),
    truncated: z.boolean(),
  }),
  z.object({
    type: z.literal("image"),
    mediaType: z.string(),
    width: z.int().positive().nullable(),
    height: z.int().positive().nullable(),
    /** base64. Empty on the link, where the bytes follow the result as they are. */
    data: z.string(),
  }),
  z.object({
    type: z.literal("log"),
    lines: z.array(z.object({ n: z.int().positive(), text: z.string() })),
    totalLines: z.int().nonnegative().nullable(),
    truncated: z.boolean(),
  }),
  /** Nothing can be shown: `reason` says why in a sentence (binary, too large, unknown type). */
  z.object({ type: z.literal("none"), reason: z.string() }),
]);
export type Preview = z.infer<typeof previewSchema>;

export const artifactPreview = defineCommand({
  kind: "artifact.preview",
  class: "interactive",
  idempotent: true,
  timeoutMs: 60_000,
  content: "download",
  lane: "interactive",
  input: z.strictObject({ ...target, rows: z.int().min(1).max(10_000).default(200) }),
  output: z.object({
    path: artifactPathSchema,
    sizeBytes: z.int().nonnegative(),
    mediaType: z.string(),
    modifiedAt: z.int().nonnegative().nullable(),
    version: version.nullable(),
    preview: previewSchema,
    /** Bytes that the agent read from the store to make it. */
    readBytes: z.int().nonnegative(),
  }),
});

export const artifactRead = defineCommand({
  kind: "artifact.read",
  class: "interactive",
  idempotent: true,
  timeoutMs: 6 * 3600_000,
  content: "download",
  /** `end` is inclusive, as in HTTP. `start` equal to the size of the object reads nothing. */
  input: z.strictObject({
    ...target,
    range: z.strictObject({ start: z.int().nonnegative(), end: z.int().nonnegative().optional() }).optional(),
    /** Last N bytes (HTTP `bytes=-N`); not together with `range`. */
    suffixBytes: z.int().positive().optional(),
    ifMatch: version.optional(),
  }),
  output: z.object({
    /** First byte that follows. */
    start: z.int().nonnegative(),
    /** Bytes that follow. */
    lengthBytes: z.int().nonnegative(),
    totalBytes: z.int().nonnegative(),
    version,
    mediaType: z.string(),
    modifiedAt: z.int().nonnegative().nullable(),
  }),
});

export const artifactWrite = defineCommand({
  kind: "artifact.write",
  class: "interactive-effect",
  idempotent: true,
  timeoutMs: 6 * 3600_000,
  content: "upload",
  input: z.strictObject({
    ...target,
    /** Null = not known before the end. */
    sizeBytes: z.int().nonnegative().nullable(),
    /** Replace exactly this version; not together with `ifNoneMatch`. */
    ifMatch: version.optional(),
    /** Only if nothing is there. */
    ifNoneMatch: z.literal("*").optional(),
    /** Refuse (and keep what was there) when the bytes have another digest. */
    digest: digestSchema.optional(),
    mediaType: z.string().max(128).optional(),
    /**
     * Names the upload, so that it can go on after its link broke: the same command again, with the same name, on the next
     * session. The agent answers from which byte. Absent: the upload dies with its stream.
     */
    upload: z.uuid().optional(),
  }),
  output: z.object({ path: artifactPathSchema, sizeBytes: z.int().nonnegative(), version, digest: digestSchema }),
});

export const artifactDelete = defineCommand({
  kind: "artifact.delete",
  class: "interactive-effect",
  idempotent: true,
  timeoutMs: 60_000,
  content: "none",
  input: z.strictObject({ ...target, ifMatch: version.optional() }),
  output: z.object({ path: artifactPathSchema, deleted: z.literal(true) }),
});
