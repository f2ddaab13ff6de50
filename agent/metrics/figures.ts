// A small registry that writes the text exposition format. Ours, because the usual client costs an idle agent megabytes.
// Counters and histograms are added to; gauges and totals kept elsewhere are read when somebody scrapes.

export interface Sample {
  readonly labels?: Readonly<Record<string, string>>;
  readonly value: number;
}

type Labels = Readonly<Record<string, string>>;
interface Family {
  readonly name: string;
  readonly help: string;
  readonly type: "counter" | "gauge" | "histogram";
  lines(): string[];
}

/** Of one figure. Labels come from closed lists; should one ever not, this bounds what it costs. */
const SERIES = 200;

const escape = (text: string): string => text.replaceAll("\\", "\\\\").replaceAll("\n", "\\n").replaceAll('"', '\\"');
const labelText = (labels: Labels): string => {
  const pairs = Object.entries(labels).map(([name, value]) => `${name}="${escape(value)}"`);
  return pairs.length === 0 ? "" : `{${pairs.join(",")}}`;
};
const number = (value: number): string =>
  Number.isNaN(value) ? "NaN" : value === Infinity ? "+Inf" : value === -Infinity ? "-Inf" : String(value);

/** The labels' text, or that of "other" once there are too many. */
function seriesOf<T>(series: Map<string, T>, labels: Labels, make: (labels: Labels) => T): T {
  const key = labelText(labels);
  const known = series.get(key);
  if (known !== undefined) return known;
  const others = Object.fromEntries(Object.keys(labels).map((name) => [name, "other"]));
  if (series.size >= SERIES && key !== labelText(others)) return seriesOf(series, others, make);
  const made = make(labels);
  series.set(key, made);
  return made;
}

export class Figures {
  readonly #families = new Map<string, Family>();

  #add(family: Family): void {
    if (this.#families.has(family.name)) throw new Error(`the figure ${family.name} is there twice`);
    this.#families.set(family.name, family);
  }

  /** `first`: series that are there before anything happened. */
  counter(name: string, help: string, first: readonly Labels[] = []): (labels?: Labels, by?: number) => void {
    const series = new Map<string, { value: number }>();
    const one = (labels: Labels) => seriesOf(series, labels, () => ({ value: 0 }));
    for (const labels of first) one(labels);
    this.#add({
      name,
      help,
      type: "counter",
      lines: () => [...series].map(([labels, { value }]) => `${name}${labels} ${number(value)}`),
    });
    return (labels = {}, by = 1) => void (one(labels).value += by);
  }

  histogram(name: string, help: string, buckets: readonly number[]): (value: number, labels?: Labels) => void {
    interface Counts {
      labels: Labels;
      counts: number[];
      sum: number;
      count: number;
    }
    const series = new Map<string, Counts>();
    this.#add({
      name,
      help,
      type: "histogram",
      lines: () =>
        [...series.values()].flatMap(({ labels, counts, sum, count }) => {
          let below = 0;
          return [
            ...buckets.map(
              (le, i) => `${name}_bucket${labelText({ ...labels, le: number(le) })} ${(below += counts[i]!)}`,
            ),
            `${name}_bucket${labelText({ ...labels, le: "+Inf" })} ${count}`,
            `${name}_sum${labelText(labels)} ${number(sum)}`,
            `${name}_count${labelText(labels)} ${count}`,
          ];
        }),
    });
    return (value, labels = {}) => {
      const one = seriesOf(series, labels, (own) => ({ labels: own, counts: buckets.map(() => 0), sum: 0, count: 0 }));
      const at = buckets.findIndex((le) => value <= le);
      if (at !== -1) one.counts[at]!++;
      one.sum += value;
      one.count++;
    };
  }

  /** `read`: at each scrape. Null = not known now: no series. */
  gauge(name: string, help: string, read: () => number | null | readonly Sample[]): void {
    this.#read("gauge", name, help, read);
  }

  /** As `gauge`, for totals that somebody else keeps. */
  total(name: string, help: string, read: () => number | null | readonly Sample[]): void {
    this.#read("counter", name, help, read);
  }

  #read(type: "gauge" | "counter", name: string, help: string, read: () => number | null | readonly Sample[]): void {
    this.#add({
      name,
      help,
      type,
      lines() {
        const value = read();
        if (value === null) return [];
        const samples = typeof value === "number" ? [{ value }] : value;
        return samples
          .slice(0, SERIES)
          .map((sample) => `${name}${labelText(sample.labels ?? {})} ${number(sample.value)}`);
      },
    });
  }

  static readonly contentType = "text/plain; version=0.0.4; charset=utf-8";

  /** Every figure's HELP and TYPE are there from the start, so that what is served does not depend on what happened yet. */
  text(): string {
    const lines: string[] = [];
    for (const { name, help, type, lines: own } of this.#families.values())
      lines.push(`# HELP ${name} ${help}`, `# TYPE ${name} ${type}`, ...own());
    return `${lines.join("\n")}\n`;
  }
}
