// npm run demo: the whole story on this machine; see packaging/demo/main.ts. Arguments are handed on.
import { join } from "node:path";
import { ensureInstalled, ensureWeb, root, runNode24, script } from "./launch.mjs";

await script(async () => {
  await ensureInstalled();
  await ensureWeb();
  return runNode24(join(root, "packaging/demo/main.ts"), process.argv.slice(2));
});
