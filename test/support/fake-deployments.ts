// What a fake agent says of its deployments, as it would reach the store through the gateway.
import type { AgentStatus, DeploymentStatus } from "@sallyport/protocol";
import type { Deployment } from "../../cloud/http/api.ts";
import type { CloudSession } from "../../cloud/link/sessions.ts";
import type { Store } from "../../cloud/store/index.ts";
import type { FakeAgent } from "./fake-agent.ts";
import { agentStatus } from "./agent-status.ts";

export const CEILINGS = { deployments: 5, replicas: 3, cpus: 2, memoryBytes: 1024 ** 3 };

/** What an agent says of a deployment that stands. */
export const observedOf = (of: Deployment, more: Partial<DeploymentStatus> = {}): DeploymentStatus => ({
  deployment: of.id as DeploymentStatus["deployment"],
  name: of.name,
  generation: of.generation,
  revision: of.revision,
  state: "available",
  conditions: [],
  replicasWanted: of.spec.replicas,
  replicasReady: of.spec.replicas,
  replicas: [],
  engine: "process",
  isolated: false,
  endpoint: `http://10.0.0.1:8080/${of.name}/v2`,
  rollup: null,
  ...more,
});

const statusWith = (deployments: DeploymentStatus[]): AgentStatus =>
  agentStatus({
    commands: ["deployment.apply", "deployment.remove"],
    ceilings: CEILINGS,
    serving: [{ engine: "process", isolated: false }],
    deployments,
  });

/** Connects, and writes the session down as the gateway does. `generations`: what its hello says that it holds. */
export async function connectKnown(
  store: Store,
  agent: FakeAgent,
  generations: Record<string, number> = {},
): Promise<CloudSession> {
  const session = await agent.connect();
  await store.openSession(session.replica, {
    id: session.id,
    process: "p",
    instance: "i",
    journal: session.journal,
    remoteAddress: null,
    now: Date.now(),
    generations,
  });
  return session;
}

/** As the gateway after a line of the status stream. */
export const say = (store: Store, agent: FakeAgent, deployments: DeploymentStatus[]) =>
  store.seen([
    {
      workspace: agent.identity.workspace,
      replica: agent.identity.replica,
      session: agent.session!.id,
      at: Date.now(),
      status: statusWith(deployments),
    },
  ]);
