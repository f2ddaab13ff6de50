// All that can be known of a run before it begins, asked at acceptance and, step by step, again before each start.
import { ConnectorError, planPipeline, type ParamValue, type Pipeline, type Step } from "@sallyport/protocol";
import type { Engine, Engines } from "../../engines/engine.ts";
import type { PolicyGuard } from "../../policy/action.ts";
import type { Program } from "./deps.ts";
import { checkStepText } from "./template.ts";

export interface Known {
  engines: Engines;
  programs: ReadonlyMap<string, Program>;
  stores: ReadonlySet<string>;
}

/** What a step starts: a program of this machine, one in an image, or an image by itself. */
export interface StepWork {
  /** "" = the image's own entry point. */
  executable: string;
  args: readonly string[];
  env: Readonly<Record<string, string>>;
  /** Null on an engine without images. */
  image: string | null;
}

/** Throws PROGRAM_UNKNOWN for a program that the configuration lacks, or that is none for this engine. */
export function workOf(step: Step, engine: Engine, programs: ReadonlyMap<string, Program>): StepWork {
  if (step.image !== undefined) return { executable: "", args: [], env: {}, image: step.image };
  const name = step.program ?? "";
  const program = programs.get(name);
  if (program === undefined) {
    throw new ConnectorError(
      "PROGRAM_UNKNOWN",
      `The agent's configuration has no program ${name}, which step ${step.name} starts.`,
      {
        fix:
          programs.size === 0
            ? "Whoever runs the agent can add it under programs."
            : `It has: ${[...programs.keys()].join(", ")}.`,
        details: { step: step.name, program: name, engine: engine.name },
      },
    );
  }
  const image = program.image ?? null;
  if ((image !== null) !== engine.isolated) {
    const message =
      image === null
        ? `Program ${name}, which step ${step.name} starts, is one of the agent's machine; engine ${engine.name} starts programs of images.`
        : `Program ${name}, which step ${step.name} starts, lies in an image; engine ${engine.name} starts programs of the agent's machine.`;
    throw new ConnectorError("PROGRAM_UNKNOWN", message, {
      fix:
        image === null
          ? `Whoever runs the agent can name its image under programs.${name}.image; or name an image in the step.`
          : "Name an engine with images in the pipeline, such as docker, or another program.",
      details: { step: step.name, program: name, engine: engine.name },
    });
  }
  return { executable: program.path, args: program.args ?? [], env: program.env ?? {}, image };
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
  // Before the steps: what is wrong for all of them is said first.
  requireEngine(pipeline, known, policy);
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
  const engine = requireEngine(pipeline, known, policy);
  // An image of the configuration is the customer's own word: the policy is asked for those that the command names.
  if (step.image !== undefined) policy.require({ kind: "image", image: step.image });
  if (step.program !== undefined) policy.require({ kind: "program", program: step.program });
  workOf(step, engine, known.programs);
  if (step.network !== undefined) policy.require({ kind: "network", network: step.network });
  if (engine.isolated) {
    policy.require({ kind: "ceiling", ceiling: "cpus", value: step.resources.cpus });
    policy.require({ kind: "ceiling", ceiling: "memoryBytes", value: step.resources.memoryBytes });
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

function requireEngine(pipeline: Pipeline, known: Known, policy: PolicyGuard): Engine {
  policy.require({ kind: "engine", engine: pipeline.engine });
  return known.engines.get(pipeline.engine);
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
