// Pipelines on the agent: runs a DAG of steps once, takes up running steps after a restart, stops them, shows their logs.
// It knows engines, stores, secrets and journal by their ports. Main.ts makes it and registers `kinds`.
export { createPipelines, pipelineKinds, type Pipelines, type PipelinesDeps, type Program } from "./pipelines.ts";
