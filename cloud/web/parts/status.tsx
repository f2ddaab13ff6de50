// A state as shape, word and colour together: never colour alone. One table for each kind of thing that has states.
import {
  IconAlertTriangleFilled,
  IconArrowDownCircle,
  IconBan,
  IconCircle,
  IconCircleCheckFilled,
  IconCircleDashed,
  IconCircleDot,
  IconCircleMinus,
  IconCircleXFilled,
  IconClock,
  IconHelpCircle,
  IconLoader2,
  IconPlayerPauseFilled,
  type Icon,
} from "@tabler/icons-react";
import type { Agent, Command, Deployment, Enrollment, Replica, Run, StepState } from "../api/types.ts";

export type Tone = "ok" | "bad" | "warn" | "run" | "idle";
export interface Look {
  word: string;
  tone: Tone;
  icon: Icon;
  spin?: boolean;
}

export const AGENT_LOOKS: Record<Agent["state"], Look> = {
  waiting: { word: "Waiting for first contact", tone: "idle", icon: IconCircleDashed },
  connected: { word: "Connected", tone: "ok", icon: IconCircleCheckFilled },
  paused: { word: "Paused", tone: "warn", icon: IconPlayerPauseFilled },
  draining: { word: "Draining", tone: "warn", icon: IconArrowDownCircle },
  disconnected: { word: "Disconnected", tone: "warn", icon: IconAlertTriangleFilled },
  lost: { word: "Lost", tone: "bad", icon: IconCircleXFilled },
  revoked: { word: "Revoked", tone: "idle", icon: IconBan },
};
export const RUN_LOOKS: Record<Run["state"], Look> = {
  queued: { word: "Queued", tone: "idle", icon: IconClock },
  running: { word: "Running", tone: "run", icon: IconLoader2, spin: true },
  succeeded: { word: "Succeeded", tone: "ok", icon: IconCircleCheckFilled },
  failed: { word: "Failed", tone: "bad", icon: IconCircleXFilled },
  cancelled: { word: "Cancelled", tone: "idle", icon: IconCircleMinus },
  unknown: { word: "Unknown", tone: "warn", icon: IconHelpCircle },
};
export const STEP_LOOKS: Record<StepState, Look> = {
  pending: { word: "Not started", tone: "idle", icon: IconCircle },
  running: { word: "Running", tone: "run", icon: IconLoader2, spin: true },
  succeeded: { word: "Succeeded", tone: "ok", icon: IconCircleCheckFilled },
  failed: { word: "Failed", tone: "bad", icon: IconCircleXFilled },
  cancelled: { word: "Cancelled", tone: "idle", icon: IconCircleMinus },
  skipped: { word: "Skipped", tone: "idle", icon: IconCircleMinus },
};
export const COMMAND_LOOKS: Record<Command["state"], Look> = {
  queued: { word: "Queued", tone: "idle", icon: IconClock },
  accepted: { word: "Accepted", tone: "run", icon: IconCircleDot },
  running: { word: "Running", tone: "run", icon: IconLoader2, spin: true },
  succeeded: { word: "Succeeded", tone: "ok", icon: IconCircleCheckFilled },
  failed: { word: "Failed", tone: "bad", icon: IconCircleXFilled },
  cancelled: { word: "Cancelled", tone: "idle", icon: IconCircleMinus },
  expired: { word: "Expired", tone: "warn", icon: IconClock },
  superseded: { word: "Superseded", tone: "idle", icon: IconCircleMinus },
  refused: { word: "Refused", tone: "bad", icon: IconBan },
  lost: { word: "Lost", tone: "bad", icon: IconHelpCircle },
};
export const DEPLOYMENT_LOOKS: Record<Deployment["state"], Look> = {
  queued: { word: "Queued", tone: "idle", icon: IconClock },
  refused: { word: "Refused", tone: "bad", icon: IconBan },
  unknown: { word: "Unknown", tone: "warn", icon: IconHelpCircle },
  progressing: { word: "Progressing", tone: "run", icon: IconLoader2, spin: true },
  available: { word: "Available", tone: "ok", icon: IconCircleCheckFilled },
  degraded: { word: "Degraded", tone: "warn", icon: IconAlertTriangleFilled },
  failed: { word: "Failed", tone: "bad", icon: IconCircleXFilled },
  removing: { word: "Removing", tone: "idle", icon: IconLoader2, spin: true },
};
/** Of a deployment of which nothing runs any more: kept as a record. */
export const REMOVED_LOOK: Look = { word: "Removed", tone: "idle", icon: IconCircleMinus };
export const REPLICA_LOOKS: Record<Replica["state"], Look> = {
  waiting: { word: "Waiting", tone: "idle", icon: IconClock },
  starting: { word: "Starting", tone: "run", icon: IconLoader2, spin: true },
  ready: { word: "Ready", tone: "ok", icon: IconCircleCheckFilled },
  unready: { word: "Not answering", tone: "warn", icon: IconAlertTriangleFilled },
  crashed: { word: "Crashed", tone: "bad", icon: IconCircleXFilled },
  draining: { word: "Draining", tone: "idle", icon: IconArrowDownCircle },
};
export const UNKNOWN_LOOK: Look = { word: "Unknown", tone: "warn", icon: IconHelpCircle };
export const ENROLLMENT_LOOKS: Record<Enrollment["state"], Look> = {
  waiting: { word: "Waiting", tone: "run", icon: IconCircleDashed },
  used: { word: "Used", tone: "ok", icon: IconCircleCheckFilled },
  expired: { word: "Expired", tone: "idle", icon: IconClock },
  withdrawn: { word: "Withdrawn", tone: "idle", icon: IconBan },
};

/** A state of a newer control plane is shown by its own word, not as an error. */
export const lookOf = <S extends string>(looks: Record<S, Look>, state: S): Look =>
  looks[state] ?? { word: state, tone: "idle", icon: IconHelpCircle };

export function StatusIcon({ look, size = 16 }: { look: Look; size?: number }) {
  const Shape = look.icon;
  return <Shape size={size} stroke={2} className={`tone-${look.tone}${look.spin ? " spin" : ""}`} aria-hidden />;
}

export function Status({ look, pill, title }: { look: Look; pill?: boolean; title?: string | undefined }) {
  return (
    <span className={`status tone-${look.tone}${pill ? " pill" : ""}`} title={title}>
      <StatusIcon look={look} size={pill ? 14 : 16} />
      {look.word}
    </span>
  );
}
export const AgentStatus = ({ agent, pill }: { agent: Agent; pill?: boolean }) => (
  <Status look={lookOf(AGENT_LOOKS, agent.state)} title={agent.stateReason} {...(pill ? { pill } : {})} />
);
export const RunStatus = ({ run, pill }: { run: Pick<Run, "state">; pill?: boolean }) => (
  <Status look={lookOf(RUN_LOOKS, run.state)} {...(pill ? { pill } : {})} />
);
export const DeploymentStatus = ({
  deployment,
  pill,
}: {
  deployment: Pick<Deployment, "state" | "stateReason">;
  pill?: boolean;
}) => (
  <Status
    look={lookOf(DEPLOYMENT_LOOKS, deployment.state)}
    title={deployment.stateReason}
    {...(pill ? { pill } : {})}
  />
);
export const commandLook = (command: Pick<Command, "state" | "unknown">): Look =>
  command.unknown ? UNKNOWN_LOOK : lookOf(COMMAND_LOOKS, command.state);
