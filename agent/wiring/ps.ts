// The answer to `ps`: what the runner, the engine, the link and the journal know, put side by side.
import { existsSync } from "node:fs";
import { join } from "node:path";
import type { RunningCommand } from "../commands/runner.ts";
import type { PsAnswer, PsCommand, PsStep } from "../control/index.ts";
import type { OpenEngines } from "../engines/open-engines.ts";
import type { AgentContext } from "./context.ts";
import { psDeployments } from "./deployments.ts";
import { heldBack } from "./held-back.ts";
import type { WatchedLink } from "./link.ts";
import type { Parts } from "./parts.ts";
import type { OpenState } from "./state.ts";

/** An engine's name of a step begins with the id of its command. */
const COMMAND_ID_LENGTH = 36;

/** Asking an engine starts its host where none is; without the host's socket nothing can run. */
export const hostRuns = (stateDir: string): boolean => existsSync(join(stateDir, "host", "host.sock"));

export interface PsSources {
  state: OpenState;
  parts: Parts;
  watched: WatchedLink;
  cloudUrl: string;
  /** By the agent's clock. */
  startedAt: number;
}

export async function answerPs(context: AgentContext, sources: PsSources): Promise<PsAnswer> {
  const { cloudUrl, parts, startedAt } = sources;
  const { intake, runner, engines, policy } = parts;
  const { link, watch } = sources.watched;
  const { journal } = sources.state;
  const steps = await runningSteps(engines, context.compiled.config.state);
  const running = runner.running();
  const known = new Set<string>(running.map((one) => one.command));
  return {
    pid: process.pid,
    version: context.version,
    at: context.clock.now(),
    startedAt,
    link: { state: link.state, cloudUrl, since: watch.since, problem: watch.problem },
    paused: intake.paused,
    draining: intake.draining,
    heldBack: heldBack(runner, policy),
    commands: running.map((one) => withSteps(one, steps)),
    deployments: psDeployments(parts, steps),
    otherSteps: steps.filter(
      ({ name }) => !known.has(name.slice(0, COMMAND_ID_LENGTH)) && !parts.deployments.owns(name),
    ),
    unacknowledged: journal.lastSequence - journal.acknowledgedThrough,
  };
}

/** Of all engines that can be asked; one that does not answer runs what it runs. */
async function runningSteps({ process, docker }: OpenEngines, stateDir: string): Promise<PsStep[]> {
  const steps: PsStep[] = [];
  for (const engine of [hostRuns(stateDir) ? process : null, docker]) {
    for (const { name, status } of (await engine?.list().catch(() => [])) ?? []) {
      if (status.state === "running") steps.push({ name, pid: status.pid, startedAt: status.startedAt });
    }
  }
  return steps;
}

/** With those of its steps that run, named as `stop` takes them. */
function withSteps(command: RunningCommand, steps: readonly PsStep[]): PsCommand {
  const nameOf = ({ name }: PsStep) =>
    command.run === null ? name : `${command.run}/${name.slice(COMMAND_ID_LENGTH + 1, name.lastIndexOf("."))}`;
  return {
    ...command,
    steps: steps
      .filter((step) => step.name.startsWith(`${command.command}.`))
      .map((step) => ({ ...step, name: nameOf(step) })),
  };
}
