// A steady load on an endpoint while something happens to it: so many clients, each sending its next request when the
// last was answered, over connections that are kept. Every answer is counted, every failure is told.
import { Agent, request } from "node:http";

export interface LoadOptions {
  url: string;
  headers: Record<string, string>;
  body: string;
  clients?: number;
  /** Longer than this is a failure. */
  timeoutMs?: number;
}

export interface LoadResult {
  answered: number;
  /** What went wrong, by its words, with how often. Empty = every request was answered 200. */
  failures: Record<string, number>;
  slowestMs: number;
}

/** Keeps it up until `during` is over; at least one request of each client was answered before and after. */
export async function underLoad(options: LoadOptions, during: () => Promise<void>): Promise<LoadResult> {
  const { url, headers, body, clients = 4, timeoutMs = 30_000 } = options;
  const agent = new Agent({ keepAlive: true, maxSockets: clients });
  const result: LoadResult = { answered: 0, failures: {}, slowestMs: 0 };
  let over = false;
  const send = () =>
    new Promise<string | null>((resolve) => {
      const sent = request(url, {
        method: "POST",
        agent,
        headers: { ...headers, "content-type": "application/json", "content-length": String(Buffer.byteLength(body)) },
        timeout: timeoutMs,
      });
      sent.on("timeout", () => sent.destroy(new Error("no answer in time")));
      sent.on("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
      sent.on("response", (response) => {
        const chunks: Buffer[] = [];
        response.on("data", (chunk: Buffer) => chunks.push(chunk));
        response.on("error", (error) => resolve(`answer broken off: ${error.message}`));
        response.on("end", () =>
          resolve(
            response.statusCode === 200
              ? null
              : `${response.statusCode}: ${Buffer.concat(chunks).toString().slice(0, 200)}`,
          ),
        );
      });
      sent.end(body);
    });
  let begun!: () => void;
  const first = new Promise<void>((resolve) => (begun = resolve));
  const workers = Array.from({ length: clients }, async () => {
    let last = false;
    for (;;) {
      const start = performance.now();
      const failure = await send();
      result.slowestMs = Math.max(result.slowestMs, performance.now() - start);
      if (failure === null) result.answered++;
      else {
        result.failures[failure] = (result.failures[failure] ?? 0) + 1;
        // A refused connection must not become a busy loop.
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
      begun();
      if (last) return;
      last = over;
    }
  });
  try {
    await first;
    await during();
  } finally {
    over = true;
    await Promise.all(workers);
    agent.destroy();
  }
  return result;
}
