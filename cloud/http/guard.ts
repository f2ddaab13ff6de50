// The root's hooks, for every request alike and deny by default: where it was addressed to, who sent it, from which
// page. A route opts out of the credential only, and only in its own config.
import { ConnectorError, sha256 } from "@sallyport/protocol";
import type { FastifyRequest } from "fastify";
import { holdsSecret, type Authenticator } from "../auth/index.ts";
import type { Store } from "../store/index.ts";
import { traceOf } from "./trace.ts";
import type { ApiApp, IdempotencyKey, Principal } from "./routes.ts";

/** Methods that change nothing: no Origin is asked for. */
const SAFE = new Set(["GET", "HEAD", "OPTIONS"]);

export interface GuardOptions {
  authenticator: Authenticator;
  store: Store;
  now: () => number;
  cookieName: string;
  /** Host names (without port) that this server answers to: against DNS rebinding. */
  hosts: ReadonlySet<string>;
  /** Origins of our own page beside the one that the request was addressed to. */
  origins: ReadonlySet<string>;
  tls: boolean;
}

const hostName = (host: string): string => {
  try {
    return new URL(`http://${host}`).hostname.replace(/^\[|\]$/g, "").toLowerCase();
  } catch {
    return "";
  }
};

export const sessionCookie = (request: FastifyRequest, name: string): string | null =>
  (request.cookies as Record<string, string | undefined>)[name] ?? null;

/** Whether a browser's page of another site sent this. An absent Origin is no page of another site, but no proof either. */
function foreignOrigin(request: FastifyRequest, options: GuardOptions): "own" | "foreign" | "absent" {
  const origin = request.headers.origin;
  if (origin === undefined) return "absent";
  const addressed = `${options.tls ? "https" : "http"}://${request.headers.host ?? ""}`.toLowerCase();
  return origin.toLowerCase() === addressed || options.origins.has(origin.toLowerCase()) ? "own" : "foreign";
}

const originDenied = () =>
  new ConnectorError("ORIGIN_DENIED", "The request did not come from this control plane's own page.", {
    fix: "Use the page itself, or an API token instead of the cookie.",
  });

export function guard(app: ApiApp, options: GuardOptions): void {
  app.decorateRequest("principalOrNull", null);
  let newest = { header: "", host: "" };

  app.addHook("onRequest", async (request) => {
    const header = request.headers.host ?? "";
    // Nearly always the one of the request before.
    if (header !== newest.header) newest = { header, host: hostName(header) };
    const { host } = newest;
    if (!options.hosts.has(host)) {
      throw new ConnectorError(
        "ORIGIN_DENIED",
        `This control plane does not answer to the name ${host === "" ? "of that request" : host}.`,
        { fix: "Use its own address, or start it with `--url` or `--name` that says this name." },
      );
    }
    const query = request.url.indexOf("?");
    if (query !== -1 && holdsSecret(safeDecode(request.url.slice(query)))) {
      throw new ConnectorError("SECRET_IN_URL", "A secret is part of the URL, where logs and histories keep it.", {
        fix: "Revoke it, and send the next one as `Authorization: Bearer …`.",
      });
    }
    const config = request.routeOptions.config;
    const authorization = request.headers.authorization;
    const bearer = authorization === undefined ? null : (/^Bearer +(\S+) *$/i.exec(authorization)?.[1] ?? "");
    const cookie = sessionCookie(request, options.cookieName);
    const origin = foreignOrigin(request, options);
    const changes = !SAFE.has(request.method);
    if (request.is404) return;
    if (config.public === true) {
      if (changes && config.anyOrigin !== true && origin === "foreign") throw originDenied();
      return;
    }
    const known = await options.authenticator.authenticate({ bearer, cookie });
    if (known === null) {
      throw new ConnectorError(
        "UNAUTHENTICATED",
        authorization === undefined && cookie === null
          ? "No session cookie and no API token came with the request."
          : "The session or API token is not known, was revoked, or has expired.",
        {
          fix: "Sign in again, or make an API token on the page Settings; `sallyport-cloud admin reset` prints a new sign-in link.",
        },
      );
    }
    // A cookie is sent by the browser whoever asks for it; a token is not.
    if (known.credential.kind === "session" && changes && origin !== "own") throw originDenied();
    const { user, credential } = known.found;
    request.principalOrNull = {
      scope: {
        workspace: user.workspace,
        actor:
          credential === null
            ? { id: user.id, name: user.name, via: "session" }
            : { id: credential.id, name: `${user.name} (${credential.label})`, via: "token" },
        trace: traceOf(request.raw).traceparent,
      },
      user: { id: user.id, name: user.name, role: user.role },
      workspaceName: user.workspaceName,
      hasPassword: user.passwordHash !== null,
      via: known.credential.kind,
      credential: known.credential,
    };
  });

  app.decorate("principal", (request: FastifyRequest): Principal => {
    if (request.principalOrNull === null)
      throw new ConnectorError("UNAUTHENTICATED", "This needs a session or an API token.");
    return request.principalOrNull;
  });
  app.decorate("scope", (request: FastifyRequest) => app.principal(request).scope);
  app.decorate("idempotencyKey", (request: FastifyRequest): IdempotencyKey | null => {
    const header = request.headers["idempotency-key"];
    if (header === undefined) return null;
    if (typeof header !== "string" || !/^[\x21-\x7e]{1,255}$/.test(header)) {
      throw new ConnectorError("INPUT_INVALID", "The Idempotency-Key is not 1 to 255 visible ASCII characters.", {
        fix: "Send a random id, such as a UUID.",
        details: { errors: [{ path: "headers.idempotency-key", message: "1 to 255 visible ASCII characters" }] },
      });
    }
    const route = request.routeOptions.url ?? request.url;
    return {
      key: header,
      method: request.method,
      route,
      requestDigest: sha256(JSON.stringify([request.params, request.query, request.body ?? null])),
    };
  });
  app.decorate("idempotent", async (request: FastifyRequest) => {
    const key = app.idempotencyKey(request);
    return {
      key,
      earlier: key === null ? null : await options.store.idempotent(app.scope(request), key, options.now()),
    };
  });
}

function safeDecode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
