// Images for tests, from files of this machine alone: no registry is asked. Each is one layer, imported.
import { readFileSync } from "node:fs";
import { execFileSync } from "node:child_process";
import { basename } from "node:path";
import { Readable } from "node:stream";
import type Docker from "dockerode";
import { pack } from "tar-stream";

export interface ImageFile {
  path: string;
  /** Null: a folder. */
  bytes: Buffer | string | null;
  /** Default 0755. */
  mode?: number;
  /** Number of its user and group; default root. */
  owner?: number;
}

const TOOLS =
  "sh cat echo env id sleep seq yes head true false kill ls mkdir ln rm dd stat touch tr wc printf sync test grep od cp chmod".split(
    " ",
  );

/** busybox as `sh` and the common tools, /tmp, and two names in /etc/passwd. */
export function busyboxFiles(): ImageFile[] {
  return [{ path: "bin/busybox", bytes: readFileSync("/bin/busybox") }];
}

/** Programs or libraries of this machine at their own paths, with the libraries that the loader asks for. */
export function machineFiles(...paths: readonly string[]): ImageFile[] {
  const all = new Set(paths);
  for (const path of paths) for (const library of librariesOf(path)) all.add(library);
  return [...all].map((path) => ({ path: path.slice(1), bytes: readFileSync(path) }));
}

function librariesOf(path: string): string[] {
  try {
    return execFileSync("ldd", [path], { encoding: "utf8", stdio: "pipe" }).match(/\/[^ \n\t]+(?= \()/g) ?? [];
  } catch {
    // It is linked statically.
    return [];
  }
}

/** The Node that runs this test. */
export function nodeFiles(): ImageFile[] {
  const [node, ...libraries] = machineFiles(process.execPath);
  return [{ ...node!, path: "usr/bin/node" }, ...libraries];
}

/** Imports an image and returns its id, `sha256:…`. `changes`: lines of a Dockerfile. */
export async function importImage(
  docker: Docker,
  repo: string,
  files: readonly ImageFile[],
  changes: readonly string[] = [],
  imageTag = "1",
): Promise<string> {
  const tar = pack();
  for (const folder of ["bin", "etc", "proc", "sys", "dev", "tmp", "usr/bin"])
    tar.entry({ name: folder, type: "directory", mode: folder === "tmp" ? 0o1777 : 0o755 });
  for (const tool of TOOLS) tar.entry({ name: `bin/${tool}`, type: "symlink", linkname: "busybox" });
  tar.entry({ name: "etc/passwd", mode: 0o644 }, "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n");
  for (const { path, bytes, mode = 0o755, owner = 0 } of files) {
    const header = { name: path, mode, uid: owner, gid: owner };
    if (bytes === null) tar.entry({ ...header, type: "directory" });
    else tar.entry(header, bytes as string);
  }
  tar.finalize();
  const answer = await docker.importImage(Readable.from(tar, { objectMode: false }), {
    repo,
    tag: imageTag,
    changes: ["ENV PATH=/usr/bin:/bin", ...changes],
  });
  let text = "";
  for await (const chunk of answer) text += String(chunk);
  const id = /sha256:[0-9a-f]{64}/.exec(text)?.[0];
  if (id === undefined) throw new Error(`the engine imported no ${basename(repo)}: ${text}`);
  return id;
}

/** Entry point `/bin/sh -c`-able: busybox alone, a few MB. */
export const busyboxImage = (docker: Docker): Promise<string> =>
  importImage(docker, "sallyport-test/busybox", busyboxFiles(), ['ENTRYPOINT ["/bin/sh"]']);

export const nodeImage = (docker: Docker, more: readonly ImageFile[] = []): Promise<string> =>
  importImage(
    docker,
    "sallyport-test/node",
    [...busyboxFiles(), ...nodeFiles(), ...more],
    ['ENTRYPOINT ["/usr/bin/node"]'],
  );
