// The HTTP half that node-vault is given in place of its own. Its own (axios) follows redirects with the token in a
// header, honours proxy variables and VAULT_SKIP_VERIFY: each could carry the token elsewhere. This one goes to the
// configured origin and nowhere else.
import { request as httpRequest } from "node:http";
import { request as httpsRequest } from "node:https";

const TIMEOUT_MS = 10_000;
/** A KV secret is at most 1 MiB in Vault. */
const MAX_ANSWER_BYTES = 2 * 1024 * 1024;

export interface VaultAnswer {
  statusCode: number;
  body: unknown;
  request: { path: string };
}

export interface VaultRequestOptions {
  method: string;
  uri: string;
  headers?: Record<string, string>;
}

/** Named failures of our own making, beside Node's. */
export class VaultRequestError extends Error {
  readonly code: "ELSEWHERE" | "EREDIRECT" | "ETOOLARGE" | "ETIMEDOUT" | "ENOTJSON";
  constructor(code: VaultRequestError["code"]) {
    super(code);
    this.code = code;
  }
}

export function vaultRequest(
  origin: string,
  ca: string | null,
  signal: AbortSignal | undefined,
  options: VaultRequestOptions,
): Promise<VaultAnswer> {
  const url = new URL(options.uri);
  if (url.origin !== origin) return Promise.reject(new VaultRequestError("ELSEWHERE"));
  const request = url.protocol === "https:" ? httpsRequest : httpRequest;
  return new Promise((resolve, reject) => {
    const sent = request(
      url,
      {
        method: options.method,
        headers: options.headers,
        agent: false,
        rejectUnauthorized: true,
        ...(ca === null ? {} : { ca }),
        ...(signal === undefined ? {} : { signal }),
      },
      (answer) => {
        const chunks: Buffer[] = [];
        let size = 0;
        answer.on("data", (chunk: Buffer) => {
          size += chunk.length;
          if (size > MAX_ANSWER_BYTES) sent.destroy(new VaultRequestError("ETOOLARGE"));
          else chunks.push(chunk);
        });
        answer.on("error", reject);
        answer.on("end", () => {
          const statusCode = answer.statusCode ?? 0;
          if (statusCode >= 300 && statusCode < 400) return reject(new VaultRequestError("EREDIRECT"));
          const text = Buffer.concat(chunks).toString();
          let body: unknown = null;
          try {
            body = text === "" ? null : (JSON.parse(text) as unknown);
          } catch {
            if (statusCode === 200) return reject(new VaultRequestError("ENOTJSON"));
          }
          return resolve({ statusCode, body, request: { path: url.pathname } });
        });
      },
    );
    sent.setTimeout(TIMEOUT_MS, () => sent.destroy(new VaultRequestError("ETIMEDOUT")));
    sent.on("error", reject);
    sent.end();
  });
}
