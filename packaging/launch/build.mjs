// npm run build: the compiled tree in dist/, mirroring protocol, agent, cloud and packaging/demo. External packages
// resolve upward to the repository's node_modules; only our own `protocol` is linked inside dist.
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

await script(async () => {
  await ensureInstalled();
  await ensureWeb();
  try {
    const tsc = join(root, "node_modules/typescript/bin/tsc");
    const code = await runNode24(tsc, ["-p", "tsconfig.build.json", "--outDir", aside]);
    if (code !== 0) throw new LaunchError(`the sources do not compile: tsc ended with exit code ${code}.`);
    for (const folder of ["protocol", "agent", "cloud", "packaging/demo", "packaging/launch"]) copyOthers(folder);

    const manifest = JSON.parse(readFileSync(join(root, "protocol/package.json"), "utf8"));
    manifest.exports = { ".": "./index.js" };
    writeFileSync(join(aside, "protocol/package.json"), `${JSON.stringify(manifest, undefined, 2)}\n`);
    mkdirSync(join(aside, "node_modules/@sallyport"), { recursive: true });
    symlinkSync("../../protocol", join(aside, "node_modules/@sallyport/protocol"), "junction");
    // Not every folder of the compiled tree has a package.json above it that says so.
    writeFileSync(join(aside, "package.json"), `${JSON.stringify({ private: true, type: "module" })}\n`);

    const page = join(root, "cloud/web/dist");
    if (existsSync(page)) cpSync(page, join(aside, "cloud/web/dist"), { recursive: true });

    rmSync(join(root, "dist"), { recursive: true, force: true });
    renameSync(aside, join(root, "dist"));
  } finally {
    rmSync(aside, { recursive: true, force: true });
  }
});
