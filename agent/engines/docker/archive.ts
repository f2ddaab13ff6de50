// A work folder into a container's volume and its outputs back, as plain tar: never compressed (Engines before 29.5.1
// unpack such archives with the container's own programs), never into a container that runs. Streams: one block in memory.
import { constants } from "node:fs";
import { lstat, mkdir, open, opendir, rename, rm, copyFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { extract, pack, type Header, type Pack } from "tar-stream";
import { ConnectorError } from "@sallyport/protocol";

const READ_BYTES = 256 * 1024;
const MAX_ENTRIES = 1_000_000;
const OUTPUTS = "outputs";

/** The contents of `folder` as `prefix/…`, owned by `user`. Links are not followed but refused. */
export function packFolder(folder: string, prefix: string, user: { uid: number; gid: number }): Readable {
  const tar = pack();
  add(tar, folder, prefix, user).then(
    () => tar.finalize(),
    (error: unknown) => (tar as unknown as { destroy(error: unknown): void }).destroy(error),
  );
  return Readable.from(tar, { objectMode: false });
}

async function add(tar: Pack, path: string, name: string, user: { uid: number; gid: number }): Promise<void> {
  const about = await lstat(path);
  if (about.isDirectory()) {
    await entry(tar, { name, type: "directory", mode: (about.mode & 0o777) | 0o700, mtime: about.mtime, ...user });
    for await (const child of await opendir(path))
      await add(tar, join(path, child.name), `${name}/${child.name}`, user);
    return;
  }
  if (!about.isFile())
    throw new ConnectorError(
      "ENGINE_FAILED",
      `The work folder holds ${JSON.stringify(name)}, which is neither a file nor a folder.`,
    );
  const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  try {
    const { size, mode, mtime } = await file.stat();
    const header: EntryHeader = { name, type: "file", size, mode: (mode & 0o777) | 0o600, mtime, ...user };
    await new Promise<void>((resolve, reject) => {
      const sink = tar.entry(header, (error) => (error ? reject(error) : resolve()));
      void (async () => {
        for (let left = size; left > 0;) {
          const { bytesRead, buffer } = await file.read(
            Buffer.allocUnsafe(Math.min(READ_BYTES, left)),
            0,
            Math.min(READ_BYTES, left),
            null,
          );
          if (bytesRead === 0) throw new Error(`${path} became shorter while it was read`);
          left -= bytesRead;
          if (!sink.write(buffer.subarray(0, bytesRead))) await drained(sink);
        }
        sink.end(null);
      })().catch((error: unknown) => sink.destroy(error as Error));
    });
  } finally {
    await file.close();
  }
}

const drained = (sink: NodeJS.EventEmitter): Promise<void> =>
  new Promise((resolve, reject) => {
    const done = (): void => {
      sink.removeListener("close", gone);
      resolve();
    };
    const gone = (): void => {
      sink.removeListener("drain", done);
      reject(new Error("the archive was given up"));
    };
    sink.once("drain", done);
    sink.once("close", gone);
  });

type EntryHeader = Partial<Header> & { name: string };

const entry = (tar: Pack, header: EntryHeader): Promise<void> =>
  new Promise((resolve, reject) => {
    tar.entry(header, (error) => (error ? reject(error) : resolve()));
  });

/**
 * Unpacks an archive of `outputs` in place of `<folder>/outputs`, which changes at once and whole. What the work left
 * there is its own: no name leads out, nothing but files and folders comes to be, at most `maxBytes` of content.
 */
export async function unpackOutputs(
  archive: Readable,
  folder: string,
  maxBytes: number,
  signal?: AbortSignal,
): Promise<void> {
  const part = join(folder, `.${OUTPUTS}.part`);
  await rm(part, { recursive: true, force: true });
  await mkdir(part, { mode: 0o700 });
  const tar = extract();
  const piped = pipeline(archive, tar, ...(signal === undefined ? [] : [{ signal }]));
  piped.catch(() => undefined);
  let entryName = OUTPUTS;
  try {
    let left = maxBytes;
    let entries = 0;
    const files = new Set<string>();
    for await (const item of tar) {
      const { name, size, type, linkname } = item.header;
      entryName = name;
      const segments = innerPath(name);
      const place = join(part, ...segments);
      if (++entries > MAX_ENTRIES) throw tooLarge(`more than ${MAX_ENTRIES} files`);
      if (type === "directory") {
        await mkdir(place, { recursive: true, mode: 0o700 });
      } else if (segments.length === 0) {
        throw foreign(OUTPUTS);
      } else if (type === "file" || type === "contiguous-file") {
        left -= size;
        if (left < 0) throw tooLarge(`more than ${maxBytes} bytes`);
        await mkdir(dirname(place), { recursive: true, mode: 0o700 });
        const file = await open(place, "wx", 0o600);
        try {
          for await (const chunk of item as AsyncIterable<Buffer>)
            for (let at = 0; at < chunk.length;) at += (await file.write(chunk, at)).bytesWritten;
        } finally {
          await file.close();
        }
        files.add(segments.join("/"));
      } else if (type === "link" && files.has(innerPath(linkname ?? "").join("/"))) {
        // A second name of a file that came before in this archive: a copy, which counts.
        const source = join(part, ...innerPath(linkname ?? ""));
        left -= (await lstat(source)).size;
        if (left < 0) throw tooLarge(`more than ${maxBytes} bytes`);
        await mkdir(dirname(place), { recursive: true, mode: 0o700 });
        await copyFile(source, place, constants.COPYFILE_EXCL);
        files.add(segments.join("/"));
      } else throw foreign(segments.join("/"));
      item.resume();
    }
    await piped;
    await rm(join(folder, OUTPUTS), { recursive: true, force: true });
    await rename(part, join(folder, OUTPUTS));
  } catch (error) {
    archive.destroy();
    await rm(part, { recursive: true, force: true });
    signal?.throwIfAborted();
    // Names that fit where the work made them may not fit behind the path of this folder.
    if ((error as NodeJS.ErrnoException).code === "ENAMETOOLONG") throw foreign(entryName);
    // A cut connection shows at both ends of the pipe; its cause is on the first.
    throw error;
  }
}

/** Of `outputs/a/b`: a, b. */
function innerPath(name: string): string[] {
  const [first, ...rest] = name.replace(/\/$/, "").split("/");
  if (first !== OUTPUTS) throw foreign(name);
  for (const segment of rest) {
    if (segment === "" || segment === "." || segment === ".." || segment.includes("\0") || segment.includes("\ufffd"))
      throw foreign(rest.join("/"));
  }
  return rest;
}

const tooLarge = (what: string): ConnectorError =>
  new ConnectorError("TOO_LARGE", `The work left ${what} of outputs, which is over the agent's limit.`, {
    fix: "Whoever runs the agent can raise limits.workBytes.",
  });

const foreign = (name: string): ConnectorError =>
  new ConnectorError(
    "STEP_OUTPUT_MISSING",
    `The work left ${JSON.stringify(name.slice(0, 200))} among its outputs, which is neither a file nor a folder with a name that can be kept.`,
    { fix: "Leave copies instead of links, under names in UTF-8." },
  );
