// The manifest of a tree: every file below a path with size and digest, read through the store.
import { createHash } from "node:crypto";
import { ConnectorError, makeManifest, type Digest, type ManifestEntry } from "@sallyport/protocol";
import type { ArtifactStore, MakeManifest } from "./store.ts";

/** More than this in one tree is refused: a manifest is held whole. */
export const MAX_TREE_FILES = 100_000;
const PAGE = 1000;

/** Reads a file to its end for its digest alone. */
export async function digestOf(
  store: ArtifactStore,
  path: string,
  signal?: AbortSignal,
): Promise<{ digest: Digest; sizeBytes: number }> {
  const { bytes } = await store.read(path, signal === undefined ? {} : { signal });
  const hash = createHash("sha256");
  let sizeBytes = 0;
  for await (const chunk of bytes) {
    hash.update(chunk);
    sizeBytes += chunk.length;
  }
  return { digest: `sha256:${hash.digest("hex")}`, sizeBytes };
}

/** Paths of all files below, relative to `path`. `visit` is asked before a file counts; it may throw. */
export async function filesBelow(
  store: ArtifactStore,
  path: string,
  signal?: AbortSignal,
  visit?: (path: string) => void,
): Promise<string[]> {
  const files: string[] = [];
  const folders = [path];
  for (let folder = folders.pop(); folder !== undefined; folder = folders.pop()) {
    let cursor: string | undefined;
    do {
      const page = await store.list(folder, {
        limit: PAGE,
        ...(cursor === undefined ? {} : { cursor }),
        ...(signal === undefined ? {} : { signal }),
      });
      for (const entry of page.entries) {
        if (entry.kind === "tree") {
          folders.push(entry.path);
          continue;
        }
        visit?.(entry.path);
        files.push(path === "" ? entry.path : entry.path.slice(path.length + 1));
        if (files.length > MAX_TREE_FILES) {
          throw new ConnectorError(
            "TOO_LARGE",
            `${JSON.stringify(path)} in store ${store.id} holds more than ${MAX_TREE_FILES} files.`,
            { fix: "Take a smaller folder, or pack the files into one." },
          );
        }
      }
      cursor = page.nextCursor ?? undefined;
    } while (cursor !== undefined);
  }
  return files;
}

export const manifestOf: MakeManifest = async (store, path, signal) => {
  const entries: ManifestEntry[] = [];
  for (const file of await filesBelow(store, path, signal)) {
    entries.push({ path: file, ...(await digestOf(store, path === "" ? file : `${path}/${file}`, signal)) });
  }
  return makeManifest(entries);
};
