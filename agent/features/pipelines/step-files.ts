// The files of a step: inputs from a store into its work folder, outputs from there into the store. What becomes visible
// last is a manifest written If-None-Match: the step's outputs are those that it names, also if two agents ever tried.
import { createHash } from "node:crypto";
import { constants, createReadStream } from "node:fs";
import { lstat, mkdir, open, readdir, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import {
  ConnectorError,
  manifestEntrySchema,
  producedArtifactSchema,
  treeDigest,
  type ManifestEntry,
  type Pipeline,
  type ProducedArtifact,
  type RunId,
  type Step,
} from "@sallyport/protocol";
import { z } from "zod";
import type { PolicyGuard } from "../../policy/action.ts";
import type { ArtifactStore, Stores } from "../../stores/store.ts";
import { outputPath } from "./check.ts";
import { MANIFEST_NAME, type StepPlaces } from "./template.ts";

const LIST_PAGE = 1000;
const CONCURRENT_FILES = 4;
/** A manifest names each file of each tree. */
const MAX_MANIFEST_BYTES = 64 * 1024 * 1024;

/** In the store beside the outputs. */
const outputsManifestSchema = z.object({
  format: z.literal("sallyport/outputs/1"),
  run: z.string(),
  step: z.string(),
  attempt: z.int(),
  /** `entries`: files of a tree, as in its manifest. */
  outputs: z.array(producedArtifactSchema.extend({ entries: z.array(manifestEntrySchema).optional() })),
});
type OutputsManifest = z.infer<typeof outputsManifestSchema>;

export function placesOf(folder: string): StepPlaces {
  return { folder, inputs: (name) => join(folder, "inputs", name), outputs: (name) => join(folder, "outputs", name) };
}

/** An empty work folder; what an attempt that never began left in it is removed. */
export async function makeWorkFolder(places: StepPlaces): Promise<void> {
  await rm(places.folder, { recursive: true, force: true });
  await haveWorkFolder(places);
}

/** Of an attempt that has begun: as it is. Where another agent began it, there is none here yet. */
export async function haveWorkFolder(places: StepPlaces): Promise<void> {
  for (const part of ["inputs", "outputs", "home", "tmp"])
    await mkdir(join(places.folder, part), { recursive: true, mode: 0o700 });
}

export interface FilesContext {
  stores: Stores;
  policy: PolicyGuard;
  signal: AbortSignal;
  /** Largest sum of the inputs of one step. */
  maxBytes: number;
}

/** `produced`: outputs of the steps before, by step. */
export async function placeInputs(
  pipeline: Pipeline,
  run: RunId,
  step: Step,
  places: StepPlaces,
  produced: (step: string) => readonly ProducedArtifact[],
  context: FilesContext,
): Promise<void> {
  const budget = { left: context.maxBytes };
  for (const [name, ref] of Object.entries(step.inputs)) {
    const target = places.inputs(name);
    if (!("step" in ref)) {
      await fetchPath(await context.stores.get(ref.store), ref.path, target, context, budget);
      continue;
    }
    const artifact = produced(ref.step).find((a) => a.name === ref.output);
    if (artifact === undefined)
      throw new ConnectorError(
        "STEP_OUTPUT_MISSING",
        `Step ${ref.step} left no output ${ref.output}, which step ${step.name} needs.`,
      );
    const store = await context.stores.get(artifact.store);
    if (artifact.kind === "file") {
      await fetchFile(store, artifact.path, target, context, budget, artifact.digest);
      continue;
    }
    // Exactly the files of the manifest, whatever else may lie there by now.
    const manifest = await readManifest(store, outputPath(pipeline, run, ref.step, MANIFEST_NAME), context.signal);
    const entries = manifest?.outputs.find((o) => o.name === ref.output)?.entries;
    if (entries === undefined || treeDigest(entries) !== artifact.digest) {
      throw new ConnectorError(
        "DIGEST_MISMATCH",
        `The manifest of output ${ref.output} of step ${ref.step} is not the one that was written.`,
        { fix: "Somebody changed the run's outputs in the store: run it again." },
      );
    }
    await mkdir(target, { recursive: true });
    await inParallel(entries, async (entry) => {
      await fetchFile(
        store,
        `${artifact.path}/${entry.path}`,
        join(target, ...safeSegments(entry.path)),
        context,
        budget,
        entry.digest,
      );
    });
  }
}

async function fetchPath(
  store: ArtifactStore,
  path: string,
  target: string,
  context: FilesContext,
  budget: { left: number },
): Promise<void> {
  const { signal } = context;
  const isTree = path === "" || (await store.stat(path, { signal })).kind === "tree";
  if (!isTree) return fetchFile(store, path, target, context, budget);
  await mkdir(target, { recursive: true });
  let cursor: string | undefined;
  do {
    const page = await store.list(path, { limit: LIST_PAGE, signal, ...(cursor === undefined ? {} : { cursor }) });
    const files = page.entries.filter((entry) => entry.kind === "file");
    await inParallel(files, (entry) =>
      fetchFile(store, entry.path, join(target, ...safeSegments(entry.name)), context, budget),
    );
    for (const entry of page.entries) {
      if (entry.kind === "tree")
        await fetchPath(store, entry.path, join(target, ...safeSegments(entry.name)), context, budget);
    }
    cursor = page.nextCursor ?? undefined;
  } while (cursor !== undefined);
}

async function fetchFile(
  store: ArtifactStore,
  path: string,
  target: string,
  context: FilesContext,
  budget: { left: number },
  digest?: string,
): Promise<void> {
  const { signal, policy } = context;
  policy.require({ kind: "store", access: "read", store: store.id, path });
  // A link is another name: the place it leads to has to be readable as well.
  const source = await store.read(path, {
    signal,
    reached: (realPath) => policy.require({ kind: "store", access: "read", store: store.id, path: realPath }),
  });
  budget.left -= source.lengthBytes;
  if (budget.left < 0) {
    await letGo(source.bytes);
    throw new ConnectorError(
      "TOO_LARGE",
      `The inputs of this step are larger than the agent's limit of ${context.maxBytes} bytes for work folders.`,
      { fix: "Whoever runs the agent can raise limits.workBytes." },
    );
  }
  let file;
  try {
    await mkdir(dirname(target), { recursive: true });
    file = await open(target, "wx", 0o600);
  } catch (error) {
    await letGo(source.bytes);
    throw error;
  }
  const hash = createHash("sha256");
  try {
    for await (const chunk of source.bytes) {
      signal.throwIfAborted();
      hash.update(chunk);
      for (let at = 0; at < chunk.length;) at += (await file.write(chunk, at)).bytesWritten;
    }
  } finally {
    await file.close();
  }
  if (digest !== undefined && digest !== `sha256:${hash.digest("hex")}`) {
    throw new ConnectorError("DIGEST_MISMATCH", `${path} in store ${store.id} is not what the step before wrote.`, {
      fix: "Somebody changed the run's outputs in the store: run it again.",
    });
  }
}

/** Frees what a read holds when nobody is going to read it. */
async function letGo(bytes: AsyncIterable<Buffer>): Promise<void> {
  await bytes[Symbol.asyncIterator]().return?.();
}

/** A store's names become local ones: none may lead elsewhere. */
function safeSegments(path: string): string[] {
  const segments = path.split("/");
  for (const segment of segments) {
    if (segment === "" || segment === "." || segment === ".." || segment.includes("\0"))
      throw new ConnectorError("PATH_INVALID", `The store holds a name that is no file name: ${JSON.stringify(path)}.`);
  }
  return segments;
}

/** Throws STEP_OUTPUT_MISSING when one is not there, or is neither file nor folder. Can be repeated as it was. */
export async function storeOutputs(
  pipeline: Pipeline,
  run: RunId,
  step: Step,
  attempt: number,
  places: StepPlaces,
  context: FilesContext,
): Promise<ProducedArtifact[]> {
  const declared = Object.entries(step.outputs);
  if (declared.length === 0) return [];
  const { policy, signal } = context;
  const store = await context.stores.get(pipeline.outputs.store);
  const manifestPath = outputPath(pipeline, run, step.name, MANIFEST_NAME);
  // An agent that was killed behind the manifest has done all of it.
  const written = await readManifest(store, manifestPath, signal);
  if (written !== null && written.attempt === attempt)
    return written.outputs.map(({ entries: _, ...artifact }) => artifact);

  const kinds = new Map<string, "file" | "tree">();
  const missing: string[] = [];
  for (const [name] of declared) {
    const info = await lstat(places.outputs(name)).catch(() => null);
    if (info?.isFile() === true) kinds.set(name, "file");
    else if (info?.isDirectory() === true) kinds.set(name, "tree");
    else missing.push(info === null ? name : `${name} (neither a file nor a folder)`);
  }
  if (missing.length > 0) {
    throw new ConnectorError(
      "STEP_OUTPUT_MISSING",
      `Step ${step.name} ended well but without its output ${missing.join(", ")}.`,
      {
        fix: "The program writes each output to the path that ${outputs.<name>} and SALLYPORT_OUTPUT_<NAME> give.",
        details: { step: step.name, attempt, missing },
      },
    );
  }
  const outputs: OutputsManifest["outputs"] = [];
  for (const [name, { mediaType }] of declared) {
    const path = outputPath(pipeline, run, step.name, name);
    if (kinds.get(name) === "file") {
      const { sizeBytes, digest } = await storeFile(store, path, places.outputs(name), policy, signal, mediaType);
      const type = mediaType ?? (await store.stat(path, { signal })).mediaType ?? "application/octet-stream";
      outputs.push({ name, store: store.id, path, kind: "file", sizeBytes, digest, mediaType: type });
      continue;
    }
    const entries: ManifestEntry[] = [];
    await inParallel(await filesBelow(places.outputs(name), step.name, name), async (file) => {
      const { sizeBytes, digest } = await storeFile(
        store,
        `${path}/${file}`,
        join(places.outputs(name), file),
        policy,
        signal,
      );
      entries.push({ path: file, sizeBytes, digest });
    });
    entries.sort((a, b) => Buffer.compare(Buffer.from(a.path), Buffer.from(b.path)));
    const sizeBytes = entries.reduce((sum, e) => sum + e.sizeBytes, 0);
    outputs.push({
      name,
      store: store.id,
      path,
      kind: "tree",
      sizeBytes,
      digest: treeDigest(entries),
      mediaType: mediaType ?? "inode/directory",
      entries,
    });
  }
  const manifest: OutputsManifest = { format: "sallyport/outputs/1", run, step: step.name, attempt, outputs };
  try {
    await store.write(manifestPath, once(Buffer.from(`${JSON.stringify(manifest, null, 1)}\n`)), {
      ifNoneMatch: "*",
      mediaType: "application/json",
      signal,
    });
  } catch (error) {
    if (
      !(error instanceof ConnectorError) ||
      (error.code !== "ARTIFACT_EXISTS" && error.code !== "PRECONDITION_FAILED")
    )
      throw error;
    const there = await readManifest(store, manifestPath, signal);
    // By whomever, in whichever attempt: the same outputs are these outputs.
    if (JSON.stringify(there?.outputs) !== JSON.stringify(manifest.outputs)) {
      throw new ConnectorError(
        "CONFLICT",
        `The outputs of step ${step.name} were written by another attempt meanwhile.`,
        { fix: "Start a new run.", cause: error },
      );
    }
  }
  return outputs.map(({ entries: _, ...artifact }) => artifact);
}

async function readManifest(store: ArtifactStore, path: string, signal: AbortSignal): Promise<OutputsManifest | null> {
  let text = "";
  try {
    const source = await store.read(path, { signal });
    if (source.totalBytes > MAX_MANIFEST_BYTES) {
      await letGo(source.bytes);
      throw new ConnectorError(
        "TOO_LARGE",
        `The manifest ${path} in store ${store.id} is larger than any that was written.`,
      );
    }
    const chunks: Buffer[] = [];
    for await (const chunk of source.bytes) chunks.push(Buffer.from(chunk));
    text = Buffer.concat(chunks).toString("utf8");
  } catch (error) {
    if (error instanceof ConnectorError && error.code === "ARTIFACT_NOT_FOUND") return null;
    throw error;
  }
  try {
    return outputsManifestSchema.parse(JSON.parse(text));
  } catch (cause) {
    throw new ConnectorError("CONFLICT", `${path} in store ${store.id} is not a manifest of outputs.`, {
      fix: "Remove it from the store, or start a new run.",
      cause,
    });
  }
}

async function storeFile(
  store: ArtifactStore,
  path: string,
  source: string,
  policy: PolicyGuard,
  signal: AbortSignal,
  mediaType?: string,
) {
  policy.require({ kind: "store", access: "write", store: store.id, path });
  // The step is over, but its user is ours: a link must not lead out of the folder.
  const file = await open(source, constants.O_RDONLY | constants.O_NOFOLLOW);
  const { size } = await file.stat();
  const bytes = createReadStream("", { fd: file, ...(size === 0 ? {} : { end: size - 1 }) });
  try {
    return await store.write(path, bytes, {
      sizeBytes: size,
      signal,
      reached: (realPath) => policy.require({ kind: "store", access: "write", store: store.id, path: realPath }),
      ...(mediaType === undefined ? {} : { mediaType }),
    });
  } finally {
    // A store that refuses at once never begins to read it.
    bytes.destroy();
  }
}

/** Relative paths of the files of an output that is a folder. */
async function filesBelow(root: string, step: string, output: string): Promise<string[]> {
  const files: string[] = [];
  const visit = async (folder: string): Promise<void> => {
    for (const entry of await readdir(join(root, folder), { withFileTypes: true })) {
      const path = folder === "" ? entry.name : `${folder}/${entry.name}`;
      if (entry.isDirectory()) await visit(path);
      else if (entry.isFile()) files.push(path);
      else {
        throw new ConnectorError(
          "STEP_OUTPUT_MISSING",
          `Output ${output} of step ${step} holds ${JSON.stringify(path)}, which is neither a file nor a folder.`,
          {
            fix: "Leave copies instead of links.",
            details: { step, output },
          },
        );
      }
    }
  };
  await visit("");
  return files.sort();
}

async function* once(bytes: Buffer): AsyncGenerator<Buffer> {
  yield bytes;
}

async function inParallel<T>(items: readonly T[], work: (item: T) => Promise<void>): Promise<void> {
  let next = 0;
  const lanes = Array.from({ length: Math.min(CONCURRENT_FILES, items.length) }, async () => {
    try {
      while (next < items.length) await work(items[next++]!);
    } catch (error) {
      next = items.length;
      throw error;
    }
  });
  const results = await Promise.allSettled(lanes);
  for (const result of results) if (result.status === "rejected") throw result.reason;
}
