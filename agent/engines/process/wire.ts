// What the engine and its process host say to each other on the host's unix socket: NDJSON, first the token, then
// requests and answers matched by id. Both run as the same user on the same machine, but not always the same version.
import type { WorkSpec, WorkStatus } from "../engine.ts";

/** Rises when an older engine or host could misread the other. */
export const HOST_PROTOCOL = 1;
/** An environment of a step is at most 2 MiB by the kernel's own limit. */
export const MAX_HOST_LINE_BYTES = 8 * 1024 * 1024;

export interface HostHello {
  protocol: number;
  token: string;
}
export interface HostWelcome {
  protocol: number;
  pid: number;
}

export interface HostOperations {
  start: { input: { spec: WorkSpec }; output: WorkStatus };
  status: { input: { name: string }; output: WorkStatus };
  /** Answered when the work has ended. */
  ended: { input: { name: string }; output: WorkStatus };
  stop: { input: { name: string; graceMs: number }; output: { stopped: string[] } };
  list: { input: Record<string, never>; output: { name: string; status: WorkStatus }[] };
  forget: { input: { name: string }; output: null };
  /** Ends the host unless something runs; says whether. An older host answers with an error and ends when it is idle. */
  quit: { input: Record<string, never>; output: boolean };
}
export type HostOperation = keyof HostOperations;

export interface HostRequest {
  id: number;
  op: HostOperation;
  input: unknown;
}
/** `error` is a sentence for people. */
export type HostAnswer = { id: number; output: unknown } | { id: number; error: string };

/** Cuts a byte stream into lines. Calls `line` for each; throws when one is too long. */
export function lineSplitter(line: (text: string) => void): (chunk: Buffer) => void {
  let pending: Buffer[] = [];
  let pendingBytes = 0;
  return (chunk) => {
    let from = 0;
    for (let at = chunk.indexOf(10); at !== -1; at = chunk.indexOf(10, from)) {
      const text = Buffer.concat([...pending, chunk.subarray(from, at)]).toString("utf8");
      pending = [];
      pendingBytes = 0;
      from = at + 1;
      line(text);
    }
    if (from < chunk.length) {
      pending.push(chunk.subarray(from));
      pendingBytes += chunk.length - from;
      if (pendingBytes > MAX_HOST_LINE_BYTES) throw new Error("a line of the process host's socket is too long");
    }
  };
}
