// Exit codes of `sallyport`, and how every failure ends: one sentence, what to do, code and request id on stderr.
import { ConnectorError, isErrorCode, type ErrorCode } from "@sallyport/protocol";
import type { Problem } from "../http/api.ts";
import { tame } from "./tame.ts";

export const EXIT = {
  ok: 0,
  failed: 1,
  usage: 2,
  notFound: 3,
  auth: 4,
  denied: 5,
  conflict: 6,
  unreachable: 7,
  timeout: 8,
  interrupted: 130,
} as const;
export type Exit = (typeof EXIT)[keyof typeof EXIT];

/** An answer of the API that is no success. */
export class ApiFailure extends Error {
  readonly problem: Problem;
  constructor(problem: Problem) {
    super(problem.detail);
    this.problem = problem;
  }
}

/** A run that ended badly, a check that did not hold: said already, only the code is left. */
export class EndWith extends Error {
  readonly exit: Exit;
  constructor(exit: Exit, message = "") {
    super(message);
    this.exit = exit;
  }
}

const BY_CODE: Partial<Record<ErrorCode, Exit>> = {
  AGENT_OFFLINE: EXIT.unreachable,
  AGENT_PAUSED: EXIT.unreachable,
  AGENT_DRAINING: EXIT.unreachable,
  LINK_LOST: EXIT.unreachable,
  GOING_AWAY: EXIT.unreachable,
  TIMED_OUT: EXIT.timeout,
  POLICY_DENIED: EXIT.denied,
  FORBIDDEN: EXIT.denied,
  UNAUTHENTICATED: EXIT.auth,
  INPUT_INVALID: EXIT.usage,
  PATH_INVALID: EXIT.usage,
  PIPELINE_INVALID: EXIT.usage,
};

function exitOf(code: string, status: number): Exit {
  const known = isErrorCode(code) ? BY_CODE[code] : undefined;
  if (known !== undefined) return known;
  if (status === 404) return EXIT.notFound;
  if (status === 409 || status === 412) return EXIT.conflict;
  if (status === 401) return EXIT.auth;
  return EXIT.failed;
}

/** Says what went wrong on stderr and gives the exit code. */
export function explain(error: unknown): Exit {
  const say = (...lines: (string | undefined)[]) =>
    process.stderr.write(`${tame(lines.filter((line) => line !== undefined && line !== "").join("\n"))}\n`);
  if (error instanceof EndWith) {
    if (error.message !== "") say(`sallyport: ${error.message}`);
    return error.exit;
  }
  if (error instanceof ApiFailure) {
    const { problem } = error;
    say(
      `sallyport: ${problem.detail}`,
      ...(problem.errors ?? [])
        .map((field) => `  ${field.path}: ${field.message}`)
        .filter((line) => line.trim() !== problem.detail.replace(/\.$/, "")),
      problem.fix === undefined ? undefined : `  fix: ${problem.fix}`,
      `  ${problem.code}, request ${problem.requestId}`,
    );
    return exitOf(problem.code, problem.status);
  }
  if (error instanceof ConnectorError) {
    say(`sallyport: ${error.message}`, error.fix === undefined ? undefined : `  fix: ${error.fix}`, `  ${error.code}`);
    return exitOf(error.code, error.status);
  }
  say(`sallyport: ${error instanceof Error ? error.message : String(error)}`);
  return EXIT.failed;
}
