// npm run soak:crash, npm run soak:chaos: long tests under faults; see the head of test/soak/<name>.ts. The first
// argument is the name, the others are handed on.
import { join } from "node:path";
import { ensureInstalled, root, runNode24, script } from "./launch.mjs";

await script(async () => {
  await ensureInstalled();
  const [name, ...args] = process.argv.slice(2);
  return runNode24(join(root, "test/soak", `${name}.ts`), args);
});
