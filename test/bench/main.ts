// npm run bench: measurements, ours beside peers in the same run, as ratios.
//   npm run bench                        all, as tables
//   npm run bench -- link api --json     these, one JSON object per bar and line
//   npm run bench -- --write             no measurement: the committed results, the README's table and the plots, made
//                                        from bench-results/latest.json
// Exit code 1 when a bar is missed. Each bench's result is kept in bench-results/latest.json until it runs again.
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { cpus, loadavg } from "node:os";
import { join } from "node:path";
import { repository } from "../support/launcher.ts";
import { writePages, type Results } from "./pages.ts";
import type { BenchResult } from "./report.ts";

const BENCHES: Readonly<Record<string, () => Promise<BenchResult>>> = {
  link: async () => await (await import("./link.bench.ts")).benchLink(),
  api: async () => await (await import("./api.bench.ts")).benchApi(),
  artifact: async () => await (await import("./artifact.bench.ts")).benchArtifact(),
  fairness: async () => await (await import("./fairness.bench.ts")).benchFairness(),
  shaped: async () => await (await import("./shaped.bench.ts")).benchShaped(),
  recovery: async () => await (await import("./recovery.bench.ts")).benchRecovery(),
  footprint: async () => await (await import("./footprint.bench.ts")).benchFootprint(),
  fleet: async () => await (await import("./fleet.bench.ts")).benchFleet(),
  memory: async () => await (await import("./memory.bench.ts")).benchMemory(),
  reconnects: async () => await (await import("./reconnects.bench.ts")).benchReconnects(),
  commands: async () => await (await import("./commands.bench.ts")).benchCommands(),
  router: async () => await (await import("./router.bench.ts")).benchRouter(),
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

const file = join(repository, "bench-results/latest.json");
/** Of the runs before; a file of another shape is begun anew. */
const before = existsSync(file) ? (JSON.parse(readFileSync(file, "utf8")) as Partial<Results>) : {};
const results: Results = { benches: before.benches ?? {} };
if (args.includes("--write")) {
  writePages(results);
  process.exit(0);
}

const machine = { node: process.versions.node, cpu: cpus()[0]?.model ?? "unknown", cores: String(cpus().length) };
let missed = false;
for (const name of names.length > 0 ? names : Object.keys(BENCHES)) {
  // Before it: what others do on the machine. Its own processes are in what comes after.
  const load = Math.round(loadavg()[0]! * 10) / 10;
  const { rows, bars, versions: peers = {}, missing = [] } = await BENCHES[name]!();
  const versions = { ...machine, ...peers };
  if (!json) {
    console.log(`\n${name}`);
    for (const { what, value, unit } of rows) console.log(`  ${what.padEnd(44)} ${value.padStart(12)} ${unit}`);
    for (const peer of missing) console.log(`  not here: ${peer}`);
    console.log();
  }
  for (const bar of bars) {
    if (!bar.met) missed = true;
    if (json) console.log(JSON.stringify({ ...bar, versions }));
    else
      console.log(
        `  ${bar.met ? "met   " : "MISSED"} ${bar.bar.padEnd(48)} ${String(bar.value).padStart(9)} ${bar.unit}, limit ${bar.limit}`,
      );
  }
  results.benches[name] = { at: new Date().toISOString(), load, versions, missing, rows, bars };
  mkdirSync(join(repository, "bench-results"), { recursive: true });
  writeFileSync(file, `${JSON.stringify(results, null, 2)}\n`);
}
process.exitCode = missed ? 1 : 0;
