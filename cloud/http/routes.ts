// The shape that every group of routes has, and what the root of the API lends to each request. Not the server itself.
// Route files import this file, api.ts and their ports; server.ts registers them, each in a context of its own.
//
// A route plugin is made by a function that takes its ports:
//   export const runRoutes = (deps: { store: Store }): RoutePlugin => async (app) => {
//     app.get("/v1/runs/:id", { schema: { params: z.object({ id: runIdSchema }), response: { 200: runDetailSchema } } },
//       async (request) => ... app.scope(request) ...);
//   };
// To fail, throw a ConnectorError: the root answers problem+json with the code's status, request id and field paths.
// Nothing of a route is public unless its config says `public: true`. Responses are cut to their schema.
import { sha256, ConnectorError, type ErrorBody } from "@sallyport/protocol";
import type {
  FastifyBaseLogger,
  FastifyInstance,
  FastifyRequest,
  RawReplyDefaultExpression,
  RawRequestDefaultExpression,
  RawServerDefault,
} from "fastify";
import type { ZodTypeProvider } from "fastify-type-provider-zod";
import { z } from "zod";
import type { IdempotentAnswer, Scope, Store } from "../store/store.ts";

export type ApiApp = FastifyInstance<
  RawServerDefault,
  RawRequestDefaultExpression,
  RawReplyDefaultExpression,
  FastifyBaseLogger,
  ZodTypeProvider
>;
export type RoutePlugin = (app: ApiApp) => Promise<void>;

/** Who sent a request, once its cookie or token was found good. */
export interface Principal {
  scope: Scope;
  user: { id: string; name: string; role: "admin" };
  workspaceName: string;
  hasPassword: boolean;
  via: "session" | "token";
  /** Names the very credential, not the person: a stream ends when this one is revoked. Never the secret itself. */
  credential: { kind: "session" | "token"; hash: string };
}

/** The parsed Idempotency-Key of a request, ready for the store. */
export interface IdempotencyKey {
  key: string;
  method: string;
  route: string;
  /** Hex sha-256 over parameters, query and body. */
  requestDigest: string;
}

declare module "fastify" {
  interface FastifyInstance {
    /** The principal's workspace and name. Throws UNAUTHENTICATED on a public route without one. */
    scope(request: FastifyRequest): Scope;
    /** As `scope`, with all that is known of who it is. */
    principal(request: FastifyRequest): Principal;
    /** The request's Idempotency-Key; null when it has none. Throws INPUT_INVALID for one that is no key. */
    idempotencyKey(request: FastifyRequest): IdempotencyKey | null;
    /** As `idempotencyKey`, and the answer that the key was given before, if any. */
    idempotent(request: FastifyRequest): Promise<{ key: IdempotencyKey | null; earlier: IdempotentAnswer | null }>;
  }
  interface FastifyContextConfig {
    /** True: no credential needed. Absent: deny without one. */
    public?: boolean;
    /** True: an Origin of another site does not matter (nothing changes and nothing private is said). */
    anyOrigin?: boolean;
  }
  interface FastifyRequest {
    principalOrNull: Principal | null;
  }
}

/**
 * Within the plugin that calls it, request bodies of any type arrive unread: `request.body` is the raw stream, no size
 * limit. Routes with JSON bodies belong to another plugin (or to `app.register` of one).
 */
export function rawBodies(app: ApiApp): void {
  app.removeAllContentTypeParsers();
  app.addContentTypeParser("*", (_request, payload, done) => done(null, payload));
}

/** A weak validator over what a read would answer. */
export const etagOf = (value: unknown): string => `W/"${sha256(JSON.stringify(value)).slice(0, 32)}"`;

/** Refuses with CONFLICT when the request's If-Match names another state than `etag`. Absent and `*` always pass. */
export function requireMatch(request: FastifyRequest, etag: string, thing: string): void {
  const header = request.headers["if-match"];
  if (header === undefined || header.trim() === "*") return;
  if (header.split(",").some((candidate) => candidate.trim() === etag)) return;
  throw new ConnectorError("CONFLICT", `${thing} has changed since it was read.`, {
    fix: "Read it again and repeat the change on what it is now.",
    details: { etag },
  });
}

/** For lookups that found nothing: foreign and absent are the same. */
export const notFound = (thing: string): ConnectorError =>
  new ConnectorError("NOT_FOUND", `There is no ${thing} in this workspace.`, {
    fix: "Check the id; the list shows what there is.",
  });

/** A repeated POST whose first answer held a secret: secrets are not kept, so it cannot be given again. */
export const madeOnce = (thing: string, earlier: IdempotentAnswer): ConnectorError =>
  new ConnectorError("CONFLICT", `This ${thing} was made already, and was shown in the first answer only.`, {
    fix: "If that answer was lost: revoke or withdraw it, and make another with a new Idempotency-Key.",
    details: earlier.body as Record<string, unknown>,
  });

/** A stored error body for the API; codes of newer agents are kept as they are. */
export const errorOf = (
  error: ErrorBody | null,
): { code: string; message: string; fix?: string; details?: Record<string, unknown> } | null => error;

export const idParams = <T extends z.ZodType>(id: T) => z.object({ id });

/** What most route plugins are made with. */
export interface StorePort {
  store: Store;
}
