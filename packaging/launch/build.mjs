// npm run build: the compiled tree in dist/, mirroring protocol, agent, cloud, packaging/demo and packaging/serving. External packages
// resolve upward to the repository's node_modules; only our own `protocol` is linked inside dist. With --if-changed it
// ends at once when dist/ was made from the very same files.
import { createHash } from "node:crypto";
import {
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { LaunchError, ensureInstalled, ensureWeb, root, runNode24, script } from "./launch.mjs";

/** Built aside and moved into place: a program that runs from dist/ keeps the files it has opened. */
const aside = join(root, `.dist-${process.pid}`);
const FOLDERS = ["protocol", "agent", "cloud", "packaging/demo", "packaging/serving", "packaging/launch"];

/** Copies what tsc does not emit and the programs read or run at run time. */
function copyOthers(folder) {
  for (const entry of readdirSync(join(root, folder), { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (["node_modules", "dist", "fixtures"].includes(entry.name) || entry.name.startsWith(".dist-")) continue;
    if (path === join("cloud", "web")) continue;
    if (entry.isDirectory()) copyOthers(path);
    else if (!/(\.ts|\.tsx|\.md|tsconfig.*\.json)$/.test(entry.name)) {
      mkdirSync(dirname(join(aside, path)), { recursive: true });
      cpSync(join(root, path), join(aside, path));
    }
  }
}

/** Of everything that dist/ is made from, by name and content. */
function sourcesDigest() {
  const hash = createHash("sha256");
  const add = (path) =>
    hash
      .update(path)
      .update("\0")
      .update(readFileSync(join(root, path)))
      .update("\0");
  const walk = (folder) => {
    for (const entry of readdirSync(join(root, folder), { withFileTypes: true })) {
      const path = join(folder, entry.name);
      if (["node_modules", "dist", "fixtures"].includes(entry.name) || entry.name.startsWith(".dist-")) continue;
      if (path === join("cloud", "web")) continue;
      if (entry.isDirectory()) walk(path);
      else if (!/(\.test\.ts|\.md)$/.test(entry.name)) add(path);
    }
  };
  for (const folder of FOLDERS) walk(folder);
  for (const file of ["package-lock.json", "tsconfig.json", "tsconfig.build.json"]) add(file);
  const page = join("cloud", "web", "dist", ".sallyport-sources");
  if (existsSync(join(root, page))) add(page);
  return hash.digest("hex");
}

await script(async () => {
  await ensureInstalled();
  await ensureWeb();
  const digest = sourcesDigest();
  const stamp = join(root, "dist/.sallyport-sources");
  if (process.argv.includes("--if-changed") && existsSync(stamp) && readFileSync(stamp, "utf8") === digest) return;
  try {
    const tsc = join(root, "node_modules/typescript/bin/tsc");
    const code = await runNode24(tsc, ["-p", "tsconfig.build.json", "--outDir", aside]);
    if (code !== 0) throw new LaunchError(`the sources do not compile: tsc ended with exit code ${code}.`);
    for (const folder of FOLDERS) copyOthers(folder);

    const manifest = JSON.parse(readFileSync(join(root, "protocol/package.json"), "utf8"));
    manifest.exports = Object.fromEntries(
      Object.entries(manifest.exports).map(([door, file]) => [door, file.replace(/\.ts$/, ".js")]),
    );
    writeFileSync(join(aside, "protocol/package.json"), `${JSON.stringify(manifest, undefined, 2)}\n`);
    mkdirSync(join(aside, "node_modules/@sallyport"), { recursive: true });
    symlinkSync("../../protocol", join(aside, "node_modules/@sallyport/protocol"), "junction");
    // Packages that npm could not put at the top, because another version is there.
    for (const folder of FOLDERS) {
      const nested = join(root, folder, "node_modules");
      if (existsSync(nested)) symlinkSync(nested, join(aside, folder, "node_modules"), "junction");
    }
    // Not every folder of the compiled tree has a package.json above it that says so.
    writeFileSync(join(aside, "package.json"), `${JSON.stringify({ private: true, type: "module" })}\n`);

    const page = join(root, "cloud/web/dist");
    if (existsSync(page)) cpSync(page, join(aside, "cloud/web/dist"), { recursive: true });

    writeFileSync(join(aside, ".sallyport-sources"), digest);
    rmSync(join(root, "dist"), { recursive: true, force: true });
    renameSync(aside, join(root, "dist"));
  } finally {
    rmSync(aside, { recursive: true, force: true });
  }
});
