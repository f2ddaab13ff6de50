// What stands in a step's arguments for something else, and the environment that a step gets. Pure.
import { ConnectorError, type ParamValue, type Pipeline, type Step } from "@sallyport/protocol";
import { HOST_ENVIRONMENT, steersProgram } from "../../engines/environment.ts";

/** `$${` is a plain `${`; everything else that begins with `${` must be a placeholder that the step has. */
const PLACEHOLDER = /\$\$\{|\$\{(?:(params|inputs|outputs)\.([a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?)\})?/g;

export const variableName = (name: string): string => name.toUpperCase().replace(/[.-]/g, "_");

/** Throws PIPELINE_INVALID for a placeholder or variable that cannot be. */
export function checkStepText(pipeline: Pipeline, step: Step): void {
  const invalid = (message: string, details: Record<string, unknown>): ConnectorError =>
    new ConnectorError("PIPELINE_INVALID", `Pipeline ${pipeline.name}: step ${step.name} ${message}`, {
      fix: "Mend the pipeline and start it again.",
      details: { step: step.name, ...details },
    });
  const known = { params: pipeline.params, inputs: step.inputs, outputs: step.outputs };
  for (const [index, arg] of step.args.entries()) {
    for (const found of arg.matchAll(PLACEHOLDER)) {
      const [text, kind, name] = found;
      if (text === "$${") continue;
      if (kind === undefined || !Object.hasOwn(known[kind as keyof typeof known], name!)) {
        const shown = kind === undefined ? arg.slice(found.index, found.index + 40) : text;
        throw invalid(
          `has ${JSON.stringify(shown)} in argument ${index + 1}, which stands for nothing it has; write $\${ for the characters themselves.`,
          { argument: index },
        );
      }
    }
  }
  for (const variable of [...Object.keys(step.env), ...Object.keys(step.secrets)]) {
    if (steersProgram(variable))
      throw invalid(`sets ${variable}, which could make its program run something else.`, { variable });
    if (Object.hasOwn(step.env, variable) && Object.hasOwn(step.secrets, variable))
      throw invalid(`sets ${variable} twice, as text and as a secret.`, { variable });
  }
  for (const names of Object.values(known)) {
    const seen = new Map<string, string>();
    for (const name of Object.keys(names)) {
      const variable = variableName(name);
      if (seen.has(variable))
        throw invalid(`has ${seen.get(variable)} and ${name}, which are one variable, ${variable}.`, { variable });
      seen.set(variable, name);
    }
  }
  if (Object.hasOwn(step.outputs, MANIFEST_NAME))
    throw invalid(`has an output named ${MANIFEST_NAME}: that name is taken.`, { output: MANIFEST_NAME });
}

/** Beside the outputs in the store: what they are. */
export const MANIFEST_NAME = "outputs.manifest.json";

export interface StepPlaces {
  /** Absolute. */
  folder: string;
  inputs: (name: string) => string;
  outputs: (name: string) => string;
}

export function fillArgs(step: Step, params: Record<string, ParamValue>, places: StepPlaces): string[] {
  return step.args.map((arg) =>
    arg.replace(PLACEHOLDER, (text, kind: string | undefined, name: string) => {
      if (text === "$${") return "${";
      if (kind === "params") return String(params[name]);
      return kind === "inputs" ? places.inputs(name) : places.outputs(name);
    }),
  );
}

/**
 * Without secrets. `programEnv` is the customer's and wins over the step's. An image knows best where its programs lie and
 * which language it speaks: there PATH and LANG are left to it.
 */
export function stepEnvironment(
  step: Step,
  params: Record<string, ParamValue>,
  places: StepPlaces,
  about: { run: string; attempt: number; inImage: boolean },
  programEnv: Record<string, string>,
): Record<string, string> {
  const env: Record<string, string> = {
    ...step.env,
    ...(about.inImage ? {} : HOST_ENVIRONMENT),
    HOME: `${places.folder}/home`,
    TMPDIR: `${places.folder}/tmp`,
    ...programEnv,
    SALLYPORT_RUN: about.run,
    SALLYPORT_STEP: step.name,
    SALLYPORT_ATTEMPT: String(about.attempt),
  };
  for (const [name, value] of Object.entries(params)) env[`SALLYPORT_PARAM_${variableName(name)}`] = String(value);
  for (const name of Object.keys(step.inputs)) env[`SALLYPORT_INPUT_${variableName(name)}`] = places.inputs(name);
  for (const name of Object.keys(step.outputs)) env[`SALLYPORT_OUTPUT_${variableName(name)}`] = places.outputs(name);
  return env;
}
