// npm run format: rewrites the sources in the project's one format, and mends what lint can mend by itself.
import { join } from "node:path";
import { ensureInstalled, root, runNode24, script } from "./launch.mjs";

await script(async () => {
  await ensureInstalled();
  // Exits with 1 for what it cannot mend; `npm run check` reports that.
  await runNode24(join(root, "node_modules/oxlint/bin/oxlint"), ["--fix", "--silent", ...process.argv.slice(2)]);
  return runNode24(join(root, "node_modules/oxfmt/bin/oxfmt"), ["--write", ...process.argv.slice(2)]);
});
