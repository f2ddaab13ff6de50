// API tokens: shown once, listed by their first characters, revoked at once.
import { uuidv7, type Clock } from "@sallyport/protocol";
import { z } from "zod";
import { newApiToken } from "../../auth/index.ts";
import type { Store } from "../../store/index.ts";
import { madeTokenSchema, newTokenSchema, page, tokenSchema } from "../api.ts";
import { madeOnce, notFound, type RoutePlugin } from "../routes.ts";

const params = z.object({ id: z.string().regex(/^tok_[0-9a-f]{32}$/, "an id such as tok_… is expected") });

export const tokenRoutes =
  (deps: { store: Store; clock: Clock }): RoutePlugin =>
  async (app) => {
    const { store, clock } = deps;

    app.get(
      "/v1/tokens",
      { schema: { tags: ["tokens"], summary: "API tokens of the workspace", response: { 200: page(tokenSchema) } } },
      async (request) => ({
        items: await store.tokens(app.scope(request)),
        nextCursor: null,
      }),
    );

    app.post(
      "/v1/tokens",
      {
        schema: {
          tags: ["tokens"],
          summary: "Make an API token",
          body: newTokenSchema,
          response: { 201: madeTokenSchema },
        },
      },
      async (request, reply) => {
        const { scope, user } = app.principal(request);
        const { key, earlier } = await app.idempotent(request);
        if (earlier !== null) throw madeOnce("API token", earlier);
        const now = clock.now();
        const id = `tok_${uuidv7(now).replaceAll("-", "")}`;
        const { token, hash, hint } = newApiToken();
        const row = await store.addToken(
          scope,
          {
            id,
            user: user.id,
            label: request.body.label,
            hint,
            hash,
            createdAt: now,
            expiresAt: now + request.body.expiresInDays * 24 * 3600_000,
          },
          key === null ? undefined : { ...key, answer: { status: 409, body: { id } } },
        );
        return reply.code(201).send({ ...row, token });
      },
    );

    app.delete(
      "/v1/tokens/:id",
      { schema: { tags: ["tokens"], summary: "Revoke an API token", params, response: { 204: z.null() } } },
      async (request, reply) => {
        if (!(await store.revokeToken(app.scope(request), request.params.id, clock.now())))
          throw notFound("API token of that id");
        return reply.code(204).send(null);
      },
    );
  };
