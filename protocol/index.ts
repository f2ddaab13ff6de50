// The contract between agent and cloud, and its only door: what crosses the link, as types, schemas and pure functions.
// It imports nothing of ours. `agent` and `cloud` import this file and nothing behind it.
export * from "./version.ts";
export * from "./clock.ts";
export * from "./errors.ts";
export * from "./ids.ts";
export * from "./envelope.ts";
export * from "./command.ts";
export * from "./reports.ts";
export * from "./status.ts";
export * from "./logs.ts";
export * from "./manifest.ts";
export * from "./stream.ts";
export * from "./ndjson.ts";
export * from "./frames.ts";
export * from "./codec.ts";
export * from "./trace.ts";
export * from "./spans.ts";
export * from "./transport.ts";
export * from "./transport-ws.ts";
export * from "./transport-nats.ts";
export * from "./mux.ts";
export * from "./enrolment.ts";
export * from "./handshake.ts";
export * from "./features/artifacts.ts";
export * from "./features/pipelines.ts";
export * from "./features/deployments.ts";
export * from "./entry.ts";
