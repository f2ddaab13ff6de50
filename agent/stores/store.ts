// The port of an artifact store: where artifacts lie, reached with credentials that only the agent can read.
// A path here has passed `parseArtifactPath`: relative, decoded, no `.`, `..`, empty segment or NUL. "" is the root.
import type { ArtifactEntry, Digest, Manifest } from "@sallyport/protocol";

export interface ReadRange {
  start: number;
  /** Inclusive; absent = to the end. */
  end?: number;
}

export interface Reach {
  /**
   * Told the path at which what was opened really lies, when a link within the store led there and before anything is
   * read or changed. Throws when it may not be used: the policy speaks of places, not of names for them.
   */
  reached?: (realPath: string) => void;
}

export interface OpenedRead {
  /** First byte of `bytes` within the object. */
  start: number;
  lengthBytes: number;
  totalBytes: number;
  version: string;
  mediaType: string;
  modifiedAt: number | null;
  /** Pull-based: nothing is read ahead of the consumer beyond a fixed window. Closing the iterator frees the source. */
  bytes: AsyncIterable<Buffer>;
}

export interface WriteOptions extends Reach {
  ifMatch?: string;
  ifNoneMatch?: "*";
  /** Checked before the object becomes visible. */
  digest?: Digest;
  mediaType?: string;
  /** Expected total; undefined = unknown before the end. */
  sizeBytes?: number;
  signal?: AbortSignal;
}

/** All methods throw ConnectorError with the STORE_*, ARTIFACT_* and PATH_* codes; `store` is named in the message. */
export interface ArtifactStore {
  readonly id: string;
  readonly kind: string;
  /** For people; holds no credential. */
  readonly label: string;
  /** Direct children of `path`, by name; a page of at most `limit`. A child that `reached` refuses is not there. */
  list(
    path: string,
    options: Reach & { cursor?: string; limit: number; signal?: AbortSignal },
  ): Promise<{ entries: ArtifactEntry[]; nextCursor: string | null }>;
  /** ARTIFACT_NOT_FOUND when nothing is there. */
  stat(path: string, options?: Reach & { signal?: AbortSignal }): Promise<ArtifactEntry>;
  /** `suffixBytes` reads the last N. PRECONDITION_FAILED when `ifMatch` is not the current version. */
  read(
    path: string,
    options?: Reach & { range?: ReadRange; suffixBytes?: number; ifMatch?: string; signal?: AbortSignal },
  ): Promise<OpenedRead>;
  /** Atomic: a reader sees the old object or the whole new one. Computes sha-256 on the way. */
  write(
    path: string,
    bytes: AsyncIterable<Uint8Array>,
    options?: WriteOptions,
  ): Promise<{ version: string; sizeBytes: number; digest: Digest }>;
  delete(path: string, options?: Reach & { ifMatch?: string; signal?: AbortSignal }): Promise<void>;
}

/** The configured stores, opened lazily: a connector's library is imported when the store is first used. */
export interface Stores {
  /** STORE_UNKNOWN, naming those that exist. */
  get(id: string): Promise<ArtifactStore>;
  readonly ids: readonly string[];
}

/** Files below `path` with their digests, read through the store. */
export type MakeManifest = (store: ArtifactStore, path: string, signal?: AbortSignal) => Promise<Manifest>;
