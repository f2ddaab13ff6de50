// The engine `process`: steps as plain child processes of a process host that outlives the agent. Unisolated: what a
// step does, it does with the rights of the agent's user. Linux only (it knows processes by /proc). Main.ts makes it;
// features know the port (engines/engine.ts) only.
export { createProcessEngine, type ProcessEngine, type ProcessEngineOptions } from "./process-engine.ts";
