// Durable commands over HTTP: who asked for what, where it stands, why it waits. Interactive ones are not kept.
import { commandIdSchema, nameSchema, sha256, bodyBytes } from "@sallyport/protocol";
import { z } from "zod";
import type { CommandView, Dispatch } from "../../dispatch/index.ts";
import type { Store } from "../../store/store.ts";
import { COMMAND_STATES, commandSchema, page, pageQuerySchema, type Command } from "../api.ts";
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
    createdAt: row.createdAt,
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

    app.get(
      "/v1/commands/:id",
      { schema: { params: idParams(commandIdSchema), response: { 200: commandSchema } } },
      async (request) => {
        const scope = app.scope(request);
        const row = await store.command(scope, request.params.id);
        if (row === null) throw notFound(`command ${request.params.id}`);
        return commandView((await dispatch.view(scope, [row]))[0]!);
      },
    );
  };
