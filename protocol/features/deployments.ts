// Commands of the deployments feature: a model that is served by replicas behind one endpoint in the agent's network.
// Desired state, not deltas: `deployment.apply` carries the whole spec. What came of it is the deployment's status.
import { z } from "zod";
import { defineCommand } from "../command.ts";
import { deploymentIdSchema, digestSchema, nameSchema } from "../ids.ts";
import { artifactPathSchema } from "./artifacts.ts";

/**
 * An image by content: `name@sha256:…` (manifest digest, pulled when it is not there) or `sha256:…` (the id of an image
 * that was built or loaded at the engine). A tag names nothing for certain and is refused.
 */
export const imageRefSchema = z
  .string()
  .max(512)
  .regex(
    /^(?:[a-z0-9][a-zA-Z0-9._:/-]*@)?sha256:[0-9a-f]{64}$/,
    "an image by digest: name@sha256:<64 hex digits>, or sha256:<64 hex digits> for one that is at the engine",
  );

export const ENGINES = ["process", "docker"] as const;
export type EngineName = (typeof ENGINES)[number];

/** Of one container: a step or a replica. */
export const resourcesSchema = z.strictObject({
  /** Cores; 0.5 is half of one. */
  cpus: z.number().min(0.1).max(1024).default(1),
  memoryBytes: z
    .int()
    .min(32 * 1024 ** 2)
    .max(16 * 1024 ** 4)
    .default(512 * 1024 ** 2),
});
export type Resources = z.infer<typeof resourcesSchema>;

const variableSchema = z.string().regex(/^[A-Z_][A-Z0-9_]{0,127}$/, "a variable name in capitals");

export const deploymentSpecSchema = z.strictObject({
  model: z.strictObject({
    store: nameSchema,
    path: artifactPathSchema,
    /** Of the file; compared after it was read. */
    digest: digestSchema,
  }),
  /** What loads the model. `onnx`: the agent's own, ONNX Runtime behind Open Inference Protocol v2. */
  runtime: z.enum(["onnx"]).default("onnx"),
  /** For runtimes in images of one's own; not served yet. */
  image: imageRefSchema.optional(),
  engine: z.enum(ENGINES).default("process"),
  replicas: z.int().min(0).max(1000).default(1),
  resources: resourcesSchema.prefault({}),
  env: z.record(variableSchema, z.string().max(8192)).default({}),
  /** Environment variable -> name of a secret that the policy lets a replica have. */
  secrets: z.record(variableSchema, z.string().min(1).max(256)).default({}),
});
export type DeploymentSpec = z.infer<typeof deploymentSpecSchema>;
export type DeploymentSpecInput = z.input<typeof deploymentSpecSchema>;

/** The part of a spec that a replica is made from: a new revision begins when it changes. Scaling changes nothing here. */
export const revisionContent = ({ replicas: _, ...content }: DeploymentSpec): Omit<DeploymentSpec, "replicas"> =>
  content;

/** JSON with sorted keys: equal text = the same revision. */
export const revisionText = (spec: DeploymentSpec): string => canonical(revisionContent(spec));

function canonical(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  const entries = Object.entries(value)
    .filter(([, v]) => v !== undefined)
    .sort(([a], [b]) => (a < b ? -1 : 1));
  return `{${entries.map(([k, v]) => `${JSON.stringify(k)}:${canonical(v)}`).join(",")}}`;
}

// -- what is observed ----------------------------------------------------------------------------------------------

/** `r<revision>.<number>`: the same number of the same revision is never there twice. */
export const replicaNameSchema = z
  .string()
  .regex(/^r[1-9][0-9]{0,9}\.(?:0|[1-9][0-9]{0,3})$/, "a replica such as r3.0");
export const replicaName = (revision: number, number: number): string => `r${revision}.${number}`;

/**
 * `waiting`: for room, a model, an image or the end of a pause after a crash. `starting`: begun, not ready yet.
 * `unready`: was ready and does not answer. `draining`: gets no new requests, ends those it has.
 */
export const REPLICA_STATES = ["waiting", "starting", "ready", "unready", "crashed", "draining"] as const;
export type ReplicaState = (typeof REPLICA_STATES)[number];

export const replicaExitSchema = z.object({
  at: z.int().nonnegative(),
  reason: z.enum(["exit", "killed", "out-of-memory", "removed", "unknown"]),
  code: z.int().nullable(),
  signal: z.string().nullable(),
  /** Which start of the replica it was: the log of that start. */
  start: z.int().positive(),
  /** Last record of that log; 0 = it wrote none. */
  logSeq: z.int().nonnegative(),
});
export type ReplicaExit = z.infer<typeof replicaExitSchema>;

export const replicaStatusSchema = z.object({
  name: replicaNameSchema,
  revision: z.int().positive(),
  number: z.int().nonnegative(),
  state: z.enum(REPLICA_STATES),
  /** Why it is not ready, from the closed list of error codes; null when it is. */
  code: z.string().nullable(),
  message: z.string().nullable(),
  /** When it came into this state; ms since the epoch, agent's clock. */
  since: z.int().nonnegative(),
  /** Of the running start; null = none runs. */
  startedAt: z.int().nonnegative().nullable(),
  /** How often it was started; the number of its newest log. 0 = never. */
  starts: z.int().nonnegative(),
  /** True when a restarted agent found it running and took it over. */
  adopted: z.boolean(),
  lastExit: replicaExitSchema.nullable(),
});
export type ReplicaStatus = z.infer<typeof replicaStatusSchema>;

/** `available`: as many replicas are ready as are wanted. `updated`: all are of the wanted revision. `endpoint`: the router listens. `engine`: it answers. */
export const CONDITION_TYPES = ["available", "updated", "endpoint", "engine"] as const;
export const conditionSchema = z.object({
  type: z.enum(CONDITION_TYPES),
  ok: z.boolean(),
  /** `OK`, or an error code of the closed list: why not. */
  code: z.string(),
  message: z.string(),
  fix: z.string().nullable(),
  /** When `ok` or `code` last changed. */
  since: z.int().nonnegative(),
  /** The replica that it speaks of, its start and the last record of that log; the policy's rule; ... */
  details: z.record(z.string(), z.unknown()).optional(),
});
export type Condition = z.infer<typeof conditionSchema>;

/** Requests at the endpoint in one whole minute. Times are null when there were none. */
export const rollupSchema = z.object({
  /** End of the minute; ms since the epoch, a multiple of 60,000. */
  at: z.int().nonnegative(),
  requests: z.int().nonnegative(),
  /** Answered 5xx by a replica, or not answered by any. */
  errors: z.int().nonnegative(),
  /** Sent to a second replica. */
  retries: z.int().nonnegative(),
  p50Ms: z.number().nonnegative().nullable(),
  p95Ms: z.number().nonnegative().nullable(),
  p99Ms: z.number().nonnegative().nullable(),
});
export type Rollup = z.infer<typeof rollupSchema>;

/**
 * `progressing`: on the way to what is wanted. `available`: there. `degraded`: serves, but not as wanted (fewer replicas,
 * or an old revision because the new one does not come up). `failed`: serves nothing and does not get there by itself soon.
 */
export const DEPLOYMENT_STATES = ["progressing", "available", "degraded", "failed", "removing"] as const;
export type DeploymentState = (typeof DEPLOYMENT_STATES)[number];

export const deploymentStatusSchema = z.object({
  deployment: deploymentIdSchema,
  name: nameSchema,
  /** Held by the agent; lower than the cloud's = not applied yet. */
  generation: z.int().positive(),
  revision: z.int().positive(),
  state: z.enum(DEPLOYMENT_STATES),
  conditions: z.array(conditionSchema),
  /** Wanted. */
  replicasWanted: z.int().nonnegative(),
  /** Ready and of whatever revision. */
  replicasReady: z.int().nonnegative(),
  replicas: z.array(replicaStatusSchema),
  engine: z.enum(ENGINES),
  /** False: the engine keeps the replicas' code neither from the host nor within its limits. */
  isolated: z.boolean(),
  /** Base of the Open Inference Protocol, in the agent's network. */
  endpoint: z.string(),
  /** The last whole minute; null = none yet. */
  rollup: rollupSchema.nullable(),
});
export type DeploymentStatus = z.infer<typeof deploymentStatusSchema>;

// -- commands ------------------------------------------------------------------------------------------------------

/** Succeeds when journaled; what comes of it is in the status. A lower generation than the one held: GENERATION_STALE. */
export const deploymentApply = defineCommand({
  kind: "deployment.apply",
  class: "durable",
  idempotent: true,
  timeoutMs: 30_000,
  content: "none",
  input: z.strictObject({
    deployment: deploymentIdSchema,
    /** Part of the endpoint's address; never changes. */
    name: nameSchema,
    generation: z.int().positive(),
    /** Rises when `revisionText` of the spec changes, and only then. */
    revision: z.int().positive(),
    spec: deploymentSpecSchema,
  }),
  output: z.object({ deployment: deploymentIdSchema, generation: z.int().positive() }),
});

/** Succeeds when nothing of it runs any more. Of a deployment that the agent does not have: succeeds, nothing stopped. */
export const deploymentRemove = defineCommand({
  kind: "deployment.remove",
  class: "durable",
  idempotent: true,
  timeoutMs: 30_000,
  content: "none",
  input: z.strictObject({ deployment: deploymentIdSchema, generation: z.int().positive() }),
  output: z.object({ deployment: deploymentIdSchema, stopped: z.array(z.string()) }),
});

export const deploymentStatus = defineCommand({
  kind: "deployment.status",
  class: "interactive",
  idempotent: true,
  timeoutMs: 15_000,
  content: "none",
  input: z.strictObject({ deployment: deploymentIdSchema }),
  output: deploymentStatusSchema,
});

export const deploymentLogs = defineCommand({
  kind: "deployment.logs",
  class: "interactive",
  idempotent: true,
  timeoutMs: 24 * 3600_000,
  content: "records",
  input: z.strictObject({
    deployment: deploymentIdSchema,
    replica: replicaNameSchema,
    /** Which start; absent = the newest. */
    start: z.int().positive().optional(),
    /** Records with a higher number; 0 = from the beginning. */
    after: z.int().nonnegative().default(0),
    /** At most this many records when not following. */
    limit: z.int().min(1).max(100_000).default(1000),
    /** Go on until that start has ended. */
    follow: z.boolean().default(false),
    /** Only the last N records before going on; not together with `after`. */
    tail: z.int().positive().max(100_000).optional(),
  }),
  /** NDJSON of `logRecordSchema` follows. */
  output: z.object({
    deployment: deploymentIdSchema,
    replica: replicaNameSchema,
    start: z.int().positive(),
    lastSeq: z.int().nonnegative(),
    ended: z.boolean(),
  }),
});

/** Longest body of a request that goes through the link; larger ones go to the endpoint itself. */
export const MAX_REQUEST_BYTES = 128 * 1024;

/** One request to the endpoint, sent through the link (policy `release.predict`). Neither it nor the answer is kept. */
export const deploymentRequest = defineCommand({
  kind: "deployment.request",
  class: "interactive",
  idempotent: true,
  timeoutMs: 120_000,
  content: "download",
  lane: "interactive",
  input: z.strictObject({
    deployment: deploymentIdSchema,
    method: z.enum(["GET", "POST"]).default("POST"),
    /** Below the endpoint, e.g. `/v2/models/digits/infer`. */
    path: z
      .string()
      .max(512)
      .regex(/^\/v2(?:\/[A-Za-z0-9._~-]+)*$/, "a path of the Open Inference Protocol, such as /v2/models/NAME/infer"),
    /** JSON text, as it is sent. Absent for GET. */
    body: z.string().max(MAX_REQUEST_BYTES).optional(),
    timeoutMs: z.int().min(100).max(120_000).default(30_000),
  }),
  /** The answer's body follows, as the replica sent it. */
  output: z.object({
    /** HTTP status of the replica. */
    status: z.int(),
    mediaType: z.string(),
    replica: replicaNameSchema,
    tookMs: z.number().nonnegative(),
  }),
});
