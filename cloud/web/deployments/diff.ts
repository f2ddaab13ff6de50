// Two specs side by side: dotted paths and both values, as the control plane's diff names them. Pure.
import type { DeploymentDiff, DeploymentSpec } from "../api/types.ts";
import { formatBytes, shortDigest } from "../parts/format.ts";

export type SpecChange = DeploymentDiff["changes"][number];

function flatten(value: unknown, path: string, into: Map<string, unknown>): Map<string, unknown> {
  if (typeof value !== "object" || value === null || Array.isArray(value)) into.set(path, value);
  else
    for (const [key, each] of Object.entries(value))
      if (each !== undefined) flatten(each, path === "" ? key : `${path}.${key}`, into);
  return into;
}

/** What leads from one to the other; `replicas` is left out where only what a replica is made from counts. */
export function diffSpecs(from: DeploymentSpec, to: DeploymentSpec, withReplicas = true): SpecChange[] {
  const before = flatten(from, "", new Map());
  const after = flatten(to, "", new Map());
  const changes: SpecChange[] = [];
  for (const path of new Set([...before.keys(), ...after.keys()])) {
    if (!withReplicas && path === "replicas") continue;
    const [a, b] = [before.get(path), after.get(path)];
    if (JSON.stringify(a) === JSON.stringify(b)) continue;
    changes.push({ path, ...(a === undefined ? {} : { from: a }), ...(b === undefined ? {} : { to: b }) });
  }
  return changes;
}

/** The value of a spec's path as people read it. */
export function valueText(path: string, value: unknown): string {
  if (path === "resources.memoryBytes" && typeof value === "number")
    return value % 1024 ** 2 === 0 ? `${value / 1024 ** 2} MiB` : formatBytes(value);
  if (path === "model.digest" && typeof value === "string") return shortDigest(value);
  return typeof value === "string" ? (value === "" ? '""' : value) : JSON.stringify(value);
}

const WORDS: Record<string, string> = {
  "model.store": "model's store",
  "model.path": "model's path",
  "model.digest": "model's digest",
  "resources.cpus": "cores a replica",
  "resources.memoryBytes": "memory a replica",
};
export const pathText = (path: string): string => WORDS[path] ?? path;

/** "replicas 1 → 3, cores a replica 1 → 2" for a line of prose. */
export const changesText = (changes: readonly SpecChange[]): string =>
  changes
    .map(
      ({ path, from, to }) =>
        `${pathText(path)} ${from === undefined ? `added: ${valueText(path, to)}` : to === undefined ? "removed" : `${valueText(path, from)} → ${valueText(path, to)}`}`,
    )
    .join(", ");
