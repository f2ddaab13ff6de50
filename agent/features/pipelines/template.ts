// What stands in a step's arguments for something else, and the environment that a step gets. Pure.
import { ConnectorError, type ParamValue, type Pipeline, type Step } from "@sallyport/protocol";

/** `$${` is a plain `${`; everything else that begins with `${` must be a placeholder that the step has. */
const PLACEHOLDER = /\$\$\{|\$\{(?:(params|inputs|outputs)\.([a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?)\})?/g;

/**
 * Variables that make a program load or run something else: the policy says which programs run, so a pipeline must not
 * turn one into another. No list is complete; a program that obeys further ones is fenced by `programs.<name>.env`, which
 * wins over a step's.
 */
const STEERING = new RegExp(
  `^(${[
    // the loader, the shell, the C library
    "LD_.*|DYLD_.*|PATH|HOME|TMPDIR|SHELL|ENV|BASH_.*|ZDOTDIR|IFS|PS4|SHELLOPTS|PROMPT_COMMAND|GCONV_PATH|GLIBC_.*|MALLOC_.*|LOCPATH|NLSPATH|HOSTALIASES|RES_OPTIONS",
    // languages: start-up files, search paths, options
    "NODE_.*|NPM_.*|DENO_.*|BUN_.*|PYTHON.*|PIP_.*|UV_.*|CONDA_.*|PERL.*|RUBY.*|GEM_.*|BUNDLE_.*|JAVA_.*|_JAVA_.*|JDK_.*|CLASSPATH|MAVEN_.*|GRADLE_.*|SPARK_.*|HADOOP_.*",
    "DOTNET_.*|CORECLR_.*|COR_.*|JULIA_.*|LUA_.*|R_.*|PHP.*|TCL.*|ERL_.*|OCAML.*|GUILE_.*|GO[A-Z]*FLAGS|GOPATH|CARGO_.*|RUSTC.*|MAKEFLAGS",
    // libraries that load what a variable names
    "OMP_TOOL.*|CUDA_INJECTION.*|MPL.*|KERAS_.*|TORCH_EXTENSIONS_DIR|GTK_.*|QT_.*|VK_.*|LIBGL_.*|XDG_.*",
    // configuration files that can name a program to run, or where traffic goes
    "KUBECONFIG|AWS_(CONFIG|SHARED_CREDENTIALS)_FILE|AWS_ENDPOINT.*|BOTO_CONFIG|GOOGLE_APPLICATION_CREDENTIALS|CLOUDSDK_.*|GIT_.*|SSH_.*|[A-Z]*_PROXY|SSL_CERT_.*|OPENSSL_.*|CURL_.*|REQUESTS_CA_BUNDLE",
    "EDITOR|VISUAL|PAGER|MANPAGER|LESSOPEN|LESSCLOSE|LESSKEY|BROWSER|SALLYPORT_.*",
  ].join("|")})$`,
);

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
    if (STEERING.test(variable))
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

/** Without secrets. `programEnv` is the customer's and wins over the step's. */
export function stepEnvironment(
  step: Step,
  params: Record<string, ParamValue>,
  places: StepPlaces,
  about: { run: string; attempt: number },
  programEnv: Record<string, string>,
): Record<string, string> {
  const env: Record<string, string> = {
    ...step.env,
    PATH: "/usr/local/bin:/usr/bin:/bin",
    HOME: `${places.folder}/home`,
    TMPDIR: `${places.folder}/tmp`,
    LANG: "C.UTF-8",
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
