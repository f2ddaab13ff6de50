// A command kind as both ends know it: name, schemas, class, time. What it does is the agent's alone.
import type { z } from "zod";
import type { CommandClass } from "./envelope.ts";
import type { Lane } from "./stream.ts";

export interface CommandSpec<I extends z.ZodType = z.ZodType, O extends z.ZodType = z.ZodType> {
  readonly kind: string;
  readonly class: CommandClass;
  /** Strict: an unknown field is refused. */
  readonly input: I;
  readonly output: O;
  /** May be sent again after an unknown outcome without changing anything twice. */
  readonly idempotent: boolean;
  /** From acceptance to the end; for durable kinds, of the acceptance only. */
  readonly timeoutMs: number;
  /** `download`: bytes follow the result; `upload`: bytes follow the request; `records`: NDJSON follows the result. */
  readonly content: "none" | "download" | "upload" | "records";
  /** Absent = bulk for downloads and uploads, interactive for the rest. */
  readonly lane?: Lane;
}

export const defineCommand = <I extends z.ZodType, O extends z.ZodType>(spec: CommandSpec<I, O>): CommandSpec<I, O> =>
  spec;

/** The lane that a command's stream is opened on. */
export const laneOf = (spec: CommandSpec): Lane =>
  spec.lane ?? (spec.content === "download" || spec.content === "upload" ? "bulk" : "interactive");
