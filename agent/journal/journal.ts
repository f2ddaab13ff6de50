// The port of the journal: the agent's local record of commands, reports and what features must remember. Each promise
// resolves after the fsync of the commit that holds it (group commit in a worker; the event loop never waits on a disk).
import type { Body, CommandId, JournalId, Report, ReportBody } from "@sallyport/protocol";

export interface JournaledCommand {
  id: CommandId;
  kind: string;
  resource: string;
  /** `released`: another replica has it by now; an offer of it begins it again. */
  state: "accepted" | "running" | "succeeded" | "failed" | "cancelled" | "released";
  /** Exact text of the intent: the proof of what was asked. */
  intent: string;
  body: Body;
  acceptedAt: number;
  /** W3C `traceparent` of the request that made it; null or absent = none was said. */
  trace?: string | null;
  /** Cloud's expiry of the intent; the record is kept at least until then. */
  expires: number;
}

export interface Journal {
  readonly id: JournalId;
  /** Counts starts of an agent on this journal, this one included. */
  readonly startCounter: number;
  /** Number of the newest report, acknowledged or not; 0 = there was none yet. */
  readonly lastSequence: number;
  /** Highest dispatch sequence accepted from this incarnation of the cloud; 0 = none. */
  dispatchSequence(incarnation: string): Promise<number>;
  /** Records the command unless its id is held; `known` says that it was. One that was released is taken up again. */
  accept(
    command: Omit<JournaledCommand, "state">,
    dispatch: { incarnation: string; sequence: number },
  ): Promise<{ known: boolean; state: JournaledCommand["state"] }>;
  /** Moves the state and appends the reports that go with it, in one commit. A terminal state never changes: then nothing is written and false is the answer. */
  advance(id: CommandId, state: JournaledCommand["state"], reports: ReportBody[]): Promise<boolean>;
  /** Another replica has it, whatever had become of it here: written down and answered for, once. */
  release(id: CommandId): Promise<void>;
  /** Whether a report about it is not acknowledged yet. */
  unacknowledged(id: CommandId): Promise<boolean>;
  /** Appends reports without a change of state. */
  report(id: CommandId, bodies: ReportBody[]): Promise<void>;
  command(id: CommandId): Promise<JournaledCommand | null>;
  /** Commands that have not ended, oldest first. */
  open(): Promise<JournaledCommand[]>;
  /** Reports above `after`, in order of sequence. */
  reportsAfter(after: number, limit: number): Promise<Report[]>;
  /** The cloud has committed all reports up to here; they may be dropped. */
  acknowledge(through: number): Promise<void>;
  /** Resolves at the next append after `sequence`, or when the signal aborts. */
  changed(sequence: number, signal: AbortSignal): Promise<void>;
  /** A feature's own records: key -> JSON, within a namespace. Same durability. */
  put(namespace: string, key: string, value: unknown): Promise<void>;
  /** Several at once, in one commit with reports: what was done and what is said of it never part. */
  commit(change: {
    put?: { namespace: string; key: string; value: unknown }[];
    remove?: { namespace: string; key: string }[];
    command?: CommandId;
    reports?: ReportBody[];
  }): Promise<void>;
  get(namespace: string, key: string): Promise<unknown>;
  entries(namespace: string, prefix?: string): Promise<{ key: string; value: unknown }[]>;
  close(): Promise<void>;
}
