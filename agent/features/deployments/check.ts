// All that can be known of a deployment before it begins: asked at acceptance, and again before each start of a replica.
import { ConnectorError, type DeploymentSpec } from "@sallyport/protocol";
import { steersProgram } from "../../engines/environment.ts";
import type { PolicyGuard } from "../../policy/action.ts";
import type { Deps } from "./deps.ts";

type Known = Pick<Deps, "engines" | "stores" | "serving">;

/** `replicas`: how many of it there are to be; `others`: deployments that are there beside it. */
export function checkSpec(
  name: string,
  spec: DeploymentSpec,
  known: Known,
  policy: PolicyGuard,
  { replicas, others }: { replicas: number; others: number },
): void {
  if (spec.image !== undefined) {
    throw new ConnectorError(
      "DEPLOYMENT_INVALID",
      `Deployment ${name} names an image of its own, which is not served yet.`,
      {
        fix: "Leave image out: the agent's own runtime serves ONNX models.",
        details: { field: "spec.image" },
      },
    );
  }
  policy.require({ kind: "engine", engine: spec.engine });
  const engine = known.engines.get(spec.engine);
  policy.require({ kind: "ceiling", ceiling: "deployments", value: others + 1 });
  policy.require({ kind: "ceiling", ceiling: "replicas", value: replicas });
  policy.require({ kind: "ceiling", ceiling: "cpus", value: spec.resources.cpus });
  policy.require({ kind: "ceiling", ceiling: "memoryBytes", value: spec.resources.memoryBytes });
  if (!known.stores.ids.includes(spec.model.store)) {
    throw new ConnectorError("STORE_UNKNOWN", `The agent has no store named ${spec.model.store}.`, {
      fix:
        known.stores.ids.length === 0
          ? "Whoever runs the agent can add one under stores."
          : `It has: ${known.stores.ids.join(", ")}.`,
    });
  }
  checkPath(spec.model.store, spec.model.path);
  policy.require({ kind: "store", access: "read", store: spec.model.store, path: spec.model.path });
  for (const secret of Object.values(spec.secrets)) policy.require({ kind: "secret", secret });
  checkEnvironment(name, spec);
  requireRuntime(spec, engine.isolated, known);
}

/** What serves a model on this engine, from the agent's configuration. Throws RUNTIME_MISSING. */
export function requireRuntime(
  spec: DeploymentSpec,
  isolated: boolean,
  known: Known,
):
  | { kind: "image"; image: string }
  | { kind: "program"; path: string; args: readonly string[]; env: Readonly<Record<string, string>> } {
  const { image, process } = known.serving();
  if (isolated && image !== null) return { kind: "image", image };
  if (!isolated && process !== null) return { kind: "program", ...process };
  const line = isolated ? "serving.image" : "serving.process";
  throw new ConnectorError("RUNTIME_MISSING", `The agent has nothing that serves models on engine ${spec.engine}.`, {
    fix: `Whoever runs the agent can name it under ${line}.`,
    details: { engine: spec.engine, option: line },
  });
}

function checkPath(store: string, path: string): void {
  const bad = path.split("/").find((part) => part === "" || part === "." || part === ".." || part.includes("\0"));
  if (bad === undefined) return;
  throw new ConnectorError(
    "PATH_INVALID",
    `The path ${JSON.stringify(path)} in store ${store} has the segment ${JSON.stringify(bad)}.`,
    {
      fix: "Write it from the store's root, without empty and dot segments.",
    },
  );
}

function checkEnvironment(name: string, spec: DeploymentSpec): void {
  const invalid = (variable: string, why: string): ConnectorError =>
    new ConnectorError("DEPLOYMENT_INVALID", `Deployment ${name} sets ${variable}${why}`, {
      fix: "Take it out of env and secrets.",
      details: { variable },
    });
  for (const variable of [...Object.keys(spec.env), ...Object.keys(spec.secrets)]) {
    if (steersProgram(variable)) throw invalid(variable, ", which could make the runtime run something else.");
    if (Object.hasOwn(spec.env, variable) && Object.hasOwn(spec.secrets, variable))
      throw invalid(variable, " twice, as text and as a secret.");
  }
}
