// A tree's manifest and digest: what is in a folder, in one number that does not depend on where it lies.
import { z } from "zod";
import { sha256 } from "./envelope.ts";
import { digestSchema, type Digest } from "./ids.ts";

export const manifestEntrySchema = z.object({
  path: z.string().min(1),
  sizeBytes: z.int().nonnegative(),
  digest: digestSchema,
});
export const manifestSchema = z.object({
  format: z.literal("sallyport/tree/1"),
  /** Sorted by the UTF-8 bytes of `path`; relative, `/` between segments. */
  entries: z.array(manifestEntrySchema),
});
export type ManifestEntry = z.infer<typeof manifestEntrySchema>;
export type Manifest = z.infer<typeof manifestSchema>;

/** Sorts and writes the manifest's canonical text: one line an entry, so that the digest needs no JSON rules. */
export function manifestText(entries: readonly ManifestEntry[]): string {
  const sorted = [...entries].sort((a, b) => Buffer.compare(Buffer.from(a.path), Buffer.from(b.path)));
  return `sallyport/tree/1\n${sorted.map((e) => `${e.digest} ${e.sizeBytes} ${JSON.stringify(e.path)}\n`).join("")}`;
}
export const treeDigest = (entries: readonly ManifestEntry[]): Digest => `sha256:${sha256(manifestText(entries))}`;
export function makeManifest(entries: readonly ManifestEntry[]): Manifest {
  const sorted = [...entries].sort((a, b) => Buffer.compare(Buffer.from(a.path), Buffer.from(b.path)));
  return { format: "sallyport/tree/1", entries: sorted };
}
