// What an apply would change, and what the agent is known to refuse of it. Pure: it asks nobody, the agent decides again.
import type { AgentStatus, DeploymentSpec } from "@sallyport/protocol";
import type { DeploymentRow } from "../../store/store.ts";
import { nextRevision } from "./change.ts";

export interface DeploymentDiff {
  generation: number;
  revision: number;
  newRevision: boolean;
  changes: { path: string; from?: unknown; to?: unknown }[];
  refusals: { path: string; message: string }[];
}
/** What is known of the agent that holds it, or of the pool. */
export interface KnownLimits {
  /** Who says so, for the sentence. */
  who: string;
  ceilings: AgentStatus["ceilings"];
  serving: AgentStatus["serving"];
}

export function diffDeployment(
  current: DeploymentRow,
  spec: DeploymentSpec,
  limits: KnownLimits | null,
): DeploymentDiff {
  const revision = nextRevision(current, spec);
  return {
    generation: current.generation + 1,
    revision,
    newRevision: revision !== current.revision,
    changes: changesOf(current.spec, spec),
    refusals: limits === null ? [] : refusalsOf(spec, limits),
  };
}

/** Dotted paths in order; objects are looked into, everything else is compared whole. */
function changesOf(from: unknown, to: unknown): DeploymentDiff["changes"] {
  const was = flat(from);
  const is = flat(to);
  return [...new Set([...was.keys(), ...is.keys()])]
    .sort()
    .filter((path) => JSON.stringify(was.get(path)) !== JSON.stringify(is.get(path)))
    .map((path) => ({
      path,
      ...(was.has(path) ? { from: was.get(path) } : {}),
      ...(is.has(path) ? { to: is.get(path) } : {}),
    }));
}

function flat(value: unknown, path = "", into = new Map<string, unknown>()): Map<string, unknown> {
  if (typeof value === "object" && value !== null && !Array.isArray(value)) {
    for (const [key, inner] of Object.entries(value)) flat(inner, path === "" ? key : `${path}.${key}`, into);
  } else if (value !== undefined) into.set(path, value);
  return into;
}

function refusalsOf(spec: DeploymentSpec, { who, ceilings, serving }: KnownLimits): DeploymentDiff["refusals"] {
  const found: DeploymentDiff["refusals"] = [];
  const over = (path: string, ceiling: keyof AgentStatus["ceilings"], value: number, unit = ""): void => {
    if (value > ceilings[ceiling])
      found.push({
        path,
        message: `${who} allows ${ceilings[ceiling]}${unit} at most (policy.ceilings.${ceiling}); ${value}${unit} ${value === 1 ? "is" : "are"} asked for.`,
      });
  };
  over("replicas", "replicas", spec.replicas);
  over("resources.cpus", "cpus", spec.resources.cpus);
  over("resources.memoryBytes", "memoryBytes", spec.resources.memoryBytes, " bytes");
  if (!serving.some((one) => one.engine === spec.engine)) {
    const others = serving.map((one) => one.engine).join(", ");
    found.push({
      path: "engine",
      message: `${who} serves no models on engine ${spec.engine}${others === "" ? "" : `; it does on ${others}`}.`,
    });
  }
  return found;
}
