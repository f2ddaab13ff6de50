// Durable commands over HTTP: who asked for what, where it stands, why it waits. Interactive ones are not kept.
import { ConnectorError, bodyBytes, commandIdSchema, nameSchema, sha256, type CommandId } from "@sallyport/protocol";
import { z } from "zod";
import type { CommandView, Dispatch, ExplainedCommand } from "../../dispatch/index.ts";
import type { Store } from "../../store/store.ts";
import {
  COMMAND_STATES,
  commandDetailSchema,
  commandSchema,
  declareLostSchema,
  page,
  pageQuerySchema,
  type Command,
  type CommandDetail,
} from "../api.ts";
import { errorOf, idParams, notFound, type RoutePlugin } from "../routes.ts";

export function commandView({ row, waiting, unknown }: CommandView): Command {
  return {
    id: row.id,
    kind: row.kind,
    resource: row.resource,
    pool: { id: row.pool, name: row.poolName },
    state: row.state,
    unknown,
    waiting,
    agent: agentOf(row),
    actor: row.actor,
    priority: row.priority,
    createdAt: row.createdAt,
    notBefore: row.notBefore,
    acceptedAt: row.acceptedAt,
    startedAt: row.startedAt,
    endedAt: row.endedAt,
    expiresAt: row.expires,
    offers: row.offers,
    error: errorOf(row.error),
    result: row.result ?? null,
    run: row.run,
    bodyDigest: sha256(bodyBytes(row.body)),
  };
}

const commandDetail = (explained: ExplainedCommand): CommandDetail => ({
  ...commandView(explained),
  text: explained.text,
  fix: explained.fix,
  silence: explained.silence,
  history: explained.history,
});

export const agentOf = (row: CommandView["row"]): { id: string; name: string } | null =>
  row.replica === null ? null : { id: row.replica, name: row.replicaName ?? row.replica };

export const commandRoutes =
  (deps: { store: Store; dispatch: Dispatch }): RoutePlugin =>
  async (app) => {
    const { store, dispatch } = deps;

    app.get(
      "/v1/commands",
      {
        schema: {
          querystring: pageQuerySchema.extend({
            state: z.enum(COMMAND_STATES).optional(),
            kind: z.string().max(64).optional(),
            pool: nameSchema.optional(),
          }),
          response: { 200: page(commandSchema) },
        },
      },
      async (request) => {
        const scope = app.scope(request);
        const { pool: poolName, state, kind, limit, cursor } = request.query;
        const pool = poolName === undefined ? undefined : await store.poolByName(scope, poolName);
        if (pool === null) throw notFound(`pool named ${poolName}`);
        const found = await store.commands(scope, {
          limit,
          ...(cursor === undefined ? {} : { cursor }),
          ...(state === undefined ? {} : { state }),
          ...(kind === undefined ? {} : { kind }),
          ...(pool === undefined ? {} : { pool: pool.id }),
        });
        return { items: (await dispatch.view(scope, found.items)).map(commandView), nextCursor: found.nextCursor };
      },
    );

    const detail = async (scope: ReturnType<typeof app.scope>, id: CommandId): Promise<CommandDetail> => {
      const explained = await dispatch.explain(scope, id);
      if (explained === null) throw notFound(`command ${id}`);
      return commandDetail(explained);
    };

    app.get(
      "/v1/commands/:id",
      { schema: { params: idParams(commandIdSchema), response: { 200: commandDetailSchema } } },
      async (request) => detail(app.scope(request), request.params.id),
    );

    // An operator's word. Said again it changes nothing, so no key is needed.
    app.post(
      "/v1/commands/:id/lost",
      {
        schema: {
          params: idParams(commandIdSchema),
          body: declareLostSchema,
          response: { 200: commandDetailSchema },
        },
      },
      async (request) => {
        const { scope, user } = app.principal(request);
        if (user.role !== "admin")
          throw new ConnectorError("FORBIDDEN", "Only an admin may declare work lost.", { fix: "Ask an admin." });
        const row = await dispatch.declareLost(scope, request.params.id, request.body.reason);
        if (row === null) throw notFound(`command ${request.params.id}`);
        return detail(scope, row.id);
      },
    );
  };
