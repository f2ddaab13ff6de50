// Reads comma- or tab-separated text (RFC 4180, with what people really write) into a bounded table.

export type Cell = string | number | boolean | null;
export interface Table {
  columns: { name: string; kind: "text" | "number" | "boolean" | "mixed" | "empty" }[];
  rows: Cell[][];
  /** Null when the text was cut. */
  totalRows: number | null;
  truncated: boolean;
}

/** Most columns shown; more are cut off, and the table says that it is truncated. */
const MAX_COLUMNS = 500;
const MAX_CELL = 2000;

/** Null when the text is no table: an unclosed quote, or rows of very different lengths. */
export function parseTable(
  text: string,
  options: { separator: string | null; complete: boolean; rows: number; budget: number },
): Table | null {
  const separator = options.separator ?? guessSeparator(text);
  const records = parseRecords(text.replace(/^\uFEFF/, ""), separator, options.complete);
  const head = records?.[0];
  if (
    records === null ||
    head === undefined ||
    (head.length === 1 && records.length > 1 && records.some((r) => r.length > 2))
  )
    return null;
  const width = Math.min(head.length, MAX_COLUMNS);
  const body = records.slice(1);

  const rows: Cell[][] = [];
  let budget = options.budget;
  for (const record of body) {
    if (rows.length >= options.rows || budget <= 0) break;
    const row = Array.from({ length: width }, (_, column) => toCell(record[column] ?? ""));
    budget -= record.reduce((sum, cell) => sum + Math.min(cell.length, MAX_CELL) + 3, 0);
    rows.push(row);
  }
  const columns = head
    .slice(0, width)
    .map((name, column) => ({ name: name.slice(0, 200), kind: kindOf(rows.map((row) => row[column] ?? null)) }));
  // a column that is not all numbers is text: "007" must not become 7 because its neighbours are numbers
  for (const [column, { kind }] of columns.entries()) {
    if (kind === "text" || kind === "mixed")
      for (const [index, row] of rows.entries()) row[column] = asText(body[index]?.[column] ?? "");
  }
  return {
    columns,
    rows,
    totalRows: options.complete ? body.length : null,
    truncated: !options.complete || rows.length < body.length || width < head.length,
  };
}

function guessSeparator(text: string): string {
  const line = text.slice(0, 4096).split("\n", 1)[0] ?? "";
  const count = (separator: string) => line.split(separator).length;
  return [",", ";", "\t", "|"].reduce((best, separator) => (count(separator) > count(best) ? separator : best));
}

function parseRecords(text: string, separator: string, complete: boolean): string[][] | null {
  const records: string[][] = [];
  let record: string[] = [];
  let cell = "";
  let quoted = false;
  let begun = false;
  for (let at = 0; at < text.length; at++) {
    const char = text[at]!;
    if (quoted) {
      if (char !== '"') cell += char;
      else if (text[at + 1] === '"') {
        cell += '"';
        at++;
      } else quoted = false;
    } else if (char === '"' && cell === "" && !begun) {
      quoted = true;
      begun = true;
    } else if (char === separator) {
      record.push(cell);
      cell = "";
      begun = false;
    } else if (char === "\n") {
      record.push(cell.endsWith("\r") ? cell.slice(0, -1) : cell);
      if (record.length > 1 || record[0] !== "") records.push(record);
      record = [];
      cell = "";
      begun = false;
    } else cell += char;
  }
  if (quoted && complete) return null;
  // the last line without an end: whole when the text is, cut off otherwise
  if (complete && (cell !== "" || record.length > 0)) records.push([...record, cell]);
  return records;
}

// what a person would call a number: no hex, no leading zeros of an id, no lone sign
const NUMBER = /^[+-]?(?:0|[1-9]\d*|\d*(?=\.))(?:\.\d+)?(?:[eE][+-]?\d+)?$/;

function toCell(text: string): Cell {
  const trimmed = text.trim();
  if (trimmed === "") return null;
  if (trimmed.length <= 24 && NUMBER.test(trimmed)) {
    const value = Number(trimmed);
    // an integer beyond what a double holds stays text, so that no digit is lost
    if (Number.isFinite(value) && (!Number.isInteger(value) || Number.isSafeInteger(value))) return value;
  }
  if (trimmed === "true" || trimmed === "True" || trimmed === "TRUE") return true;
  if (trimmed === "false" || trimmed === "False" || trimmed === "FALSE") return false;
  return asText(text);
}

const asText = (text: string): string | null =>
  text === "" ? null : text.length > MAX_CELL ? `${text.slice(0, MAX_CELL)}…` : text;

function kindOf(cells: Cell[]): Table["columns"][number]["kind"] {
  const kinds = new Set(cells.filter((cell) => cell !== null).map((cell) => typeof cell));
  if (kinds.size === 0) return "empty";
  if (kinds.size > 1) return "mixed";
  return kinds.has("number") ? "number" : kinds.has("boolean") ? "boolean" : "text";
}
