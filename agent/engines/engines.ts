// The engines of one agent, by name. Wiring makes it; features ask it and import nothing of a single engine.
import { ConnectorError } from "@sallyport/protocol";
import type { Engine, Engines } from "./engine.ts";

export function makeEngines(list: readonly Engine[]): Engines {
  const byName = new Map(list.map((engine) => [engine.name, engine]));
  const names = [...byName.keys()];
  return {
    names,
    get(name) {
      const engine = byName.get(name);
      if (engine !== undefined) return engine;
      throw new ConnectorError("ENGINE_UNKNOWN", `The agent has no engine ${name}.`, {
        fix: `It has: ${names.join(", ")}. Whoever runs the agent can configure another under engines and start it again.`,
        details: { engine: name, engines: names },
      });
    },
  };
}
