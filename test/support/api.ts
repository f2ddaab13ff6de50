// A client of the HTTP API for tests: what the page does, without a page. Errors keep status and problem+json.
import { request as httpRequest, type IncomingMessage } from "node:http";
import { request as httpsRequest } from "node:https";
import type { Problem } from "../../cloud/http/api.ts";

export interface Answer {
  status: number;
  headers: IncomingMessage["headers"];
  body: Buffer;
  json<T = unknown>(): T;
}

export class ApiProblem extends Error {
  readonly status: number;
  readonly problem: Problem;
  constructor(status: number, problem: Problem) {
    super(`${status} ${problem.code}: ${problem.detail}`);
    this.status = status;
    this.problem = problem;
  }
}

export interface Call {
  method?: string;
  headers?: Record<string, string>;
  /** Sent as JSON. */
  json?: unknown;
  body?: Uint8Array | AsyncIterable<Uint8Array>;
}

export class TestApi {
  readonly url: string;
  readonly ca: string | undefined;
  token: string | null = null;

  constructor(url: string, ca?: string) {
    this.url = url;
    this.ca = ca;
  }

  /** The raw response, its body not read yet. */
  open(path: string, call: Call = {}): Promise<IncomingMessage> {
    const url = new URL(path, this.url);
    const payload = call.json === undefined ? call.body : Buffer.from(JSON.stringify(call.json));
    const send = url.protocol === "https:" ? httpsRequest : httpRequest;
    return new Promise((resolve, reject) => {
      const request = send(url, {
        method: call.method ?? (payload === undefined ? "GET" : "POST"),
        agent: false,
        ...(this.ca === undefined ? {} : { ca: this.ca }),
        headers: {
          ...(call.json === undefined ? {} : { "content-type": "application/json" }),
          ...(this.token === null ? {} : { authorization: `Bearer ${this.token}` }),
          ...(payload instanceof Uint8Array ? { "content-length": String(payload.length) } : {}),
          ...call.headers,
        },
      });
      request.on("response", resolve);
      request.on("error", reject);
      if (payload === undefined || payload instanceof Uint8Array) request.end(payload);
      else
        void (async () => {
          for await (const chunk of payload) {
            if (!request.write(chunk)) await new Promise((drained) => request.once("drain", drained));
          }
          request.end();
        })().catch((error: unknown) => request.destroy(error as Error));
    });
  }

  async call(path: string, call: Call = {}): Promise<Answer> {
    const response = await this.open(path, call);
    const chunks: Buffer[] = [];
    for await (const chunk of response) chunks.push(chunk as Buffer);
    const body = Buffer.concat(chunks);
    return {
      status: response.statusCode ?? 0,
      headers: response.headers,
      body,
      json: <T>() => JSON.parse(body.toString()) as T,
    };
  }

  /** The JSON of a success; throws ApiProblem otherwise. */
  async json<T>(path: string, call: Call = {}): Promise<T> {
    const answer = await this.call(path, call);
    if (answer.status >= 400) throw new ApiProblem(answer.status, answer.json<Problem>());
    return answer.json<T>();
  }

  /** The problem of a call that must fail. */
  async problem(path: string, call: Call = {}): Promise<Problem & { contentType: string }> {
    const answer = await this.call(path, call);
    if (answer.status < 400)
      throw new Error(`${call.method ?? "GET"} ${path} answered ${answer.status}, a problem was expected`);
    return { ...answer.json<Problem>(), contentType: String(answer.headers["content-type"]) };
  }

  /** Spends a one-time sign-in URL for a session cookie, and the cookie for an API token. */
  async signIn(signInUrl: string): Promise<void> {
    const origin = new URL(this.url).origin;
    const session = await this.call("/v1/session", {
      json: { signin: new URL(signInUrl).hash.slice(1) },
      headers: { origin },
    });
    if (session.status >= 400) throw new ApiProblem(session.status, session.json<Problem>());
    const cookie = (session.headers["set-cookie"] ?? []).map((line) => line.split(";")[0]).join("; ");
    const made = await this.json<{ token: string }>("/v1/tokens", {
      json: { label: "test" },
      headers: { cookie, origin },
    });
    this.token = made.token;
  }
}
