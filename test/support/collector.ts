// A collector of traces: takes OTLP over HTTP as JSON, as any collector would, and keeps what came.
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import type { Teardown } from "./launcher.ts";

export interface CollectedSpan {
  readonly service: string;
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId: string | null;
  readonly name: string;
  readonly kind: number;
  readonly attributes: Readonly<Record<string, unknown>>;
  readonly error: string | null;
  readonly startMs: number;
  readonly endMs: number;
}

interface Wire {
  resourceSpans: {
    resource: { attributes: { key: string; value: Record<string, unknown> }[] };
    scopeSpans: {
      spans: {
        traceId: string;
        spanId: string;
        parentSpanId?: string;
        name: string;
        kind: number;
        startTimeUnixNano: string;
        endTimeUnixNano: string;
        attributes: { key: string; value: Record<string, unknown> }[];
        status: { code?: number; message?: string };
      }[];
    }[];
  }[];
}

export interface Collector {
  readonly url: string;
  readonly spans: CollectedSpan[];
  /** Every byte that came, bodies and headers. */
  readonly bytes: Buffer[];
  /** While set, every request is answered with it. */
  refuseWith(status: number | null): void;
}

const plain = (list: { key: string; value: Record<string, unknown> }[]): Record<string, unknown> =>
  Object.fromEntries(list.map(({ key, value }) => [key, Object.values(value)[0]]));

export async function startCollector(t: Teardown): Promise<Collector> {
  const spans: CollectedSpan[] = [];
  const bytes: Buffer[] = [];
  let refused: number | null = null;
  const server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on("data", (chunk: Buffer) => chunks.push(chunk));
    request.on("end", () => {
      const body = Buffer.concat(chunks);
      bytes.push(body, Buffer.from(`${request.url}\n${request.rawHeaders.join("\n")}`));
      if (refused !== null) return void response.writeHead(refused).end();
      if (
        request.method !== "POST" ||
        request.url !== "/v1/traces" ||
        request.headers["content-type"] !== "application/json"
      )
        return void response.writeHead(404).end();
      for (const { resource, scopeSpans } of (JSON.parse(body.toString()) as Wire).resourceSpans)
        for (const span of scopeSpans.flatMap((one) => one.spans))
          spans.push({
            service: String(plain(resource.attributes)["service.name"]),
            traceId: span.traceId,
            spanId: span.spanId,
            parentSpanId: span.parentSpanId ?? null,
            name: span.name,
            kind: span.kind,
            attributes: plain(span.attributes),
            error: span.status.code === 2 ? (span.status.message ?? "") : null,
            startMs: Number(BigInt(span.startTimeUnixNano) / 1000n) / 1000,
            endMs: Number(BigInt(span.endTimeUnixNano) / 1000n) / 1000,
          });
      response.writeHead(200, { "content-type": "application/json" }).end("{}");
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.teardown(
    () =>
      new Promise((resolve) => {
        server.close(resolve);
        server.closeAllConnections();
      }),
  );
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    spans,
    bytes,
    refuseWith: (status) => (refused = status),
  };
}
