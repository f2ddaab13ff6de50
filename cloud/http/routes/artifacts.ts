// Artifacts over HTTP: look at, read in ranges, write, delete. Thin: what a header means is in features/artifacts.
// Bytes flow through with back-pressure and are never parsed or kept here.
import { Readable } from "node:stream";
import {
  ConnectorError,
  artifactDelete,
  artifactList,
  artifactPathSchema,
  artifactPreview,
  artifactStat,
  nameSchema,
  toConnectorError,
} from "@sallyport/protocol";
import type { FastifyReply, FastifyRequest } from "fastify";
import { z } from "zod";
import type { Dispatch, PoolRef } from "../../dispatch/index.ts";
import {
  contentDisposition,
  etagOfVersion,
  openDownload,
  parseRange,
  parseTags,
  reprDigest,
  safeMediaType,
  sendArtifact,
  tagMatches,
  type Download,
  type DownloadRequest,
} from "../../features/artifacts/index.ts";
import type { Scope, Store } from "../../store/store.ts";
import { artifactListSchema, artifactPreviewSchema, artifactStatOutputSchema, writtenArtifactSchema } from "../api.ts";
import { clientGone } from "../client-gone.ts";
import { notFound, rawBodies, type RoutePlugin } from "../routes.ts";

const params = z.object({ pool: nameSchema, store: nameSchema });
const pathQuery = z.object({ path: artifactPathSchema.min(1) });
const flag = z.enum(["true", "false"]).transform((text) => text === "true");

/** Of a download, taken from the link before the client's socket asks, up to 256 KiB each: those that came together leave in one write. */
const CHUNKS_AHEAD = 8;

export const artifactRoutes =
  (deps: { store: Store; dispatch: Dispatch }): RoutePlugin =>
  async (app) => {
    const { store, dispatch } = deps;
    rawBodies(app);

    const poolOf = async (scope: Scope, name: string): Promise<PoolRef> => {
      const pool = await store.poolByName(scope, name);
      if (pool === null) throw notFound(`pool named ${name}`);
      return pool;
    };
    const resource = (storeName: string, path: string) => `artifact:${storeName}/${path}`;

    app.get(
      "/v1/pools/:pool/stores/:store/artifacts",
      {
        schema: {
          params,
          querystring: z.object({
            path: artifactPathSchema.default(""),
            cursor: z.string().max(4096).optional(),
            limit: z.coerce.number().int().min(1).max(1000).default(200),
          }),
          response: { 200: artifactListSchema },
        },
      },
      async (request, reply) => {
        const scope = app.scope(request);
        const { path, cursor, limit } = request.query;
        const input = { store: request.params.store, path, limit, ...(cursor === undefined ? {} : { cursor }) };
        return (
          await dispatch.relay(scope, await poolOf(scope, request.params.pool), artifactList, input, {
            resource: resource(input.store, path),
            signal: clientGone(reply),
          })
        ).result;
      },
    );

    const stat = async (
      scope: Scope,
      pool: PoolRef,
      storeName: string,
      path: string,
      digest: boolean,
      signal: AbortSignal,
    ) =>
      (
        await dispatch.relay(
          scope,
          pool,
          artifactStat,
          { store: storeName, path, digest },
          { resource: resource(storeName, path), signal },
        )
      ).result;

    app.get(
      "/v1/pools/:pool/stores/:store/stat",
      {
        schema: {
          params,
          querystring: z.object({ path: artifactPathSchema.default(""), digest: flag.default(false) }),
          response: { 200: artifactStatOutputSchema },
        },
      },
      async (request, reply) => {
        const scope = app.scope(request);
        return stat(
          scope,
          await poolOf(scope, request.params.pool),
          request.params.store,
          request.query.path,
          request.query.digest,
          clientGone(reply),
        );
      },
    );

    app.get(
      "/v1/pools/:pool/stores/:store/preview",
      {
        schema: {
          params,
          querystring: pathQuery.extend({ rows: z.coerce.number().int().min(1).max(10_000).default(200) }),
          response: { 200: artifactPreviewSchema },
        },
      },
      async (request, reply) => {
        const scope = app.scope(request);
        const startedMs = dispatch.clock.monotonic();
        const { path, rows } = request.query;
        const storeName = request.params.store;
        const answer = await dispatch.relay(
          scope,
          await poolOf(scope, request.params.pool),
          artifactPreview,
          { store: storeName, path, rows },
          { resource: resource(storeName, path), signal: clientGone(reply) },
        );
        const replica = await store.replica(scope, answer.replica);
        const { preview } = answer.result;
        const content = await collect(answer.content, MAX_IMAGE_BYTES);
        const whole = preview.type === "image" ? { ...preview, data: content.toString("base64") } : preview;
        return {
          ...answer.result,
          preview: whole,
          agent: { id: answer.replica, name: replica?.name ?? answer.replica },
          tookMs: Math.round(dispatch.clock.monotonic() - startedMs),
        };
      },
    );

    const contentPath = "/v1/pools/:pool/stores/:store/content";
    const contentSchema = { params, querystring: pathQuery };

    const headers = (
      reply: FastifyReply,
      about: { path: string; mediaType: string | null; version: string | null; modifiedAt: number | null },
    ) => {
      void reply.header("accept-ranges", "bytes");
      void reply.header("content-type", safeMediaType(about.mediaType));
      void reply.header("content-disposition", contentDisposition(about.path));
      void reply.header("x-content-type-options", "nosniff");
      void reply.header("content-security-policy", "sandbox; default-src 'none'");
      void reply.header("cross-origin-resource-policy", "same-origin");
      void reply.header("cache-control", "private, no-cache");
      if (about.version !== null) void reply.header("etag", etagOfVersion(about.version));
      if (about.modifiedAt !== null) void reply.header("last-modified", new Date(about.modifiedAt).toUTCString());
    };

    const changed = (path: string) =>
      new ConnectorError("PRECONDITION_FAILED", `${path} has another version than the one named in If-Match.`, {
        fix: "Read its current ETag and try again.",
      });

    app.head(contentPath, { schema: contentSchema }, async (request, reply) => {
      const scope = app.scope(request);
      const { path } = request.query;
      const found = await stat(
        scope,
        await poolOf(scope, request.params.pool),
        request.params.store,
        path,
        false,
        clientGone(reply),
      );
      if (found.kind === "tree") throw notAFile(path);
      const etag = found.version === null ? null : etagOfVersion(found.version);
      const ifMatch = parseTags(request.headers["if-match"]);
      if (ifMatch !== null && (etag === null || !tagMatches(ifMatch, etag, "strong"))) throw changed(path);
      headers(reply, { ...found, path });
      const ifNoneMatch = parseTags(request.headers["if-none-match"]);
      if (ifNoneMatch !== null && etag !== null && tagMatches(ifNoneMatch, etag, "weak")) return reply.code(304).send();
      void reply.header("content-length", String(found.sizeBytes ?? 0));
      return reply.send();
    });

    app.get(contentPath, { schema: contentSchema, exposeHeadRoute: false }, async (request, reply) => {
      const scope = app.scope(request);
      const { path } = request.query;
      const pool = await poolOf(scope, request.params.pool);
      const storeName = request.params.store;
      const signal = clientGone(reply);
      const ifMatch = parseTags(request.headers["if-match"]);
      const ifNoneMatch = parseTags(request.headers["if-none-match"]);
      const range = parseRange(request.headers.range);
      const ifRange = request.headers["if-range"];

      // Only these need to know the version before the read; the read itself is then of exactly that version.
      let version: string | undefined;
      if (ifNoneMatch !== null || (ifMatch !== null && ifMatch !== "*") || (range !== null && ifRange !== undefined)) {
        const found = await stat(scope, pool, storeName, path, false, signal);
        if (found.kind === "tree") throw notAFile(path);
        const etag = found.version === null ? null : etagOfVersion(found.version);
        if (ifMatch !== null && (etag === null || !tagMatches(ifMatch, etag, "strong"))) throw changed(path);
        if (ifNoneMatch !== null && etag !== null && tagMatches(ifNoneMatch, etag, "weak")) {
          headers(reply, { ...found, path });
          return reply.code(304).send();
        }
        if (ifMatch !== null && found.version !== null) version = found.version;
        // A date is never strong enough here: then the whole is sent.
        if (ifRange !== undefined && ifRange !== etag) return await whole();
        if (ifRange !== undefined && found.version !== null) version = found.version;
      }
      return range === null ? await whole() : await part();

      async function whole() {
        const download = await open({});
        return answer(download, 200);
      }

      async function part() {
        const download = await open(
          "suffixBytes" in range! ? { suffixBytes: range.suffixBytes } : { range: range! },
        ).catch(async (error: unknown) => {
          const failure = toConnectorError(error);
          if (failure.code !== "RANGE_INVALID") throw failure;
          return unsatisfiable((await stat(scope, pool, storeName, path, false, signal)).sizeBytes ?? 0, failure);
        });
        const { start, lengthBytes, totalBytes } = download.head;
        if (lengthBytes === 0) {
          await discard(download);
          return unsatisfiable(
            totalBytes,
            new ConnectorError("RANGE_INVALID", `The range lies beyond the ${totalBytes} bytes of ${path}.`),
          );
        }
        void reply.header("content-range", `bytes ${start}-${start + lengthBytes - 1}/${totalBytes}`);
        return answer(download, 206);
      }

      function open(more: Partial<DownloadRequest>): Promise<Download> {
        return openDownload(
          dispatch,
          scope,
          pool,
          { store: storeName, path, ...more, ...(version === undefined ? {} : { ifMatch: version }) },
          signal,
        );
      }

      function unsatisfiable(totalBytes: number, error: ConnectorError): never {
        void reply.header("content-range", `bytes */${totalBytes}`);
        throw error;
      }

      function answer(download: Download, status: number) {
        const { head } = download;
        headers(reply, { path, ...head });
        void reply.header("content-length", String(head.lengthBytes));
        // A failure after the head destroys the socket: a cut body never looks complete.
        return reply
          .code(status)
          .send(Readable.from(download.bytes, { objectMode: true, highWaterMark: CHUNKS_AHEAD }));
      }
    });

    app.put(
      contentPath,
      {
        schema: { ...contentSchema, response: { 200: writtenArtifactSchema, 201: writtenArtifactSchema } },
        bodyLimit: Number.MAX_SAFE_INTEGER,
      },
      async (request, reply) => {
        const scope = app.scope(request);
        const { path } = request.query;
        const pool = await poolOf(scope, request.params.pool);
        const signal = clientGone(reply);
        const ifMatch = await versionToReplace(scope, pool, request.params.store, path, request, signal);
        const ifNoneMatch = parseTags(request.headers["if-none-match"]);
        if (ifNoneMatch !== null && ifNoneMatch !== "*")
          throw new ConnectorError("INPUT_INVALID", "A write takes If-None-Match: * or none.", {
            fix: "Use If-Match to replace one version.",
          });
        if (ifNoneMatch !== null && ifMatch !== undefined)
          throw new ConnectorError("INPUT_INVALID", "If-Match and If-None-Match exclude each other.", {
            fix: "Send one of them.",
          });
        if (request.headers["content-range"] !== undefined)
          throw new ConnectorError("INPUT_INVALID", "A write is of the whole artifact, not of a range.", {
            fix: "Leave Content-Range out.",
          });
        const digest = reprDigest(header(request, "repr-digest"));
        const length = request.headers["content-length"];
        const mediaType = request.headers["content-type"]?.slice(0, 128);
        const input = {
          store: request.params.store,
          path,
          sizeBytes: length === undefined ? null : Number(length),
          ...(ifMatch === undefined ? {} : { ifMatch }),
          ...(ifNoneMatch === null ? {} : { ifNoneMatch: "*" as const }),
          ...(digest === undefined ? {} : { digest }),
          ...(mediaType === undefined ? {} : { mediaType }),
        };
        const bytes = bytesOf(request);
        const result = await sendArtifact(dispatch, scope, pool, input, bytes, signal).finally(
          // Waits for the next bytes, if a read is under way: what follows them is then dropped.
          () => void bytes.return(undefined).catch(() => {}),
        );
        void reply.header("etag", etagOfVersion(result.version));
        return await reply.code(ifNoneMatch === null ? 200 : 201).send(result);
      },
    );

    app.delete(contentPath, { schema: contentSchema }, async (request, reply) => {
      const scope = app.scope(request);
      const { path } = request.query;
      const storeName = request.params.store;
      const pool = await poolOf(scope, request.params.pool);
      const signal = clientGone(reply);
      const ifMatch = await versionToReplace(scope, pool, storeName, path, request, signal);
      await dispatch.relay(
        scope,
        pool,
        artifactDelete,
        { store: storeName, path, ...(ifMatch === undefined ? {} : { ifMatch }) },
        { resource: resource(storeName, path), signal },
      );
      return reply.code(204).send();
    });

    /** The version that If-Match names, as the store spells it; for `*` the one that is there. Undefined without one. */
    async function versionToReplace(
      scope: Scope,
      pool: PoolRef,
      storeName: string,
      path: string,
      request: FastifyRequest,
      signal: AbortSignal,
    ): Promise<string | undefined> {
      const tags = parseTags(request.headers["if-match"]);
      if (tags === null) return undefined;
      const found = await stat(scope, pool, storeName, path, false, signal).catch((error: unknown) => {
        throw toConnectorError(error).code === "ARTIFACT_NOT_FOUND" ? changed(path) : error;
      });
      if (found.version === null || !tagMatches(tags, etagOfVersion(found.version), "strong")) throw changed(path);
      return found.version;
    }
  };

const notAFile = (path: string) =>
  new ConnectorError("NOT_A_FILE", `${path} is a folder: it has no content of its own.`, {
    fix: "List it, and read the files in it.",
  });

const header = (request: FastifyRequest, name: string): string | undefined => {
  const value = request.headers[name];
  return Array.isArray(value) ? value.join(", ") : value;
};

/** An early refusal must not destroy the request: its answer would be lost with the socket. */
async function* bytesOf(request: FastifyRequest): AsyncGenerator<Buffer> {
  try {
    yield* request.raw.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>;
  } finally {
    request.raw.resume();
  }
}

async function discard(download: Download): Promise<void> {
  for await (const _chunk of download.bytes) break;
}

/** Largest image that is passed on inside a preview's JSON. */
const MAX_IMAGE_BYTES = 8 * 1024 * 1024;

async function collect(content: AsyncIterable<Buffer> | null, maxBytes: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of content ?? []) {
    bytes += chunk.length;
    if (bytes > maxBytes)
      throw new ConnectorError("TOO_LARGE", `The agent sent a preview of more than ${maxBytes} bytes.`, {
        fix: "Download the artifact instead.",
      });
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}
