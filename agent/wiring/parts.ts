// Makes the parts of one agent and gives each what it needs of the others. Nothing is begun here.
import { ReportOutbox } from "../commands/reports.ts";
import { CommandRegistry } from "../commands/registry.ts";
import { CommandRunner } from "../commands/runner.ts";
import { Intake } from "../commands/intake.ts";
import { PauseFile } from "../control/index.ts";
import { openEngines, type OpenEngines } from "../engines/open-engines.ts";
import { artifactKinds, HeldUploads } from "../features/artifacts/index.ts";
import type { Deployments } from "../features/deployments/index.ts";
import { createPipelines, type Pipelines, type PipelinesDeps } from "../features/pipelines/index.ts";
import { HostFacts } from "../host/index.ts";
import { IdentityStore } from "../link/index.ts";
import { LogStore } from "../logs/index.ts";
import { LivePolicy } from "../policy/index.ts";
import { manifestOf, parseArtifactPath } from "../stores/index.ts";
import type { Router } from "../router/index.ts";
import { Connections } from "./connections.ts";
import type { AgentContext } from "./context.ts";
import { makeServing } from "./deployments.ts";
import type { OpenState } from "./state.ts";
import { openTelemetry, type Telemetry } from "./telemetry.ts";

/** Told of every change of what the agent says of itself. */
export class StatusChanges {
  readonly #listeners: (() => void)[] = [];

  on(listener: () => void): void {
    this.#listeners.push(listener);
  }
  tell(): void {
    for (const listener of this.#listeners) listener();
  }
}

export interface Parts {
  readonly changes: StatusChanges;
  readonly policy: LivePolicy;
  readonly intake: Intake;
  readonly pauseFile: PauseFile;
  readonly engines: OpenEngines;
  readonly connections: Connections;
  readonly pipelines: Pipelines;
  readonly router: Router;
  readonly deployments: Deployments;
  readonly uploads: HeldUploads;
  readonly registry: CommandRegistry;
  readonly runner: CommandRunner;
  readonly outbox: ReportOutbox;
  readonly facts: HostFacts;
  readonly telemetry: Telemetry;
}

export async function makeParts(context: AgentContext, state: OpenState): Promise<Parts> {
  const { clock, log, redactor, environment } = context;
  const { config } = context.compiled;
  const { audit, journal } = state;
  const telemetry = openTelemetry(context);
  const changes = new StatusChanges();
  const policy = new LivePolicy(context.compiled.policy);
  const intake = new Intake(clock, () => changes.tell());
  const pauseFile = new PauseFile(config.state);
  const pause = pauseFile.read();
  if (pause !== null) intake.pause(pause);
  const engines = await openEngines({
    stateDir: config.state,
    dockerSocket: config.engines.docker?.socket ?? null,
    agentId: journal.id,
    pool: poolOf(config.state),
    met: () => changes.tell(),
    clock,
    log,
  });
  const connections = new Connections({ config, environment, redactor, clock });
  const logs = new LogStore({
    stateDir: config.state,
    redactor,
    clock,
    capBytesPerAttempt: config.limits.logBytesPerAttempt,
    capBytes: config.limits.logBytes,
  });
  const withdraw: NonNullable<PipelinesDeps["withdraw"]> = (command, run) => runner.withdraw(command, `run:${run}`);
  const pipelines = makePipelines(context, state, { policy, engines, connections }, logs, withdraw);
  const { router, deployments } = makeServing(context, state, { policy, engines, connections }, logs);
  const uploads = new HeldUploads(clock);
  const registry = makeRegistry(connections, uploads, pipelines, deployments);
  const runner = new CommandRunner({
    registry,
    journal,
    audit,
    intake,
    policy,
    redactor,
    clock,
    log,
    dispatchSequences: journal.dispatchSequences,
    maxRuns: () => context.compiled.config.limits.concurrentRuns,
    changed: () => changes.tell(),
    ended: (command) => telemetry.ended(command),
  });
  const outbox = new ReportOutbox({
    journal,
    redactor,
    clock,
    log,
    async handed({ released, fenced, settled }) {
      await pipelines.fenced(fenced);
      await pipelines.settled(settled);
      for (const command of released) await runner.release(command);
    },
    acknowledged: () => pipelines.acknowledged(),
  });
  const facts = new HostFacts(config.state, clock);
  return {
    changes,
    policy,
    intake,
    pauseFile,
    engines,
    connections,
    pipelines,
    router,
    deployments,
    uploads,
    registry,
    runner,
    outbox,
    facts,
    telemetry,
  };
}

function makePipelines(
  context: AgentContext,
  { journal }: OpenState,
  { policy, engines, connections }: Pick<Parts, "policy" | "engines" | "connections">,
  logs: LogStore,
  withdraw: NonNullable<PipelinesDeps["withdraw"]>,
): Pipelines {
  const { clock, log, redactor } = context;
  const { state: stateDir, limits } = context.compiled.config;
  const { secrets, stores } = connections;
  return createPipelines({
    journal,
    engines,
    stores,
    secrets,
    redactor,
    logs,
    policy,
    programs: () => new Map(Object.entries(context.compiled.config.programs)),
    stateDir,
    clock,
    log,
    workBytes: limits.workBytes,
    withdraw,
    maxSteps: () => context.compiled.config.limits.concurrentSteps,
  });
}

/** Known from the enrolment on, which may come after this. */
function poolOf(stateDir: string): () => string | null {
  const identity = new IdentityStore(stateDir);
  let pool: string | null = null;
  return () => (pool ??= identity.load()?.identity.pool ?? null);
}

/** Every kind of command that this agent knows. */
function makeRegistry(
  { stores }: Connections,
  uploads: HeldUploads,
  pipelines: Pipelines,
  deployments: Deployments,
): CommandRegistry {
  const registry = new CommandRegistry();
  const artifacts = artifactKinds({ stores, parsePath: parseArtifactPath, makeManifest: manifestOf, uploads });
  for (const kind of [...artifacts, ...pipelines.kinds, ...deployments.kinds]) registry.add(kind);
  return registry;
}
