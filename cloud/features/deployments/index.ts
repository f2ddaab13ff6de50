// Deployments as the control plane sees them: changed generation by generation, shown as command, agent and evidence say,
// asked and read through the link. Nothing of a request, an answer or a log is stored. Routes import this.
export { applyDeployment, createDeployment, removeDeployment, rollbackDeployment, scaled } from "./change.ts";
export { diffDeployment, type DeploymentDiff } from "./diff.ts";
export { followReplicaLogs, type ReplicaLogRequest } from "./follow-logs.ts";
export { sendRequest, tooLarge, type DeploymentAnswer, type DeploymentQuestion } from "./request.ts";
export { ceilingsFor, deploymentView, heldBy, ownerLinked, type DeploymentView } from "./view.ts";
