// Makes the picture and the log of the sample store out of its data, so that both can be made again. Run by hand.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Picture, shade } from "./sample/code/digits/png.ts";

const sample = join(import.meta.dirname, "sample");
const rows = readFileSync(join(sample, "data/digits.csv"), "utf8")
  .trimEnd()
  .split("\n")
  .slice(1)
  .map((line) => line.split(",").map(Number));

// twelve examples of each digit, one digit a row
const cell = 56;
const picture = new Picture(12 * cell + 60, 10 * cell + 20);
for (let digit = 0; digit <= 9; digit++) {
  picture.text(String(digit), 18, 26 + digit * cell, [37, 99, 235], 3);
  rows
    .filter((row) => row.at(-1) === digit)
    .slice(0, 12)
    .forEach((row, at) => {
      for (let i = 0; i < 64; i++)
        picture.box(
          54 + at * cell + (i % 8) * 6,
          14 + digit * cell + Math.floor(i / 8) * 6,
          6,
          6,
          shade(row[i]! / 16, [23, 37, 84]),
        );
    });
}
writeFileSync(join(sample, "images/digits.png"), picture.png());

// what an import of that file would log
const lines: string[] = [];
const began = Date.UTC(2026, 9, 5, 6, 30);
const say = (offsetMs: number, level: string, words: string) =>
  lines.push(`${new Date(began + offsetMs).toISOString()} ${level.padEnd(5)} import ${words}`);
say(0, "INFO", "opened data/digits.csv");
rows.forEach((row, index) => {
  const ink = row.slice(0, 64).reduce((sum, value) => sum + value, 0);
  if (index % 100 === 99) say(40 + index * 3, "INFO", `${index + 1} of ${rows.length} images`);
  if (ink < 190) say(40 + index * 3, "WARN", `image ${index + 1} (digit ${row.at(-1)}) is faint: ${ink} of 1024`);
});
say(40 + rows.length * 3, "INFO", `imported ${rows.length} images`);
writeFileSync(join(sample, "logs/import.log"), `${lines.join("\n")}\n`);
const perDigit = Object.fromEntries(
  Array.from({ length: 10 }, (_, digit) => [digit, rows.filter((row) => row.at(-1) === digit).length]),
);
writeFileSync(
  join(sample, "reports/summary.json"),
  `${JSON.stringify({ dataset: "digits", images: rows.length, pixels: 64, levels: 17, perDigit, licence: "CC-BY-4.0" }, null, 2)}\n`,
);
