// Reads and writes the pipeline's number tables: a header line, then comma-separated numbers.
import { readFileSync, writeFileSync } from "node:fs";

export interface Table {
  columns: string[];
  rows: number[][];
}

export function readTable(path: string): Table {
  const [head = "", ...lines] = readFileSync(path, "utf8").trimEnd().split("\n");
  const columns = head.split(",");
  const rows = lines.map((line, index) => {
    const row = line.split(",").map(Number);
    if (row.length !== columns.length || row.some(Number.isNaN)) {
      throw new Error(`${path} line ${index + 2}: ${columns.length} numbers are expected`);
    }
    return row;
  });
  return { columns, rows };
}

export function writeTable(path: string, table: Table): void {
  writeFileSync(path, `${[table.columns, ...table.rows].map((row) => row.join(",")).join("\n")}\n`);
}
