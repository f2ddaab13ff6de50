// npm run bench: measurements, ours beside a bare peer in the same run, as ratios.
//   npm run bench                all, as a table        npm run bench -- link --json     one JSON object a line
// Exit code 1 when a bar is missed.
import { mkdirSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { benchCommands } from "./commands.bench.ts";
import { benchLink } from "./link.bench.ts";
import { benchRouter } from "./router.bench.ts";
import type { BarResult, Row } from "./report.ts";

const BENCHES: Readonly<Record<string, () => Promise<{ rows: Row[]; bars: BarResult[] }>>> = {
  link: benchLink,
  commands: benchCommands,
  router: benchRouter,
};

const args = process.argv.slice(2);
const json = args.includes("--json");
const names = args.filter((arg) => !arg.startsWith("--"));
for (const name of names) {
  if (BENCHES[name] === undefined) {
    console.error(`There is no bench named ${name}. There are: ${Object.keys(BENCHES).join(", ")}.`);
    process.exit(2);
  }
}

const versions = { node: process.versions.node, cpu: cpus()[0]?.model ?? "unknown", cores: cpus().length };
let missed = false;
const results: unknown[] = [];
for (const name of names.length > 0 ? names : Object.keys(BENCHES)) {
  const { rows, bars } = await BENCHES[name]!();
  if (!json) {
    console.log(`\n${name}`);
    for (const row of rows) console.log(`  ${row.what.padEnd(34)} ${row.value.padStart(12)} ${row.unit}`);
    console.log();
  }
  for (const bar of bars) {
    if (!bar.met) missed = true;
    if (json) console.log(JSON.stringify({ ...bar, versions }));
    else
      console.log(
        `  ${bar.met ? "met   " : "MISSED"} ${bar.bar.padEnd(34)} ${String(bar.value).padStart(9)} ${bar.unit}, limit ${bar.limit}`,
      );
  }
  results.push({ name, rows, bars });
}
mkdirSync("bench-results", { recursive: true });
writeFileSync("bench-results/latest.json", `${JSON.stringify({ versions, results }, null, 2)}\n`);
process.exitCode = missed ? 1 : 0;
