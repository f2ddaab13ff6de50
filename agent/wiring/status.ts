// What the control plane is told of this agent, taken from the parts that know it.
import type { AgentStatus } from "@sallyport/protocol";
import { statusBuilder } from "../host/index.ts";
import type { AgentContext } from "./context.ts";
import type { Parts } from "./parts.ts";

export function makeStatus(context: AgentContext, parts: Parts, skewMs: () => number | null): () => AgentStatus {
  const { clock, redactor, version } = context;
  const { deployments, engines, facts, intake, policy, registry, runner, telemetry } = parts;
  const config = () => context.compiled.config;
  return statusBuilder({
    version,
    clock,
    host: () => facts.sample,
    process: () => ({ startedAt: telemetry.startedAt, clockSkewMs: skewMs(), loopDelayMs: telemetry.loop.last }),
    labels: () => config().labels,
    intake,
    stores: () =>
      config().stores.map((one) => ({
        id: one.id,
        kind: one.kind,
        label: one.kind === "s3" ? `s3://${one.bucket}/${one.prefix}` : "file",
        grants: policy.grants(one.id),
      })),
    programs: () =>
      Object.keys(config().programs).filter((program) => policy.decide({ kind: "program", program }).allowed),
    engines: () => engines.names.filter((name) => policy.decide({ kind: "engine", engine: name }).allowed),
    engineIds: () =>
      Object.fromEntries(
        engines.names.flatMap((name) => {
          const id = engines.get(name).shared?.id() ?? null;
          return id !== null && policy.decide({ kind: "engine", engine: name }).allowed ? [[name, id]] : [];
        }),
      ),
    policy,
    commands: () => policy.allowedCommands(registry.names),
    limits: () => ({
      runs: Math.min(policy.limit("concurrentRuns"), config().limits.concurrentRuns),
      steps: Math.min(policy.limit("concurrentSteps"), config().limits.concurrentSteps),
    }),
    ceilings: () => ({
      deployments: policy.limit("deployments"),
      replicas: policy.limit("replicas"),
      cpus: policy.limit("cpus"),
      memoryBytes: policy.limit("memoryBytes"),
    }),
    serving: () =>
      [
        ...(config().serving.process === null ? [] : [engines.process]),
        ...(config().serving.image === null || engines.docker === null ? [] : [engines.docker]),
      ]
        .filter(({ name }) => policy.decide({ kind: "engine", engine: name }).allowed)
        .map(({ name, isolated }) => ({ engine: name, isolated })),
    deployments: () => deployments.statuses(),
    running: () => runner.running(),
    redact: (value) => redactor.json(value),
  });
}
