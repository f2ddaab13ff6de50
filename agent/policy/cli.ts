// `sallyport-agent policy show|test`, to be mounted by main.ts. `load` gives null after it said what is wrong.
import { stringify } from "yaml";
import type { Command } from "commander";
import { ConnectorError, imageRefSchema } from "@sallyport/protocol";
import type { Ceiling, PolicyAction, Verdict } from "./action.ts";
import type { CompiledPolicy } from "./policy.ts";

export interface PolicySource {
  load(file: string | undefined): CompiledPolicy | null;
  write(text: string): void;
  writeError(text: string): void;
  exit(code: number): void;
}

const CEILINGS: readonly Ceiling[] = [
  "concurrentRuns",
  "concurrentSteps",
  "stepTimeoutMs",
  "stepsPerRun",
  "uploadBytes",
  "streams",
  "deployments",
  "replicas",
  "cpus",
  "memoryBytes",
];
export const ACTION_USAGE = `
  command KIND                        e.g. command artifact.read
  list|read|write|delete STORE PATH   e.g. read lake models/a.onnx
  raw STORE PATH                      may these bytes leave the network
  metadata | preview | logs           may these leave the network
  program NAME | engine NAME | secret NAME
  network NAME                        may a step be put on it
  image IMAGE                         e.g. image registry.internal/ml/train@sha256:...
  predict DEPLOYMENT                  may predictions of it leave the network
  ceiling NAME VALUE                  e.g. ceiling uploadBytes 1000000, ceiling cpus 0.5`;

/** The action that words on a command line ask about. Throws INPUT_INVALID. */
export function parseAction(words: readonly string[]): PolicyAction {
  const [verb, first, second] = words;
  const invalid = (message: string): ConnectorError =>
    new ConnectorError("INPUT_INVALID", message, { fix: `Say one of:${ACTION_USAGE}` });
  const need = (value: string | undefined, what: string): string => {
    if (value === undefined) throw invalid(`${verb} needs ${what}.`);
    return value;
  };
  const enough = (action: PolicyAction, count: number): PolicyAction => {
    if (words.length > count) throw invalid(`${verb} takes nothing after ${words[count - 1]}.`);
    return action;
  };
  switch (verb) {
    case "command":
      return enough({ kind: "command", command: need(first, "a command kind") }, 2);
    case "list":
    case "read":
    case "write":
    case "delete":
      return enough(
        {
          kind: "store",
          access: verb,
          store: need(first, "a store"),
          path: verb === "list" ? (second ?? "") : need(second, "a path"),
        },
        3,
      );
    case "raw":
      return enough({ kind: "release", what: verb, store: need(first, "a store"), path: need(second, "a path") }, 3);
    case "metadata":
    case "preview":
    case "logs":
      return enough({ kind: "release", what: verb }, 1);
    case "program":
      return enough({ kind: "program", program: need(first, "a name") }, 2);
    case "engine":
      return enough({ kind: "engine", engine: need(first, "a name") }, 2);
    case "secret":
      return enough({ kind: "secret", secret: need(first, "a name") }, 2);
    case "image":
      if (!imageRefSchema.safeParse(need(first, "an image by digest")).success)
        throw invalid(`${first} names no image by its digest: name@sha256:… or sha256:…`);
      return enough({ kind: "image", image: first! }, 2);
    case "network":
      return enough({ kind: "network", network: need(first, "a name") }, 2);
    case "predict":
      return enough({ kind: "predict", deployment: need(first, "a deployment's name") }, 2);
    case "ceiling": {
      const ceiling = CEILINGS.find((c) => c === first);
      const value = Number(second);
      if (ceiling === undefined) throw invalid(`ceiling needs one of ${CEILINGS.join(", ")}.`);
      const fits = ceiling === "cpus" ? Number.isFinite(value) : Number.isSafeInteger(value);
      if (second === undefined || second.trim() === "" || !fits || value < 0)
        throw invalid(`ceiling ${ceiling} needs a ${ceiling === "cpus" ? "" : "whole "}number.`);
      return enough({ kind: "ceiling", ceiling, value }, 3);
    }
    default:
      throw invalid(verb === undefined ? "No action was given." : `${verb} is not an action.`);
  }
}

export const describeVerdict = (verdict: Verdict): string =>
  verdict.allowed ? `allowed by ${verdict.rule}\n` : `refused by ${verdict.rule}\n${verdict.reason}\n${verdict.fix}\n`;

export function policyCommands(program: Command, source: PolicySource): void {
  const policy = program.command("policy").description("look at the policy, ask it");
  policy
    .command("show")
    .description("print the policy in effect and its digest")
    .option("-c, --config <file>", "the configuration file")
    .action((options: { config?: string }) => {
      const loaded = source.load(options.config);
      if (loaded !== null)
        source.write(`# digest ${loaded.digest}\n${stringify({ policy: loaded.policy.config }, { lineWidth: 0 })}`);
    });
  policy
    .command("test")
    .description(`ask whether an action is allowed; exit code 1 when it is not\n${ACTION_USAGE}`)
    .argument("<action...>", "the action, see above")
    .option("-c, --config <file>", "the configuration file")
    .action((words: string[], options: { config?: string }) => {
      const loaded = source.load(options.config);
      if (loaded === null) return;
      let action: PolicyAction;
      try {
        action = parseAction(words);
      } catch (error) {
        if (!(error instanceof ConnectorError)) throw error;
        source.writeError(`${error.message}\n${error.fix ?? ""}\n`);
        source.exit(2);
        return;
      }
      const verdict = loaded.decide(action);
      source.write(describeVerdict(verdict));
      if (!verdict.allowed) source.exit(1);
    });
}
