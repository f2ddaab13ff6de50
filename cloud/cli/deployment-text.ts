// Deployments in words and tables.
import type { DeploymentDetail, DeploymentDiff } from "../http/api.ts";
import { age, bytes, paint, print, printOne, type Format } from "./output.ts";
import { tame } from "./tame.ts";

/** One line a change: `~ replicas: 1 -> 2`. */
export function changesAsText(diff: DeploymentDiff): string {
  const text = (value: unknown): string => tame(typeof value === "string" ? value : JSON.stringify(value));
  const lines = diff.changes.map(({ path, from, to }) =>
    from === undefined
      ? paint(`+ ${path}: ${text(to)}`, "green")
      : to === undefined
        ? paint(`- ${path}: ${text(from)}`, "red")
        : paint(`~ ${path}: ${text(from)} -> ${text(to)}`, "yellow"),
  );
  if (lines.length === 0) return "nothing changes in the spec\n";
  return `${lines.join("\n")}\n${
    diff.newRevision
      ? `revision ${diff.revision}: replicas are made anew, one after the other\n`
      : "no replica is restarted by this\n"
  }`;
}

export function showDeployment(found: DeploymentDetail, format: Format): void {
  const { spec, observed, rollup } = found;
  const engine =
    observed?.isolated === false ? `${observed.engine} (does not isolate: no limits, no walls)` : spec.engine;
  printOne(
    found,
    format,
    [
      ["deployment", found.name],
      ["id", found.id],
      ["pool", found.pool.name],
      ["agent", found.agent?.name ?? null],
      ["state", found.removedAt === null ? found.state : "removed"],
      ["", found.stateReason],
      ["waiting", found.waiting === null ? null : `${found.waiting.code}: ${found.waiting.text} ${found.waiting.fix}`],
      [
        "error",
        found.error === null
          ? null
          : `${found.error.code}: ${found.error.message}${found.error.fix === undefined ? "" : ` ${found.error.fix}`}`,
      ],
      ["model", `${spec.model.store}/${spec.model.path}`],
      ["digest", spec.model.digest],
      ["engine", engine],
      [
        "each",
        `${spec.resources.cpus} ${spec.resources.cpus === 1 ? "core" : "cores"}, ${bytes(spec.resources.memoryBytes)}`,
      ],
      ["replicas", `${found.replicasReady ?? "?"} of ${spec.replicas} ready (at most ${found.ceilings.replicas})`],
      [
        "generation",
        found.appliedGeneration === found.generation
          ? String(found.generation)
          : `${found.generation}; the agent holds ${found.appliedGeneration ?? "none"}`,
      ],
      ["revision", String(found.revision)],
      ["endpoint", found.endpoint],
      [
        "last minute",
        rollup === null
          ? null
          : `${rollup.requests} requests, ${rollup.errors} errors${rollup.p50Ms === null ? "" : `, p50 ${rollup.p50Ms.toFixed(1)} ms, p95 ${(rollup.p95Ms ?? rollup.p50Ms).toFixed(1)} ms`}`,
      ],
      ["by", `${found.actor.name} (${found.actor.via}), ${age(found.updatedAt)} ago`],
      ["heard", found.observedAt === null ? null : `${age(found.observedAt)} ago`],
    ],
    found.name,
  );
  if (format !== "table" || observed === null) return;
  process.stdout.write("\n");
  print(
    observed.conditions,
    "table",
    [
      { title: "CONDITION", of: (c) => c.type },
      { title: "IS", of: (c) => (c.ok ? "ok" : c.code) },
      { title: "SINCE", of: (c) => age(c.since) },
      { title: "WHY", of: (c) => (c.ok ? "-" : `${c.message}${c.fix === null ? "" : ` ${c.fix}`}`) },
    ],
    (c) => c.type,
  );
  process.stdout.write("\n");
  print(
    observed.replicas,
    "table",
    [
      { title: "REPLICA", of: (r) => r.name },
      { title: "STATE", of: (r) => r.state },
      { title: "SINCE", of: (r) => age(r.since) },
      { title: "AGE", of: (r) => age(r.startedAt) },
      { title: "RESTARTS", of: (r) => String(Math.max(0, r.starts - 1)) },
      { title: "TAKEN OVER", of: (r) => (r.adopted ? "yes" : "-") },
      { title: "WHY", of: (r) => (r.message === null ? "-" : `${r.code === null ? "" : `${r.code}: `}${r.message}`) },
    ],
    (r) => r.name,
  );
}
