// Path patterns of the policy. They are matched on whole segments, never on raw text: `*` and `?` stay within one
// segment, `**` stands for any number of segments (none included, so `a/**` is `a` and all below it). There is nothing
// else: no braces, no classes, no negation. Time is bounded by the product of the lengths, whatever the pattern.

export interface Glob {
  readonly pattern: string;
  readonly segments: readonly string[];
}

/** Null when it is well formed; otherwise what is wrong, to be read after the pattern. */
export function globProblem(pattern: string): string | null {
  if (pattern === "") return "is empty; the whole store is `**`";
  if (pattern.startsWith("/")) return "begins with `/`; patterns are relative to the store's root";
  for (const segment of pattern.split("/")) {
    if (segment === "") return "has an empty segment";
    if (segment === "." || segment === "..") return `has the segment \`${segment}\``;
    if (segment !== "**" && segment.includes("**"))
      return `has \`**\` within the segment \`${segment}\`; it must stand alone between slashes`;
    // oxlint-disable-next-line no-control-regex
    if (/[\\\u0000-\u001f\u007f]/.test(segment)) return "has a backslash or a control character, which no path has";
  }
  return null;
}

export const compileGlob = (pattern: string): Glob => ({ pattern, segments: pattern.split("/") });

export const pathSegments = (path: string): string[] => (path === "" ? [] : path.split("/"));

/** The pattern covers the path itself. */
export function globMatches(glob: Glob, path: readonly string[]): boolean {
  return statesAfter(glob, path).has(glob.segments.length);
}

/** The pattern covers the path or something below it. */
export function globLeadsTo(glob: Glob, path: readonly string[]): boolean {
  return statesAfter(glob, path).size > 0;
}

/** How many of the pattern's segments may have been used up once the path was read: all of them = it matches. */
function statesAfter(glob: Glob, path: readonly string[]): ReadonlySet<number> {
  const { segments } = glob;
  const rest = (state: number, into: Set<number>): void => {
    into.add(state);
    if (segments[state] === "**") rest(state + 1, into);
  };
  let states = new Set<number>();
  rest(0, states);
  for (const name of path) {
    const next = new Set<number>();
    for (const state of states) {
      const segment = segments[state];
      if (segment === undefined) continue;
      if (segment === "**") rest(state, next);
      else if (segmentMatches(segment, name)) rest(state + 1, next);
    }
    states = next;
    if (states.size === 0) break;
  }
  return states;
}

/** `*` = any run of characters, `?` = one (a whole code point). Greedy with one point to come back to: no backtracking tree. */
export function segmentMatches(pattern: string, name: string): boolean {
  const p = [...pattern];
  const n = [...name];
  let i = 0;
  let j = 0;
  let star = -1;
  let resume = 0;
  while (j < n.length) {
    if (i < p.length && (p[i] === "?" || (p[i] === n[j] && p[i] !== "*"))) {
      i++;
      j++;
    } else if (p[i] === "*") {
      star = i++;
      resume = j;
    } else if (star !== -1) {
      i = star + 1;
      j = ++resume;
    } else {
      return false;
    }
  }
  while (p[i] === "*") i++;
  return i === p.length;
}
