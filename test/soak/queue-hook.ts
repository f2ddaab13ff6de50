// Given to an agent with --import: its durable commands end at once, and each writes a line where it began: what it belongs
// to, and its number there. The order of lines is the order in which the agent's handlers saw them.
import { appendFileSync } from "node:fs";
import { CommandRegistry } from "../../agent/commands/registry.ts";

interface Run {
  run: string;
  pipeline: { name: string; steps: unknown[] };
  params: { number: number };
}
interface Apply {
  deployment: string;
  name: string;
  generation: number;
}
const file = process.env["SALLYPORT_TEST_ORDER"];
const add = CommandRegistry.prototype.add;
CommandRegistry.prototype.add = function (this: CommandRegistry, kind: Parameters<typeof add>[0]) {
  const note = (of: string, number: number) => file !== undefined && appendFileSync(file, `${of} ${number}\n`);
  const begin = (input: unknown): unknown => {
    if (kind.spec.kind === "deployment.apply") {
      const { deployment, name, generation } = input as Apply;
      note(`deployment/${name}`, generation);
      return { deployment, generation };
    }
    const { run, pipeline, params } = input as Run;
    note(`pipeline/${pipeline.name}`, params.number);
    return { run, steps: pipeline.steps.length };
  };
  if (kind.spec.kind !== "pipeline.run" && kind.spec.kind !== "deployment.apply") return add.call(this, kind);
  const run = (input: unknown) => Promise.resolve({ result: begin(input) }) as ReturnType<typeof kind.run>;
  return add.call(this, { ...kind, run });
} as typeof add;
