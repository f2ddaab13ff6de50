// Speaks HTTP with the control plane that served the page, and with nothing else. Every failure becomes an ApiError
// that carries the problem as the control plane worded it.
import { learnTime } from "./clock.ts";
import type { Problem } from "./types.ts";

export class ApiError extends Error {
  readonly problem: Problem;
  constructor(problem: Problem) {
    super(problem.detail || problem.title);
    this.name = "ApiError";
    this.problem = problem;
  }
}

export const isApiError = (value: unknown): value is ApiError => value instanceof ApiError;
export const problemCode = (value: unknown): string | null => (isApiError(value) ? value.problem.code : null);

/** Idempotency keys. `randomUUID` exists in secure contexts only, and a private control plane may be plain http. */
export function newKey(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function problem(status: number, code: string, title: string, detail: string, fix: string, requestId = ""): Problem {
  return { type: "about:blank", title, status, detail, instance: "", code, requestId, fix };
}

export const noAnswer = (): ApiError =>
  new ApiError(
    problem(
      0,
      "NO_ANSWER",
      "No answer",
      "The control plane did not answer.",
      "Check that it is running and that this machine reaches it; the page tries again by itself.",
    ),
  );

/** The problem of a response that is not ok, whatever its body is. */
export async function errorOf(response: Response): Promise<ApiError> {
  const requestId = response.headers.get("x-request-id") ?? "";
  const text = await response.text().catch(() => "");
  try {
    const body = JSON.parse(text) as Partial<Problem>;
    if (typeof body.code === "string" && typeof body.detail === "string") {
      return new ApiError({ ...problem(response.status, body.code, "", "", ""), requestId, ...body } as Problem);
    }
  } catch {
    // Not a problem document: something between the page and the control plane answered.
  }
  return new ApiError({
    ...problem(
      response.status,
      "UNEXPECTED_ANSWER",
      "Unexpected answer",
      `Something answered ${response.status} ${response.statusText} in place of the control plane.`,
      "If there is a proxy before the control plane, look into its log.",
      requestId,
    ),
  });
}

interface Options {
  body?: unknown;
  headers?: Record<string, string>;
  signal?: AbortSignal | undefined;
}

export async function send(method: string, path: string, options: Options = {}): Promise<Response> {
  const headers: Record<string, string> = { accept: "application/json", ...options.headers };
  if (method === "POST") headers["idempotency-key"] ??= newKey();
  const init: RequestInit = { method, headers, credentials: "same-origin", signal: options.signal ?? null };
  if (options.body !== undefined) {
    headers["content-type"] = "application/json";
    init.body = JSON.stringify(options.body);
  }
  let response: Response;
  try {
    response = await fetch(path, init);
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw noAnswer();
  }
  learnTime(response.headers.get("date"));
  if (!response.ok) throw await errorOf(response);
  return response;
}

async function json<T>(method: string, path: string, options?: Options): Promise<T> {
  const response = await send(method, path, options);
  if (response.status === 204) return undefined as T;
  const text = await response.text();
  return (text === "" ? undefined : JSON.parse(text)) as T;
}

export const api = {
  get: <T>(path: string, signal?: AbortSignal): Promise<T> => json<T>("GET", path, { signal }),
  post: <T>(path: string, body?: unknown, headers: Record<string, string> = {}): Promise<T> =>
    json<T>("POST", path, body === undefined ? { headers } : { body, headers }),
  put: <T>(path: string, body: unknown, headers: Record<string, string> = {}): Promise<T> =>
    json<T>("PUT", path, { body, headers }),
  patch: <T>(path: string, body: unknown): Promise<T> => json<T>("PATCH", path, { body }),
  delete: <T>(path: string, headers: Record<string, string> = {}): Promise<T> => json<T>("DELETE", path, { headers }),
};

/** `?a=1&b=2` of what is set. */
export function query(params: Record<string, string | number | boolean | null | undefined>): string {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) {
    if (value !== undefined && value !== null && value !== "") search.set(name, String(value));
  }
  const text = search.toString();
  return text === "" ? "" : `?${text}`;
}

const storeUrl = (pool: string, store: string) =>
  `/v1/pools/${encodeURIComponent(pool)}/stores/${encodeURIComponent(store)}`;
export const artifactUrls = {
  list: (pool: string, store: string, path: string, cursor?: string | null) =>
    `${storeUrl(pool, store)}/artifacts${query({ path, cursor, limit: 500 })}`,
  stat: (pool: string, store: string, path: string, digest = false) =>
    `${storeUrl(pool, store)}/stat${query({ path, digest: digest || undefined })}`,
  preview: (pool: string, store: string, path: string, rows?: number) =>
    `${storeUrl(pool, store)}/preview${query({ path, rows })}`,
  content: (pool: string, store: string, path: string) => `${storeUrl(pool, store)}/content${query({ path })}`,
};

/** Sends a file with progress, which `fetch` cannot report. Resolves with the written artifact. */
export function upload<T>(
  url: string,
  file: Blob,
  headers: Record<string, string>,
  onProgress: (sentBytes: number) => void,
  signal: AbortSignal,
): Promise<T> {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PUT", url);
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => onProgress(event.loaded);
    request.onerror = () => reject(noAnswer());
    request.onabort = () => reject(new DOMException("Stopped", "AbortError"));
    request.onload = () => {
      if (request.status >= 200 && request.status < 300) return resolve(JSON.parse(request.responseText) as T);
      const response = new Response(request.responseText, {
        status: request.status,
        headers: { "x-request-id": request.getResponseHeader("x-request-id") ?? "" },
      });
      void errorOf(response).then(reject);
    };
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.send(file);
  });
}
