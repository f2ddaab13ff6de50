// What is wrong with a configuration, said so that it can be mended: where (field and line), what is expected, what came.
import { ConnectorError } from "@sallyport/protocol";
import type { z } from "zod";
import { configSchema, SECRET_META } from "./schema.ts";

export type FieldPath = readonly (string | number)[];
export interface Problem {
  path: FieldPath;
  /** Reads after "expected". */
  expected: string;
  /** Reads after "got"; absent when there is nothing to say beyond the expectation. Never a secret. */
  got?: string;
  /** The field is not one of ours: `path` names it. */
  unknownField?: boolean;
}
/** Line of a field in the file, 1 for the first; null when unknown. */
export type LineOf = (path: FieldPath) => number | null;

/** `policy.stores[0].read` */
export const fieldName = (path: FieldPath): string =>
  path.reduce<string>(
    (text, key) =>
      typeof key === "number"
        ? `${text}[${key}]`
        : /^[A-Za-z0-9_-]+$/.test(key)
          ? `${text}${text === "" ? "" : "."}${key}`
          : `${text}[${JSON.stringify(key)}]`,
    "",
  );

/** CONFIG_INVALID with the first problem as its sentence and all of them in its details. */
export function configInvalid(source: string, problems: readonly Problem[], lineOf: LineOf): ConnectorError {
  const told = problems.map((problem) => ({
    field: fieldName(problem.path),
    line: lineOf(problem.path),
    sentence: sentence(problem),
  }));
  const first = told[0]!;
  const more = told.length > 1 ? ` There are ${told.length - 1} more problems.` : "";
  return new ConnectorError(
    "CONFIG_INVALID",
    `${source}${first.line === null ? "" : `, line ${first.line}`}: ${first.sentence}${more}`,
    {
      fix: "Mend the file; `sallyport-agent config validate` lists every problem, `sallyport-agent config schema` what is known.",
      details: { source, problems: told },
    },
  );
}

function sentence(problem: Problem): string {
  const name = problem.path.length === 0 ? "the file" : fieldName(problem.path);
  if (problem.unknownField === true) return `${name} is not a known field; ${problem.expected}.`;
  return `${name}: expected ${problem.expected}${problem.got === undefined ? "" : `, got ${problem.got}`}.`;
}

/** Problems of a value that did not pass the schema. */
export function problemsOf(issues: readonly z.core.$ZodIssue[], root: unknown): Problem[] {
  return issues.flatMap((issue) => problemsOfIssue(issue, root, []));
}

function problemsOfIssue(issue: z.core.$ZodIssue, root: unknown, base: FieldPath): Problem[] {
  const path: FieldPath = [...base, ...(issue.path as (string | number)[])];
  const value = at(root, path);
  const one = (expected: string): Problem[] => [
    { path, expected, ...(value === undefined ? { got: "nothing" } : { got: described(value, path) }) },
  ];
  switch (issue.code) {
    case "unrecognized_keys": {
      const known = knownFields(path, root);
      return issue.keys.map((key) => ({
        path: [...path, key],
        expected: known.length === 0 ? "remove it" : `known here: ${known.join(", ")}`,
        unknownField: true,
      }));
    }
    case "invalid_type":
      return one(article(issue.expected));
    case "invalid_value":
      return one(issue.values.map((v) => JSON.stringify(v)).join(" or "));
    case "too_small":
      return one(
        issue.origin === "string"
          ? `at least ${issue.minimum} characters`
          : issue.origin === "array"
            ? `at least ${issue.minimum} entries`
            : `a number ${issue.inclusive === false ? "above" : "of at least"} ${issue.minimum}`,
      );
    case "too_big":
      return one(
        issue.origin === "string"
          ? `at most ${issue.maximum} characters`
          : issue.origin === "array"
            ? `at most ${issue.maximum} entries`
            : `a number of at most ${issue.maximum}`,
      );
    case "invalid_union": {
      if (issue.errors.length === 0) return one("one of the known kinds: fs, s3");
      // The branch that came furthest is the one that was meant.
      const depth = (branch: readonly z.core.$ZodIssue[]): number =>
        Math.max(...branch.map((i) => i.path.length + (i.code === "unrecognized_keys" ? 1 : 0)));
      const meant = issue.errors.find((branch) => depth(branch) > 0);
      if (meant !== undefined) return meant.flatMap((inner) => problemsOfIssue(inner, root, path));
      const branches = issue.errors.flatMap((branch) => branch.flatMap((inner) => problemsOfIssue(inner, root, path)));
      return one([...new Set(branches.map((b) => b.expected))].join(", or "));
    }
    case "invalid_key":
      return [{ path, expected: `a name: ${issue.issues.map((i) => i.message).join(", ")}` }];
    default:
      return one(issue.message);
  }
}

const ARTICLES: Record<string, string> = {
  object: "a mapping",
  array: "a list",
  string: "text",
  int: "a whole number",
  number: "a number",
  boolean: "true or false",
  record: "a mapping",
};
const article = (expected: string): string => ARTICLES[expected] ?? expected;

/** What came, without showing anything that may be a secret. */
function described(value: unknown, path: FieldPath): string {
  if (value === null) return "nothing";
  if (Array.isArray(value)) return "a list";
  if (typeof value === "object") return "a mapping";
  const type = typeof value === "string" ? "text" : typeof value;
  // A secret in the wrong field, or a field that holds one, must not be shown; short plain values help.
  if (path.some((key) => typeof key === "string" && /secret|token|key|pass|credential|named|env/i.test(key)))
    return `${type} (not shown)`;
  if (typeof value === "string" && /\/\/[^/]*@/.test(value)) return "an address (not shown)";
  const text = JSON.stringify(value);
  return text.length <= 60 && !/[A-Za-z0-9+/_-]{24}/.test(text) ? text : `${type} of ${text.length} characters`;
}

function at(root: unknown, path: FieldPath): unknown {
  return path.reduce<unknown>(
    (value, key) =>
      typeof value === "object" && value !== null ? (value as Record<string | number, unknown>)[key] : undefined,
    root,
  );
}

/** Names of the fields that the schema knows at a path. */
function knownFields(path: FieldPath, root: unknown): string[] {
  const found = schemasAt(path, root).find((s) => s.shape !== undefined);
  return found?.shape === undefined ? [] : Object.keys(found.shape);
}

/** True when the schema says that the text at this path is a secret. */
export const isSecretField = (path: FieldPath, root: unknown): boolean => schemasAt(path, root).some((s) => s.secret);

interface Seen {
  shape?: Record<string, z.core.$ZodType>;
  secret: boolean;
}
/** The schemas (several at a union) that apply at a path. */
function schemasAt(path: FieldPath, root: unknown): Seen[] {
  let schemas: z.core.$ZodType[] = [configSchema];
  let value = root;
  const open = (schema: z.core.$ZodType): z.core.$ZodType[] => {
    const def = (schema as z.core.$ZodTypes)._zod.def;
    if (def.type === "optional" || def.type === "nullable") return open(def.innerType);
    if (def.type === "union") {
      const options = def.options.flatMap(open);
      const kind = typeof value === "object" && value !== null ? (value as { kind?: unknown }).kind : undefined;
      const chosen = options.filter((o) => {
        const d = (o as z.core.$ZodTypes)._zod.def;
        const literal = d.type === "object" ? d.shape["kind"] : undefined;
        return literal !== undefined && (literal as z.core.$ZodLiteral)._zod.def.values.includes(kind as never);
      });
      return chosen.length > 0 ? chosen : options;
    }
    return [schema];
  };
  for (const key of path) {
    schemas = schemas.flatMap(open).flatMap((schema) => {
      const def = (schema as z.core.$ZodTypes)._zod.def;
      if (def.type === "object") return def.shape[key] === undefined ? [] : [def.shape[key]];
      if (def.type === "array") return [def.element];
      if (def.type === "record") return [def.valueType];
      return [];
    });
    value = at(value, [key]);
  }
  const secret = schemas.some((s) => (s as z.ZodType).meta?.()?.["secret"] === SECRET_META.secret);
  return schemas.flatMap(open).map((s) => {
    const def = (s as z.core.$ZodTypes)._zod.def;
    const own = (s as z.ZodType).meta?.()?.["secret"] === SECRET_META.secret;
    return { secret: secret || own, ...(def.type === "object" ? { shape: def.shape } : {}) };
  });
}
