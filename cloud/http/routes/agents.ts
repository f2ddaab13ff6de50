// Pools and agents: lists, rename, revoke, delete. State is derived at read.
import {
  ConnectorError,
  nameSchema,
  replicaIdSchema,
  type Clock,
  type PoolId,
  type ReplicaId,
  type WorkspaceId,
} from "@sallyport/protocol";
import { z } from "zod";
import { agentView, poolView, type AgentView, type LiveSession } from "../../features/agents/index.ts";
import type { ReplicaRow, Store } from "../../store/index.ts";
import {
  agentSchema,
  connectionSchema,
  limitPoolSchema,
  page,
  pageQuerySchema,
  poolSchema,
  renameAgentSchema,
} from "../api.ts";
import { etagOf, notFound, requireMatch, type RoutePlugin } from "../routes.ts";

/** The live links, as far as these routes need them. */
export interface Links {
  ofReplica(workspace: WorkspaceId, replica: ReplicaId): LiveSession | null;
  /** Cuts the replica's link now; its key is refused from then on. */
  revoke(replica: ReplicaId): void;
  /** The agent changes its key; resolves when it has. False: it is not connected. */
  changeKey(workspace: WorkspaceId, replica: ReplicaId): Promise<boolean>;
}

const params = z.object({ id: replicaIdSchema });

export const agentRoutes =
  (deps: {
    store: Store;
    clock: Clock;
    links: Links;
    /** Told when a limit changed: what waits may go. */
    poke?: (workspace: WorkspaceId, pool: PoolId) => void;
  }): RoutePlugin =>
  async (app) => {
    const { store, clock, links } = deps;
    const upSinceMs = clock.monotonic();
    const view = (row: ReplicaRow): AgentView =>
      agentView(row, links.ofReplica(row.workspace, row.id), clock, upSinceMs);
    const etag = (row: ReplicaRow): string => etagOf([row.id, row.name, row.revokedAt]);

    app.get(
      "/v1/agents",
      { schema: { tags: ["agents"], summary: "Agents of the workspace", response: { 200: page(agentSchema) } } },
      async (request) => ({
        items: (await store.replicas(app.scope(request))).map(view),
        nextCursor: null,
      }),
    );

    app.get(
      "/v1/agents/:id",
      { schema: { tags: ["agents"], summary: "One agent", params, response: { 200: agentSchema } } },
      async (request, reply) => {
        const row = await store.replica(app.scope(request), request.params.id);
        if (row === null) throw notFound("agent of that id");
        void reply.header("etag", etag(row));
        return view(row);
      },
    );

    app.get(
      "/v1/agents/:id/connections",
      {
        schema: {
          tags: ["agents"],
          summary: "Its sessions and refusals, newest first, with why each ended",
          params,
          querystring: pageQuerySchema,
          response: { 200: page(connectionSchema) },
        },
      },
      async (request) => {
        const found = await store.connections(app.scope(request), request.params.id, request.query);
        if (found === null) throw notFound("agent of that id");
        return found;
      },
    );

    app.patch(
      "/v1/agents/:id",
      {
        schema: {
          tags: ["agents"],
          summary: "Rename an agent",
          params,
          body: renameAgentSchema,
          response: { 200: agentSchema },
        },
      },
      async (request, reply) => {
        const scope = app.scope(request);
        const before = await store.replica(scope, request.params.id);
        if (before === null) throw notFound("agent of that id");
        requireMatch(request, etag(before), `Agent ${before.name}`);
        const row = await store.renameReplica(scope, request.params.id, request.body.name);
        if (row === null) throw notFound("agent of that id");
        void reply.header("etag", etag(row));
        return view(row);
      },
    );

    app.post(
      "/v1/agents/:id/revoke",
      {
        schema: {
          tags: ["agents"],
          summary: "Refuse an agent's key from now on, and cut its link",
          params,
          response: { 200: agentSchema },
        },
      },
      async (request) => {
        const row = await store.revokeReplica(app.scope(request), request.params.id, clock.now());
        if (row === null) throw notFound("agent of that id");
        links.revoke(row.id);
        return view(row);
      },
    );

    app.post(
      "/v1/agents/:id/rotate-key",
      {
        schema: {
          tags: ["agents"],
          summary: "Have an agent change its key for a new one, over its link",
          params,
          response: { 204: z.null() },
        },
      },
      async (request, reply) => {
        const row = await store.replica(app.scope(request), request.params.id);
        if (row === null) throw notFound("agent of that id");
        if (!(await links.changeKey(row.workspace, row.id)))
          throw new ConnectorError("AGENT_OFFLINE", `Agent ${row.name} is not connected.`, {
            fix: "Start it; it changes its key by itself, too, when that is old.",
          });
        return reply.code(204).send(null);
      },
    );

    app.delete(
      "/v1/agents/:id",
      {
        schema: {
          tags: ["agents"],
          summary: "Remove an agent that is revoked or not connected",
          params,
          response: { 204: z.null() },
        },
      },
      async (request, reply) => {
        const scope = app.scope(request);
        const row = await store.replica(scope, request.params.id);
        if (row === null) throw notFound("agent of that id");
        if (row.revokedAt === null && links.ofReplica(row.workspace, row.id) !== null) {
          throw new ConnectorError("CONFLICT", `Agent ${row.name} is connected.`, {
            fix: "Revoke it first, or stop it at the customer's side.",
          });
        }
        if (!(await store.deleteReplica(scope, row.id, clock.now()))) throw notFound("agent of that id");
        // A link that came up since is as unwelcome as a revoked one's.
        links.revoke(row.id);
        return reply.code(204).send(null);
      },
    );

    app.get(
      "/v1/pools",
      { schema: { tags: ["pools"], summary: "Pools of the workspace", response: { 200: page(poolSchema) } } },
      async (request) => {
        const scope = app.scope(request);
        const [rows, replicas] = await Promise.all([store.pools(scope), store.replicas(scope)]);
        const agents = replicas.map(view);
        return {
          items: rows.map((row) =>
            poolView(
              row,
              agents.filter((agent) => agent.pool.id === row.id),
            ),
          ),
          nextCursor: null,
        };
      },
    );

    app.get(
      "/v1/pools/:pool",
      {
        schema: {
          tags: ["pools"],
          summary: "One pool, by name",
          params: z.object({ pool: nameSchema }),
          response: { 200: poolSchema },
        },
      },
      async (request) => {
        const scope = app.scope(request);
        const row = await store.poolByName(scope, request.params.pool);
        if (row === null) throw notFound(`pool named ${request.params.pool}`);
        const agents = (await store.replicas(scope)).filter((replica) => replica.pool === row.id).map(view);
        return poolView(row, agents);
      },
    );

    app.patch(
      "/v1/pools/:pool",
      {
        schema: {
          tags: ["pools"],
          summary: "Limit how many runs of a pool go at a time",
          params: z.object({ pool: nameSchema }),
          body: limitPoolSchema,
          response: { 200: poolSchema },
        },
      },
      async (request) => {
        const scope = app.scope(request);
        const known = await store.poolByName(scope, request.params.pool);
        const row = known === null ? null : await store.limitPool(scope, known.id, request.body);
        if (row === null) throw notFound(`pool named ${request.params.pool}`);
        deps.poke?.(scope.workspace, row.id);
        const agents = (await store.replicas(scope)).filter((replica) => replica.pool === row.id).map(view);
        return poolView(row, agents);
      },
    );
  };
