// Commands of the pipelines feature: a DAG of steps, run once, its logs followed, its work stopped.
import { z } from "zod";
import { defineCommand } from "../command.ts";
import { ConnectorError } from "../errors.ts";
import { commandIdSchema, nameSchema, runIdSchema } from "../ids.ts";
import { artifactPathSchema } from "./artifacts.ts";
import { ENGINES, imageRefSchema, resourcesSchema } from "./deployments.ts";

const artifactRefSchema = z.strictObject({ store: nameSchema, path: artifactPathSchema });
/** A parameter: null is not a value. */
export const paramValueSchema = z.union([z.string().max(8192), z.number(), z.boolean()]);
export type ParamValue = z.infer<typeof paramValueSchema>;

/**
 * One node. `program` is a name of the agent's configuration: the cloud never sends a path to an executable.
 * In `args`, `${params.x}`, `${inputs.x}` and `${outputs.x}` stand for a parameter's value and for local paths; there is
 * no shell. The same are in the environment as SALLYPORT_PARAM_X, SALLYPORT_INPUT_X and SALLYPORT_OUTPUT_X.
 */
export const stepSchema = z.strictObject({
  name: nameSchema,
  /** Absent when `image` is given. On `docker` it must be one that the agent's configuration gives an image. */
  program: nameSchema.optional(),
  /** Engine `docker` only, instead of `program`: its own entry point is started with `args`. */
  image: imageRefSchema.optional(),
  args: z.array(z.string().max(8192)).max(256).default([]),
  /** Steps that must have succeeded first, beside those whose outputs are inputs here. */
  needs: z.array(nameSchema).max(64).default([]),
  /** Placed as files or trees before the start. */
  inputs: z
    .record(nameSchema, z.union([z.strictObject({ step: nameSchema, output: nameSchema }), artifactRefSchema]))
    .default({}),
  /** A file or a folder that the step leaves behind; stored with its digest at the end. */
  outputs: z.record(nameSchema, z.strictObject({ mediaType: z.string().max(128).optional() })).default({}),
  /** Environment variable -> name of a secret that the policy lets a step have. */
  secrets: z.record(z.string().regex(/^[A-Z_][A-Z0-9_]{0,127}$/), z.string().min(1).max(256)).default({}),
  env: z.record(z.string().regex(/^[A-Z_][A-Z0-9_]{0,127}$/), z.string().max(8192)).default({}),
  /** Kept by engines that isolate. */
  resources: resourcesSchema.prefault({}),
  /** Engine `docker` only: a network that the policy allows. Absent = none at all. */
  network: nameSchema.optional(),
  timeoutMs: z
    .int()
    .min(1000)
    .max(7 * 24 * 3600_000)
    .default(3600_000),
  /** Further attempts after a failure. */
  retries: z.int().min(0).max(10).default(0),
});
export type Step = z.infer<typeof stepSchema>;

export const pipelineSchema = z.strictObject({
  name: nameSchema,
  description: z.string().max(2000).default(""),
  engine: z.enum(ENGINES).default("process"),
  params: z
    .record(
      nameSchema,
      z.strictObject({ default: paramValueSchema.optional(), description: z.string().max(500).default("") }),
    )
    .default({}),
  /** Most runs of pipelines of this name in one pool at a time; others wait in the cloud. Absent = no limit. */
  concurrency: z.int().min(1).max(1000).optional(),
  /** Where outputs go: `<prefix>/<run id>/<step>/<output>` in this store. */
  outputs: z.strictObject({ store: nameSchema, prefix: artifactPathSchema.default("runs") }),
  steps: z.array(stepSchema).min(1).max(500),
});
export type Pipeline = z.infer<typeof pipelineSchema>;
export type PipelineInput = z.input<typeof pipelineSchema>;

/** Direct predecessors of a step: `needs` and the producers of its inputs. */
export function predecessors(step: Step): string[] {
  const from = Object.values(step.inputs).flatMap((ref) => ("step" in ref ? [ref.step] : []));
  return [...new Set([...step.needs, ...from])];
}

/**
 * Checks what a schema cannot: names are unique and exist, no cycle, each parameter has a value. Returns the steps in an
 * order in which each comes after its predecessors. Throws PIPELINE_INVALID, naming the step; a cycle is written out.
 */
export function planPipeline(pipeline: Pipeline, params: Record<string, ParamValue> = {}): Step[] {
  const invalid = (message: string, details: Record<string, unknown>) =>
    new ConnectorError("PIPELINE_INVALID", `Pipeline ${pipeline.name}: ${message}`, {
      fix: "Mend the pipeline and start it again.",
      details,
    });
  const byName = new Map<string, Step>();
  for (const step of pipeline.steps) {
    if (byName.has(step.name)) throw invalid(`two steps are named ${step.name}.`, { step: step.name });
    byName.set(step.name, step);
  }
  for (const step of pipeline.steps) {
    if ((step.program === undefined) === (step.image === undefined))
      throw invalid(`step ${step.name} needs a program or an image, one of the two.`, { step: step.name });
    if (pipeline.engine !== "docker" && (step.image !== undefined || step.network !== undefined)) {
      const field = step.image === undefined ? "network" : "image";
      throw invalid(`step ${step.name} names its ${field}, which the engine ${pipeline.engine} does not have.`, {
        step: step.name,
        field,
      });
    }
    for (const need of predecessors(step)) {
      if (!byName.has(need))
        throw invalid(`step ${step.name} needs ${need}, which is not a step of it.`, { step: step.name, needs: need });
    }
    for (const [name, ref] of Object.entries(step.inputs)) {
      if ("step" in ref && !Object.hasOwn(byName.get(ref.step)!.outputs, ref.output)) {
        throw invalid(
          `input ${name} of step ${step.name} is output ${ref.output} of ${ref.step}, which has none of that name.`,
          { step: step.name, input: name },
        );
      }
    }
  }
  for (const name of Object.keys(params)) {
    if (!Object.hasOwn(pipeline.params, name)) throw invalid(`it has no parameter ${name}.`, { param: name });
  }
  for (const [name, param] of Object.entries(pipeline.params)) {
    if (param.default === undefined && !Object.hasOwn(params, name))
      throw invalid(`parameter ${name} has no default and no value was given.`, { param: name });
  }
  const order: Step[] = [];
  const state = new Map<string, "open" | "done">();
  const visit = (name: string, path: string[]): void => {
    if (state.get(name) === "done") return;
    if (state.get(name) === "open") {
      const cycle = [...path.slice(path.indexOf(name)), name];
      throw invalid(`its steps form a cycle: ${cycle.join(" -> ")}.`, { cycle });
    }
    state.set(name, "open");
    for (const need of predecessors(byName.get(name)!)) visit(need, [...path, name]);
    state.set(name, "done");
    order.push(byName.get(name)!);
  };
  for (const step of pipeline.steps) visit(step.name, []);
  return order;
}

/** Parameters with defaults filled in. Call after `planPipeline`. */
export const effectiveParams = (pipeline: Pipeline, params: Record<string, ParamValue>): Record<string, ParamValue> =>
  Object.fromEntries(
    Object.entries(pipeline.params).map(([name, p]) => [
      name,
      Object.hasOwn(params, name) ? params[name]! : p.default!,
    ]),
  );

export const pipelineRun = defineCommand({
  kind: "pipeline.run",
  class: "durable",
  idempotent: true,
  timeoutMs: 30_000,
  content: "none",
  input: z.strictObject({
    run: runIdSchema,
    pipeline: pipelineSchema,
    params: z.record(nameSchema, paramValueSchema).default({}),
  }),
  output: z.object({ run: runIdSchema, steps: z.int().nonnegative() }),
});

export const runCancel = defineCommand({
  kind: "run.cancel",
  class: "durable",
  idempotent: true,
  timeoutMs: 30_000,
  content: "none",
  /** `command`: the pipeline.run command of the run. */
  input: z.strictObject({ run: runIdSchema, command: commandIdSchema }),
  /** What was really stopped; empty when the run had ended already. */
  output: z.object({ run: runIdSchema, stopped: z.array(z.string()) }),
});

export const runLogs = defineCommand({
  kind: "run.logs",
  class: "interactive",
  idempotent: true,
  timeoutMs: 24 * 3600_000,
  content: "records",
  input: z.strictObject({
    run: runIdSchema,
    step: nameSchema,
    attempt: z.int().positive().optional(),
    /** Records with a higher number; 0 = from the beginning. */
    after: z.int().nonnegative().default(0),
    /** At most this many records when not following. */
    limit: z.int().min(1).max(100_000).default(1000),
    /** Go on until the attempt has ended. */
    follow: z.boolean().default(false),
    /** Only the last N records before going on; not together with `after`. */
    tail: z.int().positive().max(100_000).optional(),
  }),
  /** NDJSON of `logRecordSchema` follows. */
  output: z.object({
    run: runIdSchema,
    step: nameSchema,
    attempt: z.int().positive(),
    lastSeq: z.int().nonnegative(),
    ended: z.boolean(),
  }),
});
