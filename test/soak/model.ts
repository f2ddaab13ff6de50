// npm run soak:model: the model test of the command store (cloud/store/commands.model.test.ts) with many more runs, on
// one database after the other. Exit code 1 when a history was found that the store must not have.
//   npm run soak:model -- --runs 5000 --seed 7 --database sqlite
import { spawn } from "node:child_process";
import { once } from "node:events";
import { parseArgs } from "node:util";

const FILES = { sqlite: "commands.model.test.ts", postgres: "commands-postgres.model.test.ts" } as const;
const { values: given } = parseArgs({
  options: {
    runs: { type: "string", default: "5000" },
    /** Absent = another each time; it is printed. */
    seed: { type: "string" },
    /** Absent = both. */
    database: { type: "string" },
  },
});
const databases = given.database === undefined ? Object.keys(FILES) : [given.database];
for (const database of databases) {
  const file = FILES[database as keyof typeof FILES];
  if (file === undefined) {
    console.error(`--database is one of ${Object.keys(FILES).join(", ")}.`);
    process.exit(2);
  }
  const child = spawn(process.execPath, [new URL(`../../cloud/store/${file}`, import.meta.url).pathname], {
    stdio: "inherit",
    env: {
      ...process.env,
      SALLYPORT_MODEL_RUNS: given.runs,
      SALLYPORT_MODEL_SEED: given.seed ?? String(Math.floor(Math.random() * 2 ** 31)),
    },
  });
  const [code] = (await once(child, "exit")) as [number | null];
  if (code !== 0) process.exitCode = 1;
}
