// Reads Prometheus' text exposition format as strictly as its description says, and a little more strictly than a server
// does: one family at a time with HELP and TYPE before it, no series twice, histograms that add up, base units in names.

export interface Series {
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}
export interface Family {
  readonly name: string;
  readonly help: string;
  readonly type: "counter" | "gauge" | "histogram" | "summary";
  readonly series: Series[];
}

const NAME = /^[a-z_][a-z0-9_]*$/;
const NOT_A_BASE_UNIT =
  /_(ms|millis(econds)?|micros(econds)?|us|ns|minutes|hours|kb|kib|mb|mib|kilobytes|percent)(_|$)/;

/** The same for the same labels, in whatever order they were written. */
const labelsKey = (labels: Readonly<Record<string, string>>): string =>
  JSON.stringify(Object.entries(labels).toSorted(([a], [b]) => (a < b ? -1 : 1)));

/** Throws an Error that names the line. */
export function parseExposition(text: string): Map<string, Family> {
  const families = new Map<string, Family>();
  const seen = new Set<string>();
  let current: Family | null = null;
  let help: { name: string; text: string } | null = null;
  if (!text.endsWith("\n")) throw new Error("the last line does not end");
  for (const [at, line] of text.slice(0, -1).split("\n").entries()) {
    const wrong = (what: string): never => {
      throw new Error(`line ${at + 1}: ${what}: ${line.slice(0, 200)}`);
    };
    if (line === "") continue;
    if (line.startsWith("# HELP ")) {
      const [, name, words] = /^# HELP (\S+) (.+)$/.exec(line) ?? wrong("HELP without a text");
      help = { name: name!, text: words! };
      continue;
    }
    if (line.startsWith("# TYPE ")) {
      const [, name, type] = /^# TYPE (\S+) (counter|gauge|histogram|summary)$/.exec(line) ?? wrong("an unknown TYPE");
      if (help?.name !== name) wrong("TYPE without its HELP before it");
      if (families.has(name!)) wrong("a family in two pieces");
      if (!NAME.test(name!)) wrong("a name that is none");
      if (NOT_A_BASE_UNIT.test(name!)) wrong("a unit that is not a base unit");
      if (type === "counter" && !name!.endsWith("_total")) wrong("a counter that does not end with _total");
      // The client's own gauges of a Node program break this one.
      if (type !== "counter" && name!.endsWith("_total") && !name!.startsWith("nodejs_")) wrong("_total of no counter");
      current = { name: name!, help: help!.text, type: type as Family["type"], series: [] };
      families.set(name!, current);
      continue;
    }
    if (line.startsWith("#")) wrong("a comment");
    const [, name, inner, value] = /^([A-Za-z_:][A-Za-z0-9_:]*)(?:\{(.*)\})? (\S+)$/.exec(line) ?? wrong("no sample");
    const own =
      current?.type === "histogram"
        ? [`${current.name}_bucket`, `${current.name}_sum`, `${current.name}_count`]
        : [current?.name];
    if (current === null || !own.includes(name)) wrong("a sample outside its family");
    const labels: Record<string, string> = {};
    let rest = inner ?? "";
    while (rest !== "") {
      const [whole, label, quoted] =
        /^([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\["\\n])*)"(?:,|$)/.exec(rest) ?? wrong("labels");
      if (label! in labels) wrong("a label twice");
      labels[label!] = quoted!;
      rest = rest.slice(whole.length);
    }
    const number = value === "+Inf" ? Infinity : value === "-Inf" ? -Infinity : Number(value);
    // In any case of letters, as Prometheus reads it: prom-client writes Nan while a figure has no value yet.
    if (value === "" || (Number.isNaN(number) && !/^nan$/i.test(value!))) wrong("a value that is no number");
    const key = `${name} ${labelsKey(labels)}`;
    if (seen.has(key)) wrong("a series twice");
    seen.add(key);
    current!.series.push({ name: name!, labels, value: number });
  }
  for (const family of families.values()) {
    if (family.type === "counter" && family.series.some(({ value }) => !(value >= 0)))
      throw new Error(`${family.name}: a counter below zero`);
    if (family.type === "histogram") checkHistogram(family);
  }
  return families;
}

function checkHistogram({ name, series }: Family): void {
  const groups = Map.groupBy(series, ({ labels: { le: _le, ...rest } }) => labelsKey(rest));
  for (const [labels, own] of groups) {
    const buckets = own.filter((one) => one.name === `${name}_bucket`);
    const count = own.find((one) => one.name === `${name}_count`)?.value;
    const bounds = buckets.map(({ labels: { le } }) => (le === "+Inf" ? Infinity : Number(le)));
    const rises = (values: number[]) => values.every((value, i) => i === 0 || value >= values[i - 1]!);
    if (bounds.at(-1) !== Infinity || !rises(bounds) || !rises(buckets.map(({ value }) => value)))
      throw new Error(`${name}${labels}: buckets do not rise to +Inf`);
    if (buckets.at(-1)!.value !== count) throw new Error(`${name}${labels}: its +Inf bucket is not its count`);
    if (!own.some((one) => one.name === `${name}_sum`)) throw new Error(`${name}${labels}: no sum`);
  }
}

/** The value of the series with these labels; 0 when it is not there. */
export const valueOf = (families: Map<string, Family>, name: string, labels: Record<string, string> = {}): number =>
  families.get(name)?.series.find((one) => Object.entries(labels).every(([key, value]) => one.labels[key] === value))
    ?.value ?? 0;
