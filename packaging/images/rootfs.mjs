// The layers of our images as tar files, made on the build machine out of what is there: the locked Node binary, the
// machine's C library, an init, the compiled tree and its packages. No registry is asked. Linux only: it copies programs,
// so an image is for the architecture of the machine that makes it. packaging/launch/images.mjs is the one that calls.
import { execFileSync } from "node:child_process";
import {
  accessSync,
  chmodSync,
  constants,
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { basename, delimiter, dirname, join } from "node:path";
import { copyPackage, productionPackages } from "./packages.mjs";

/** Of the user that the images name. Any other works as well: nothing in them belongs to it. */
export const USER = 65532;
const APP = "opt/sallyport";
/** Of every file of the system's layer, so that the same files give the same layer whenever they are packed. */
const SYSTEM_TIME = 315_532_800; // 1980-01-01

/** Something that the build machine lacks; `message` is for people. */
export class MissingPart extends Error {}

// ---- a folder that becomes a layer

class Layer {
  #open = [];
  constructor() {
    this.folder = mkdtempSync(join(tmpdir(), "sallyport-layer-"));
  }

  path(inside) {
    const path = join(this.folder, inside);
    mkdirSync(dirname(path), { recursive: true });
    return path;
  }

  copy(from, inside, mode = 0o644) {
    const to = this.path(inside);
    if (existsSync(to)) return;
    copyFileSync(realpathSync(from), to);
    chmodSync(to, mode);
  }

  write(inside, text, mode = 0o644) {
    writeFileSync(this.path(inside), text);
    chmodSync(join(this.folder, inside), mode);
  }

  link(target, inside) {
    symlinkSync(target, this.path(inside));
  }

  /** A folder that any user may write into; what it holds belongs to who made it. */
  shared(inside) {
    mkdirSync(join(this.folder, inside), { recursive: true });
    this.#open.push(inside);
  }

  /** Folders 755, files 644 or 755, owner root, one time: nothing of the build machine but the content. */
  pack(file, time) {
    const settle = (folder) => {
      chmodSync(folder, 0o755);
      for (const entry of readdirSync(folder, { withFileTypes: true })) {
        const path = join(folder, entry.name);
        if (entry.isDirectory()) settle(path);
        else if (entry.isFile()) chmodSync(path, isExecutable(path) ? 0o755 : 0o644);
      }
    };
    settle(this.folder);
    for (const inside of this.#open) chmodSync(join(this.folder, inside), 0o1777);
    mkdirSync(dirname(file), { recursive: true });
    rmSync(file, { force: true });
    const options = ["--sort=name", `--mtime=@${time}`, "--owner=0", "--group=0", "--numeric-owner", "--format=gnu"];
    execFileSync("tar", [...options, "-C", this.folder, "-cf", file, "."], { stdio: ["ignore", "inherit", "inherit"] });
  }

  remove() {
    rmSync(this.folder, { recursive: true, force: true });
  }
}

const isExecutable = (path) => {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
};

/** Makes the layer `file`; its folder is removed whatever happens. */
function layer(file, time, fill) {
  const made = new Layer();
  try {
    fill(made);
    made.pack(file, time);
  } finally {
    made.remove();
  }
}

// ---- programs of the build machine

const which = (name) => {
  for (const folder of (process.env.PATH ?? "").split(delimiter).concat("/usr/bin", "/usr/sbin", "/bin", "/sbin")) {
    const file = join(folder, name);
    if (folder !== "" && isExecutable(file)) return file;
  }
  return undefined;
};

/** Libraries that a program or library loads, the loader included; empty when it is static. */
function librariesOf(file) {
  let text;
  try {
    text = execFileSync("ldd", [file], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
  } catch {
    return [];
  }
  if (/not found/.test(text)) throw new MissingPart(`${file} needs a library that this machine has not:\n${text}`);
  return [...text.matchAll(/(?:=> |^\s+)(\/\S+) \(0x/gm)].map((match) => match[1]);
}

/** /lib and /lib64 are links to the same names under /usr, as everywhere today. */
const merged = (path) => path.replace(/^\/(lib[^/]*|bin|sbin)\//, "/usr/$1/").slice(1);

const addLibraries = (made, file) => {
  for (const library of librariesOf(file)) made.copy(library, merged(library), 0o755);
};

/** A static one is a program by itself, in whatever base. */
function findInit(given) {
  const names = given === undefined ? ["tini-static", "docker-init", "tini"].map(which) : [given];
  const found = names.filter((file) => file !== undefined);
  for (const file of found) if (existsSync(file) && librariesOf(file).length === 0) return file;
  if (given !== undefined) throw new MissingPart(`${given} is no static program: it cannot be the images' init.`);
  throw new MissingPart(
    "an image needs an init as its first process, and this machine has none that is static. Install the package tini (apt-get install tini), or name one: --init FILE.",
  );
}

function findShell() {
  const file = which("busybox");
  if (file !== undefined && librariesOf(file).length === 0) return file;
  throw new MissingPart(
    "the engine process starts its work by a shell, which the image agent-serving gets from a static busybox; this machine has none. Install the package busybox-static.",
  );
}

/** The licence that came with a program or a library, where Debian keeps it. */
function addLicence(made, debianPackage) {
  const file = `/usr/share/doc/${debianPackage}/copyright`;
  if (existsSync(file)) made.copy(file, file.slice(1));
}

// ---- the layers

/**
 * Node and the init; with `bare` (the base is `scratch`) also the C library, the certificates and the names of users.
 * The same for all our images, so that a machine keeps it once.
 */
export function systemLayer(file, { root, bare, init }) {
  layer(file, SYSTEM_TIME, (made) => {
    const from = dirname(dirname(nodeBinary(root)));
    made.copy(join(from, "bin/node"), "usr/bin/node", 0o755);
    made.copy(findInit(init), "usr/bin/tini", 0o755);
    made.copy(join(from, "LICENSE"), "usr/share/doc/nodejs/LICENSE");
    addLicence(made, "tini");
    if (!bare) return;
    for (const name of ["bin", "sbin", "lib", "lib64"]) {
      mkdirSync(join(made.folder, "usr", name), { recursive: true });
      made.link(`usr/${name}`, name);
    }
    addLibraries(made, join(from, "bin/node"));
    // Loaded by name when a host name is looked up; part of the C library itself since glibc 2.34.
    const libc = librariesOf(join(from, "bin/node")).find((library) => /\/libc\.so/.test(library));
    for (const name of ["libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2"]) {
      const library = join(dirname(libc), name);
      if (existsSync(library)) made.copy(library, merged(library), 0o755);
    }
    for (const name of ["libc6", "libstdc++6", "libgcc-s1"]) addLicence(made, name);
    made.write("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n");
    made.write(
      "etc/passwd",
      `root:x:0:0:root:/nonexistent:/nonexistent\nsallyport:x:${USER}:${USER}:sallyport:/nonexistent:/nonexistent\n`,
    );
    made.write("etc/group", `root:x:0:\nsallyport:x:${USER}:\n`);
    const certificates = "/etc/ssl/certs/ca-certificates.crt";
    if (existsSync(certificates)) made.copy(certificates, certificates.slice(1));
    made.shared("tmp");
    made.shared("var/tmp");
  });
}

/** Compiled workspaces and their packages under /opt/sallyport, and `command` in PATH for each program. */
export function appLayer(
  file,
  { root, time, workspaces, commands, files = {}, shared = [], folders = [], shell = false },
) {
  layer(file, time, (made) => {
    const dist = join(root, "dist");
    const { packages, own } = productionPackages(root, workspaces);
    const target = { platform: process.platform, arch: process.arch };
    for (const at of packages) copyPackage(join(root, at), made.path(join(APP, at)), target);
    for (const at of own) {
      if (!existsSync(join(dist, at))) throw new Error(`dist/${at} is missing: npm run build makes it`);
      cpSync(join(dist, at), made.path(join(APP, at)), { recursive: true, filter: (path) => runs(path) });
      if (at === "protocol") made.link("../../protocol", join(APP, "node_modules/@sallyport/protocol"));
    }
    made.copy(join(dist, "package.json"), join(APP, "package.json"));
    made.copy(join(dist, "packaging/launch/launch.mjs"), join(APP, "packaging/launch/launch.mjs"));
    for (const [name, entry] of Object.entries(commands)) {
      if (!existsSync(join(made.folder, APP, entry))) throw new Error(`${entry} is not among what is compiled`);
      made.write(join("usr/local/bin", name), `#!/usr/bin/node\nimport("/${APP}/${entry}");\n`, 0o755);
    }
    for (const [name, from] of Object.entries(files)) made.copy(join(root, from), join(APP, name));
    // What native packages load beside what Node has loaded already.
    for (const library of nativeFiles(join(made.folder, APP, "node_modules"))) {
      for (const needed of librariesOf(library)) {
        if (!needed.startsWith(made.folder)) made.copy(needed, merged(needed), 0o755);
      }
    }
    if (shell) {
      made.copy(findShell(), "usr/bin/busybox", 0o755);
      for (const name of ["sh", "mv"]) made.link("busybox", join("usr/bin", name));
      addLicence(made, "busybox-static");
    }
    for (const inside of folders) mkdirSync(join(made.folder, inside), { recursive: true });
    for (const inside of shared) made.shared(inside);
  });
}

/** Of the compiled tree, without what only a developer reads. */
const runs = (path) => !/\.(map|sh)$/.test(path) && ![".sallyport-sources", "node_modules"].includes(basename(path));

function nativeFiles(folder) {
  if (!existsSync(folder)) return [];
  return readdirSync(folder, { recursive: true })
    .filter((name) => /\.node$|\.so(\.\d+)*$/.test(name))
    .map((name) => join(folder, name));
}

function nodeBinary(root) {
  const file = join(root, `node_modules/node-${process.platform}-${process.arch}/bin/node`);
  if (process.platform === "linux" && existsSync(file)) return file;
  throw new MissingPart(
    `images are made on Linux, with the locked Node binary for its architecture: ${file} is missing. Run: npm ci`,
  );
}

/** Seconds since 1970 for the files of ours: SOURCE_DATE_EPOCH, else the last commit's, else a constant. */
export function sourceTime(root) {
  const given = Number(process.env.SOURCE_DATE_EPOCH ?? Number.NaN);
  if (Number.isInteger(given)) return given;
  try {
    const options = { cwd: root, encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] };
    return Number(execFileSync("git", ["log", "-1", "--format=%ct"], options).trim()) || SYSTEM_TIME;
  } catch {
    return SYSTEM_TIME;
  }
}

/** Of the product, from the workspace that an image is made of. */
export const versionOf = (root, workspace) =>
  JSON.parse(readFileSync(join(root, workspace, "package.json"), "utf8")).version;
