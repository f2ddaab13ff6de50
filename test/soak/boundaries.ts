// The boundaries of a command's life, in order, and the product's events that mark them. Data alone.

export interface Boundary {
  readonly name: string;
  /** Which program passes it. */
  readonly side: "agent" | "cloud";
  /** node:diagnostics_channel names; each passing of any of them counts. */
  readonly channels: readonly string[];
  /** How often the commands of one case pass it at the least: the kill is at one of these passings. */
  readonly passings: number;
}

/** A case has three runs of five steps together, one that is cancelled, and a deployment's apply. */
export const BOUNDARIES: readonly Boundary[] = [
  { name: "request-committed", side: "cloud", channels: ["sallyport:cloud:command.committed"], passings: 4 },
  { name: "offered", side: "cloud", channels: ["sallyport:cloud:command.offered"], passings: 4 },
  { name: "received", side: "agent", channels: ["sallyport:agent:command.received"], passings: 4 },
  { name: "journaled", side: "agent", channels: ["sallyport:agent:command.journaled"], passings: 4 },
  { name: "accepted-sent", side: "agent", channels: ["sallyport:agent:command.accepted"], passings: 4 },
  { name: "accepted-committed", side: "cloud", channels: ["sallyport:cloud:command.accepted"], passings: 4 },
  {
    name: "effect-begun",
    side: "agent",
    channels: ["sallyport:step.started", "sallyport:replica.started", "sallyport:deployment.applied"],
    passings: 7,
  },
  { name: "effect-done", side: "agent", channels: ["sallyport:step.ended"], passings: 5 },
  {
    name: "result-journaled",
    side: "agent",
    channels: ["sallyport:step.committed", "sallyport:agent:command.ended"],
    passings: 9,
  },
  { name: "report-sent", side: "agent", channels: ["sallyport:agent:reports.sent"], passings: 6 },
  { name: "report-committed", side: "cloud", channels: ["sallyport:cloud:reports.committed"], passings: 5 },
  { name: "acknowledgement-received", side: "agent", channels: ["sallyport:agent:reports.acknowledged"], passings: 5 },
];

export type Victim = "agent" | "cloud";
export const VICTIMS: readonly Victim[] = ["agent", "cloud"];

/** What kill-at.ts reads from the file `plan` whenever a boundary is passed. */
export interface KillPlan {
  readonly id: string;
  readonly channels: readonly string[];
  /** At which passing, from 1. */
  readonly at: number;
  /** Process to be killed. */
  readonly pid: number;
  /** null = before the next instruction; 0 = when the event loop comes round; else ms. */
  readonly afterMs: number | null;
}
