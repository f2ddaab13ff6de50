// What passes between people and a deployment's replicas: a request and its answer, a replica's log, minutes at the
// endpoint. Bytes flow through memory; neither they nor their queries are kept or logged.
import { Readable } from "node:stream";
import {
  deploymentIdSchema,
  deploymentRequest,
  MAX_REQUEST_BYTES,
  ndjsonLine,
  replicaNameSchema,
  rollupSchema,
  type DeploymentId,
} from "@sallyport/protocol";
import type { FastifyRequest } from "fastify";
import { z } from "zod";
import type { Dispatch } from "../../dispatch/index.ts";
import { safeMediaType } from "../../features/artifacts/index.ts";
import { followReplicaLogs, heldBy, sendRequest, tooLarge } from "../../features/deployments/index.ts";
import type { DeploymentRow, Scope, Store } from "../../store/store.ts";
import { page } from "../api.ts";
import { clientGone } from "../client-gone.ts";
import { idParams, notFound, rawBodies, type ApiApp, type RoutePlugin } from "../routes.ts";

const DAY_MS = 24 * 3600_000;
/** A body that does not come: the client is told, and its socket is free again. */
const BODY_MS = 30_000;

export const deploymentTrafficRoutes =
  (deps: { store: Store; dispatch: Dispatch }): RoutePlugin =>
  async (app) => {
    const { store, dispatch } = deps;
    const read = async (scope: Scope, id: DeploymentId): Promise<DeploymentRow> => {
      const found = await store.deployment(scope, id);
      if (found === null) throw notFound(`deployment ${id}`);
      return found.deployment;
    };

    app.get(
      "/v1/deployments/:id/rollups",
      {
        schema: {
          tags: ["deployments"],
          summary: "Requests at its endpoint, minute by minute, oldest first; of one day",
          params: idParams(deploymentIdSchema),
          // Of the agent's clock. Absent = the last hour that is known.
          querystring: z.object({ since: z.coerce.number().int().nonnegative().optional() }),
          response: { 200: page(rollupSchema) },
        },
      },
      async (request) => {
        const scope = app.scope(request);
        const row = await read(scope, request.params.id);
        const newest = row.observed?.rollup?.at ?? dispatch.clock.now();
        const since = request.query.since ?? Math.max(0, newest - DAY_MS / 24);
        return { items: await store.deploymentRollups(scope, row.id, since), nextCursor: null };
      },
    );

    app.get(
      "/v1/deployments/:id/replicas/:replica/logs",
      {
        schema: {
          tags: ["deployments"],
          summary: "Log of one start of a replica; NDJSON",
          params: z.object({ id: deploymentIdSchema, replica: replicaNameSchema }),
          querystring: z.object({
            start: z.coerce.number().int().positive().optional(),
            after: z.coerce.number().int().nonnegative().default(0),
            tail: z.coerce.number().int().positive().max(100_000).optional(),
            limit: z.coerce.number().int().min(1).max(100_000).default(1000),
            follow: z.enum(["true", "false"]).default("false"),
          }),
        },
      },
      async (request, reply) => {
        const scope = app.scope(request);
        const row = await read(scope, request.params.id);
        const { start, after, tail, limit, follow } = request.query;
        const records = await followReplicaLogs(
          dispatch,
          scope,
          { id: row.pool, name: row.poolName },
          heldBy(row),
          {
            deployment: row.id,
            replica: request.params.replica,
            after: tail === undefined ? after : 0,
            limit,
            follow: follow === "true",
            ...(start === undefined ? {} : { start }),
            ...(tail === undefined ? {} : { tail }),
          },
          clientGone(reply),
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

    await app.register(async (context) => {
      const raw = context as unknown as ApiApp;
      rawBodies(raw);
      const { method, path, timeoutMs } = deploymentRequest.input.shape;
      // The replica's status, type and bytes as they are. `sallyport-replica` marks them: without it, the answer is ours.
      raw.post(
        "/v1/deployments/:id/request",
        {
          schema: {
            tags: ["deployments"],
            summary: "Send one request to its endpoint through the link; the replica's own answer",
            params: idParams(deploymentIdSchema),
            querystring: z.object({
              path: path.optional(),
              method,
              timeoutMs: z.coerce.number().pipe(timeoutMs.unwrap()).default(30_000),
            }),
          },
          bodyLimit: Number.MAX_SAFE_INTEGER,
        },
        async (request, reply) => {
          const scope = raw.scope(request);
          const row = await read(scope, request.params.id);
          const body = await bodyOf(request, row);
          const answer = await sendRequest(
            dispatch,
            scope,
            row,
            heldBy(row),
            { ...request.query, body },
            clientGone(reply),
          );
          return reply
            .code(answer.status >= 200 && answer.status <= 599 ? answer.status : 502)
            .header("content-type", safeMediaType(answer.mediaType))
            .header("cache-control", "no-store")
            .header("x-content-type-options", "nosniff")
            .header("sallyport-replica", answer.replica)
            .header("sallyport-status", String(answer.status))
            .header("sallyport-took-ms", answer.tookMs.toFixed(1))
            .send(Readable.from(answer.content, { objectMode: true, highWaterMark: 1 }));
        },
      );
    });

    async function bodyOf(request: FastifyRequest, row: DeploymentRow): Promise<Buffer> {
      const chunks: Buffer[] = [];
      let size = 0;
      const late = dispatch.clock.after(BODY_MS, () => request.raw.destroy());
      try {
        for await (const chunk of request.raw.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
          size += chunk.length;
          if (size > MAX_REQUEST_BYTES) {
            // The rest is read and dropped, so that the client gets to read the refusal; the server cuts what goes on.
            request.raw.resume();
            throw tooLarge(row);
          }
          chunks.push(chunk);
        }
      } finally {
        late.cancel();
      }
      return Buffer.concat(chunks);
    }
  };

async function* lines(records: AsyncIterable<unknown>): AsyncGenerator<Buffer> {
  for await (const record of records) yield ndjsonLine(record);
}
