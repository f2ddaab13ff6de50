// The parts that serve models: the router, the deployments behind it, and what of them is told at the agent's own host.
import type { DeploymentStatus } from "@sallyport/protocol";
import type { LocalEndpoint, PsDeployment, PsStep } from "../control/index.ts";
import { createDeployments, replicaWork, type Deployments } from "../features/deployments/index.ts";
import type { LogStore } from "../logs/index.ts";
import { createRouter, type Router } from "../router/index.ts";
import type { AgentContext } from "./context.ts";
import type { Parts } from "./parts.ts";
import type { OpenState } from "./state.ts";

export interface ServingParts {
  router: Router;
  deployments: Deployments;
}

export function makeServing(
  context: AgentContext,
  { journal }: OpenState,
  { policy, engines, connections }: Pick<Parts, "policy" | "engines" | "connections">,
  logs: LogStore,
): ServingParts {
  const { clock, log, redactor } = context;
  const { serving, state: stateDir } = context.compiled.config;
  const router = createRouter({ listen: serving.listen, advertise: serving.advertise, tls: serving.tls, clock, log });
  const deployments = createDeployments({
    journal,
    engines,
    router,
    stores: connections.stores,
    secrets: connections.secrets,
    redactor,
    logs,
    policy,
    clock,
    log,
    stateDir,
    serving: () => context.compiled.config.serving,
    limits: () => context.compiled.config.limits,
  });
  return { router, deployments };
}

/** An agent that serves nothing listens on nothing. */
export async function startServing(context: AgentContext, { router, deployments, changes }: Parts): Promise<void> {
  await deployments.start();
  deployments.onChange(() => changes.tell());
  const { serving } = context.compiled.config;
  if (serving.process !== null || serving.image !== null || deployments.statuses().length > 0) await router.start();
}

export const endpointsOf = ({ deployments }: Parts): LocalEndpoint[] => {
  const statuses = new Map(deployments.statuses().map((one) => [one.deployment, one]));
  return deployments.endpoints().map(({ deployment, name, url, key }) => {
    const status = statuses.get(deployment);
    return { name, url, key, ready: status?.replicasReady ?? 0, wanted: status?.replicasWanted ?? 0 };
  });
};

/** `steps`: what runs at the engines, replicas among it. */
export const psDeployments = ({ deployments }: Parts, steps: readonly PsStep[]): PsDeployment[] =>
  deployments.statuses().map((status) => ({
    id: status.deployment,
    name: status.name,
    state: status.state,
    why: status.conditions.find((one) => !one.ok)?.message ?? null,
    endpoint: status.endpoint,
    ready: status.replicasReady,
    wanted: status.replicasWanted,
    replicas: status.replicas.map((replica) => ({
      name: replica.name,
      state: replica.state,
      pid: pidOf(status, replica, steps),
      startedAt: replica.startedAt,
    })),
  }));

const pidOf = (
  status: DeploymentStatus,
  replica: DeploymentStatus["replicas"][number],
  steps: readonly PsStep[],
): number | null => steps.find((step) => step.name === replicaWork(status, replica))?.pid ?? null;
