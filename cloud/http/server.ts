// The HTTP server: fastify with zod schemas, its hooks, the page, probes and metrics, and whatever route plugins it is
// given. It knows no feature. main.ts starts it; tests start it with plugins of their own.
import { createServer as createHttpServer, type IncomingMessage, type Server } from "node:http";
import { createServer as createHttpsServer } from "node:https";
import cookie from "@fastify/cookie";
import swagger from "@fastify/swagger";
import { ConnectorError, noSpans, randomName, type Clock, type Spans } from "@sallyport/protocol";
import Fastify, { LogController, type FastifyBaseLogger } from "fastify";
import {
  jsonSchemaTransform,
  serializerCompiler,
  validatorCompiler,
  type ZodTypeProvider,
} from "fastify-type-provider-zod";
import type { Logger } from "pino";
import { Gauge, type Registry } from "prom-client";
import { z } from "zod";
import type { Authenticator } from "../auth/index.ts";
import type { Store } from "../store/index.ts";
import { guard } from "./guard.ts";
import { secureHeaders } from "./headers.ts";
import { httpMetrics } from "./metrics.ts";
import { servePage } from "./page.ts";
import { answerProblem, pathOf, problemOf } from "./problem.ts";
import type { ApiApp, RoutePlugin } from "./routes.ts";
import { changeStreams } from "./sse.ts";
import { traceOf } from "./trace.ts";
import { limitBodies } from "./unread-body.ts";

export interface ApiServerOptions {
  store: Store;
  authenticator: Authenticator;
  clock: Clock;
  log: Logger;
  registry: Registry;
  /** Where spans of requests go; absent = nowhere. */
  spans?: Spans;
  version: string;
  /** PEM; null = plain http. */
  tls: { cert: string; key: string } | null;
  /** Whether browsers reach this by TLS, ours or a proxy's: the cookie is then bound to it. */
  secureCookies: boolean;
  /** Host names that requests may be addressed to, without port. Loopback's own are always among them. */
  hosts: readonly string[];
  /** The page's origin where a proxy stands before this server. Absent = the one that requests are addressed to. */
  publicOrigin?: string | undefined;
  /** Folder of the built page; need not exist. */
  pageFolder: string;
  /** Whether work can be taken: false while starting and draining. */
  ready: () => boolean;
  routes: readonly RoutePlugin[];
}

export interface ApiServer {
  readonly app: ApiApp;
  /** Every route there is, HEAD twins included. */
  readonly routes: readonly { method: string; url: string; public: boolean }[];
  /** Where upgrades arrive. */
  readonly server: Server;
  listen(host: string, port: number): Promise<number>;
  /** Ends the streams of changes: their readers come back and name where they stopped. */
  endStreams(): void;
  /** Ends streams, lets answers finish for `graceMs`, then cuts what is left. */
  close(graceMs: number): Promise<void>;
}

/** `__Host-` binds the cookie to this very host and to TLS; without TLS (loopback only) browsers do not take that name. */
export const cookieNameFor = (tls: boolean): string => (tls ? "__Host-sallyport" : "sallyport");

export async function makeApiServer(options: ApiServerOptions): Promise<ApiServer> {
  const { store, authenticator, clock, log, registry } = options;
  const spans = options.spans ?? noSpans;
  const tls = options.tls !== null;
  let server!: Server;
  const app = Fastify({
    loggerInstance: log.child({ component: "http" }) as FastifyBaseLogger,
    genReqId: () => `req_${randomName(9).toString("base64url")}`,
    requestIdHeader: false,
    childLoggerFactory: (logger, bindings, options, raw) =>
      logger.child({ ...bindings, trace_id: traceOf(raw as IncomingMessage).context.traceId }, options),
    logController: new LogController({ disableRequestLogging: true }),
    trustProxy: false,
    bodyLimit: 1024 * 1024,
    routerOptions: { ignoreTrailingSlash: false, maxParamLength: 300 },
    return503OnClosing: false,
    frameworkErrors: (error, request, reply) => void answerProblem(request, reply, error),
    // Uploads and downloads take as long as they take: nothing limits a whole request, only silence at its head.
    serverFactory(handler) {
      const limits = {
        requestTimeout: 0,
        headersTimeout: 20_000,
        keepAliveTimeout: 65_000,
        connectionsCheckingInterval: 5_000,
        maxHeaderSize: 16 * 1024,
      };
      server =
        options.tls === null
          ? createHttpServer(limits, handler)
          : (createHttpsServer(
              { ...limits, cert: options.tls.cert, key: options.tls.key, minVersion: "TLSv1.2" },
              handler,
            ) as unknown as Server);
      return server;
    },
    clientErrorHandler(error, socket) {
      const code = (error as NodeJS.ErrnoException).code;
      if (code === "ECONNRESET" || !socket.writable) return void socket.destroy();
      const known =
        code === "HPE_HEADER_OVERFLOW"
          ? new ConnectorError("TOO_LARGE", "The request's headers are too large.")
          : new ConnectorError("INPUT_INVALID", "The bytes received are not an HTTP request.");
      const body = JSON.stringify(problemOf(known, "-", "/"));
      const status = code === "HPE_HEADER_OVERFLOW" ? "431 Request Header Fields Too Large" : "400 Bad Request";
      // Whoever does not close its own half may not keep ours.
      socket.once("finish", () => socket.destroy());
      socket.end(
        `HTTP/1.1 ${status}\r\nconnection: close\r\ncontent-type: application/problem+json\r\ncontent-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
      );
    },
  }).withTypeProvider<ZodTypeProvider>() as unknown as ApiApp;

  app.setValidatorCompiler(validatorCompiler);
  app.setSerializerCompiler(serializerCompiler);
  app.removeContentTypeParser("text/plain");
  app.setErrorHandler((error, request, reply) => answerProblem(request, reply, error));

  // Hooks that wait for nothing take `done`: a promise each, for every request, adds up.
  app.addHook("onRequest", (request, reply, done) => {
    void reply.header("x-request-id", request.id);
    void reply.header("traceresponse", traceOf(request.raw).traceparent);
    secureHeaders(reply, options.secureCookies);
    done();
  });
  limitBodies(app, clock);
  const metrics = httpMetrics(registry);
  app.addHook("onResponse", (request, reply, done) => {
    const route = request.routeOptions.url ?? "none";
    metrics.answered(request.method, route, reply.statusCode, reply.elapsedTime);
    done();
    if (spans === noSpans) return;
    const { context, parentSpanId } = traceOf(request.raw);
    const endMs = clock.now();
    spans.record({
      name: `${request.method} ${route}`,
      kind: "server",
      context,
      parentSpanId,
      startMs: endMs - reply.elapsedTime,
      endMs,
      attributes: {
        "http.request.method": request.method,
        "http.route": route,
        "http.response.status_code": reply.statusCode,
        "sallyport.request": request.id,
      },
      error: reply.statusCode >= 500 ? String(reply.statusCode) : null,
    });
  });
  app.addHook("onResponse", (request, reply, done) => {
    // No query string: it holds paths of the customer's store.
    request.log.info(
      {
        method: request.method,
        path: pathOf(request.url),
        route: request.routeOptions.url,
        status: reply.statusCode,
        ms: Math.round(reply.elapsedTime * 10) / 10,
        actor: request.principalOrNull?.scope.actor.id,
      },
      "request",
    );
    done();
  });

  const routes: { method: string; url: string; public: boolean }[] = [];
  app.addHook("onRoute", (route) => {
    for (const method of [route.method].flat())
      routes.push({ method, url: route.url, public: route.config?.public === true });
  });
  await app.register(cookie);
  guard(app, {
    authenticator,
    store,
    now: () => clock.now(),
    cookieName: cookieNameFor(options.secureCookies),
    hosts: new Set(["localhost", "127.0.0.1", "::1", ...options.hosts.map((host) => host.toLowerCase())]),
    origins: new Set(options.publicOrigin === undefined ? [] : [options.publicOrigin.toLowerCase()]),
    tls,
  });
  await app.register(swagger, {
    openapi: {
      openapi: "3.1.0",
      info: {
        title: "Sallyport",
        version: options.version,
        description: "The control plane's API. Errors are application/problem+json.",
      },
      components: {
        securitySchemes: {
          token: { type: "http", scheme: "bearer", description: "An API token: spt_…" },
          session: { type: "apiKey", in: "cookie", name: cookieNameFor(options.secureCookies) },
        },
      },
      security: [{ token: [] }, { session: [] }],
    },
    transform: jsonSchemaTransform,
  });

  const streams = changeStreams({ store, authenticator, clock });
  for (const plugin of [streams.routes, ...options.routes]) {
    await app.register(async (context) => plugin(context as unknown as ApiApp));
  }

  const constant = (path: string, text: () => { status: number; text: string }) =>
    app.get(path, { config: { public: true }, schema: { hide: true }, logLevel: "warn" }, async (_request, reply) => {
      const { status, text: body } = text();
      return reply.code(status).type("text/plain; charset=utf-8").send(body);
    });
  constant("/healthz", () => ({ status: 200, text: "ok\n" }));
  constant("/readyz", () =>
    options.ready() ? { status: 200, text: "ready\n" } : { status: 503, text: "not ready\n" },
  );
  // The upgrade of /link never comes here. Whoever sees this knows that a control plane is there, and what was lost.
  app.get("/link", { config: { public: true }, schema: { hide: true } }, async (_request, reply) =>
    reply
      .code(426)
      .headers({ upgrade: "websocket", connection: "upgrade" })
      .type("text/plain; charset=utf-8")
      .send("Agents connect here by WebSocket; the Upgrade header of this request did not arrive.\n"),
  );
  new Gauge({
    name: "sallyport_cloud_change_streams",
    help: "Open streams of changes",
    registers: [registry],
    collect() {
      this.set(streams.open);
    },
  });
  app.get("/metrics", { schema: { hide: true } }, async (_request, reply) =>
    reply.type(registry.contentType).send(await registry.metrics()),
  );
  app.get(
    "/openapi.json",
    { config: { public: true }, schema: { hide: true, response: { 200: z.unknown() } } },
    async () => app.swagger(),
  );
  await servePage(app, options.pageFolder);

  await app.ready();
  return {
    app,
    server,
    routes,
    async listen(host, port) {
      try {
        // A fleet dials at once: what the kernel cannot queue dials again only a second later.
        await app.listen({ host, port, backlog: 4_096, listenTextResolver: () => "listening" });
      } catch (cause) {
        const code = (cause as NodeJS.ErrnoException).code;
        if (code === "EADDRINUSE")
          throw new ConnectorError("CONFIG_INVALID", `Port ${port} of ${host} is taken by another program.`, {
            fix: "Stop that program, or choose another port by --listen.",
            cause,
          });
        if (code === "EACCES" || code === "EADDRNOTAVAIL")
          throw new ConnectorError("CONFIG_INVALID", `This program may not listen on ${host}:${port} (${code}).`, {
            fix: "Choose another address by --listen.",
            cause,
          });
        throw cause;
      }
      const address = server.address();
      return typeof address === "object" && address !== null ? address.port : port;
    },
    endStreams: () => streams.closeAll(),
    async close(graceMs) {
      streams.closeAll();
      const cut = setTimeout(() => server.closeAllConnections(), graceMs);
      cut.unref();
      try {
        await app.close();
      } finally {
        clearTimeout(cut);
      }
    },
  };
}
