// The only door to the control plane's contract: types, never values, so that no schema code lands in the bundle.
// Everything else in the page imports them from here.
import type { z } from "zod";
import type {
  Agent,
  ApiToken,
  ArtifactPreview,
  Change,
  Command,
  CommandDetail,
  Connection,
  Deployment,
  DeploymentDetail,
  DeploymentDiff,
  DeploymentRevision,
  Enrollment,
  MadeEnrollment,
  Me,
  Pool,
  Problem,
  Run,
  RunDetail,
  artifactListSchema,
  artifactStatOutputSchema,
  attemptSchema,
  commandErrorSchema,
  conditionSchema,
  madeTokenSchema,
  replicaStatusSchema,
  rollupSchema,
  storeSchema,
  waitingSchema,
  writtenArtifactSchema,
} from "../../http/api.ts";

export type {
  Agent,
  ApiToken,
  ArtifactPreview,
  Change,
  Command,
  CommandDetail,
  Connection,
  Deployment,
  DeploymentDetail,
  DeploymentDiff,
  DeploymentRevision,
  Enrollment,
  MadeEnrollment,
  Me,
  Pool,
  Problem,
  Run,
  RunDetail,
};
export type Store = z.infer<typeof storeSchema>;
export type ArtifactList = z.infer<typeof artifactListSchema>;
export type ArtifactEntry = ArtifactList["entries"][number];
export type ArtifactStat = z.infer<typeof artifactStatOutputSchema>;
export type WrittenArtifact = z.infer<typeof writtenArtifactSchema>;
export type Preview = ArtifactPreview["preview"];
export type PreviewOf<T extends Preview["type"]> = Extract<Preview, { type: T }>;
export type Attempt = z.infer<typeof attemptSchema>;
export type ProducedArtifact = Attempt["outputs"][number];
export type StepState = Attempt["state"];
export type Waiting = z.infer<typeof waitingSchema>;
export type CommandError = z.infer<typeof commandErrorSchema>;
export type MadeToken = z.infer<typeof madeTokenSchema>;
export type Pipeline = RunDetail["spec"];
export type PipelineStep = Pipeline["steps"][number];
export type ParamValue = Run["params"][string];

export type DeploymentSpec = Deployment["spec"];
export type Replica = z.infer<typeof replicaStatusSchema>;
export type Condition = z.infer<typeof conditionSchema>;
export type Rollup = z.infer<typeof rollupSchema>;

export interface Page<T> {
  items: T[];
  nextCursor: string | null;
}

/** A line of `/logs`: a record, or a gap that stands for records which are not there. Mirrors the protocol's record. */
export type LogRecord =
  | {
      seq: number;
      /** Agent's wall clock, ms since the epoch. */
      ts: number;
      stream: "stdout" | "stderr" | "system";
      body: { encoding: "json" | "utf8" | "bytes"; enc: "none" | "hpke"; kid: string | null; data: string };
    }
  | { gap: true; from: number; to: number; ts: number; reason: string };
