// Deployments on the agent: keeps as many replicas of a model running and routed as the journal says, with or without the
// cloud; rolls from one revision to the next; takes over what runs after a restart. It knows engines, router, stores,
// secrets and journal by their ports. Main.ts makes it and registers `kinds`.
export {
  createDeployments,
  replicaWork,
  type Deployments,
  type DeploymentsDeps,
  type Serving,
  type ServingLimits,
} from "./deployments.ts";
