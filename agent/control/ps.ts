// What `ps` tells, and how it looks to a person.

export interface PsStep {
  /** As `stop` takes it: `<run>/<step>`, or the engine's own name of it when no run is known. */
  name: string;
  pid: number | null;
  startedAt: number;
}
export interface PsCommand {
  command: string;
  kind: string;
  resource: string;
  run: string | null;
  state: "waiting" | "running";
  startedAt: number | null;
  steps: PsStep[];
}
/** Accepted commands of which the policy lets none begin. */
export interface HeldBack {
  waiting: number;
  reason: string;
  fix: string;
}
export interface PsReplica {
  /** `r3.0` */
  name: string;
  state: string;
  /** Null = no process of this machine, or none runs. */
  pid: number | null;
  startedAt: number | null;
}
export interface PsDeployment {
  id: string;
  name: string;
  state: string;
  /** Why, when it is not available. */
  why: string | null;
  endpoint: string;
  ready: number;
  wanted: number;
  replicas: PsReplica[];
}
export interface PsAnswer {
  pid: number;
  version: string;
  /** Agent's clock when this was answered, ms since the epoch; so are the other times. */
  at: number;
  startedAt: number;
  link: { state: string; cloudUrl: string | null; since: number; problem: string | null };
  paused: { reason: string; until: number | null } | null;
  draining: boolean;
  /** Null = those that wait have their turn. Absent = an agent of an earlier version, which does not say. */
  heldBack?: HeldBack | null;
  commands: PsCommand[];
  /** Absent = an agent of an earlier version. */
  deployments?: PsDeployment[];
  /** Work of the engine that no open command accounts for, e.g. of a run that is being adopted. */
  otherSteps: PsStep[];
  /** Reports that the control plane has not acknowledged. */
  unacknowledged: number;
}

function age(ms: number): string {
  const s = Math.max(0, Math.floor(ms / 1000));
  if (s < 60) return `${s}s`;
  if (s < 3600) return `${Math.floor(s / 60)}m${s % 60}s`;
  return s < 86_400
    ? `${Math.floor(s / 3600)}h${Math.floor((s % 3600) / 60)}m`
    : `${Math.floor(s / 86_400)}d${Math.floor((s % 86_400) / 3600)}h`;
}

export function renderPs(ps: PsAnswer): string {
  const since = (at: number | null) => (at === null ? "-" : age(ps.at - at));
  const lines = [
    `agent     ${ps.version}, process ${ps.pid}, up ${since(ps.startedAt)}${ps.draining ? ", stopping" : ""}`,
    `link      ${ps.link.state} for ${since(ps.link.since)}${ps.link.cloudUrl === null ? "" : `, ${ps.link.cloudUrl}`}${ps.link.problem === null ? "" : ` (${ps.link.problem})`}`,
    `intake    ${ps.paused === null ? "open" : `paused${ps.paused.until === null ? "" : ` until ${new Date(ps.paused.until).toISOString()}`}: ${ps.paused.reason}`}`,
    `reports   ${ps.unacknowledged} not acknowledged yet`,
    ...(ps.heldBack == null
      ? []
      : [
          `waiting   ${ps.heldBack.waiting} accepted, none begins: ${ps.heldBack.reason}`,
          `          ${ps.heldBack.fix}`,
        ]),
    "",
  ];
  const rows = [["ID", "KIND", "STATE", "AGE", "WHAT"]];
  for (const one of ps.deployments ?? []) {
    const what = `${one.ready} of ${one.wanted} ready at ${one.endpoint}${one.why === null ? "" : `: ${one.why}`}`;
    rows.push([one.name, "deployment", one.state, "", what]);
    for (const replica of one.replicas)
      rows.push([
        `  ${one.name}/${replica.name}`,
        "replica",
        replica.state,
        since(replica.startedAt),
        replica.pid === null ? "" : `processes of group ${replica.pid}`,
      ]);
  }
  for (const command of ps.commands) {
    rows.push([
      command.run ?? command.command,
      command.kind,
      command.state,
      since(command.startedAt),
      command.run === null ? command.resource : command.command,
    ]);
    for (const step of command.steps)
      rows.push([
        `  ${step.name}`,
        "step",
        "running",
        since(step.startedAt),
        step.pid === null ? "" : `processes of group ${step.pid}`,
      ]);
  }
  for (const step of ps.otherSteps)
    rows.push([
      step.name,
      "step",
      "running",
      since(step.startedAt),
      step.pid === null ? "" : `processes of group ${step.pid}`,
    ]);
  if (rows.length === 1) return [...lines, "Nothing runs.", ""].join("\n");
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  return [
    ...lines,
    ...rows.map((row) =>
      row
        .map((cell, column) => cell.padEnd(widths[column]!))
        .join("  ")
        .trimEnd(),
    ),
    "",
  ].join("\n");
}
