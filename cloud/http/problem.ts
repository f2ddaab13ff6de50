// Every failure of the API as application/problem+json, and the one place where foreign errors become ours.
import { STATUS_CODES } from "node:http";
import { ConnectorError, toConnectorError } from "@sallyport/protocol";
import type { FastifyError, FastifyReply, FastifyRequest } from "fastify";
import { hasZodFastifySchemaValidationErrors } from "fastify-type-provider-zod";
import type { Problem } from "./api.ts";
import { traceOf } from "./trace.ts";

interface Issue {
  path: string;
  message: string;
}
interface ZodIssue {
  code?: string;
  path: PropertyKey[];
  message: string;
  errors?: ZodIssue[][];
}

/** One line a field. Of a union, the branch that fits best: what a person most likely meant. */
function issuesOf(place: string, issue: ZodIssue): Issue[] {
  const path = [place, ...issue.path.map(String)].join(".");
  if (issue.code === "invalid_union" && issue.errors !== undefined && issue.errors.length > 0) {
    const best = issue.errors.reduce((a, b) => (b.length < a.length ? b : a));
    return best.flatMap((inner) => issuesOf(path, inner));
  }
  return [{ path, message: issue.message }];
}

const PLACES: Record<string, string> = { body: "body", querystring: "query", params: "path", headers: "headers" };

export function toApiError(value: unknown): ConnectorError {
  if (value instanceof ConnectorError) return value;
  const error = value as FastifyError;
  if (hasZodFastifySchemaValidationErrors(error)) {
    const place = PLACES[String((error as { validationContext?: string }).validationContext)] ?? "body";
    const errors = error.validation.flatMap((issue) => {
      const path = issue.instancePath.split("/").filter((part) => part !== "");
      return issuesOf(place, {
        ...(issue.params as Partial<ZodIssue>),
        code: issue.keyword,
        path,
        message: issue.message ?? "is not valid",
      });
    });
    const first = errors[0];
    const more = errors.length > 1 ? ` (and ${errors.length - 1} more)` : "";
    return new ConnectorError("INPUT_INVALID", `${first?.path ?? place}: ${first?.message ?? "is not valid"}${more}.`, {
      fix: "Mend the fields listed in `errors`; /openapi.json describes what is expected.",
      details: { errors },
      cause: error,
    });
  }
  switch (error?.code) {
    case "FST_ERR_CTP_INVALID_MEDIA_TYPE":
      return new ConnectorError(
        "MEDIA_TYPE_UNSUPPORTED",
        "The request's body has a content type that is not accepted here.",
        { fix: "Send JSON with `Content-Type: application/json`.", cause: error },
      );
    case "FST_ERR_CTP_BODY_TOO_LARGE":
      return new ConnectorError("TOO_LARGE", "The request's body is too large.", {
        fix: "Send at most 1 MiB of JSON.",
        cause: error,
      });
    case "FST_ERR_CTP_EMPTY_JSON_BODY":
    case "FST_ERR_CTP_INVALID_JSON_BODY":
    case "FST_ERR_CTP_INVALID_CONTENT_LENGTH":
    case "FST_ERR_BAD_URL":
    case "FST_ERR_MAX_PARAM_LENGTH":
      return new ConnectorError(
        "INPUT_INVALID",
        error.code === "FST_ERR_BAD_URL"
          ? "The URL's path is not valid percent-encoding."
          : "The request's body is not JSON.",
        { fix: "Send what /openapi.json describes.", cause: error },
      );
    default:
      break;
  }
  if (error?.name === "SyntaxError" && error.statusCode === 400)
    return new ConnectorError("INPUT_INVALID", "The request's body is not JSON.", {
      fix: "Send what /openapi.json describes.",
      cause: error,
    });
  return toConnectorError(value);
}

export function problemOf(
  error: ConnectorError,
  requestId: string,
  instance: string,
  traceId: string | null = null,
): Problem {
  const { errors, ...details } = (error.details ?? {}) as { errors?: Issue[] } & Record<string, unknown>;
  return {
    type: `urn:sallyport:problem:${error.code}`,
    title: STATUS_CODES[error.status] ?? "Cancelled",
    status: error.status,
    detail: error.message,
    instance,
    code: error.code,
    requestId,
    ...(traceId === null ? {} : { traceId }),
    ...(error.fix === undefined ? {} : { fix: error.fix }),
    ...(errors === undefined ? {} : { errors }),
    ...(Object.keys(details).length === 0 ? {} : { details }),
  };
}

/** The path without its query: a query may hold what nobody should log or repeat. */
export const pathOf = (url: string): string => url.split("?", 1)[0]!;

export function answerProblem(request: FastifyRequest, reply: FastifyReply, value: unknown): FastifyReply {
  const error = toApiError(value);
  if (error.status >= 500 && error.code === "INTERNAL")
    request.log.error({ err: error.cause ?? error, code: error.code }, error.message);
  else
    request.log.debug(
      { code: error.code, cause: error.cause instanceof Error ? error.cause.message : undefined },
      error.message,
    );
  const retryAfterS = error.details?.["retryAfterS"];
  if (typeof retryAfterS === "number") void reply.header("retry-after", String(retryAfterS));
  if (error.status === 401) void reply.header("www-authenticate", 'Bearer realm="sallyport"');
  return reply
    .code(error.status)
    .header("content-type", "application/problem+json; charset=utf-8")
    .send(JSON.stringify(problemOf(error, request.id, pathOf(request.url), traceOf(request.raw).context.traceId)));
}
