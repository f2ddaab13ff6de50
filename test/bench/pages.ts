// What people read of the results: docs/performance/results.json, the table in the README, and a plot of the link beside
// its peers. Made from one results file, never by hand.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { repository } from "../support/launcher.ts";
import type { BarResult, Row } from "./report.ts";

export interface Results {
  /** By the bench's name; each as of its last run. */
  benches: Record<
    string,
    {
      at: string;
      /** Load average of the machine when it began. */
      load?: number;
      versions: Record<string, string>;
      missing: readonly string[];
      rows: Row[];
      bars: BarResult[];
    }
  >;
}

const FOLDER = "docs/performance";
const BEGIN = "<!-- bench: made by npm run bench -- --write -->";
const END = "<!-- bench: end -->";

/** The benches whose bars the README shows, in this order. */
const SHOWN = [
  "link",
  "api",
  "artifact",
  "fairness",
  "shaped",
  "recovery",
  "footprint",
  "fleet",
  "memory",
  "reconnects",
];

/** `rows`: name of a peer -> figure, of rows "<peer>: <what>". */
function series(rows: readonly Row[], what: string): { name: string; value: number }[] {
  return rows.flatMap((row) => {
    if (!row.what.endsWith(`: ${what}`)) return [];
    return [{ name: row.what.slice(0, -what.length - 2), value: Number(row.value) }];
  });
}

function bars(title: string, unit: string, all: { name: string; value: number }[], top: number): string[] {
  const most = Math.max(...all.map(({ value }) => value));
  const lines = [`<text x="8" y="${top + 14}" class="title">${title}</text>`];
  all.forEach(({ name, value }, i) => {
    const y = top + 26 + i * 22;
    const ours = name === "ours" || name.startsWith("link");
    lines.push(
      `<text x="168" y="${y + 13}" text-anchor="end">${name}</text>`,
      `<rect x="176" y="${y}" width="${Math.max(1, (360 * value) / most).toFixed(1)}" height="17" class="${ours ? "ours" : "peer"}"/>`,
      `<text x="${(182 + (360 * value) / most).toFixed(1)}" y="${y + 13}">${value} ${unit}</text>`,
    );
  });
  return lines;
}

function plot(results: Results): string {
  const parts: string[] = [];
  let top = 4;
  const add = (title: string, unit: string, all: { name: string; value: number }[]) => {
    if (all.length === 0) return;
    parts.push(...bars(title, unit, all, top));
    top += 40 + all.length * 22;
  };
  const link = results.benches["link"]?.rows ?? [];
  const artifact = results.benches["artifact"]?.rows ?? [];
  const fairness = results.benches["fairness"]?.rows ?? [];
  add("Round trip of 200 bytes, p50 (less is better)", "us", series(link, "round trip p50"));
  add("Bulk from agent to control plane (more is better)", "MB/s", series(link, "bulk"));
  add("1 GiB from S3 to curl (more is better)", "MB/s", series(artifact, "1 GiB"));
  add("CPU of both ends (less is better)", "s per GiB", series(artifact, "CPU"));
  add(
    "Small request beside ten downloads and a stalled reader, p99 (less is better)",
    "ms",
    series(fairness, "beside ten and a stalled one, p99"),
  );
  return `<svg xmlns="http://www.w3.org/2000/svg" width="680" height="${top}" viewBox="0 0 680 ${top}" role="img" aria-label="The link beside its peers">
<style>text{font:12px system-ui,sans-serif;fill:#1f2933}.title{font-weight:600}.ours{fill:#0b7285}.peer{fill:#adb5bd}rect.back{fill:#fff}</style>
<rect class="back" width="680" height="${top}"/>
${parts.join("\n")}
</svg>
`;
}

function table(results: Results): string {
  const lines = ["| bar | measured | limit | |", "| --- | --- | --- | --- |"];
  for (const name of SHOWN)
    for (const { bar, value, unit, limit, met } of results.benches[name]?.bars ?? [])
      lines.push(`| ${bar} | ${value} ${unit} | ${limit} | ${met ? "met" : "**missed**"} |`.replaceAll("  ", " "));
  const versions: Record<string, string> = {};
  const missing = new Set<string>();
  for (const name of SHOWN) {
    Object.assign(versions, results.benches[name]?.versions);
    for (const peer of results.benches[name]?.missing ?? []) missing.add(peer);
  }
  const unmeasured = SHOWN.filter((name) => results.benches[name] === undefined);
  lines.push(
    "",
    `Versions: ${Object.entries(versions)
      .map(([what, version]) => `${what} ${version}`)
      .join(", ")}.`,
  );
  if (missing.size > 0) lines.push(`Not here when it was measured: ${[...missing].join("; ")}.`);
  const busy = SHOWN.flatMap((name) => {
    const result = results.benches[name];
    if (result === undefined || (result.load !== undefined && result.load < 1)) return [];
    return [`${name} ${result.load ?? "unknown"}`];
  });
  if (busy.length > 0)
    lines.push(
      `Others used the machine when these were measured (load average before): ${busy.join(", ")}. Such figures are worse than the program.`,
    );
  if (unmeasured.length > 0) lines.push(`Not measured yet: ${unmeasured.join(", ")}.`);
  return lines.join("\n");
}

export function writePages(results: Results): void {
  const file = (...path: string[]) => join(repository, ...path);
  mkdirSync(file(FOLDER), { recursive: true });
  writeFileSync(file(FOLDER, "results.json"), `${JSON.stringify(results, null, 2)}\n`);
  writeFileSync(file(FOLDER, "link.svg"), plot(results));
  const readme = readFileSync(file("README.md"), "utf8");
  const [before, rest] = readme.split(BEGIN);
  const after = rest?.split(END)[1];
  if (before === undefined || after === undefined) throw new Error(`README.md has no lines "${BEGIN}" and "${END}".`);
  writeFileSync(file("README.md"), `${before}${BEGIN}\n${table(results)}\n${END}${after}`);
}
