// What a form needs to know of a pipeline's text. Not a validator: the control plane judges, with its own words.
import type { ParamValue } from "../api/types.ts";

export interface ReadPipeline {
  name: string;
  description: string;
  /** What a step starts: a program of the agent, or an image. */
  steps: { name: string; program: string; image: string; after: string[] }[];
  params: { name: string; description: string; fallback: ParamValue | undefined }[];
  /** The JSON as it is, to be sent. */
  value: unknown;
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);
const textOf = (value: unknown): string => (typeof value === "string" ? value : "");

/** The pipeline, or a sentence about why the text is none. Empty text: neither. */
export function readPipeline(text: string): { pipeline: ReadPipeline | null; problem: string | null } {
  if (text.trim() === "") return { pipeline: null, problem: null };
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    return { pipeline: null, problem: `This is not JSON: ${error instanceof Error ? error.message : String(error)}` };
  }
  if (!isObject(value)) return { pipeline: null, problem: "A pipeline is a JSON object." };
  if (!Array.isArray(value["steps"]) || value["steps"].length === 0)
    return { pipeline: null, problem: 'A pipeline has a list "steps" with at least one step.' };
  if (textOf(value["name"]) === "") return { pipeline: null, problem: 'A pipeline has a "name".' };
  const steps = value["steps"].filter(isObject).map((step) => {
    const inputs = isObject(step["inputs"]) ? Object.values(step["inputs"]).filter(isObject) : [];
    const needs = Array.isArray(step["needs"]) ? step["needs"].filter((need) => typeof need === "string") : [];
    return {
      name: textOf(step["name"]),
      program: textOf(step["program"]),
      image: textOf(step["image"]),
      after: [...new Set([...needs, ...inputs.map((input) => textOf(input["step"])).filter(Boolean)])],
    };
  });
  const params = isObject(value["params"])
    ? Object.entries(value["params"]).map(([name, param]) => {
        const fallback = isObject(param) ? param["default"] : undefined;
        return {
          name,
          description: isObject(param) ? textOf(param["description"]) : "",
          fallback:
            typeof fallback === "string" || typeof fallback === "number" || typeof fallback === "boolean"
              ? fallback
              : undefined,
        };
      })
    : [];
  return {
    pipeline: { name: textOf(value["name"]), description: textOf(value["description"]), steps, params, value },
    problem: null,
  };
}
