// The artifacts feature on the agent: list, stat, preview, read, write and delete, each asked of the policy first.
// It knows the port of a store and nothing of any connector; it returns, the runner sends. Imported by main.ts only.
import { createHash } from "node:crypto";
import {
  artifactDelete,
  artifactList,
  artifactPreview,
  artifactRead,
  artifactStat,
  artifactWrite,
  ConnectorError,
  toConnectorError,
  treeDigest,
  type ArtifactEntry,
  type Digest,
} from "@sallyport/protocol";
import { defineKind, type AnyCommandKind } from "../../commands/command.ts";
import type { PolicyGuard } from "../../policy/action.ts";
import type { ArtifactStore, MakeManifest, Reach, Stores } from "../../stores/store.ts";
export { HeldUploads } from "./held-uploads.ts";
import { boundPreview } from "./bounds.ts";
import type { HeldUploads } from "./held-uploads.ts";
import { makePreview, previewReadBytes, previewType } from "./preview.ts";

export interface ArtifactDeps {
  stores: Stores;
  /** Decoded path -> itself. Throws PATH_INVALID, naming the segment. */
  parsePath(path: string): string;
  makeManifest: MakeManifest;
  uploads: HeldUploads;
}

type Access = "list" | "read" | "write" | "delete";

export function artifactKinds(deps: ArtifactDeps): AnyCommandKind[] {
  /** What every command asks before any I/O. Pure: called at acceptance and again when the work begins. */
  const ask = (
    policy: PolicyGuard,
    access: Access,
    target: { store: string; path: string },
    release?: "metadata" | "preview" | "raw",
  ): string => {
    const path = deps.parsePath(target.path);
    // Said before the policy's no, which would hide a misspelt name. Nothing is given away: status lists the stores.
    if (!deps.stores.ids.includes(target.store)) {
      throw new ConnectorError(
        "STORE_UNKNOWN",
        `The agent has no store ${JSON.stringify(target.store)}; ${deps.stores.ids.length === 0 ? "none is configured" : `it has ${deps.stores.ids.join(", ")}`}.`,
        {
          fix: "Name one of these, or add the store to the agent's configuration.",
        },
      );
    }
    policy.require({ kind: "store", access, store: target.store, path });
    if (release !== undefined) policy.require({ kind: "release", what: release, store: target.store, path });
    return path;
  };
  /** A link in a store is another name: the place it leads to is asked about as well, or the policy would be of names. */
  const reach = (
    policy: PolicyGuard,
    access: Access,
    target: { store: string; path: string },
    release?: "metadata" | "preview" | "raw",
  ) => ({
    reached: (realPath: string): void => {
      try {
        ask(policy, access, { store: target.store, path: realPath }, release);
      } catch (caught) {
        const { code, details } = toConnectorError(caught);
        // Where it leads is not said: that name may be none that may leave.
        throw new ConnectorError(
          code === "POLICY_DENIED" ? code : "PATH_INVALID",
          `${JSON.stringify(target.path)} in store ${target.store} is reached by a link from a place that the agent's policy does not let it ${access}.`,
          {
            fix: "Ask for something that lies where the policy allows it, or ask whoever runs the agent.",
            ...(details?.["rule"] === undefined ? {} : { details: { rule: details["rule"] } }),
          },
        );
      }
    },
  });
  const mayShow = (policy: PolicyGuard, store: string, entry: ArtifactEntry): boolean =>
    policy.decide({ kind: "store", access: entry.kind === "tree" ? "list" : "read", store, path: entry.path }).allowed;

  const list = defineKind({
    spec: artifactList,
    check: (input, policy) => void ask(policy, "list", input, "metadata"),
    async run(input, { policy, signal }) {
      const path = ask(policy, "list", input, "metadata");
      const store = await deps.stores.get(input.store);
      const { entries, nextCursor } = await store.list(path, {
        limit: input.limit,
        signal,
        ...reach(policy, "list", input, "metadata"),
        ...(input.cursor === undefined ? {} : { cursor: input.cursor }),
      });
      // what may not be read is not there
      return { result: { entries: entries.filter((entry) => mayShow(policy, input.store, entry)), nextCursor } };
    },
  });

  const stat = defineKind({
    spec: artifactStat,
    check: (input, policy) => void ask(policy, "list", input, "metadata"),
    async run(input, { policy, signal }) {
      const path = ask(policy, "list", input, "metadata");
      const store = await deps.stores.get(input.store);
      let real: string | null = null;
      const entry = await store.stat(path, {
        signal,
        reached(realPath) {
          reach(policy, "list", input, "metadata").reached(realPath);
          real = realPath;
        },
      });
      if (entry.kind === "file") {
        ask(policy, "read", { store: input.store, path });
        if (real !== null) reach(policy, "read", input, "metadata").reached(real);
      }
      if (!input.digest) return { result: { ...entry, digest: null } };
      // A tree's digest covers all that is in it: each file is asked about before it is read.
      const readable: ArtifactStore = {
        id: store.id,
        kind: store.kind,
        label: store.label,
        list: (at, options) => store.list(at, options),
        stat: (at, options) => store.stat(at, options),
        read: async (at, options) =>
          await store.read(ask(policy, "read", { store: input.store, path: at }), {
            ...options,
            ...reach(policy, "read", { store: input.store, path: at }),
          }),
        write: (at, bytes, options) => store.write(at, bytes, options),
        delete: (at, options) => store.delete(at, options),
      };
      return { result: { ...entry, digest: await digestOf(readable, entry, signal) } };
    },
  });

  const digestOf = async (store: ArtifactStore, entry: ArtifactEntry, signal: AbortSignal): Promise<Digest> => {
    if (entry.kind === "tree") return treeDigest((await deps.makeManifest(store, entry.path, signal)).entries);
    const opened = await store.read(entry.path, {
      signal,
      ...(entry.version === null ? {} : { ifMatch: entry.version }),
    });
    const hash = createHash("sha256");
    for await (const chunk of opened.bytes) hash.update(chunk);
    return `sha256:${hash.digest("hex")}`;
  };

  const preview = defineKind({
    spec: artifactPreview,
    check: (input, policy) => void ask(policy, "read", input, "preview"),
    async run(input, { policy, signal }) {
      const path = ask(policy, "read", input, "preview");
      const store = await deps.stores.get(input.store);
      const reached = reach(policy, "read", input, "preview");
      const entry = await store.stat(path, { signal, ...reached });
      if (entry.kind === "tree") {
        throw new ConnectorError(
          "NOT_A_FILE",
          `${path === "" ? "The root" : path} of store ${input.store} is a folder; a preview is made of a file.`,
          { fix: "List it and pick a file." },
        );
      }
      const sizeBytes = entry.sizeBytes ?? 0;
      const type = previewType(path, entry.mediaType);
      const wanted = Math.min(sizeBytes, previewReadBytes(type, sizeBytes));
      const head = wanted === 0 ? Buffer.alloc(0) : await readHead(store, entry, wanted, { signal, ...reached });
      const made = makePreview({
        path,
        type,
        head,
        sizeBytes,
        mediaType: entry.mediaType,
        rows: Math.min(input.rows, policy.previewRows),
      });
      return {
        result: {
          path,
          sizeBytes,
          mediaType: made.mediaType,
          modifiedAt: entry.modifiedAt,
          version: entry.version,
          preview: boundPreview(made.preview, policy.previewRows),
          readBytes: head.length,
        },
        ...(made.content === null ? {} : { content: once(made.content) }),
      };
    },
  });

  const read = defineKind({
    spec: artifactRead,
    check: (input, policy) => void ask(policy, "read", input, "raw"),
    async run(input, { policy, signal }) {
      const path = ask(policy, "read", input, "raw");
      if (input.range !== undefined && input.suffixBytes !== undefined) {
        throw new ConnectorError("INPUT_INVALID", "A read has a range or a suffix, not both.", {
          fix: "Send one of range and suffixBytes.",
        });
      }
      const store = await deps.stores.get(input.store);
      const opened = await store.read(path, {
        signal,
        ...reach(policy, "read", input, "raw"),
        ...(input.range === undefined
          ? {}
          : {
              range: { start: input.range.start, ...(input.range.end === undefined ? {} : { end: input.range.end }) },
            }),
        ...(input.suffixBytes === undefined ? {} : { suffixBytes: input.suffixBytes }),
        ...(input.ifMatch === undefined ? {} : { ifMatch: input.ifMatch }),
      });
      const { bytes, ...result } = opened;
      return { result, content: bytes };
    },
  });

  const write = defineKind({
    spec: artifactWrite,
    check: (input, policy) => {
      ask(policy, "write", input);
      policy.require({ kind: "ceiling", ceiling: "uploadBytes", value: input.sizeBytes ?? 0 });
    },
    async run(input, { policy, signal, upload, intake }) {
      const path = ask(policy, "write", input);
      if (input.ifMatch !== undefined && input.ifNoneMatch !== undefined) {
        throw new ConnectorError("INPUT_INVALID", "A write is If-Match or If-None-Match, not both.", {
          fix: "Send one of the two.",
        });
      }
      const store = await deps.stores.get(input.store);
      const begin = (bytes: AsyncIterable<Buffer>, until: AbortSignal) =>
        store.write(path, counted(bytes, input.sizeBytes, policy), {
          signal: until,
          ...reach(policy, "write", input),
          ...(input.sizeBytes === null ? {} : { sizeBytes: input.sizeBytes }),
          ...(input.ifMatch === undefined ? {} : { ifMatch: input.ifMatch }),
          ...(input.ifNoneMatch === undefined ? {} : { ifNoneMatch: input.ifNoneMatch }),
          ...(input.digest === undefined ? {} : { digest: input.digest as Digest }),
          ...(input.mediaType === undefined ? {} : { mediaType: input.mediaType }),
        });
      const written =
        input.upload === undefined || intake === null
          ? await begin(upload, signal)
          : await deps.uploads.take({
              id: input.upload,
              of: JSON.stringify({ ...input, path }),
              begin,
              bytes: upload,
              signal,
              intake,
            });
      return { result: { path, ...written } };
    },
  });

  const remove = defineKind({
    spec: artifactDelete,
    check: (input, policy) => void ask(policy, "delete", input),
    async run(input, { policy, signal }) {
      const path = ask(policy, "delete", input);
      const store = await deps.stores.get(input.store);
      await store.delete(path, {
        signal,
        ...reach(policy, "delete", input),
        ...(input.ifMatch === undefined ? {} : { ifMatch: input.ifMatch }),
      });
      return { result: { path, deleted: true as const } };
    },
  });

  return [list, stat, preview, read, write, remove] as unknown as AnyCommandKind[];
}

async function readHead(
  store: ArtifactStore,
  entry: ArtifactEntry,
  wanted: number,
  options: Reach & { signal: AbortSignal },
): Promise<Buffer> {
  const opened = await store.read(entry.path, {
    range: { start: 0, end: wanted - 1 },
    ...options,
    ...(entry.version === null ? {} : { ifMatch: entry.version }),
  });
  const chunks: Buffer[] = [];
  for await (const chunk of opened.bytes) chunks.push(chunk);
  return Buffer.concat(chunks);
}

async function* once(bytes: Buffer): AsyncGenerator<Buffer> {
  yield bytes;
}

/** The upload as it comes, cut off with an error when it is not what was announced or more than the policy lets in. */
async function* counted(
  upload: AsyncIterable<Buffer>,
  sizeBytes: number | null,
  policy: PolicyGuard,
): AsyncGenerator<Buffer> {
  let bytes = 0;
  for await (const chunk of upload) {
    bytes += chunk.length;
    if (sizeBytes === null) policy.require({ kind: "ceiling", ceiling: "uploadBytes", value: bytes });
    else if (bytes > sizeBytes) throw wrongLength(sizeBytes, bytes, "more came");
    yield chunk;
  }
  if (sizeBytes !== null && bytes !== sizeBytes) throw wrongLength(sizeBytes, bytes, `${bytes} came`);
}

const wrongLength = (expected: number, came: number, words: string) =>
  new ConnectorError("INPUT_INVALID", `The upload was announced with ${expected} bytes and ${words}.`, {
    fix: "Send the whole content with its right length.",
    details: { expected, came },
  });
