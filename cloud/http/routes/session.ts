// Signing in and out, who am I, and the password.
import { ConnectorError, type Clock } from "@sallyport/protocol";
import type { FastifyReply } from "fastify";
import { z } from "zod";
import { Attempts, hashPassword, hashSecret, verifyPassword, type Authenticator } from "../../auth/index.ts";
import type { Store, UserRow } from "../../store/index.ts";
import { meSchema, passwordSchema, signInSchema, type Me } from "../api.ts";
import { sessionCookie } from "../guard.ts";
import type { RoutePlugin } from "../routes.ts";
import { cookieNameFor } from "../server.ts";

export interface SessionDeps {
  store: Store;
  authenticator: Authenticator;
  clock: Clock;
  version: string;
  /** Whether browsers reach this by TLS. */
  secureCookies: boolean;
}

export const sessionRoutes =
  (deps: SessionDeps): RoutePlugin =>
  async (app) => {
    const { store, authenticator, clock, version, secureCookies } = deps;
    const cookieName = cookieNameFor(secureCookies);
    const attempts = new Attempts(clock);
    // Lax: a link from a mail or a chat opens the page signed in; nothing that changes is a GET, and those that are not
    // need our own Origin besides.
    const cookieOptions = { path: "/", httpOnly: true, sameSite: "lax", secure: secureCookies } as const;

    const me = (user: UserRow, via: Me["via"]): Me => ({
      user: { id: user.id, name: user.name, role: user.role },
      workspace: { id: user.workspace, name: user.workspaceName },
      via,
      hasPassword: user.passwordHash !== null,
      version,
    });
    const signIn = async (reply: FastifyReply, user: UserRow): Promise<Me> => {
      const session = await authenticator.openSession(user);
      void reply.setCookie(cookieName, session.secret, { ...cookieOptions, maxAge: session.maxAgeS });
      return me(user, "session");
    };

    app.post(
      "/v1/session",
      {
        config: { public: true },
        schema: {
          tags: ["session"],
          summary: "Sign in with a one-time link's secret or a password",
          body: signInSchema,
          response: { 200: meSchema },
        },
      },
      async (request, reply) => {
        const { body } = request;
        const byAddress = `address ${request.ip}`;
        // A session that is there already is not carried over: its secret was known before this person signed in.
        const old = sessionCookie(request, cookieName);
        if ("signin" in body) {
          attempts.count(byAddress);
          const user = await authenticator.redeemSignIn(body.signin);
          if (user === null) {
            throw new ConnectorError(
              "UNAUTHENTICATED",
              "This sign-in link is unknown, was used already, or is older than 15 minutes.",
              { fix: "Run `sallyport-cloud admin reset` on the control plane's host for a new one." },
            );
          }
          attempts.forget(byAddress);
          if (old !== null) await store.removeWebSession(hashSecret(old));
          return signIn(reply, user);
        }
        const byName = `name ${body.name}`;
        attempts.count(byAddress, byName);
        const user = await store.userByName(body.name);
        if (!(await verifyPassword(body.password, user?.passwordHash ?? null)) || user === null) {
          throw new ConnectorError("UNAUTHENTICATED", "Name or password is wrong.", {
            fix: "Try again, or run `sallyport-cloud admin reset` on the control plane's host for a sign-in link.",
          });
        }
        attempts.forget(byAddress, byName);
        if (old !== null) await store.removeWebSession(hashSecret(old));
        return signIn(reply, user);
      },
    );

    app.delete(
      "/v1/session",
      { schema: { tags: ["session"], summary: "Sign out", response: { 204: z.null() } } },
      async (request, reply) => {
        const { credential } = app.principal(request);
        if (credential.kind === "session") await store.removeWebSession(credential.hash);
        void reply.clearCookie(cookieName, cookieOptions);
        return reply.code(204).send(null);
      },
    );

    app.get(
      "/v1/me",
      { schema: { tags: ["session"], summary: "Who is signed in", response: { 200: meSchema } } },
      async (request) => {
        const { user, scope, workspaceName, hasPassword, via } = app.principal(request);
        return { user, workspace: { id: scope.workspace, name: workspaceName }, via, hasPassword, version };
      },
    );

    app.put(
      "/v1/me/password",
      {
        schema: {
          tags: ["session"],
          summary: "Set the password; ends other sessions",
          body: passwordSchema,
          response: { 200: meSchema },
        },
      },
      async (request, reply) => {
        const { scope, user, via, workspaceName } = app.principal(request);
        // A token ends, and is revoked in the list; a password that it could set would outlive both.
        if (via === "token")
          throw new ConnectorError(
            "FORBIDDEN",
            "A password is set by a person who is signed in, not by an API token.",
            { fix: "Sign in on the page and set it under Settings." },
          );
        attempts.count(`password ${user.id}`);
        const hash = await hashPassword(request.body.password);
        await store.setPassword(scope, user.id, hash);
        const row: UserRow = {
          workspace: scope.workspace,
          workspaceName,
          id: user.id,
          name: user.name,
          role: user.role,
          passwordHash: hash,
        };
        return signIn(reply, row);
      },
    );
  };
