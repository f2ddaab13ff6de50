// npm run bench: measurements, ours beside bare peers; see test/bench/main.ts. Arguments are handed on.
import { join } from "node:path";
import { ensureInstalled, root, runNode24, script } from "./launch.mjs";

await script(async () => {
  await ensureInstalled();
  return runNode24(join(root, "test/bench/main.ts"), process.argv.slice(2));
});
