// prepare: splits the digits into train and test, the same share of every digit in both.
// arguments: digits.csv, output folder, share of the test set (0..1), seed
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { readTable, writeTable } from "./csv.ts";
import { randomSource, shuffle } from "./random.ts";

const [source, out, share, seed] = process.argv.slice(2);
if (source === undefined || out === undefined) throw new Error("arguments: digits.csv, output folder, share, seed");
const testShare = Number(share);
if (!(testShare > 0 && testShare < 1))
  throw new Error(`the share of the test set must lie between 0 and 1, not ${share}`);

const table = readTable(source);
const label = table.columns.length - 1;
console.log(`read ${table.rows.length} digits of ${label} pixels`);
const random = randomSource(Number(seed));
const train: number[][] = [];
const test: number[][] = [];
for (let digit = 0; digit <= 9; digit++) {
  const rows = shuffle(
    table.rows.filter((row) => row[label] === digit),
    random,
  );
  const cut = Math.round(rows.length * testShare);
  test.push(...rows.slice(0, cut));
  train.push(...rows.slice(cut));
  console.log(`digit ${digit}: ${rows.length - cut} to train, ${cut} to test`);
}
mkdirSync(out, { recursive: true });
writeTable(join(out, "train.csv"), { columns: table.columns, rows: shuffle(train, random) });
writeTable(join(out, "test.csv"), { columns: table.columns, rows: shuffle(test, random) });
writeFileSync(
  join(out, "stats.json"),
  `${JSON.stringify({ train: train.length, test: test.length, pixels: label, seed: Number(seed) }, null, 2)}\n`,
);
console.log(`wrote ${train.length} + ${test.length} digits`);
