// The HTTP API as the CLI calls it. Errors of the API become ApiFailure; a connection that fails names host and cause.
import { request as httpRequest, type IncomingMessage } from "node:http";
import { request as httpsRequest } from "node:https";
import { randomUUID } from "node:crypto";
import type { Problem } from "../http/api.ts";
import type { Context } from "./context.ts";
import { ApiFailure, EndWith, EXIT } from "./exit.ts";

export interface Call {
  method?: string;
  headers?: Record<string, string>;
  json?: unknown;
  /** Raw bytes to send; with `bytes`, their length. */
  body?: AsyncIterable<Uint8Array>;
  /** Answers of 4xx and 5xx that are not the API's own and are the caller's to judge. Absent = none. */
  passes?: (response: IncomingMessage) => boolean;
}

/** Time to the head of an answer; the agent's own deadlines are shorter. Uploads and streams take what they take. */
const HEAD_TIMEOUT_MS = 120_000;

export class Client {
  readonly #context: Context;

  constructor(context: Context) {
    this.#context = context;
  }

  /** The response, its body not read yet. Throws ApiFailure for 4xx and 5xx, unless the call lets it pass. */
  async open(path: string, call: Call = {}): Promise<IncomingMessage> {
    const response = await this.#send(path, call);
    if ((response.statusCode ?? 500) < 400 || call.passes?.(response) === true) return response;
    const text = await textOf(response);
    let problem: Problem;
    try {
      problem = JSON.parse(text) as Problem;
      if (typeof problem.code !== "string") throw new TypeError("not a problem");
    } catch {
      throw new EndWith(
        EXIT.failed,
        `${new URL(path, this.#context.url).host} answered ${response.statusCode} and no problem+json: is it a Sallyport control plane?`,
      );
    }
    throw new ApiFailure(problem);
  }

  async json<T>(path: string, call: Call = {}): Promise<T> {
    return JSON.parse(await textOf(await this.open(path, call))) as T;
  }

  /** A POST that makes something: repeated by hand it would make it twice, so it carries a key. */
  make<T>(path: string, json: unknown): Promise<T> {
    return this.json<T>(path, { method: "POST", json, headers: { "idempotency-key": randomUUID() } });
  }

  /** Everything of a list, page by page, at most `limit` items. */
  async list<T>(path: string, limit = 1000): Promise<T[]> {
    const items: T[] = [];
    let cursor: string | null = null;
    do {
      const join = path.includes("?") ? "&" : "?";
      const page: { items: T[]; nextCursor: string | null } = await this.json(
        `${path}${join}limit=${Math.min(200, limit - items.length)}${cursor === null ? "" : `&cursor=${encodeURIComponent(cursor)}`}`,
      );
      items.push(...page.items);
      cursor = page.nextCursor;
    } while (cursor !== null && items.length < limit);
    return items;
  }

  #send(path: string, call: Call): Promise<IncomingMessage> {
    const { url, token, ca } = this.#context;
    const target = new URL(path, url);
    const json = call.json === undefined ? null : Buffer.from(JSON.stringify(call.json));
    return new Promise((resolve, reject) => {
      const request = (target.protocol === "https:" ? httpsRequest : httpRequest)(target, {
        method: call.method ?? (json === null ? "GET" : "POST"),
        agent: false,
        ...(ca === null ? {} : { ca }),
        headers: {
          ...(token === "" ? {} : { authorization: `Bearer ${token}` }),
          ...(json === null ? {} : { "content-type": "application/json", "content-length": String(json.length) }),
          ...call.headers,
        },
      });
      const timer =
        call.body === undefined
          ? setTimeout(
              () => request.destroy(new Error(`no answer within ${HEAD_TIMEOUT_MS / 1000} s`)),
              HEAD_TIMEOUT_MS,
            )
          : undefined;
      let answered = false;
      request.on("response", (response) => {
        answered = true;
        clearTimeout(timer);
        resolve(response);
      });
      request.on("error", (error: NodeJS.ErrnoException) => {
        clearTimeout(timer);
        if (!answered) reject(new EndWith(EXIT.unreachable, `no answer from ${target.host}: ${describe(error)}`));
      });
      if (call.body === undefined) request.end(json ?? undefined);
      else
        void (async () => {
          for await (const chunk of call.body!) {
            if (answered || request.destroyed) return; // refused before the end
            if (!request.write(chunk))
              await new Promise<void>(
                (go) =>
                  void request
                    .once("drain", go)
                    .once("close", go)
                    .once("response", () => go()),
              );
          }
          request.end();
        })().catch((error: unknown) => {
          request.destroy();
          reject(error as Error);
        });
    });
  }
}

function describe(error: NodeJS.ErrnoException): string {
  switch (error.code) {
    case "ECONNREFUSED":
      return "nothing listens there. Is the control plane running, and is the URL right?";
    case "ENOTFOUND":
      return "the name is not known";
    case "SELF_SIGNED_CERT_IN_CHAIN":
    case "UNABLE_TO_VERIFY_LEAF_SIGNATURE":
    case "DEPTH_ZERO_SELF_SIGNED_CERT":
    case "UNABLE_TO_GET_ISSUER_CERT_LOCALLY":
      return "its certificate is signed by an authority that is not trusted here. Sign in with: sallyport login --ca ca.pem <url>";
    default:
      return error.message;
  }
}

export async function textOf(response: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of response) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks).toString("utf8");
}
