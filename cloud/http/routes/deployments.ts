// Deployments over HTTP: make, change under If-Match, compare, remove, look. What goes to replicas is deployment-traffic.ts.
import { ConnectorError, deploymentIdSchema, nameSchema, type DeploymentId } from "@sallyport/protocol";
import type { FastifyRequest } from "fastify";
import { z } from "zod";
import type { CommandView, Dispatch, SubmitKey, Waiting } from "../../dispatch/index.ts";
import {
  applyDeployment,
  ceilingsFor,
  createDeployment,
  deploymentView,
  diffDeployment,
  ownerLinked,
  removeDeployment,
  rollbackDeployment,
  scaled,
} from "../../features/deployments/index.ts";
import type { CommandRow, DeploymentRow, Scope, Store } from "../../store/store.ts";
import {
  applyDeploymentSchema,
  deploymentDetailSchema,
  deploymentDiffSchema,
  deploymentSchema,
  newDeploymentSchema,
  page,
  pageQuerySchema,
  revisionSchema,
  rollbackDeploymentSchema,
  scaleDeploymentSchema,
  type DeploymentDetail,
} from "../api.ts";
import { idParams, notFound, type RoutePlugin } from "../routes.ts";

const params = idParams(deploymentIdSchema);
/** The generation, as a strong validator: it moves with every change that somebody asks for. */
const etagOfGeneration = (generation: number): string => `"${generation}"`;
/** Others may change it between our read and the commit; under `If-Match: *` that is tried again this often. */
const ANY_TRIES = 5;

/** Null: any state will do. */
function generationsOf(request: FastifyRequest, name: string): ReadonlySet<string> | null {
  const header = request.headers["if-match"]?.trim();
  if (header === undefined || header === "")
    throw new ConnectorError("INPUT_INVALID", `A change of deployment ${name} needs If-Match.`, {
      fix: "Read the deployment and send its ETag as If-Match, or `If-Match: *` to change whatever is there.",
      details: { errors: [{ path: "headers.if-match", message: "is missing" }] },
    });
  return header === "*" ? null : new Set(header.split(",").map((tag) => tag.trim()));
}

function mustMatch(wanted: ReadonlySet<string> | null, row: DeploymentRow): void {
  if (wanted === null || wanted.has(etagOfGeneration(row.generation))) return;
  throw new ConnectorError(
    "PRECONDITION_FAILED",
    `Deployment ${row.name} is at generation ${row.generation}, not at ${[...wanted].join(", ")}: somebody changed it since it was read.`,
    {
      fix: "Read it again and repeat the change on what it is now.",
      details: { generation: row.generation, etag: etagOfGeneration(row.generation) },
    },
  );
}

export const deploymentRoutes =
  (deps: { store: Store; dispatch: Dispatch }): RoutePlugin =>
  async (app) => {
    const { store, dispatch } = deps;

    const read = async (scope: Scope, id: DeploymentId) => {
      const found = await store.deployment(scope, id);
      if (found === null) throw notFound(`deployment ${id}`);
      return found;
    };
    const view = (row: DeploymentRow, command: CommandView) =>
      deploymentView(row, command, ownerLinked(dispatch, row), dispatch.clock.now());
    const detailOf = async (scope: Scope, row: DeploymentRow, command: CommandView): Promise<DeploymentDetail> => ({
      ...view(row, command),
      observed: row.observed,
      observedAt: row.observedAt,
      ceilings: (await ceilingsFor(store, scope, { id: row.pool, name: row.poolName }, row.replica))?.ceilings ?? {
        deployments: 0,
        replicas: 0,
        cpus: 0,
        memoryBytes: 0,
      },
    });
    const detail = async (scope: Scope, id: DeploymentId): Promise<DeploymentDetail> => {
      const found = await read(scope, id);
      return detailOf(scope, found.deployment, (await dispatch.view(scope, [found.command]))[0]!);
    };

    app.post(
      "/v1/deployments",
      {
        schema: {
          tags: ["deployments"],
          summary: "Deploy a model",
          body: newDeploymentSchema,
          response: { 201: deploymentDetailSchema },
        },
      },
      async (request, reply) => {
        const scope = app.scope(request);
        const { key, earlier } = await app.idempotent(request);
        if (earlier !== null)
          return reply
            .code(earlier.status as 201)
            .header("etag", etagOfGeneration(1))
            .send(earlier.body as DeploymentDetail);
        const { pool: poolName, name, spec } = request.body;
        const pool = await store.poolByName(scope, poolName);
        if (pool === null) throw notFound(`pool named ${poolName}`);
        const limits = await ceilingsFor(store, scope, pool, null);
        const online = dispatch.sessions.ofPool(scope.workspace, pool.id).length > 0;
        const made = await createDeployment(
          { store, dispatch },
          scope,
          { pool, name, spec },
          {
            key,
            answer: (row, command) => ({
              status: 201,
              body: {
                ...view(row, { row: command, waiting: firstWait(command, online), unknown: false }),
                observed: null,
                observedAt: null,
                ceilings: limits?.ceilings ?? { deployments: 0, replicas: 0, cpus: 0, memoryBytes: 0 },
              } satisfies DeploymentDetail,
            }),
          },
        );
        void reply.header("etag", etagOfGeneration(1));
        if (made.replayed !== null)
          return reply.code(made.replayed.status as 201).send(made.replayed.body as DeploymentDetail);
        return reply
          .code(201)
          .header("location", `/v1/deployments/${made.id}`)
          .send(await detail(scope, made.id));
      },
    );

    app.get(
      "/v1/deployments",
      {
        schema: {
          tags: ["deployments"],
          summary: "Deployments of the workspace",
          querystring: pageQuerySchema.extend({
            pool: nameSchema.optional(),
            name: nameSchema.optional(),
            removed: z.enum(["true", "false"]).default("false"),
          }),
          response: { 200: page(deploymentSchema) },
        },
      },
      async (request) => {
        const scope = app.scope(request);
        const { pool: poolName, name, removed, limit, cursor } = request.query;
        const pool = poolName === undefined ? undefined : await store.poolByName(scope, poolName);
        if (pool === null) throw notFound(`pool named ${poolName}`);
        const found = await store.deployments(scope, {
          limit,
          cursor,
          removed: removed === "true",
          ...(pool === undefined ? {} : { pool: pool.id }),
          ...(name === undefined ? {} : { name }),
        });
        const views = await dispatch.view(
          scope,
          found.items.map((item) => item.command),
        );
        return {
          items: found.items.map((item, at) => view(item.deployment, views[at]!)),
          nextCursor: found.nextCursor,
        };
      },
    );

    app.get(
      "/v1/deployments/:id",
      {
        schema: {
          tags: ["deployments"],
          summary: "One deployment; its ETag is its generation",
          params,
          response: { 200: deploymentDetailSchema },
        },
      },
      async (request, reply) => {
        const found = await detail(app.scope(request), request.params.id);
        void reply.header("etag", etagOfGeneration(found.generation));
        return found;
      },
    );

    type Change = (scope: Scope, current: DeploymentRow, key: Omit<SubmitKey, "answer"> | null) => Promise<unknown>;
    /** Reads, compares If-Match, changes. The transaction compares again: only under `*` a race is tried once more. */
    const change = async (request: FastifyRequest, id: DeploymentId, make: Change) => {
      const scope = app.scope(request);
      const { key, earlier } = await app.idempotent(request);
      // The change was made, and the answer is what stands now: a generation says more than an old picture.
      if (earlier !== null) return detail(scope, id);
      for (let tries = 1; ; tries++) {
        const { deployment } = await read(scope, id);
        const wanted = generationsOf(request, deployment.name);
        if (deployment.removedAt !== null) throw notFound(`deployment ${deployment.name} any more: it was removed`);
        mustMatch(wanted, deployment);
        try {
          await make(scope, deployment, key);
          return await detail(scope, id);
        } catch (error) {
          const raced = error instanceof ConnectorError && error.code === "PRECONDITION_FAILED";
          if (wanted !== null || !raced || tries >= ANY_TRIES) throw error;
        }
      }
    };
    /** Kept with the key; a repetition is answered with what stands then. */
    const done = (status: number) => (row: DeploymentRow, _command: CommandRow) => ({
      status,
      body: { id: row.id, generation: row.generation },
    });

    const changed = { 200: deploymentDetailSchema };
    app.put(
      "/v1/deployments/:id",
      {
        schema: {
          tags: ["deployments"],
          summary: "Apply a whole spec; If-Match",
          params,
          body: applyDeploymentSchema,
          response: changed,
        },
      },
      async (request, reply) => {
        const { spec } = request.body;
        const found = await change(request, request.params.id, (scope, current, key) =>
          applyDeployment(deps, scope, current, spec, { key, answer: done(200) }),
        );
        void reply.header("etag", etagOfGeneration(found.generation));
        return found;
      },
    );

    app.post(
      "/v1/deployments/:id/scale",
      {
        schema: {
          tags: ["deployments"],
          summary: "Want another number of replicas; If-Match",
          params,
          body: scaleDeploymentSchema,
          response: changed,
        },
      },
      async (request, reply) => {
        const { replicas } = request.body;
        const found = await change(request, request.params.id, (scope, current, key) =>
          applyDeployment(deps, scope, current, scaled(current, replicas), { key, answer: done(200) }),
        );
        void reply.header("etag", etagOfGeneration(found.generation));
        return found;
      },
    );

    app.post(
      "/v1/deployments/:id/rollback",
      {
        schema: {
          tags: ["deployments"],
          summary: "Apply an earlier revision's content; If-Match",
          params,
          body: rollbackDeploymentSchema,
          response: changed,
        },
      },
      async (request, reply) => {
        const { revision } = request.body;
        const found = await change(request, request.params.id, (scope, current, key) =>
          rollbackDeployment(deps, scope, current, revision, { key, answer: done(200) }),
        );
        void reply.header("etag", etagOfGeneration(found.generation));
        return found;
      },
    );

    // 202: its agent is asked to stop it. 200: it is gone at once, because no agent can have it.
    app.delete(
      "/v1/deployments/:id",
      {
        schema: {
          tags: ["deployments"],
          summary: "Remove a deployment; If-Match",
          params,
          response: { 200: deploymentDetailSchema, 202: deploymentDetailSchema },
        },
      },
      async (request, reply) => {
        const found = await change(request, request.params.id, (scope, current, key) =>
          removeDeployment(deps, scope, current, { key, answer: done(202) }),
        );
        void reply.header("etag", etagOfGeneration(found.generation));
        return reply.code(found.removedAt === null ? 202 : 200).send(found);
      },
    );

    app.post(
      "/v1/deployments/:id/diff",
      {
        schema: {
          tags: ["deployments"],
          summary: "What an apply would change; changes nothing",
          params,
          body: applyDeploymentSchema,
          response: { 200: deploymentDiffSchema },
        },
      },
      async (request) => {
        const scope = app.scope(request);
        const { deployment } = await read(scope, request.params.id);
        const pool = { id: deployment.pool, name: deployment.poolName };
        return diffDeployment(deployment, request.body.spec, await ceilingsFor(store, scope, pool, deployment.replica));
      },
    );

    app.get(
      "/v1/deployments/:id/revisions",
      {
        schema: {
          tags: ["deployments"],
          summary: "Its revisions, newest first",
          params,
          querystring: z.object({
            limit: z.coerce.number().int().min(1).max(500).default(50),
            cursor: z.coerce.number().int().positive().optional(),
          }),
          response: { 200: page(revisionSchema) },
        },
      },
      async (request) => {
        const scope = app.scope(request);
        await read(scope, request.params.id);
        const { limit, cursor } = request.query;
        const found = await store.deploymentRevisions(scope, request.params.id, {
          limit: limit + 1,
          ...(cursor === undefined ? {} : { before: cursor }),
        });
        const items = found.slice(0, limit);
        return { items, nextCursor: found.length > limit ? String(items.at(-1)!.revision) : null };
      },
    );
  };

/** Before anything was offered: the reason that the answer to a new one can already give. */
const firstWait = (command: CommandRow, online: boolean): Waiting =>
  online
    ? {
        code: "OFFERED",
        text: `It is being offered to pool ${command.poolName}.`,
        fix: "Nothing to do: it is offered again every few seconds until it is taken.",
      }
    : {
        code: "AGENT_OFFLINE",
        text: `No agent of pool ${command.poolName} is connected.`,
        fix: `Start an agent of pool ${command.poolName}; it is deployed by itself.`,
      };
