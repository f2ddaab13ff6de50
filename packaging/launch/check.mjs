// npm run check: everything that judges the sources without running them. All checks run; the exit code is non-zero
// when one of them fails. `npm run check -- lint format` runs only those named.
import { join } from "node:path";
import { LaunchError, ensureInstalled, root, runNode24, script } from "./launch.mjs";

const bin = (path) => join(root, "node_modules", path);

const checks = {
  types: () => runNode24(bin("typescript/bin/tsc"), ["-p", "tsconfig.json"]),
  "types of the page": () => runNode24(bin("typescript/bin/tsc"), ["-p", "cloud/web/tsconfig.json"]),
  lint: () => runNode24(bin("oxlint/bin/oxlint"), ["--deny-warnings", "--report-unused-disable-directives"]),
  format: () => runNode24(bin("oxfmt/bin/oxfmt"), ["--check"]),
  unused: () => runNode24(bin("knip/bin/knip.js"), ["--no-progress"]),
  boundaries: async () => {
    const lines = [];
    const onLine = (line) => lines.push(line);
    const code = await runNode24(join(root, "test/contract/boundaries.test.ts"), [], { onLine });
    if (code !== 0) console.log(lines.join("\n")); // TAP is long, and says nothing when all is well
    return code;
  },
};

await script(async () => {
  await ensureInstalled();
  const named = process.argv.slice(2);
  const unknown = named.filter((name) => !Object.keys(checks).some((key) => key.startsWith(name)));
  if (unknown.length > 0)
    throw new LaunchError(`no such check: ${unknown.join(", ")}. There are: ${Object.keys(checks).join(", ")}.`);
  const failed = [];
  for (const [name, check] of Object.entries(checks)) {
    if (named.length > 0 && !named.some((part) => name.startsWith(part))) continue;
    const startedMs = Date.now();
    console.log(`== ${name}`);
    const code = await check();
    if (code !== 0) failed.push(name);
    console.log(`== ${name}: ${code === 0 ? "ok" : "FAILED"} (${((Date.now() - startedMs) / 1000).toFixed(1)} s)\n`);
  }
  if (failed.length === 0) return 0;
  console.log(`failed: ${failed.join(", ")}${failed.includes("format") ? "  (npm run format mends the format)" : ""}`);
  return 1;
});
