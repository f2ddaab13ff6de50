// npm run format: rewrites the sources in the project's one format.
import { join } from "node:path";
import { ensureInstalled, root, runNode24, script } from "./launch.mjs";

await script(async () => {
  await ensureInstalled();
  return runNode24(join(root, "node_modules/oxfmt/bin/oxfmt"), ["--write", ...process.argv.slice(2)]);
});
