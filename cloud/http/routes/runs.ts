// Runs over HTTP: start, look, follow, stop.
import { Readable } from "node:stream";
import { ConnectorError, commandIdSchema, nameSchema, ndjsonLine, runIdSchema } from "@sallyport/protocol";
import type { FastifyReply } from "fastify";
import { z } from "zod";
import type { CommandView, Dispatch, Waiting } from "../../dispatch/index.ts";
import {
  followLogs,
  runStateOf,
  startRun,
  stepsDone,
  type NewRun,
  type RunState,
} from "../../features/pipelines/index.ts";
import type { AttemptRow, CommandRow, CommandState, RunRow, Store } from "../../store/store.ts";
import {
  newRunSchema,
  page,
  pageQuerySchema,
  rerunSchema,
  RUN_STATES,
  runDetailSchema,
  runSchema,
  type Run,
  type RunDetail,
} from "../api.ts";
import { errorOf, idParams, notFound, type RoutePlugin } from "../routes.ts";
import { agentOf } from "./commands.ts";

interface RunRows {
  run: RunRow;
  command: CommandRow;
  attempts: AttemptRow[];
}

function runView({ run, attempts }: RunRows, { row, waiting, unknown }: CommandView): Run {
  return {
    id: run.id,
    command: run.command,
    pool: { id: run.pool, name: row.poolName },
    pipeline: run.pipeline,
    state: runStateOf(row, unknown),
    waiting,
    error: errorOf(row.error),
    params: run.params,
    actor: row.actor,
    agent: agentOf(row),
    createdAt: run.createdAt,
    startedAt: row.startedAt,
    endedAt: row.endedAt,
    stepsTotal: run.spec.steps.length,
    stepsDone: stepsDone(attempts),
    priority: row.priority,
    notBefore: row.notBefore,
    expiresAt: row.expires,
    rerunOf: run.rerunOf ?? null,
  };
}

const runDetail = (rows: RunRows, view: CommandView): RunDetail => ({
  ...runView(rows, view),
  spec: rows.run.spec,
  attempts: rows.attempts.map((one, at) => ({
    ...one,
    error: errorOf(one.error),
    // The next of the step has its own row once it began.
    retryAt: rows.attempts[at + 1]?.step === one.step || rows.command.endedAt !== null ? null : one.retryAt,
  })),
});

/** States of a run that are exactly one state of its command. The others are sorted out here, page by page. */
const EXACT: Partial<Record<RunState, CommandState>> = {
  queued: "queued",
  succeeded: "succeeded",
  cancelled: "cancelled",
};
/** Pages looked through for one answer. */
const MAX_PAGES = 20;

export const runRoutes =
  (deps: { store: Store; dispatch: Dispatch }): RoutePlugin =>
  async (app) => {
    const { store, dispatch } = deps;

    app.post(
      "/v1/runs",
      {
        schema: {
          body: newRunSchema,
          // A command id of the client's own: repeating it asks for the same run.
          headers: z.looseObject({ "sallyport-command-id": commandIdSchema.optional() }),
          response: { 201: runDetailSchema },
        },
        bodyLimit: 1024 * 1024,
      },
      async (request, reply) => {
        const scope = app.scope(request);
        // Whether it was answered before is looked up where it is stored.
        const key = app.idempotencyKey(request);
        const { pool: poolName, ...wanted } = request.body;
        const pool = await store.poolByName(scope, poolName);
        if (pool === null) throw notFound(`pool named ${poolName}`);
        return submit(scope, { ...wanted, pool, command: request.headers["sallyport-command-id"] }, key, reply);
      },
    );

    app.post(
      "/v1/runs/:id/rerun",
      {
        schema: { params: idParams(runIdSchema), body: rerunSchema, response: { 201: runDetailSchema } },
      },
      async (request, reply) => {
        const scope = app.scope(request);
        const { key, earlier } = await app.idempotent(request);
        if (earlier !== null) return reply.code(earlier.status as 201).send(earlier.body as RunDetail);
        const rows = await store.run(scope, request.params.id);
        if (rows === null) throw notFound(`run ${request.params.id}`);
        const { run, command } = rows;
        return submit(
          scope,
          {
            ...request.body,
            pool: { id: run.pool, name: command.poolName },
            pipeline: run.spec,
            params: { ...run.params, ...request.body.params },
            priority: request.body.priority ?? command.priority,
            requires: command.requires,
            rerunOf: run.id,
          },
          key,
          reply,
        );
      },
    );

    const submit = async (
      scope: ReturnType<typeof app.scope>,
      wanted: NewRun,
      key: Parameters<typeof startRun>[3],
      reply: FastifyReply,
    ): Promise<RunDetail> => {
      const atBirth = (run: RunRow, command: CommandRow): RunDetail =>
        runDetail({ run, command, attempts: [] }, { row: command, unknown: false, waiting: atFirst(command) });
      const started = await startRun(dispatch, scope, wanted, key, (run, command) => ({
        status: 201,
        body: atBirth(run, command),
      }));
      if (started.replayed !== null) {
        void reply.code(started.replayed.status);
        return started.replayed.body as RunDetail;
      }
      void reply.code(201).header("location", `/v1/runs/${started.id}`);
      // As it was stored a moment ago. With an id of the client's own it may have been stored long before.
      return wanted.command === undefined ? atBirth(started.run, started.command) : detail(scope, started.id);
    };

    /** What can be said before it is stored. It is kept as the answer to the same request sent again. */
    const atFirst = (command: CommandRow): Waiting => {
      const pool = command.poolName;
      if (command.notBefore > dispatch.clock.now())
        return {
          code: "NOT_BEFORE",
          text: `It is not to begin before ${new Date(command.notBefore).toISOString()}.`,
          fix: "Nothing to do: it is offered then.",
        };
      return dispatch.sessions.ofPool(command.workspace, command.pool).length > 0
        ? {
            code: "OFFERED",
            text: `It is being offered to pool ${pool}.`,
            fix: "Nothing to do: it is offered again every few seconds until it is taken.",
          }
        : {
            code: "AGENT_OFFLINE",
            text: `No agent of pool ${pool} is connected.`,
            fix: `Start an agent of pool ${pool}; the run begins by itself.`,
          };
    };

    app.get(
      "/v1/runs",
      {
        schema: {
          querystring: pageQuerySchema.extend({
            state: z.enum(RUN_STATES).optional(),
            pipeline: nameSchema.optional(),
          }),
          response: { 200: page(runSchema) },
        },
      },
      async (request) => {
        const scope = app.scope(request);
        const { state, pipeline, limit, cursor } = request.query;
        const exact = state === undefined ? undefined : EXACT[state];
        const items: Run[] = [];
        let next = cursor ?? null;
        for (let pages = 0; pages === 0 || (next !== null && items.length < limit && pages < MAX_PAGES); pages++) {
          const found = await store.runs(scope, {
            limit: limit - items.length,
            ...(next === null ? {} : { cursor: next }),
            ...(exact === undefined ? {} : { state: exact }),
            ...(pipeline === undefined ? {} : { pipeline }),
          });
          const views = await dispatch.view(
            scope,
            found.items.map((item) => item.command),
          );
          for (const [at, item] of found.items.entries()) {
            const run = runView(item, views[at]!);
            if (state === undefined || run.state === state) items.push(run);
          }
          next = found.nextCursor;
        }
        return { items, nextCursor: next };
      },
    );

    const detail = async (scope: ReturnType<typeof app.scope>, id: RunRow["id"]): Promise<RunDetail> => {
      const rows = await store.run(scope, id);
      if (rows === null) throw notFound(`run ${id}`);
      const taken = (await store.lastTakeovers(scope.workspace, [rows.command.id]))[rows.command.id];
      return {
        ...runDetail(rows, (await dispatch.view(scope, [rows.command]))[0]!),
        ...(taken === undefined ? {} : { takenFrom: { id: taken.from, name: taken.fromName, at: taken.at } }),
      };
    };

    app.get(
      "/v1/runs/:id",
      { schema: { params: idParams(runIdSchema), response: { 200: runDetailSchema } } },
      async (request) => detail(app.scope(request), request.params.id),
    );

    // 200: it has ended. 202: its agent is asked to stop it. Asking again changes nothing, so no key is needed.
    app.post(
      "/v1/runs/:id/cancel",
      { schema: { params: idParams(runIdSchema), response: { 200: runDetailSchema, 202: runDetailSchema } } },
      async (request, reply) => {
        const scope = app.scope(request);
        const cancelled = await dispatch.cancelRun(scope, request.params.id);
        if (cancelled === null) throw notFound(`run ${request.params.id}`);
        return reply.code(cancelled.done ? 200 : 202).send(await detail(scope, request.params.id));
      },
    );

    app.get(
      "/v1/runs/:id/steps/:step/logs",
      {
        schema: {
          params: z.object({ id: runIdSchema, step: nameSchema }),
          querystring: z.object({
            attempt: z.coerce.number().int().positive().optional(),
            after: z.coerce.number().int().nonnegative().default(0),
            tail: z.coerce.number().int().positive().max(100_000).optional(),
            limit: z.coerce.number().int().min(1).max(100_000).default(1000),
            follow: z.enum(["true", "false"]).default("false"),
          }),
        },
      },
      async (request, reply) => {
        const scope = app.scope(request);
        const { id, step } = request.params;
        const rows = await store.run(scope, id);
        if (rows === null) throw notFound(`run ${id}`);
        if (!rows.run.spec.steps.some((one) => one.name === step)) throw notFound(`step ${step} of run ${id}`);
        const { replica, poolName } = rows.command;
        if (replica === null) {
          throw new ConnectorError(
            "CONFLICT",
            `Run ${id} has no logs: no agent has taken it (it is ${rows.command.state}).`,
            { fix: "See why it waits: its waiting reason is in the run." },
          );
        }
        const gone = new AbortController();
        reply.raw.once("close", () =>
          gone.abort(new ConnectorError("CANCELLED", "The client went away before the answer was complete.")),
        );
        const { attempt, after, tail, limit, follow } = request.query;
        const records = await followLogs(
          dispatch,
          scope,
          { id: rows.run.pool, name: poolName },
          replica,
          {
            run: id,
            step,
            after: tail === undefined ? after : 0,
            limit,
            follow: follow === "true",
            ...(attempt === undefined ? {} : { attempt }),
            ...(tail === undefined ? {} : { tail }),
          },
          gone.signal,
        );
        // The head goes at once: a follower may wait long for the first record.
        reply.raw.once("pipe", () => reply.raw.flushHeaders());
        return reply
          .header("content-type", "application/x-ndjson")
          .header("x-content-type-options", "nosniff")
          .header("cache-control", "no-store")
          .header("x-accel-buffering", "no")
          .send(Readable.from(lines(records), { objectMode: true, highWaterMark: 16 }));
      },
    );
  };

async function* lines(records: AsyncIterable<unknown>): AsyncGenerator<Buffer> {
  for await (const record of records) yield ndjsonLine(record);
}
