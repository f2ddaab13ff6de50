import { effectiveParams, pipelineSchema, planPipeline } from "@sallyport/protocol";
import t from "tap";
import { checkStepText } from "./template.ts";

t.test("a pipeline sets no variable that makes an allowed program run something else", (t) => {
  const set = (variable: string, where: "env" | "secrets") => {
    const pipeline = pipelineSchema.parse({
      name: "p",
      outputs: { store: "s" },
      steps: [{ name: "a", program: "x", [where]: { [variable]: "y" } }],
    });
    return () => checkStepText(pipeline, pipeline.steps[0]!);
  };
  const steering =
    "LD_PRELOAD NODE_OPTIONS PYTHONSTARTUP PIP_INDEX_URL DOTNET_STARTUP_HOOKS CORECLR_PROFILER_PATH JULIA_LOAD_PATH PHPRC OMP_TOOL_LIBRARIES MPLBACKEND KUBECONFIG AWS_CONFIG_FILE HTTPS_PROXY SSL_CERT_FILE XDG_CONFIG_HOME ZDOTDIR PROMPT_COMMAND GOFLAGS MAVEN_OPTS SALLYPORT_RUN";
  for (const variable of steering.split(" "))
    for (const where of ["env", "secrets"] as const)
      t.throws(
        set(variable, where),
        { code: "PIPELINE_INVALID", message: new RegExp(variable) },
        `${variable} in ${where}`,
      );
  for (const variable of ["EPOCHS", "AWS_REGION", "MODEL_DIR", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "GOAL"])
    t.doesNotThrow(set(variable, "env"), variable);
  t.end();
});

t.test("a parameter that no one gave has its default, also when it is named like something of every object", (t) => {
  const pipeline = pipelineSchema.parse({
    name: "p",
    params: { constructor: { default: 5 }, b: { default: 1 } },
    outputs: { store: "s" },
    steps: [{ name: "a", program: "x" }],
  });
  planPipeline(pipeline, {});
  t.same(Object.entries(effectiveParams(pipeline, { b: 2 })), [
    ["constructor", 5],
    ["b", 2],
  ]);
  t.end();
});
