// What a command kind is to the agent: its spec, and a function from input to result. Handlers return; they never send.
import type { Clock, CommandId, CommandSpec, TraceContext } from "@sallyport/protocol";
import type { Logger } from "pino";
import type { z } from "zod";
import type { PolicyGuard } from "../policy/action.ts";

/** What every handler is given. Ports (stores, engine, journal) are given to the feature when it is made, in main.ts. */
export interface CommandContext {
  readonly command: CommandId;
  readonly kind: string;
  readonly resource: string;
  /**
   * Aborts on cancel, deadline, loss of the link (interactive kinds only) or shutdown. Its reason is a ConnectorError. A
   * durable kind sees two: CANCELLED = stop the work; AGENT_DRAINING = leave the work as it is and return or throw
   * soon: the command stays open and is run again (adopts) after the restart.
   */
  readonly signal: AbortSignal;
  readonly log: Logger;
  /** The span of this command: its log lines carry the trace's id already. */
  readonly trace: TraceContext;
  readonly clock: Clock;
  readonly policy: PolicyGuard;
  /** Bytes of an upload; empty for other kinds. */
  readonly upload: AsyncIterable<Buffer>;
  /** Null for kinds without an upload. */
  readonly intake: UploadIntake | null;
}

/** How an upload that outlives its stream tells the other end where it is. */
export interface UploadIntake {
  /** The bytes are to come from here. Once, before the first is read. */
  from(offset: number): void;
  /** Bytes of the whole upload that need not be sent again. */
  taken(bytes: number): void;
}

export interface CommandResult<O> {
  /** Redacted by the runner before it is sent. */
  result: O;
  /** `download` kinds: raw bytes of the customer, sent as they are (policy `raw`). Closed by the runner. */
  content?: AsyncIterable<Uint8Array>;
  /** `records` kinds: values that become NDJSON lines; redacted already by whoever wrote them. */
  records?: AsyncIterable<unknown>;
}

export interface CommandKind<I extends z.ZodType = z.ZodType, O extends z.ZodType = z.ZodType> {
  readonly spec: CommandSpec<I, O>;
  /**
   * Durable kinds that have to reach another that runs (a cancel): they wait neither for earlier commands on the same
   * resource nor for a free slot. Absent = false.
   */
  readonly overtakes?: boolean;
  /**
   * False: a durable kind that writes down what is wanted and is no work itself. It keeps its turn within its resource
   * and takes none of the slots for work. Absent = true.
   */
  readonly slot?: boolean;
  /**
   * Further policy questions that the input raises, asked at acceptance, before anything is journaled (for a pipeline:
   * the whole DAG). The runner has asked `{kind: "command"}` already. Throws POLICY_DENIED or INPUT_INVALID.
   */
  check?(input: z.output<I>, policy: PolicyGuard): void;
  /**
   * Durable kinds whose work lies where other agents see it: whether some of this command's does. Asked when it comes past
   * its expiry from another agent that had it: only what has begun may go on. Absent = no.
   */
  hasBegun?(command: CommandId): Promise<boolean>;
  /** Durable kinds: another agent has it by now, or `running` here is to be left as it is. Written down before it is answered for. */
  released?(command: CommandId): Promise<void>;
  /**
   * Interactive kinds: do it, return the result. Durable kinds: called after the journal's fsync, and again after a
   * restart while the command has not ended (so it must find what it began: adopt, never repeat); the returned result
   * becomes the report `command.succeeded`, a thrown error `command.failed`, CANCELLED `command.cancelled`.
   */
  run(input: z.output<I>, context: CommandContext): Promise<CommandResult<z.output<O>>>;
}

export const defineKind = <I extends z.ZodType, O extends z.ZodType>(kind: CommandKind<I, O>): CommandKind<I, O> =>
  kind;
/** As kept in the registry, where the schemas' types are no longer known. */
export type AnyCommandKind = CommandKind<z.ZodType, z.ZodType>;
