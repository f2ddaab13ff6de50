// A new run: the pipeline is checked here too, so that a mistake is told at once and not when an agent comes.
import {
  ConnectorError,
  effectiveParams,
  newId,
  pipelineRun,
  planPipeline,
  runIdSchema,
  type CommandId,
  type ParamValue,
  type Pipeline,
  type RunId,
} from "@sallyport/protocol";
import type { Dispatch, PoolRef, SubmitKey } from "../../dispatch/index.ts";
import type { CommandRow, IdempotentAnswer, RunRow, Scope } from "../../store/store.ts";

/** An intent lives 7 days; of those at least one is left for the waiting. */
const MOST_AHEAD_MS = 6 * 24 * 3600_000;

export interface NewRun {
  pool: PoolRef;
  pipeline: Pipeline;
  params: Record<string, ParamValue>;
  expiresInMs: number;
  priority?: number | undefined;
  /** Labels that an agent must have to take it. */
  requires?: Readonly<Record<string, string>> | undefined;
  /** ms since the epoch; absent = at once. */
  notBefore?: number | undefined;
  /** The run that it repeats. */
  rerunOf?: RunId;
  /** Chosen by the client; absent = made here. */
  command?: CommandId | undefined;
}

/** `answer` makes the response from what will be committed; a repeated request with the same key gets the first one's. */
export async function startRun(
  dispatch: Dispatch,
  scope: Scope,
  wanted: NewRun,
  key: Omit<SubmitKey, "answer"> | null,
  answer: (run: RunRow, command: CommandRow) => IdempotentAnswer,
): Promise<{ id: RunId; run: RunRow; command: CommandRow; replayed: IdempotentAnswer | null }> {
  planPipeline(wanted.pipeline, wanted.params);
  if (wanted.notBefore !== undefined && wanted.notBefore > dispatch.clock.now() + MOST_AHEAD_MS) {
    throw new ConnectorError("INPUT_INVALID", "A run can be put off by 6 days at most.", {
      fix: "Choose an earlier time, or start it later.",
      details: { errors: [{ path: "body.notBefore", message: "at most 6 days from now" }] },
    });
  }
  // Asked for again with the same command id, it is the same run.
  const id =
    wanted.command === undefined
      ? newId("run", dispatch.clock.now())
      : runIdSchema.parse(`run_${wanted.command.replaceAll("-", "")}`);
  const run = {
    id,
    pool: wanted.pool.id,
    pipeline: wanted.pipeline.name,
    spec: wanted.pipeline,
    params: effectiveParams(wanted.pipeline, wanted.params),
    rerunOf: wanted.rerunOf ?? null,
  };
  const rowOf = (command: CommandRow): RunRow => ({
    workspace: scope.workspace,
    command: command.id,
    createdAt: command.createdAt,
    ...run,
  });
  const submitted = await dispatch.submit(
    scope,
    {
      pool: wanted.pool,
      spec: pipelineRun,
      input: { run: id, pipeline: wanted.pipeline, params: wanted.params },
      resource: `run:${id}`,
      expiresInMs: wanted.expiresInMs,
      priority: wanted.priority,
      notBefore: wanted.notBefore,
      requires: wanted.requires,
      command: wanted.command,
      run,
    },
    key === null
      ? undefined
      : {
          ...key,
          answer: (command) => answer(rowOf(command), command),
        },
  );
  return { id: submitted.command.run ?? id, run: rowOf(submitted.command), ...submitted };
}
