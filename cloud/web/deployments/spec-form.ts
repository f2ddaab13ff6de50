// A deployment's spec as a form holds it (text, as typed) and back. Says early what cannot be; the control plane and the
// agent judge again, with their own words. Pure: no DOM, no network.
import type { DeploymentSpec, Pool } from "../api/types.ts";
import { formatBytes } from "../parts/format.ts";

export const MIB = 1024 ** 2;

export interface SpecForm {
  store: string;
  path: string;
  digest: string;
  engine: string;
  replicas: number | "";
  cpus: number | "";
  memoryMiB: number | "";
  /** Lines of `NAME=value`. */
  env: string;
  /** Lines of `NAME=name of a secret`. */
  secrets: string;
}
/** What a problem belongs to. `""` = to none of the fields. */
export type Field = keyof SpecForm | "pool" | "name" | "";
export type FieldErrors = Partial<Record<Field, string>>;

export const NAME = /^[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?$/;
export const DIGEST = /^sha256:[0-9a-f]{64}$/;
const VARIABLE = /^[A-Z_][A-Z0-9_]{0,127}$/;

export const emptyForm = (): SpecForm => ({
  store: "",
  path: "",
  digest: "",
  engine: "",
  replicas: 1,
  cpus: 1,
  memoryMiB: 512,
  env: "",
  secrets: "",
});

const linesOf = (pairs: Record<string, string>): string =>
  Object.entries(pairs)
    .map(([name, value]) => `${name}=${value}`)
    .join("\n");

export const formOf = (spec: DeploymentSpec): SpecForm => ({
  store: spec.model.store,
  path: spec.model.path,
  digest: spec.model.digest,
  engine: spec.engine,
  replicas: spec.replicas,
  cpus: spec.resources.cpus,
  memoryMiB: spec.resources.memoryBytes / MIB,
  env: linesOf(spec.env),
  secrets: linesOf(spec.secrets),
});

/** `NAME=value` lines; the first that is none is named. */
export function readPairs(text: string, what: string): { pairs: Record<string, string>; problem: string | null } {
  const pairs: Record<string, string> = {};
  for (const line of text.split("\n")) {
    if (line.trim() === "") continue;
    const at = line.indexOf("=");
    const name = (at < 0 ? line : line.slice(0, at)).trim();
    if (at < 0) return { pairs, problem: `Write ${name}=${what}, one a line.` };
    if (!VARIABLE.test(name))
      return {
        pairs,
        problem: `${name || "A name"} is no variable name: A to Z, 0 to 9 and _, not beginning with a digit.`,
      };
    if (Object.hasOwn(pairs, name)) return { pairs, problem: `${name} is given twice.` };
    const value = line.slice(at + 1);
    if (what !== "value" && value.trim() === "") return { pairs, problem: `${name} names no secret.` };
    pairs[name] = what === "value" ? value : value.trim();
  }
  return { pairs, problem: null };
}

/** What is wrong with the form as far as the page can tell. Empty = nothing. */
export function checkForm(form: SpecForm, pool: Pool | undefined): FieldErrors {
  const errors: FieldErrors = {};
  if (form.store === "") errors.store = "Choose the store in which the model lies.";
  else if (pool && pool.stores.length > 0 && !pool.stores.some((store) => store.id === form.store))
    errors.store = `${pool.name} has no store ${form.store}.`;
  const path = form.path.trim();
  if (path === "") errors.path = "Where does the model lie in the store?";
  else if (path.startsWith("/") || path.endsWith("/") || path.split("/").some((part) => ["", ".", ".."].includes(part)))
    errors.path = "A path of the store has no empty parts, no . and no .. in it.";
  if (form.digest.trim() === "") errors.digest = "The model is deployed by its digest: read it, or paste it.";
  else if (!DIGEST.test(form.digest.trim())) errors.digest = "A digest is sha256: and 64 hex digits.";
  if (form.engine === "") errors.engine = "Choose what runs the replicas.";
  else if (pool && pool.serving.length > 0 && !pool.serving.some((each) => each.engine === form.engine))
    errors.engine = `No agent of ${pool.name} serves models with ${form.engine}.`;
  const limits = pool?.ceilings;
  const ceiling = (value: number, limit: number | undefined, shown: (n: number) => string, what: string) =>
    limit !== undefined && value > limit
      ? limit === 0
        ? `The agent's policy allows no ${what} at all.`
        : `The agent's policy allows at most ${shown(limit)}.`
      : undefined;
  if (form.replicas === "" || form.replicas < 0 || !Number.isInteger(form.replicas))
    errors.replicas = "A whole number, 0 or more.";
  else {
    const above = ceiling(form.replicas, limits?.replicas, String, "replicas");
    if (above) errors.replicas = above;
  }
  if (form.cpus === "" || form.cpus < 0.1) errors.cpus = "At least 0.1 of a core.";
  else {
    const above = ceiling(form.cpus, limits?.cpus, (n) => `${n} ${n === 1 ? "core" : "cores"} a replica`, "cores");
    if (above) errors.cpus = above;
  }
  if (form.memoryMiB === "" || form.memoryMiB < 32) errors.memoryMiB = "At least 32 MiB.";
  else {
    const above = ceiling(
      form.memoryMiB * MIB,
      limits?.memoryBytes,
      (n) => `${n % MIB === 0 ? `${n / MIB} MiB` : formatBytes(n)} a replica`,
      "memory",
    );
    if (above) errors.memoryMiB = above;
  }
  const env = readPairs(form.env, "value");
  if (env.problem) errors.env = env.problem;
  const secrets = readPairs(form.secrets, "secret");
  if (secrets.problem) errors.secrets = secrets.problem;
  const both = Object.keys(secrets.pairs).find((name) => Object.hasOwn(env.pairs, name));
  if (both) errors.secrets ??= `${both} is in the environment already.`;
  return errors;
}

/** What is sent. `base`: what the form does not show is kept from it. */
export function specOf(form: SpecForm, base?: DeploymentSpec): DeploymentSpec {
  return {
    runtime: "onnx",
    ...base,
    model: { store: form.store, path: form.path.trim(), digest: form.digest.trim() },
    engine: form.engine as DeploymentSpec["engine"],
    replicas: Number(form.replicas),
    resources: { cpus: Number(form.cpus), memoryBytes: Math.round(Number(form.memoryMiB) * MIB) },
    env: readPairs(form.env, "value").pairs,
    secrets: readPairs(form.secrets, "secret").pairs,
  };
}

/** The field that a path of the API speaks of: `spec.model.digest`, `/spec/replicas`, `ceilings.cpus`. */
export function fieldOf(path: string): Field {
  const parts = path.split(/[./]/).filter((part) => part !== "" && part !== "body" && part !== "spec");
  const [first, second] = parts;
  if (first === "model" || first === "resources")
    return second === "memoryBytes"
      ? "memoryMiB"
      : second === "store" || second === "path" || second === "digest" || second === "cpus"
        ? second
        : first === "model"
          ? "path"
          : "";
  if (first === "engine" || first === "replicas" || first === "env" || first === "secrets" || first === "name")
    return first;
  if (first === "pool") return "pool";
  return "";
}
