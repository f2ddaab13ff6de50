// Serves the built page: hashed files for ever, index.html for every other path (the page has its own router).
// Public: it holds no data; everything it shows comes from /v1 with a credential.
import { randomBytes } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import fastifyStatic from "@fastify/static";
import { ConnectorError } from "@sallyport/protocol";
import type { FastifyReply, FastifyRequest } from "fastify";
import { pagePolicy } from "./headers.ts";
import { answerProblem, pathOf } from "./problem.ts";
import type { ApiApp } from "./routes.ts";

/** Where index.html wants its nonce: the page hands it to whatever makes style elements at run time. */
const NONCE_MARK = "__CSP_NONCE__";
/** Paths that are the API's or the probes': never answered by the page. */
const NOT_PAGES = /^\/(?:v1|link|metrics|healthz|readyz|assets|openapi\.json)(?:\/|$)/;

export async function servePage(app: ApiApp, folder: string): Promise<void> {
  const index = join(folder, "index.html");
  const built = existsSync(index);
  if (built) {
    await app.register(async (scope) => {
      // The plug-in makes a route for each file, and has no option for their config.
      scope.addHook("onRoute", (route) => {
        route.config = { ...route.config, public: true };
      });
      await scope.register(fastifyStatic, {
        root: folder,
        index: false,
        // Files are those that exist at the start; anything else is the fallback's.
        wildcard: false,
        dotfiles: "ignore",
        cacheControl: false,
        setHeaders(reply, path) {
          // Vite's hashed names: another content has another name.
          void reply.header(
            "cache-control",
            path.includes(`${join(folder, "assets")}`) ? "public, max-age=31536000, immutable" : "no-cache",
          );
          void reply.header("content-security-policy", pagePolicy(null));
        },
      });
    });
  }
  // Read once a start: a new build is served by the next one.
  const html = built ? readFileSync(index, "utf8") : null;

  const sendPage = (reply: FastifyReply): FastifyReply => {
    if (html === null) {
      return reply
        .code(503)
        .type("text/plain; charset=utf-8")
        .send(
          "The page is not built. Run `npm run build` (or `npm run demo`) in the repository; the API works without it.\n",
        );
    }
    const nonce = randomBytes(16).toString("base64url");
    return reply
      .header("content-security-policy", pagePolicy(nonce))
      .header("cache-control", "no-cache")
      .type("text/html; charset=utf-8")
      .send(html.replaceAll(NONCE_MARK, nonce));
  };

  app.get("/", { config: { public: true }, schema: { hide: true } }, async (_request, reply) => sendPage(reply));
  app.setNotFoundHandler((request: FastifyRequest, reply: FastifyReply) => {
    const path = pathOf(request.url);
    const wantsPage =
      (request.method === "GET" || request.method === "HEAD") &&
      !NOT_PAGES.test(path) &&
      (request.headers.accept ?? "").includes("text/html");
    if (wantsPage) return sendPage(reply);
    return answerProblem(
      request,
      reply,
      new ConnectorError("NOT_FOUND", `There is no ${request.method} ${path}.`, {
        fix: "/openapi.json lists what there is.",
      }),
    );
  });
}
