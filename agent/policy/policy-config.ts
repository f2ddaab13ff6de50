// The `policy` section of the agent's file. What is not written is not allowed: every list is empty, every ceiling is 0
// and nothing may leave, until the customer says otherwise. So deleting a line can only ever narrow it.
import { nameSchema } from "@sallyport/protocol";
import { z } from "zod";
import { globProblem } from "./globs.ts";

const glob = z.string().superRefine((pattern, context) => {
  const problem = globProblem(pattern);
  if (problem !== null) context.addIssue({ code: "custom", message: `a path pattern that ${problem}` });
});
const commandPattern = z
  .string()
  .regex(
    /^(?:\*|[a-z][a-z0-9-]*(?:\.[a-z][a-z0-9-]*)*(?:\.\*)?)$/,
    "a command kind such as artifact.read, a family such as artifact.*, or *",
  );
/** `*`, a prefix that ends with `*`, or one image by digest. A prefix holds the whole registry: `reg.example*` has others. */
const imagePattern = z
  .string()
  .max(512)
  .regex(
    /^(?:\*|[a-z0-9][a-zA-Z0-9._:-]*\/[a-zA-Z0-9._:/-]*\*|(?:[a-z0-9][a-zA-Z0-9._:/-]*@)?sha256:[0-9a-f]{64})$/,
    "an image by digest, or a prefix such as registry.internal/ml/*",
  );
/** A name, or `*` for all. */
const nameOrAll = z.union([z.literal("*"), nameSchema]);
const secretOrAll = z.string().min(1).max(256);
const count = z.int().nonnegative();

export const policySchema = z.strictObject({
  commands: z
    .array(commandPattern)
    .optional()
    .describe("Command kinds that are accepted: artifact.read, artifact.*, *."),
  stores: z
    .array(
      z.strictObject({
        store: nameSchema.describe("Id of a store above."),
        read: z.array(glob).optional().describe("Paths that may be read (and listed, from the root down to them)."),
        write: z.array(glob).optional().describe("Paths that may be written."),
        delete: z.array(glob).optional().describe("Paths that may be deleted."),
      }),
    )
    .optional()
    .describe("Path patterns by store. * and ? within a segment, ** for any number of segments."),
  programs: z.array(nameOrAll).optional().describe("Programs that a step may start, by their name above; * for all."),
  secrets: z
    .array(secretOrAll)
    .optional()
    .describe("Secrets that a step or replica may be given, by their name under secrets.named; * for all."),
  engines: z
    .array(nameOrAll)
    .optional()
    .describe("Engines that may run steps and replicas: process, docker; * for all."),
  images: z
    .array(imagePattern)
    .optional()
    .describe("Images that a command may name: registry.internal/ml/*, or one by its digest; * for all."),
  networks: z
    .array(nameOrAll)
    .optional()
    .describe("Networks of the engine that a step may ask for; without one it has none."),
  ceilings: z
    .strictObject({
      concurrentRuns: count.optional().describe("Pipeline runs at a time."),
      concurrentSteps: count.optional().describe("Steps at a time, over all runs."),
      stepTimeoutMs: count.optional().describe("Longest time limit of a step, in milliseconds."),
      stepsPerRun: count.optional().describe("Steps of one pipeline."),
      uploadBytes: count.optional().describe("Largest single upload, in bytes."),
      streams: count.optional().describe("Interactive commands at a time."),
      deployments: count.optional().describe("Deployments."),
      replicas: count.optional().describe("Replicas of one deployment."),
      cpus: z.number().nonnegative().optional().describe("Cores of one container: a step's or a replica's."),
      memoryBytes: count.optional().describe("Memory of one container, in bytes."),
    })
    .optional()
    .describe("Upper limits; one that is not set is 0."),
  release: z
    .strictObject({
      metadata: z.boolean().optional().describe("Names, sizes, times, types and digests of artifacts."),
      previews: z
        .union([
          z.literal(false),
          z.strictObject({ rows: z.int().min(1).max(10_000).describe("Rows or lines of a preview at most.") }),
        ])
        .optional()
        .describe("Bounded views of artifacts; false for none."),
      logs: z.boolean().optional().describe("What steps write to their output."),
      raw: z
        .union([z.boolean(), z.array(z.strictObject({ store: nameSchema, paths: z.array(glob) }))])
        .optional()
        .describe("Artifacts' own bytes: false, true for all that may be read, or by store and path."),
      predict: z
        .union([z.boolean(), z.array(nameSchema)])
        .optional()
        .describe("Requests to deployments and their answers: false, true for all, or by the deployment's name."),
    })
    .optional()
    .describe("What may leave the network."),
});

/** As written in the file. */
export type RawPolicy = z.input<typeof policySchema>;

/** With everything that is not written filled in: empty, 0, false. */
export interface PolicyConfig {
  commands: string[];
  stores: { store: string; read: string[]; write: string[]; delete: string[] }[];
  programs: string[];
  secrets: string[];
  engines: string[];
  images: string[];
  networks: string[];
  ceilings: {
    concurrentRuns: number;
    concurrentSteps: number;
    stepTimeoutMs: number;
    stepsPerRun: number;
    uploadBytes: number;
    streams: number;
    deployments: number;
    replicas: number;
    cpus: number;
    memoryBytes: number;
  };
  release: {
    metadata: boolean;
    previews: false | { rows: number };
    logs: boolean;
    raw: boolean | { store: string; paths: string[] }[];
    predict: boolean | string[];
  };
}

export function defaultPolicy(raw: RawPolicy = {}): PolicyConfig {
  const c = raw.ceilings ?? {};
  const r = raw.release ?? {};
  return {
    commands: raw.commands ?? [],
    stores: (raw.stores ?? []).map((s) => ({
      store: s.store,
      read: s.read ?? [],
      write: s.write ?? [],
      delete: s.delete ?? [],
    })),
    programs: raw.programs ?? [],
    secrets: raw.secrets ?? [],
    engines: raw.engines ?? [],
    images: raw.images ?? [],
    networks: raw.networks ?? [],
    ceilings: {
      concurrentRuns: c.concurrentRuns ?? 0,
      concurrentSteps: c.concurrentSteps ?? 0,
      stepTimeoutMs: c.stepTimeoutMs ?? 0,
      stepsPerRun: c.stepsPerRun ?? 0,
      uploadBytes: c.uploadBytes ?? 0,
      streams: c.streams ?? 0,
      deployments: c.deployments ?? 0,
      replicas: c.replicas ?? 0,
      cpus: c.cpus ?? 0,
      memoryBytes: c.memoryBytes ?? 0,
    },
    release: {
      metadata: r.metadata ?? false,
      previews: r.previews ?? false,
      logs: r.logs ?? false,
      raw: r.raw ?? false,
      predict: r.predict ?? false,
    },
  };
}
