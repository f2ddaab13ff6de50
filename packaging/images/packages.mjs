// Which npm packages one workspace needs when it runs, and which of their files: read from the lockfile and the packages
// themselves, copied from node_modules. It installs nothing and asks no registry. Only rootfs.mjs imports it.
import { cpSync, existsSync, readFileSync, readdirSync } from "node:fs";
import { dirname, join } from "node:path";

/**
 * What `workspaces` need at run time, found as Node finds it: dependencies, optional ones that are installed, and peers
 * that must be there. `packages` are folders of the lockfile (`node_modules/ws`, `cloud/node_modules/x`), `own` those of
 * our workspaces, which come compiled, from dist.
 */
export function productionPackages(root, workspaces) {
  const lock = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8")).packages;
  const found = new Set();
  const resolve = (from, name) => {
    for (let folder = from; ; folder = dirname(folder) === "." ? "" : dirname(folder)) {
      if (!folder.endsWith("node_modules")) {
        const at = folder === "" ? `node_modules/${name}` : `${folder}/node_modules/${name}`;
        if (lock[at] !== undefined) return at;
      }
      if (folder === "") return undefined;
    }
  };
  const visit = (at) => {
    const entry = lock[at];
    const wanted = { ...entry.peerDependencies, ...entry.optionalDependencies, ...entry.dependencies };
    for (const name of Object.keys(wanted)) {
      const optional =
        entry.dependencies?.[name] === undefined &&
        (entry.optionalDependencies?.[name] !== undefined || entry.peerDependenciesMeta?.[name]?.optional === true);
      let dependency = resolve(at, name);
      if (dependency !== undefined && lock[dependency].link === true) {
        // A workspace: its own packages, not itself.
        dependency = lock[dependency].resolved;
        if (!found.has(dependency)) {
          found.add(dependency);
          visit(dependency);
        }
        continue;
      }
      if (dependency === undefined || !existsSync(join(root, dependency))) {
        if (optional) continue;
        throw new Error(`${at} needs ${name}, which is not installed`);
      }
      // What a peer that may be absent is to somebody who did not ask for it: absent.
      if (optional && entry.peerDependencies?.[name] !== undefined) continue;
      if (found.has(dependency)) continue;
      // For another runtime than Node (Bare), behind a condition that Node does not take.
      if (lock[dependency].engines?.bare !== undefined && lock[dependency].engines.node === undefined) continue;
      found.add(dependency);
      visit(dependency);
    }
  };
  for (const workspace of workspaces) visit(workspace);
  const all = [...workspaces, ...found].sort((a, b) => (a < b ? -1 : 1));
  return {
    packages: all.filter((at) => at.includes("node_modules/")),
    own: [...new Set(all.filter((at) => !at.includes("node_modules/")))],
  };
}

/** Documentation, types, sources and tests: nothing that Node loads. */
const NEVER_FILES =
  /(\.(test|spec)\.[cm]?js|\.d\.[cm]?ts|\.tsx?|\.[cm]ts|\.map|\.flow|\.markdown|\.gyp|\.gypi|\.c|\.cc|\.cpp|\.h|\.hpp|\.tsbuildinfo|\.min\.js|\.umd\.js)$/i;
const NEVER_NAMES = new Set([
  ...["readme", "changelog", "history", "changes", "contributing", "authors", "security", "code_of_conduct"].flatMap(
    (name) => [name, `${name}.md`, `${name}.txt`],
  ),
  ...["tsconfig.json", "tslint.json", "package-lock.json", "yarn.lock", "pnpm-lock.yaml", "makefile", "bower.json"],
]);
const NEVER_FOLDERS = new Set(
  ["test", "tests", "__tests__", "example", "examples", "docs", "benchmark", "benchmarks", "coverage"].concat([
    ...["man", "deps", "include", "website", ".github", ".vscode", ".idea", ".husky"],
  ]),
);

/** Whether this package may be loaded from its `dist-es`: only what its `exports` name for Node can be. */
function loadsModulesFrom(folder, packageJson) {
  if (packageJson.type === "module") return true;
  const reachable = (value) => {
    if (typeof value === "string") return value.includes(`/${folder}/`) || value.startsWith(`${folder}/`);
    if (Array.isArray(value)) return value.some(reachable);
    if (value === null || typeof value !== "object") return false;
    // Node takes the first condition that holds, in the order written.
    for (const [condition, inner] of Object.entries(value)) {
      if (condition.startsWith(".")) {
        if (reachable(inner)) return true;
      } else if (["node", "import", "require", "module-sync", "default"].includes(condition)) {
        if (reachable(inner)) return true;
        if (["node", "default"].includes(condition)) return false;
      }
    }
    return false;
  };
  return reachable(packageJson.exports ?? packageJson.main ?? "index.js");
}

/** Copies one package without what Node never loads and without the native builds of other platforms. */
export function copyPackage(from, to, { platform, arch }) {
  const packageJson = JSON.parse(readFileSync(join(from, "package.json"), "utf8"));
  const other = (name) => {
    const match = /^(aix|android|darwin|freebsd|linux|openbsd|sunos|win32)-([a-z0-9_+]+)$/.exec(name);
    return match !== null && !(match[1] === platform && match[2].split("+").includes(arch));
  };
  const keep = (path, entry) => {
    const parts = path.split("/");
    const name = parts.at(-1);
    if (entry.isDirectory()) {
      if (["node_modules", "dist-types", ".github"].includes(name)) return false;
      if (parts.length === 1 && NEVER_FOLDERS.has(name)) return isCode(name);
      if (name === "dist-es" && !loadsModulesFrom("dist-es", packageJson)) return false;
      if (parts.at(-2) === "prebuilds" && other(name)) return false;
      // onnxruntime-node: bin/napi-v6/<platform>/<arch>
      if (parts[0] === "bin" && /^napi-v\d+$/.test(parts[1] ?? "")) {
        if (parts.length === 3 && name !== platform) return false;
        if (parts.length === 4 && name !== arch) return false;
      }
      return true;
    }
    if (path === "package.json" || /^(licen[cs]e|notice|copying|thirdparty)/i.test(name)) return true;
    if (parts.at(-3) === "prebuilds" && name.endsWith(".musl.node")) return false;
    if (name.endsWith(".md") || NEVER_NAMES.has(name.toLowerCase())) return false;
    // Node strips no types under node_modules: a .ts that is an entry there is for bundlers.
    return !NEVER_FILES.test(name) || (!name.endsWith("ts") && isEntry(packageJson, path));
  };
  // A folder named `docs` or `test` may be code: then the package says so.
  const isCode = (folder) =>
    JSON.stringify([packageJson.main, packageJson.exports, packageJson.imports]).includes(`${folder}/`);
  const copy = (relative) => {
    for (const entry of readdirSync(join(from, relative), { withFileTypes: true })) {
      const path = relative === "" ? entry.name : `${relative}/${entry.name}`;
      if (!keep(path, entry)) continue;
      if (entry.isDirectory()) copy(path);
      else if (entry.isFile()) cpSync(join(from, path), join(to, path));
    }
  };
  copy("");
}

const isEntry = (packageJson, path) =>
  JSON.stringify([packageJson.main, packageJson.exports]).includes(`"./${path}"`) || packageJson.main === path;
