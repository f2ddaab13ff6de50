// How the CLI speaks: data on stdout, words on stderr; tables for people, JSON for programs; colour and a moving line on
// a terminal only.
import { EndWith, EXIT } from "./exit.ts";
import { tame } from "./tame.ts";

export type Format = "table" | "json" | "name";

export function formatOf(value: string): Format {
  if (value === "table" || value === "json" || value === "name") return value;
  throw new EndWith(EXIT.usage, `-o ${value} is not a format: table, json or name`);
}

const colours = (stream: NodeJS.WriteStream): boolean =>
  process.env["NO_COLOR"] === undefined &&
  (process.env["CLICOLOR_FORCE"] !== undefined || (stream.isTTY && process.env["TERM"] !== "dumb"));

const CODES = { red: 31, green: 32, yellow: 33, blue: 34, grey: 90 } as const;
export const paint = (text: string, colour: keyof typeof CODES, stream: NodeJS.WriteStream = process.stdout): string =>
  colours(stream) ? `\u001B[${CODES[colour]}m${text}\u001B[0m` : text;

export interface Column<T> {
  title: string;
  of(row: T): string;
}

/** Prints rows in the wanted format; `id` is what `-o name` shows. */
export function print<T>(
  rows: readonly T[],
  format: Format,
  columns: readonly Column<T>[],
  id: (row: T) => string,
): void {
  if (format === "json") return void process.stdout.write(`${JSON.stringify(rows, null, 2)}\n`);
  if (format === "name") return void process.stdout.write(rows.map((row) => `${id(row)}\n`).join(""));
  if (rows.length === 0) return void process.stderr.write("nothing to list\n");
  const cells = [
    columns.map((column) => column.title),
    ...rows.map((row) => columns.map((column) => tame(column.of(row)))),
  ];
  const widths = columns.map((_, at) => Math.max(...cells.map((row) => row[at]!.length)));
  for (const [index, row] of cells.entries()) {
    const line = row.map((cell, at) => (at === row.length - 1 ? cell : cell.padEnd(widths[at]!))).join("  ");
    process.stdout.write(`${index === 0 ? paint(line, "grey") : line}\n`);
  }
}

/** One thing: `key  value` lines, or JSON. */
export function printOne(
  value: object,
  format: Format,
  lines: readonly (readonly [string, string | null])[],
  id: string,
): void {
  if (format === "json") process.stdout.write(`${JSON.stringify(value, null, 2)}\n`);
  else if (format === "name") process.stdout.write(`${id}\n`);
  else {
    const width = Math.max(...lines.map(([key]) => key.length));
    for (const [key, text] of lines)
      if (text !== null) process.stdout.write(`${paint(key.padEnd(width), "grey")}  ${tame(text)}\n`);
  }
}

export function bytes(count: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const step = count === 0 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(count) / 10));
  return step === 0 ? `${count} B` : `${(count / 1024 ** step).toFixed(1)} ${units[step]}`;
}

export function age(at: number | null, now = Date.now()): string {
  if (at === null) return "-";
  const seconds = Math.max(0, Math.round((now - at) / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  return seconds < 86_400 ? `${Math.floor(seconds / 3600)} h` : `${Math.floor(seconds / 86_400)} d`;
}

/** Progress on stderr: a line that moves on a terminal, a plain line every ten seconds elsewhere. */
export class Progress {
  readonly #what: string;
  readonly #startedAt = performance.now();
  #shownAt: number;

  constructor(what: string) {
    this.#what = what;
    this.#shownAt = this.#startedAt;
  }

  update(done: number, total: number | null): void {
    const now = performance.now();
    if (now - this.#shownAt < (process.stderr.isTTY ? 100 : 10_000)) return;
    this.#shownAt = now;
    const rate = done / Math.max(0.001, (now - this.#startedAt) / 1000);
    const part = total === null || total === 0 ? "" : ` of ${bytes(total)} (${Math.floor((done / total) * 100)} %)`;
    process.stderr.write(
      process.stderr.isTTY
        ? `\r\u001B[2K${this.#what}: ${bytes(done)}${part}, ${bytes(rate)}/s`
        : `${this.#what}: ${bytes(done)}${part}\n`,
    );
  }

  done(): void {
    if (process.stderr.isTTY && this.#shownAt !== this.#startedAt) process.stderr.write("\r\u001B[2K");
  }
}
