// A folder as a store. Containment does not rest on the text of a path: what was opened is asked where it really is
// (/proc/self/fd), and writes go through the opened parent folder, so that a link put there in between changes nothing.
import { createHash, randomUUID } from "node:crypto";
import { close, constants, fstat, open as openFile, type BigIntStats } from "node:fs";
import { link, lstat, mkdir, open, opendir, realpath, rename, stat, unlink, type FileHandle } from "node:fs/promises";
import { join, sep } from "node:path";
import { promisify } from "node:util";
import { ConnectorError, type ArtifactEntry, type Digest } from "@sallyport/protocol";
import { KeptFolders, placeOf } from "./kept-folders.ts";
import { mediaTypeOf } from "./media-types.ts";
import { baseName, joinPath, segmentProblem } from "./path.ts";
import { spanOf } from "./ranges.ts";
import {
  cursorInvalid,
  digestMismatch,
  exists,
  notAFile,
  notATree,
  notFound,
  preconditionFailed,
  sizeMismatch,
} from "./store-errors.ts";
import type { ArtifactStore, OpenedRead, Reach, ReadRange, WriteOptions } from "./store.ts";

const CHUNK_BYTES = 256 * 1024;
/** Of a folder's entries; the thread pool has four threads. */
const STATS_AT_ONCE = 32;
/** Unfinished writes lie beside their target under such a name; never listed. */
const TEMP = /^\.sallyport-[0-9a-f-]{36}\.tmp$/;
const PROC = process.platform === "linux";
/** Linux' O_PATH, which Node does not name: no right to read is needed, as none is to list, and a device stays untouched. */
const LOOKED_AT = PROC ? 0o10000000 : constants.O_RDONLY | constants.O_NONBLOCK;
const openFd = promisify(openFile);
const statFd = promisify(fstat);
/** For so long the root counts as lying where it was found: each look is a turn of the thread pool. */
const ROOT_MS = 1_000;

export class FsStore implements ArtifactStore {
  readonly kind = "fs";
  readonly label = "file";
  readonly id: string;
  readonly #configuredRoot: string;
  #root: { path: string; atMs: number } | null = null;
  readonly #folders = new KeptFolders();
  /** Writes to one path take turns, so that check and rename are one step among ours. */
  readonly #turns = new Map<string, Promise<void>>();

  constructor(id: string, root: string) {
    this.id = id;
    this.#configuredRoot = root;
  }

  async list(
    path: string,
    { cursor, limit, signal, reached }: Reach & { cursor?: string; limit: number; signal?: AbortSignal },
  ): Promise<{ entries: ArtifactEntry[]; nextCursor: string | null }> {
    const after = cursor === undefined ? null : Buffer.from(cursor, "base64url").toString();
    if (after !== null && segmentProblem(after) !== null) throw cursorInvalid();
    const folder = await this.#open(path, constants.O_RDONLY, reached);
    try {
      if (!folder.info.isDirectory()) throw notATree(this.id, path);
      // Only the page's names are kept, however many there are: sorted and cut whenever four pages have come together.
      let names: string[] = [];
      const keep = limit + 1;
      let cut: string | null = null;
      const trim = (): void => {
        names = names.sort(byName).slice(0, keep);
        cut = names.length === keep ? names[keep - 1]! : null;
      };
      for await (const entry of await opendir(folder.anchored, { bufferSize: 256 })) {
        signal?.throwIfAborted();
        const { name } = entry;
        if (TEMP.test(name) || segmentProblem(name) !== null) continue;
        if ((after !== null && byName(name, after) <= 0) || (cut !== null && byName(name, cut) > 0)) continue;
        names.push(name);
        if (names.length >= keep * 4) trim();
      }
      trim();
      const page = names.slice(0, limit);
      const entries: ArtifactEntry[] = [];
      for (let at = 0; at < page.length; at += STATS_AT_ONCE) {
        signal?.throwIfAborted();
        const some = page.slice(at, at + STATS_AT_ONCE).map((name) => this.#entryIn(folder, path, name, reached));
        for (const entry of await Promise.all(some)) if (entry !== null) entries.push(entry);
      }
      return { entries, nextCursor: names.length > limit ? Buffer.from(page.at(-1)!).toString("base64url") : null };
    } finally {
      await folder.handle.close();
    }
  }

  async stat(path: string, { reached }: Reach = {}): Promise<ArtifactEntry> {
    return entryFrom(path, await this.#inRoot((root, forMs) => this.#lookShort(root, forMs, path, reached)));
  }

  async read(
    path: string,
    options: Reach & { range?: ReadRange; suffixBytes?: number; ifMatch?: string; signal?: AbortSignal } = {},
  ): Promise<OpenedRead> {
    const { handle, info } = await this.#open(path, constants.O_RDONLY, options.reached);
    try {
      const entry = entryFrom(path, info);
      if (entry.kind === "tree") throw notAFile(this.id, path);
      const totalBytes = entry.sizeBytes!;
      if (options.ifMatch !== undefined && options.ifMatch !== entry.version)
        throw preconditionFailed(this.id, path, entry.version);
      const { start, lengthBytes } = spanOf(this.id, path, totalBytes, options.range, options.suffixBytes);
      const bytes = this.#bytes(handle, path, start, lengthBytes, entry.version!, options.signal);
      return {
        start,
        lengthBytes,
        totalBytes,
        version: entry.version!,
        mediaType: entry.mediaType!,
        modifiedAt: entry.modifiedAt,
        bytes,
      };
    } catch (error) {
      await handle.close();
      throw error;
    }
  }

  /** One chunk at a time, each in its own buffer: whoever got one may keep it. Closes the handle in any case. */
  #bytes(
    handle: FileHandle,
    path: string,
    start: number,
    lengthBytes: number,
    version: string,
    signal?: AbortSignal,
  ): AsyncIterable<Buffer> {
    const store = this.id;
    async function* chunks(): AsyncGenerator<Buffer> {
      let at = start;
      const end = start + lengthBytes;
      while (at < end) {
        signal?.throwIfAborted();
        const buffer = Buffer.allocUnsafeSlow(Math.min(CHUNK_BYTES, end - at));
        const { bytesRead } = await handle.read(buffer, 0, buffer.length, at);
        if (bytesRead === 0)
          throw new ConnectorError(
            "PRECONDITION_FAILED",
            `${JSON.stringify(path)} in store ${store} became shorter while it was read.`,
            { fix: "Read it again." },
          );
        at += bytesRead;
        yield bytesRead === buffer.length ? buffer : buffer.subarray(0, bytesRead);
      }
      // Written in place meanwhile: what was sent is a mixture, and must not look whole.
      if (lengthBytes > 0 && versionOf(await handle.stat({ bigint: true })) !== version)
        throw preconditionFailed(store, path, null);
    }
    return closing(chunks(), () => handle.close());
  }

  async write(
    path: string,
    bytes: AsyncIterable<Uint8Array>,
    options: WriteOptions = {},
  ): Promise<{ version: string; sizeBytes: number; digest: Digest }> {
    if (path === "") throw notAFile(this.id, path);
    const parent = await this.#makeParent(path, options.reached);
    const temp = join(parent.anchored, `.sallyport-${randomUUID()}.tmp`);
    const target = join(parent.anchored, baseName(path));
    try {
      const hash = createHash("sha256");
      let sizeBytes = 0;
      const file = await this.#io(
        path,
        open(temp, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW, 0o644),
      );
      try {
        for await (const chunk of bytes) {
          options.signal?.throwIfAborted();
          hash.update(chunk);
          await this.#io(path, file.writeFile(chunk));
          sizeBytes += chunk.byteLength;
          if (options.sizeBytes !== undefined && sizeBytes > options.sizeBytes)
            throw sizeMismatch(this.id, path, options.sizeBytes, sizeBytes);
        }
        options.signal?.throwIfAborted();
        if (options.sizeBytes !== undefined && sizeBytes !== options.sizeBytes)
          throw sizeMismatch(this.id, path, options.sizeBytes, sizeBytes);
        const digest: Digest = `sha256:${hash.digest("hex")}`;
        if (options.digest !== undefined && options.digest !== digest)
          throw digestMismatch(this.id, path, options.digest, digest);
        await this.#io(path, file.sync());
        await this.#inTurn(path, async () => await this.#place(path, temp, target, options));
        await this.#io(path, parent.handle.sync());
        return { version: versionOf(await file.stat({ bigint: true })), sizeBytes, digest };
      } finally {
        await file.close();
        await unlink(temp).catch(() => {}); // gone already when it was renamed
      }
    } finally {
      await parent.handle.close();
    }
  }

  async #place(path: string, temp: string, target: string, options: WriteOptions): Promise<void> {
    const current = await this.#entryOrNull(path);
    if (current?.kind === "tree") throw notAFile(this.id, path);
    if (options.ifNoneMatch !== undefined) {
      // link fails when the name is taken: of several at once, one wins, whoever they are.
      try {
        await link(temp, target);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === "EEXIST") throw exists(this.id, path, error);
        throw this.#error(error, path);
      }
      return;
    }
    if (options.ifMatch !== undefined && options.ifMatch !== current?.version)
      throw preconditionFailed(this.id, path, current?.version ?? null);
    await this.#io(path, rename(temp, target));
  }

  async delete(path: string, options: Reach & { ifMatch?: string } = {}): Promise<void> {
    await this.#inTurn(path, async () => {
      const entry = await this.stat(path);
      if (entry.kind === "tree") throw notAFile(this.id, path);
      if (options.ifMatch !== undefined && options.ifMatch !== entry.version)
        throw preconditionFailed(this.id, path, entry.version);
      const parent = await this.#open(parentOf(path), constants.O_RDONLY | constants.O_DIRECTORY);
      try {
        if (parent.real !== parentOf(path)) options.reached?.(joinPath(parent.real, baseName(path)));
        await this.#io(path, unlink(join(parent.anchored, baseName(path))));
        await this.#io(path, parent.handle.sync());
      } finally {
        await parent.handle.close();
      }
    });
  }

  async #inTurn(path: string, work: () => Promise<void>): Promise<void> {
    const before = this.#turns.get(path);
    const mine = (async () => {
      await before?.catch(() => {});
      await work();
    })();
    this.#turns.set(path, mine);
    try {
      await mine;
    } finally {
      if (this.#turns.get(path) === mine) this.#turns.delete(path);
    }
  }

  /** `forMs`: how long the root still counts as lying there. */
  async #inRoot<T>(work: (root: string, forMs: number) => Promise<T>): Promise<T> {
    const known = this.#root;
    const leftMs = known === null ? 0 : ROOT_MS - (performance.now() - known.atMs);
    if (known === null || leftMs <= 0) return await work(await this.#findRoot(), ROOT_MS);
    try {
      return await work(known.path, leftMs);
    } catch (error) {
      // The root may have moved or gone since: what is wrong is said of the one that is there now.
      const root = await this.#findRoot();
      if (root === known.path) throw error;
      return await work(root, ROOT_MS);
    }
  }

  /** Opens what is there and checks that it really lies under the root. Nothing has been read from it until then. */
  async #open(path: string, flags: number, reached?: (realPath: string) => void): Promise<Opened> {
    return await this.#inRoot((root) => this.#openIn(root, path, flags, reached));
  }

  /**
   * As `#look`, by its folder where that is held open: a file or folder that lies in it itself is where the folder is, so
   * one call answers.
   */
  async #lookShort(
    root: string,
    forMs: number,
    path: string,
    reached?: (realPath: string) => void,
  ): Promise<BigIntStats> {
    const segments = path.split("/");
    if (!PROC || segments.some((segment) => segment === "" || segment === "." || segment === ".."))
      return await this.#look(root, path, reached);
    const folder = join(root, ...segments.slice(0, -1));
    const known = await this.#folders.look(folder, segments.at(-1)!);
    if (known !== null) return known;
    const info = await this.#look(root, path, reached);
    this.#folders.asked(folder, forMs);
    return info;
  }

  /** As `#open`, for what is looked at and closed again: a bare number costs half of what Node's handle does. */
  async #look(root: string, path: string, reached?: (realPath: string) => void): Promise<BigIntStats> {
    const full = path === "" ? root : join(root, ...path.split("/"));
    const fd = await this.#io(path, openFd(full, LOOKED_AT));
    try {
      const real = await this.#contained(fd, full, root, path);
      if (real !== path) reached?.(real);
      const info = await this.#io(path, statFd(fd, { bigint: true }));
      if (!info.isFile() && !info.isDirectory()) throw notFound(this.id, path);
      return info;
    } finally {
      // Nobody waits for its end: nothing was written by it.
      close(fd, () => {});
    }
  }

  async #openIn(root: string, path: string, flags: number, reached?: (realPath: string) => void): Promise<Opened> {
    const full = path === "" ? root : join(root, ...path.split("/"));
    // Not blocking: opening a FIFO must not wait for its other end.
    const handle = await this.#io(path, open(full, flags | constants.O_NONBLOCK));
    try {
      const real = await this.#contained(handle.fd, full, root, path);
      if (real !== path) reached?.(real);
      const info = await handle.stat({ bigint: true });
      if (!info.isFile() && !info.isDirectory()) throw notFound(this.id, path);
      return { handle, anchored: PROC ? `/proc/self/fd/${handle.fd}` : full, real, info };
    } catch (error) {
      await handle.close();
      throw error;
    }
  }

  /** The path, from the root, at which it really lies. */
  async #contained(fd: number, full: string, root: string, path: string): Promise<string> {
    // 2 us here, ten times that by the thread pool.
    const real = PROC ? placeOf(fd) : await realpath(full);
    if (real !== root && !real.startsWith(root.endsWith(sep) ? root : root + sep)) {
      throw new ConnectorError(
        "PATH_INVALID",
        `${JSON.stringify(path)} in store ${this.id} is a link that leaves the store.`,
        { fix: "Put the file itself into the store, or configure a store where it lies." },
      );
    }
    if (!PROC) {
      const [opened, named] = await Promise.all([statFd(fd, { bigint: true }), stat(real, { bigint: true })]);
      if (opened.ino !== named.ino || opened.dev !== named.dev) throw notFound(this.id, path);
    }
    return real === root ? "" : real.slice(root.endsWith(sep) ? root.length : root.length + 1).replaceAll(sep, "/");
  }

  /** The folder of a path to be written, made where missing, each step from the opened folder before it. */
  async #makeParent(
    path: string,
    reached?: (realPath: string) => void,
  ): Promise<{ handle: FileHandle; anchored: string }> {
    const segments = path.split("/").slice(0, -1);
    let done = "";
    let folder = await this.#open("", constants.O_RDONLY | constants.O_DIRECTORY);
    for (const segment of segments) {
      try {
        await mkdir(join(folder.anchored, segment)).catch((error: unknown) => {
          if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw this.#error(error, path);
        });
        done = joinPath(done, segment);
        const next = await this.#open(done, constants.O_RDONLY | constants.O_DIRECTORY);
        await folder.handle.close();
        folder = next;
        // Before anything is made in there.
        if (folder.real !== done) reached?.(joinPath(folder.real, path.slice(done.length + 1)));
      } catch (error) {
        await folder.handle.close();
        throw error;
      }
    }
    return folder;
  }

  /**
   * What `name` is in an opened folder, `path` as it was asked for. A file or folder that lies there itself is where the
   * folder is, so one call answers; a link is opened, to see where it leads. Null as `#entryOrNull` says.
   */
  async #entryIn(
    folder: { anchored: string; real: string },
    path: string,
    name: string,
    reached?: (realPath: string) => void,
  ): Promise<ArtifactEntry | null> {
    const full = joinPath(path, name);
    if (!PROC) return await this.#entryOrNull(full, reached);
    const info = await lstat(join(folder.anchored, name), { bigint: true }).catch((error: unknown) => {
      const { code } = error as NodeJS.ErrnoException;
      if (code === "ENOENT" || code === "EACCES") return null;
      throw this.#error(error, full);
    });
    if (info === null) return null;
    if (info.isSymbolicLink()) return await this.#entryOrNull(full, reached);
    if (!info.isFile() && !info.isDirectory()) return null;
    if (folder.real !== path) {
      try {
        reached?.(joinPath(folder.real, name));
      } catch (error) {
        if (error instanceof ConnectorError && (error.code === "POLICY_DENIED" || error.code === "PATH_INVALID"))
          return null;
        throw error;
      }
    }
    return entryFrom(full, info);
  }

  /** Null when nothing is there, or something that is not shown: a link that leaves the root or may not be followed, a socket. */
  async #entryOrNull(path: string, reached?: (realPath: string) => void): Promise<ArtifactEntry | null> {
    try {
      return await this.stat(path, reached === undefined ? {} : { reached });
    } catch (error) {
      if (
        error instanceof ConnectorError &&
        (error.code === "POLICY_DENIED" ||
          error.code === "ARTIFACT_NOT_FOUND" ||
          error.code === "PATH_INVALID" ||
          error.code === "STORE_DENIED")
      )
        return null;
      throw error;
    }
  }

  async #findRoot(): Promise<string> {
    try {
      const path = await realpath(this.#configuredRoot);
      this.#root = { path, atMs: performance.now() };
      return path;
    } catch (cause) {
      this.#root = null;
      throw new ConnectorError(
        "STORE_UNREACHABLE",
        `The folder of store ${this.id} cannot be opened (${(cause as NodeJS.ErrnoException).code}).`,
        { fix: `Make the folder that stores (${this.id}) root names, or mount its disk.`, cause },
      );
    }
  }

  async #io<T>(path: string, work: Promise<T>): Promise<T> {
    try {
      return await work;
    } catch (error) {
      throw this.#error(error, path);
    }
  }

  #error(error: unknown, path: string): unknown {
    if (error instanceof ConnectorError) return error;
    const { code } = error as NodeJS.ErrnoException;
    switch (code) {
      case "ENOENT":
      case "ENXIO": // a socket or a FIFO without its other end
        return notFound(this.id, path, error);
      case "ENOTDIR":
        return new ConnectorError(
          "NOT_A_FILE",
          `A folder on the way to ${JSON.stringify(path)} in store ${this.id} is a file.`,
          { fix: "Choose a path whose folders are folders.", cause: error },
        );
      case "EISDIR":
      case "ENOTEMPTY":
        return notAFile(this.id, path);
      case "EACCES":
      case "EPERM":
      case "EROFS":
        return new ConnectorError(
          "STORE_DENIED",
          `The agent's user may not do this at ${JSON.stringify(path)} in store ${this.id} (${code}).`,
          { fix: "Give the agent's user the rights on the folder.", cause: error },
        );
      case "ELOOP":
      case "ENAMETOOLONG":
        return new ConnectorError(
          "PATH_INVALID",
          `${JSON.stringify(path)} cannot be opened in store ${this.id} (${code}).`,
          { fix: "Choose another path.", cause: error },
        );
      case "ENOSPC":
      case "EDQUOT":
        return new ConnectorError("STORAGE_FULL", `No space is left on the disk of store ${this.id}.`, {
          fix: "Free space on that disk.",
          cause: error,
        });
      default:
        return code === undefined
          ? error
          : new ConnectorError("STORE_FAILED", `The disk of store ${this.id} failed (${code}).`, {
              fix: "Look into the machine's own log.",
              cause: error,
            });
    }
  }
}

interface Opened {
  readonly handle: FileHandle;
  readonly anchored: string;
  /** From the root. */
  readonly real: string;
  readonly info: BigIntStats;
}

const byName = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);
const parentOf = (path: string): string => (path.includes("/") ? path.slice(0, path.lastIndexOf("/")) : "");

interface BigStat {
  mtimeNs: bigint;
  size: bigint;
  ino: bigint;
}
const versionOf = (info: BigStat): string =>
  `${info.mtimeNs.toString(36)}-${info.size.toString(36)}-${info.ino.toString(36)}`;

function entryFrom(path: string, info: BigIntStats): ArtifactEntry {
  const name = baseName(path);
  const modifiedAt = Math.max(0, Number(info.mtimeMs));
  if (info.isDirectory())
    return { name, path, kind: "tree", sizeBytes: null, modifiedAt, version: null, mediaType: null };
  return {
    name,
    path,
    kind: "file",
    sizeBytes: Number(info.size),
    modifiedAt,
    version: versionOf(info),
    mediaType: mediaTypeOf(name),
  };
}

/** Runs `close` once, when the iteration ends in any way, also when it never began but was closed. */
function closing(source: AsyncGenerator<Buffer>, close: () => Promise<void>): AsyncIterableIterator<Buffer> {
  let closed = false;
  const end = async (): Promise<void> => {
    if (closed) return;
    closed = true;
    await close();
  };
  return {
    [Symbol.asyncIterator]() {
      return this;
    },
    async next() {
      try {
        const step = await source.next();
        if (step.done === true) await end();
        return step;
      } catch (error) {
        await end();
        throw error;
      }
    },
    async return() {
      await source.return(undefined);
      await end();
      return { done: true, value: undefined };
    },
  };
}
