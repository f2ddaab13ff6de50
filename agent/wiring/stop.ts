// What `stop` at the agent's host ends, and in which order: first by whoever answers for it, then at the engine.
import { ConnectorError } from "@sallyport/protocol";
import { stopWork } from "../control/index.ts";
import type { Parts } from "./parts.ts";
import { hostRuns } from "./ps.ts";

export interface StopOptions {
  /** A run, a command, or a step as ps names it; null = everything. */
  id: string | null;
  /** For the reports and the audit. */
  who: string;
  stateDir: string;
}

/**
 * A run or a command is cancelled as a whole; a step (`<run>/<step>`) ends its run as cancelled. A deployment stays ended
 * until its next apply; a replica (`<deployment>/<replica>`) comes back. Answers with what was
 * stopped; throws NOT_FOUND when nothing of that id runs.
 */
export async function stopHere(
  { runner, engines, pipelines, deployments }: Parts,
  { id, who, stateDir }: StopOptions,
): Promise<string[]> {
  const stopped: string[] = [];
  if (id?.includes("/") === true) stopped.push(...((await pipelines.stop(id, who))?.stopped ?? []));
  for (const one of runner.running()) {
    if (id !== null && one.command !== id && one.run !== id) continue;
    const ofRun = one.run === null ? null : await pipelines.stop(one.run, who);
    if (ofRun !== null || (await runner.cancelLocal(one.command, who)))
      stopped.push(one.run ?? one.command, ...(ofRun?.stopped ?? []));
  }
  const held = id === null ? deployments.endpoints().map(({ name }) => name) : [id];
  for (const one of held) {
    const ended = await deployments.stop(one, who);
    // of one replica the engine names the processes that it ended: who asked knows it by its own name
    if (ended !== null) stopped.push(...(one.includes("/") ? [one] : ended.stopped.map((name) => `${one}/${name}`)));
  }
  for (const engine of [hostRuns(stateDir) ? engines.process : null, engines.docker])
    if (engine !== null) stopped.push(...(await stopWork(engine, (name) => id === null || name === id)));
  if (id !== null && stopped.length === 0) {
    throw new ConnectorError("NOT_FOUND", `Nothing of the name ${id} runs here.`, {
      fix: "See what does with: sallyport-agent ps",
    });
  }
  return stopped;
}
