// Given to an agent with --import: its runs end at once. What is left is the way of a durable command itself.
import { CommandRegistry } from "../../agent/commands/registry.ts";

const add = CommandRegistry.prototype.add;
CommandRegistry.prototype.add = function (this: CommandRegistry, kind: Parameters<typeof add>[0]) {
  if (kind.spec.kind !== "pipeline.run") return add.call(this, kind);
  const run = (input: unknown) =>
    Promise.resolve({ result: { run: (input as { run: string }).run, steps: 1 } }) as ReturnType<typeof kind.run>;
  return add.call(this, { ...kind, run });
} as typeof add;
