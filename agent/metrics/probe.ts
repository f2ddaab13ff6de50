// What the agent answers by HTTP: two probes with constant text, and its figures to who may see them. Nothing else.
import type { IncomingMessage, ServerResponse } from "node:http";
import { Figures } from "./figures.ts";

export interface ProbeSources {
  readonly figures: Figures;
  /** Whether work can be taken: the link is up and the agent is not stopping. */
  ready(): boolean;
}

/** `mayRead`: whether this request may see figures. */
export async function answerProbe(
  request: IncomingMessage,
  response: ServerResponse,
  { figures, ready }: ProbeSources,
  mayRead: () => Promise<boolean>,
): Promise<void> {
  const answer = (status: number, text: string, headers: Record<string, string> = {}): void => {
    const body = Buffer.from(text);
    response.writeHead(status, {
      "content-type": "text/plain; charset=utf-8",
      "content-length": body.length,
      "cache-control": "no-store",
      "x-content-type-options": "nosniff",
      ...headers,
    });
    response.end(request.method === "HEAD" ? undefined : body);
  };
  request.resume();
  if (request.method !== "GET" && request.method !== "HEAD")
    return answer(405, "method not allowed\n", { allow: "GET, HEAD" });
  switch ((request.url ?? "").split("?", 1)[0]) {
    case "/healthz":
      return answer(200, "ok\n");
    case "/readyz":
      return ready() ? answer(200, "ready\n") : answer(503, "not ready\n");
    case "/metrics":
      return (await mayRead())
        ? answer(200, figures.text(), { "content-type": Figures.contentType })
        : answer(401, "unauthorized\n", { "www-authenticate": 'Bearer realm="sallyport-agent"' });
    default:
      return answer(404, "not found\n");
  }
}
