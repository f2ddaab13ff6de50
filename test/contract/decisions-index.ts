// Makes docs/decisions/README.md: a line for each decision, from its file's name and first line.
//   node test/contract/decisions-index.ts      writes the page anew
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const folder = new URL("../../docs/decisions/", import.meta.url);

export function decisionsIndex(): string {
  const lines = readdirSync(folder)
    .filter((name) => name !== "README.md")
    .sort()
    .map((name) => {
      const heading = readFileSync(new URL(name, folder), "utf8").split("\n", 1)[0]!;
      const title = heading.replace(/^# (?:\d{4}:? )?/, "");
      return `- [${name.slice(0, 4)}](${name}) ${title.charAt(0).toUpperCase()}${title.slice(1)}\n`;
    });
  return `# Decisions

Why things are as they are: one page each, numbered by area (001x link, 002x stores, secrets and policy, 003x engines and
pipelines, 004x the agent's records, 005x the control plane's store and API, 006x dispatch, 007x the page, 008x memory and rate).
A page is never removed: a later one that decides otherwise says so, and is named in the earlier.

This index is made by \`node test/contract/decisions-index.ts\`.

${lines.join("")}`;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href)
  writeFileSync(new URL("README.md", folder), decisionsIndex());
