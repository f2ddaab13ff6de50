// Whether a JSON value is a set of figures, which is better read as cards than as a tree.

export interface MetricGroup {
  /** "" for the figures at the top. */
  title: string;
  figures: { name: string; value: number }[];
}

const MAX_FIGURES = 60;

/** Groups of figures when `value` is an object of numbers (or of such objects, one deep) and of nothing else; else null. */
export function metricsOf(value: unknown): MetricGroup[] | null {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return null;
  const top: MetricGroup = { title: "", figures: [] };
  const groups: MetricGroup[] = [];
  let count = 0;
  for (const [name, each] of Object.entries(value)) {
    if (typeof each === "number") top.figures.push({ name, value: each });
    else if (typeof each === "object" && each !== null && !Array.isArray(each)) {
      const figures = Object.entries(each);
      if (figures.length === 0 || figures.some(([, n]) => typeof n !== "number")) return null;
      groups.push({ title: name, figures: figures.map(([key, n]) => ({ name: key, value: n as number })) });
      count += figures.length;
    } else return null;
  }
  count += top.figures.length;
  if (count === 0 || count > MAX_FIGURES) return null;
  return top.figures.length > 0 ? [top, ...groups] : groups;
}

const RATE = /(^|_|\b)(accuracy|precision|recall|f1|auc|rate|share|ratio)(_|\b|$)/i;
/** A figure between 0 and 1 whose name says that it is a share of something. */
export const isShare = (name: string, value: number): boolean =>
  value >= 0 && value <= 1 && RATE.test(name.replace(/([a-z])([A-Z])/g, "$1_$2"));
/** `testAccuracy`, `test_accuracy` -> "Test accuracy". */
export function wordsOf(name: string): string {
  const text = name
    .replace(/([a-z0-9])([A-Z])/g, "$1 $2")
    .replace(/[_-]+/g, " ")
    .trim()
    .toLowerCase();
  return text.charAt(0).toUpperCase() + text.slice(1);
}
