// The HTTP API's types: what the page, the CLI and any client may rely on. Schemas only; OpenAPI is made from them.
// `cloud/web` imports types from this file and nothing else of the cloud.
//
// All under /v1. JSON unless said. Errors are application/problem+json (`problemSchema`). The workspace is the
// principal's: no path or body names it. Lists are `{items, nextCursor}` with `?limit&cursor`. A POST that makes
// something takes `Idempotency-Key`. Times are ms since the epoch.
//
//   POST   /v1/session                        {signin} | {name, password} -> me, sets the cookie
//   DELETE /v1/session                        signs out
//   GET    /v1/me                             who am I
//   PUT    /v1/me/password                    {password}
//   GET    /v1/tokens        POST, DELETE /v1/tokens/{id}
//   GET    /v1/enrollments   POST, GET /v1/enrollments/{id}, DELETE (withdraw)
//   GET    /v1/pools         GET /v1/pools/{pool}, PATCH /v1/pools/{pool} {maxRuns}
//   GET    /v1/agents        GET, PATCH, DELETE /v1/agents/{id}, POST /v1/agents/{id}/revoke
//   GET    /v1/agents/{id}/connections   what became of each, newest first
//   GET    /v1/pools/{pool}/stores/{store}/artifacts?path&cursor&limit   artifact.list
//   GET    /v1/pools/{pool}/stores/{store}/stat?path&digest              artifact.stat
//   GET    /v1/pools/{pool}/stores/{store}/preview?path&rows             artifact.preview
//   GET    /v1/pools/{pool}/stores/{store}/content?path                  artifact.read; Range, If-Match, ETag; HEAD too
//   PUT    /v1/pools/{pool}/stores/{store}/content?path                  artifact.write; If-Match, If-None-Match: *, Repr-Digest
//   DELETE /v1/pools/{pool}/stores/{store}/content?path                  artifact.delete; If-Match
//   GET    /v1/runs          POST, GET /v1/runs/{id}, POST /v1/runs/{id}/cancel, POST /v1/runs/{id}/rerun {params}
//   GET    /v1/runs/{id}/steps/{step}/logs?attempt&after&tail&limit&follow     NDJSON of log records
//   GET    /v1/deployments?pool&name&removed   POST, GET /v1/deployments/{id}; ETag
//   PUT    /v1/deployments/{id}               the whole spec; If-Match
//   POST   /v1/deployments/{id}/scale         {replicas}; If-Match
//   POST   /v1/deployments/{id}/rollback      {revision}; If-Match
//   POST   /v1/deployments/{id}/diff          {spec} -> what an apply would change; changes nothing
//   DELETE /v1/deployments/{id}               If-Match
//   GET    /v1/deployments/{id}/revisions     newest first
//   GET    /v1/deployments/{id}/rollups?since
//   GET    /v1/deployments/{id}/replicas/{replica}/logs?start&after&tail&limit&follow   NDJSON of log records
//   POST   /v1/deployments/{id}/request?path&method&timeoutMs    JSON as it is; the replica's status, type and bytes as
//                                             they are, marked by `sallyport-replica`; an answer without that is ours
//   GET    /v1/commands      GET /v1/commands/{id}, POST /v1/commands/{id}/lost {reason}
//   GET    /v1/processes                      of the control plane itself, and how they hear of each other
//   GET    /v1/changes       SSE: event `change`, data {entity, id, version, n}; Last-Event-ID or ?after=n replays
//   GET    /openapi.json  /healthz  /readyz  /metrics
import {
  agentStatusSchema,
  artifactEntrySchema,
  artifactStatOutputSchema,
  conditionSchema,
  DEPLOYMENT_STATES,
  deploymentSpecSchema,
  deploymentStatusSchema,
  digestSchema,
  nameSchema,
  paramValueSchema,
  pipelineSchema,
  previewSchema,
  producedArtifactSchema,
  replicaStatusSchema,
  rollupSchema,
  STEP_STATES,
} from "@sallyport/protocol";
import { z } from "zod";

export const page = <T extends z.ZodType>(item: T) =>
  z.object({ items: z.array(item), nextCursor: z.string().nullable() });
export const pageQuerySchema = z.object({
  limit: z.coerce.number().int().min(1).max(500).default(50),
  cursor: z.string().max(512).optional(),
});

/** RFC 9457, with our members. `fix` is a sentence about what to do. */
export const problemSchema = z.object({
  type: z.string(),
  title: z.string(),
  status: z.int(),
  detail: z.string(),
  instance: z.string(),
  code: z.string(),
  requestId: z.string(),
  /** W3C trace id: finds the request in the logs of both ends. */
  traceId: z.string().optional(),
  fix: z.string().optional(),
  /** Field paths for INPUT_INVALID. */
  errors: z.array(z.object({ path: z.string(), message: z.string() })).optional(),
  details: z.record(z.string(), z.unknown()).optional(),
});
export type Problem = z.infer<typeof problemSchema>;

// -- the control plane itself ----------------------------------------------------------------------------------------
export const processesSchema = z.object({
  items: z.array(
    z.object({
      id: z.string(),
      /** It is the one that answers. */
      self: z.boolean(),
      startedAt: z.int(),
      /** As the one that answers sees it: `unreachable` = agents that are connected there cannot be asked from here. */
      state: z.enum(["here", "reached", "unreachable"]),
      /** Why it is not reached. */
      problem: z.string().nullable(),
      /** How streams get there; null: it is the one that answers, or it is not reached. */
      way: z.enum(["direct", "nats"]).nullable(),
      /** Agents that are connected there. */
      sessions: z.int(),
    }),
  ),
  backplane: z.object({
    kind: z.enum(["alone", "sweep", "in-process", "nats"]),
    /** False: what other processes do is noticed by the sweep, within 5 s. Nothing is lost. */
    connected: z.boolean(),
    text: z.string(),
  }),
});

// -- who ---------------------------------------------------------------------------------------------------------
export const meSchema = z.object({
  user: z.object({ id: z.string(), name: z.string(), role: z.enum(["admin"]) }),
  workspace: z.object({ id: z.string(), name: z.string() }),
  /** How this request was let in. */
  via: z.enum(["session", "token"]),
  hasPassword: z.boolean(),
  version: z.string(),
});
export type Me = z.infer<typeof meSchema>;
export const signInSchema = z.union([
  /** The secret behind `#` in the one-time sign-in URL: `<url>/signin#<secret>`. */
  z.strictObject({ signin: z.string().min(20).max(256) }),
  z.strictObject({ name: z.string().min(1).max(128), password: z.string().min(1).max(1024) }),
]);
export const passwordSchema = z.strictObject({ password: z.string().min(12).max(1024) });

export const tokenSchema = z.object({
  id: z.string(),
  label: z.string(),
  /** First characters, to recognise it by. */
  hint: z.string(),
  createdAt: z.int(),
  expiresAt: z.int(),
  lastUsedAt: z.int().nullable(),
  revokedAt: z.int().nullable(),
});
export type ApiToken = z.infer<typeof tokenSchema>;
export const newTokenSchema = z.strictObject({
  label: z.string().min(1).max(100),
  expiresInDays: z.int().min(1).max(90).default(30),
});
/** `token` is shown once. Format: `spt_` + 43 characters + 6 of checksum. */
export const madeTokenSchema = tokenSchema.extend({ token: z.string() });

// -- agents ------------------------------------------------------------------------------------------------------
export const AGENT_STATES = ["waiting", "connected", "paused", "draining", "disconnected", "lost", "revoked"] as const;
const laneSchema = z.object({ frames: z.int(), bytes: z.int() });
const lanesSchema = z.object({ control: laneSchema, interactive: laneSchema, bulk: laneSchema });
/** What is known of a live link. Figures of lanes count from the beginning of its session. */
export const agentLinkSchema = z.object({
  /** Of the beats of the last minutes; null before the first. */
  roundTrip: z.object({ p50Ms: z.number(), p95Ms: z.number(), samples: z.int() }).nullable(),
  sent: lanesSchema,
  received: lanesSchema,
  /** Sent to the agent and not acknowledged yet. */
  inFlightBytes: z.int(),
  queuedBytes: z.object({ interactive: z.int(), bulk: z.int() }),
  streams: z.int(),
});
export type AgentLink = z.infer<typeof agentLinkSchema>;

/** One session of an agent, or its being refused at the handshake. */
export const connectionSchema = z.object({
  no: z.int(),
  /** Null = refused. */
  session: z.string().nullable(),
  /** When it began, or was first refused. */
  at: z.int(),
  /** Null while it lives; of a refusal, when it was last repeated. */
  endedAt: z.int().nullable(),
  /** Why it ended or was refused, as a code and a sentence; null while it lives. */
  code: z.string().nullable(),
  message: z.string().nullable(),
  remoteAddress: z.string().nullable(),
  version: z.string().nullable(),
  /** How often in a row it was refused so; 1 for a session. */
  times: z.int(),
});
export type Connection = z.infer<typeof connectionSchema>;

/** Derived when read, from the last evidence and its age. */
export const agentSchema = z.object({
  id: z.string(),
  name: z.string(),
  pool: z.object({ id: z.string(), name: z.string() }),
  state: z.enum(AGENT_STATES),
  /** A sentence: why this state, since when. */
  stateReason: z.string(),
  /** Last sign of life; null = none yet. */
  lastSeenAt: z.int().nullable(),
  connectedAt: z.int().nullable(),
  remoteAddress: z.string().nullable(),
  rttMs: z.number().nullable(),
  /** Null: not connected, or another process of the control plane holds the link. */
  link: agentLinkSchema.nullable(),
  /** How often it has connected since it joined. */
  sessions: z.int(),
  version: z.string().nullable(),
  fingerprint: z.string(),
  createdAt: z.int(),
  revokedAt: z.int().nullable(),
  /** Newest that the agent said; its age is `statusAt`. Shown as unknown when not connected. */
  status: agentStatusSchema.nullable(),
  statusAt: z.int().nullable(),
  /** Security events, newest first: a cloned identity, a wiped journal. */
  alarms: z.array(z.object({ at: z.int(), code: z.string(), message: z.string() })),
});
export type Agent = z.infer<typeof agentSchema>;
export const renameAgentSchema = z.strictObject({ name: nameSchema });

export const storeSchema = z.object({
  id: nameSchema,
  kind: z.string(),
  label: z.string(),
  grants: z.array(z.enum(["read", "write", "delete"])),
});
export const poolSchema = z.object({
  id: z.string(),
  name: z.string(),
  agents: z.object({ total: z.int(), connected: z.int() }),
  /** As the pool's replicas last said. */
  stores: z.array(storeSchema),
  programs: z.array(z.string()),
  engines: z.array(z.string()),
  /** Most runs of it at a time, set by PATCH; null = no limit. */
  maxRuns: z.int().nullable(),
  /** Engines that can serve models, as the pool's replicas last said. */
  serving: z.array(z.object({ engine: z.string(), isolated: z.boolean() })),
  /** The policy's upper limits for one agent of the pool; the smallest when several differ. */
  ceilings: z.object({ deployments: z.int(), replicas: z.int(), cpus: z.number(), memoryBytes: z.int() }),
  /** True when no replica is connected: stores and programs are then from memory. */
  stale: z.boolean(),
});
export type Pool = z.infer<typeof poolSchema>;
/** Null takes the limit away. Runs that have begun go on. */
export const limitPoolSchema = z.strictObject({ maxRuns: z.int().min(1).max(10_000).nullable() });

export const newEnrollmentSchema = z.strictObject({
  /** Joins this pool; made when it does not exist. */
  pool: nameSchema,
  /** Name for the replica; absent = the pool's name and a number. */
  name: nameSchema.optional(),
});
export const enrollmentSchema = z.object({
  id: z.string(),
  pool: z.object({ id: z.string(), name: z.string() }),
  name: z.string().nullable(),
  state: z.enum(["waiting", "used", "expired", "withdrawn"]),
  createdAt: z.int(),
  expiresAt: z.int(),
  usedAt: z.int().nullable(),
  /** The agent replica that it became. */
  agent: z.string().nullable(),
  /** Joins that were refused with this secret, newest first. */
  refusals: z.array(
    z.object({ at: z.int(), code: z.string(), message: z.string(), remoteAddress: z.string().nullable() }),
  ),
});
export type Enrollment = z.infer<typeof enrollmentSchema>;
/** `secret` is shown once; `url` is what the agent dials; the commands are ready to copy, `note` first read. */
export const madeEnrollmentSchema = enrollmentSchema.extend({
  secret: z.string(),
  url: z.string(),
  commands: z.array(z.object({ title: z.string(), text: z.string(), note: z.string().optional() })),
});
export type MadeEnrollment = z.infer<typeof madeEnrollmentSchema>;

// -- artifacts ---------------------------------------------------------------------------------------------------
export const artifactListSchema = z.object({
  entries: z.array(artifactEntrySchema),
  nextCursor: z.string().nullable(),
});
export { artifactStatOutputSchema };
export const artifactPreviewSchema = z.object({
  path: z.string(),
  sizeBytes: z.int(),
  mediaType: z.string(),
  modifiedAt: z.int().nullable(),
  version: z.string().nullable(),
  preview: previewSchema,
  readBytes: z.int(),
  /** The replica that made it. */
  agent: z.object({ id: z.string(), name: z.string() }),
  tookMs: z.number(),
});
export type ArtifactPreview = z.infer<typeof artifactPreviewSchema>;
export const writtenArtifactSchema = z.object({
  path: z.string(),
  sizeBytes: z.int(),
  version: z.string(),
  digest: digestSchema,
});

// -- commands ----------------------------------------------------------------------------------------------------
export const COMMAND_STATES = [
  "queued",
  "accepted",
  "running",
  "succeeded",
  "failed",
  "cancelled",
  "expired",
  "superseded",
  "refused",
  "lost",
] as const;
export const WAITING_CODES = [
  /** Its time has not come. */
  "NOT_BEFORE",
  /** Connected agents lack a label that it needs. */
  "NO_MATCHING_AGENT",
  "AGENT_OFFLINE",
  "AGENT_PAUSED",
  "AGENT_DRAINING",
  /** The agent cannot write its journal or audit log. */
  "AGENT_UNREADY",
  /** No agent's policy allows the kind. */
  "CAPABILITY_MISSING",
  /** A limit of the pool or of the pipeline, kept by the cloud. */
  "CONCURRENCY_LIMIT",
  /** A ceiling of the agent's policy. */
  "AT_CAPACITY",
  /** An older command of the same resource comes first. */
  "UPSTREAM_PENDING",
  /** The last offer failed; it is made again after a while. */
  "RETRY_BACKOFF",
  "OFFERED",
] as const;
export const waitingSchema = z.object({
  code: z.enum(WAITING_CODES),
  text: z.string(),
  fix: z.string(),
  /** With CONCURRENCY_LIMIT and AT_CAPACITY: its place (1 = next), and the runs that have the slots, the oldest first. */
  queue: z
    .object({
      position: z.int(),
      of: z.int(),
      holders: z.array(z.object({ command: z.string(), run: z.string(), text: z.string() })),
    })
    .optional(),
});
export const commandErrorSchema = z.object({
  code: z.string(),
  message: z.string(),
  fix: z.string().optional(),
  details: z.record(z.string(), z.unknown()).optional(),
});
export const commandSchema = z.object({
  id: z.string(),
  kind: z.string(),
  resource: z.string(),
  pool: z.object({ id: z.string(), name: z.string() }),
  state: z.enum(COMMAND_STATES),
  /** True: its agent is not connected and has it, or may have it; what became of it is not known until its journal answers. */
  unknown: z.boolean(),
  /** Exactly one for a queued command, else null. */
  waiting: waitingSchema.nullable(),
  agent: z.object({ id: z.string(), name: z.string() }).nullable(),
  actor: z.object({ id: z.string(), name: z.string(), via: z.string() }),
  /** -100 to 100: higher goes first, between resources. */
  priority: z.int(),
  createdAt: z.int(),
  /** Offered to nobody before. */
  notBefore: z.int(),
  acceptedAt: z.int().nullable(),
  startedAt: z.int().nullable(),
  endedAt: z.int().nullable(),
  expiresAt: z.int(),
  offers: z.int(),
  error: commandErrorSchema.nullable(),
  result: z.unknown().nullable(),
  run: z.string().nullable(),
  bodyDigest: z.string(),
});
export type Command = z.infer<typeof commandSchema>;
/** One command with all that is to be told of it: what `sallyport command explain` and the page say. */
export const commandDetailSchema = commandSchema.extend({
  /** Where it stands, in plain words, and what to do; null = nothing is to be done. */
  text: z.string(),
  fix: z.string().nullable(),
  /** With `unknown`: the silent agent, when it was last heard, what will settle it. */
  silence: z
    .object({
      agent: z.string(),
      name: z.string(),
      since: z.int().nullable(),
      settles: z.string(),
      /** POST .../lost would be taken. */
      canBeLost: z.boolean(),
    })
    .nullable(),
  /** Oldest first. `applied` false: said after its end, kept beside it. */
  history: z.array(
    z.object({
      at: z.int(),
      type: z.string(),
      text: z.string(),
      agent: z.object({ id: z.string(), name: z.string() }).nullable(),
      applied: z.boolean(),
    }),
  ),
});
export type CommandDetail = z.infer<typeof commandDetailSchema>;
export const declareLostSchema = z.strictObject({
  /** Kept with the command: why its agent will never answer. */
  reason: z.string().trim().min(1).max(1000),
});

// -- runs --------------------------------------------------------------------------------------------------------
export const RUN_STATES = ["queued", "running", "succeeded", "failed", "cancelled", "unknown"] as const;
export const attemptSchema = z.object({
  step: z.string(),
  attempt: z.int(),
  state: z.enum(STEP_STATES),
  startedAt: z.int().nullable(),
  endedAt: z.int().nullable(),
  exitCode: z.int().nullable(),
  error: commandErrorSchema.nullable(),
  outputs: z.array(producedArtifactSchema),
  logSeq: z.int(),
  adopted: z.boolean(),
  /** It failed and is tried again: when the next attempt begins. Null: no further attempt, or it has begun. */
  retryAt: z.int().nullable(),
});
export const runSchema = z.object({
  id: z.string(),
  command: z.string(),
  pool: z.object({ id: z.string(), name: z.string() }),
  pipeline: z.string(),
  /** `unknown`: its agent is silent. */
  state: z.enum(RUN_STATES),
  waiting: waitingSchema.nullable(),
  error: commandErrorSchema.nullable(),
  params: z.record(z.string(), paramValueSchema),
  actor: z.object({ id: z.string(), name: z.string(), via: z.string() }),
  agent: z.object({ id: z.string(), name: z.string() }).nullable(),
  createdAt: z.int(),
  startedAt: z.int().nullable(),
  endedAt: z.int().nullable(),
  stepsTotal: z.int(),
  stepsDone: z.int(),
  priority: z.int(),
  notBefore: z.int(),
  /** When it ends unaccepted. */
  expiresAt: z.int(),
  /** The run that it repeats. */
  rerunOf: z.string().nullable(),
});
export type Run = z.infer<typeof runSchema>;
export const runDetailSchema = runSchema.extend({
  spec: pipelineSchema,
  /** One for each step that has begun, newest attempt last; steps not begun have none. */
  attempts: z.array(attemptSchema),
  /** The silent agent that the present one took it over from; absent = it was never taken over. */
  takenFrom: z.object({ id: z.string(), name: z.string(), at: z.int() }).optional(),
});
export type RunDetail = z.infer<typeof runDetailSchema>;
const DAY_MS = 24 * 3600_000;
const runOrder = {
  /** Higher goes first, between runs that wait. */
  priority: z.int().min(-100).max(100).default(0),
  /** How long it may wait for an agent, from `notBefore` on if that is given; it never lives longer than 7 days in all. */
  expiresInMs: z
    .int()
    .min(1000)
    .max(7 * DAY_MS)
    .default(DAY_MS),
  /** Begins at this time at the earliest, ms since the epoch; at most 6 days from now. Absent = at once. */
  notBefore: z.int().nonnegative().optional(),
};
export const newRunSchema = z.strictObject({
  /** Name of the pool. */
  pool: nameSchema,
  pipeline: pipelineSchema,
  params: z.record(nameSchema, paramValueSchema).default({}),
  /** Labels that an agent must have to take it. */
  requires: z.record(nameSchema, nameSchema).optional(),
  ...runOrder,
});
/** The same pipeline in the same pool; `params` over those of the run. */
export const rerunSchema = z.strictObject({
  params: z.record(nameSchema, paramValueSchema).default({}),
  ...runOrder,
  /** Absent = as the run had. */
  priority: runOrder.priority.unwrap().optional(),
});

// -- deployments -------------------------------------------------------------------------------------------------
export { conditionSchema, deploymentSpecSchema, deploymentStatusSchema, replicaStatusSchema, rollupSchema };
/** `queued`: no agent has taken the newest apply. `refused`: the agent's policy did. `unknown`: its agent is silent. */
export const DEPLOYMENT_VIEW_STATES = ["queued", "refused", "unknown", ...DEPLOYMENT_STATES] as const;
export const deploymentSchema = z.object({
  id: z.string(),
  name: nameSchema,
  pool: z.object({ id: z.string(), name: z.string() }),
  /** The agent replica that holds it; null until one took it. */
  agent: z.object({ id: z.string(), name: z.string() }).nullable(),
  state: z.enum(DEPLOYMENT_VIEW_STATES),
  /** A sentence: why this state. */
  stateReason: z.string(),
  /** Wanted; also the ETag. */
  generation: z.int(),
  /** Held by the agent; lower than `generation` = not applied yet; null = nothing heard. */
  appliedGeneration: z.int().nullable(),
  revision: z.int(),
  spec: deploymentSpecSchema,
  replicasReady: z.int().nullable(),
  endpoint: z.string().nullable(),
  /** Of the newest apply or remove. */
  command: z.string(),
  waiting: waitingSchema.nullable(),
  /** Why the newest apply or remove was refused or failed. */
  error: commandErrorSchema.nullable(),
  actor: z.object({ id: z.string(), name: z.string(), via: z.string() }),
  createdAt: z.int(),
  updatedAt: z.int(),
  /** When nothing of it ran any more; such are listed only with `?removed=true`. */
  removedAt: z.int().nullable(),
  /** The last whole minute at the endpoint. */
  rollup: rollupSchema.nullable(),
});
export type Deployment = z.infer<typeof deploymentSchema>;
export const deploymentDetailSchema = deploymentSchema.extend({
  /** What the agent last said; its age is `observedAt`. Null = nothing yet. */
  observed: deploymentStatusSchema.nullable(),
  observedAt: z.int().nullable(),
  /** Of the agent that holds it, or of the pool. */
  ceilings: z.object({ deployments: z.int(), replicas: z.int(), cpus: z.number(), memoryBytes: z.int() }),
});
export type DeploymentDetail = z.infer<typeof deploymentDetailSchema>;
export const newDeploymentSchema = z.strictObject({ pool: nameSchema, name: nameSchema, spec: deploymentSpecSchema });
export const applyDeploymentSchema = z.strictObject({ spec: deploymentSpecSchema });
export const scaleDeploymentSchema = z.strictObject({ replicas: z.int().min(0).max(1000) });
export const rollbackDeploymentSchema = z.strictObject({ revision: z.int().positive() });
export const deploymentDiffSchema = z.object({
  /** What would hold after the apply. */
  generation: z.int(),
  revision: z.int(),
  /** True: replicas are made anew, one after the other. */
  newRevision: z.boolean(),
  /** Dotted path in the spec; absent `from` = added, absent `to` = removed. */
  changes: z.array(z.object({ path: z.string(), from: z.unknown().optional(), to: z.unknown().optional() })),
  /** What the agent's policy is known to refuse: ceilings, engines. The agent decides again. */
  refusals: z.array(z.object({ path: z.string(), message: z.string() })),
});
export type DeploymentDiff = z.infer<typeof deploymentDiffSchema>;
export const revisionSchema = z.object({
  revision: z.int(),
  spec: deploymentSpecSchema,
  /** The earlier revision that it repeats; null = new content. */
  from: z.int().nullable(),
  actor: z.object({ id: z.string(), name: z.string(), via: z.string() }),
  createdAt: z.int(),
});
export type DeploymentRevision = z.infer<typeof revisionSchema>;

// -- changes -----------------------------------------------------------------------------------------------------
export const changeSchema = z.object({
  entity: z.enum(["agent", "pool", "enrollment", "command", "run", "token", "deployment"]),
  id: z.string(),
  version: z.int(),
  n: z.int(),
});
export type Change = z.infer<typeof changeSchema>;
