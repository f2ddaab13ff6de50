// All that can be known of a run before it begins, asked at acceptance and, step by step, again before each start.
import { ConnectorError, planPipeline, type ParamValue, type Pipeline, type Step } from "@sallyport/protocol";
import type { PolicyGuard } from "../../policy/action.ts";
import { checkStepText } from "./template.ts";

export interface Known {
  programs: ReadonlySet<string>;
  stores: ReadonlySet<string>;
}

/** `<prefix>/<run>/<step>/<name>` in the pipeline's store of outputs. */
export const outputPath = (pipeline: Pipeline, run: string, step: string, name: string): string =>
  [pipeline.outputs.prefix, run, step, name].filter((part) => part !== "").join("/");

export function checkPipeline(
  run: string,
  pipeline: Pipeline,
  params: Record<string, ParamValue>,
  known: Known,
  policy: PolicyGuard,
): void {
  const steps = planPipeline(pipeline, params);
  policy.require({ kind: "engine", engine: pipeline.engine });
  policy.require({ kind: "ceiling", ceiling: "stepsPerRun", value: steps.length });
  policy.require({ kind: "ceiling", ceiling: "concurrentSteps", value: 1 });
  requireStore(pipeline.outputs.store, known);
  requirePath(pipeline.outputs.store, pipeline.outputs.prefix);
  for (const step of steps) {
    checkStepText(pipeline, step);
    checkStep(run, pipeline, step, known, policy);
  }
}

/** What the policy says may have been tightened since the run was accepted, and the configuration changed. */
export function checkStep(run: string, pipeline: Pipeline, step: Step, known: Known, policy: PolicyGuard): void {
  const program = step.program ?? "";
  policy.require({ kind: "program", program });
  if (!known.programs.has(program)) {
    throw new ConnectorError(
      "PROGRAM_UNKNOWN",
      `The agent's configuration has no program ${step.program}, which step ${step.name} starts.`,
      {
        fix:
          known.programs.size === 0
            ? "Whoever runs the agent can add it under programs."
            : `It has: ${[...known.programs].join(", ")}.`,
      },
    );
  }
  policy.require({ kind: "ceiling", ceiling: "stepTimeoutMs", value: step.timeoutMs });
  for (const secret of Object.values(step.secrets)) policy.require({ kind: "secret", secret });
  for (const ref of Object.values(step.inputs)) {
    if ("step" in ref) requireRead(policy, pipeline.outputs.store, outputPath(pipeline, run, ref.step, ref.output));
    else {
      requireStore(ref.store, known);
      requirePath(ref.store, ref.path);
      requireRead(policy, ref.store, ref.path);
    }
  }
  for (const name of Object.keys(step.outputs)) {
    policy.require({
      kind: "store",
      access: "write",
      store: pipeline.outputs.store,
      path: outputPath(pipeline, run, step.name, name),
    });
  }
}

/** A file, or all that lies below: which of them it is, only the store knows. Each file is asked for again when it is read. */
function requireRead(policy: PolicyGuard, store: string, path: string): void {
  const below = path === "" ? "**" : `${path}/**`;
  if (policy.decide({ kind: "store", access: "read", store, path: below }).allowed) return;
  policy.require({ kind: "store", access: "read", store, path });
}

function requireStore(store: string, known: Known): void {
  if (known.stores.has(store)) return;
  throw new ConnectorError("STORE_UNKNOWN", `The agent has no store named ${store}.`, {
    fix:
      known.stores.size === 0
        ? "Whoever runs the agent can add one under stores."
        : `It has: ${[...known.stores].join(", ")}.`,
  });
}

function requirePath(store: string, path: string): void {
  if (path === "") return;
  const bad = path
    .split("/")
    .find((segment) => segment === "" || segment === "." || segment === ".." || segment.includes("\0"));
  if (bad === undefined) return;
  throw new ConnectorError(
    "PATH_INVALID",
    `The path ${JSON.stringify(path)} in store ${store} has the segment ${JSON.stringify(bad)}.`,
    {
      fix: "Write it from the store's root, without empty and dot segments.",
    },
  );
}
