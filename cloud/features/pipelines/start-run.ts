// A new run: the pipeline is checked here too, so that a mistake is told at once and not when an agent comes.
import {
  effectiveParams,
  newId,
  pipelineRun,
  planPipeline,
  type CommandId,
  type ParamValue,
  type Pipeline,
  type RunId,
} from "@sallyport/protocol";
import type { Dispatch, PoolRef, SubmitKey } from "../../dispatch/index.ts";
import type { CommandRow, IdempotentAnswer, RunRow, Scope } from "../../store/store.ts";

export interface NewRun {
  pool: PoolRef;
  pipeline: Pipeline;
  params: Record<string, ParamValue>;
  expiresInMs: number;
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
): Promise<{ id: RunId; command: CommandRow; replayed: IdempotentAnswer | null }> {
  planPipeline(wanted.pipeline, wanted.params);
  const id = newId("run", dispatch.clock.now());
  const run = {
    id,
    pool: wanted.pool.id,
    pipeline: wanted.pipeline.name,
    spec: wanted.pipeline,
    params: effectiveParams(wanted.pipeline, wanted.params),
  };
  const submitted = await dispatch.submit(
    scope,
    {
      pool: wanted.pool,
      spec: pipelineRun,
      input: { run: id, pipeline: wanted.pipeline, params: wanted.params },
      resource: `run:${id}`,
      expiresInMs: wanted.expiresInMs,
      command: wanted.command,
      run,
    },
    key === null
      ? undefined
      : {
          ...key,
          answer: (command) =>
            answer({ workspace: scope.workspace, command: command.id, createdAt: command.createdAt, ...run }, command),
        },
  );
  return { id: submitted.command.run ?? id, ...submitted };
}
