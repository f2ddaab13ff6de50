// Stopping work at the engine itself, with or without an agent: what was started outlives the agent by design, so the
// customer can end it when the agent is gone.
import type { Engine } from "../engines/engine.ts";

const GRACE_MS = 10_000;

/** Stops what runs and is chosen; resolves with the names when all of it is gone. */
export async function stopWork(engine: Engine, chosen: (name: string) => boolean): Promise<string[]> {
  const running = (await engine.list()).filter(({ name, status }) => status.state === "running" && chosen(name));
  await Promise.all(running.map(({ name }) => engine.stop(name, GRACE_MS)));
  return running.map(({ name }) => name);
}
