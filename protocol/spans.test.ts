// The exporter against a real receiver that is slow, away or refuses; and what the environment may say.
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import t, { type Test } from "tap";
import { systemClock } from "./clock.ts";
import { exporterFromEnvironment, SpanExporter, type Span } from "./spans.ts";
import { childOf } from "./trace.ts";

const span = (sampled = true): Span => ({
  name: "one",
  kind: "server",
  context: { ...childOf(null), sampled },
  parentSpanId: null,
  startMs: 1_700_000_000_000.25,
  endMs: 1_700_000_000_001.5,
  attributes: { text: "a", count: 2, part: 0.5, yes: true },
  error: null,
});

async function receiver(
  t: Test,
  answer: (bodies: string[]) => number | null,
): Promise<{ url: string; bodies: string[] }> {
  const bodies: string[] = [];
  const server: Server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on("data", (chunk: Buffer) => chunks.push(chunk));
    request.on("end", () => {
      bodies.push(Buffer.concat(chunks).toString());
      const status = answer(bodies);
      if (status !== null) response.writeHead(status).end();
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.teardown(() => {
    server.close();
    server.closeAllConnections();
  });
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1/traces`, bodies };
}
const exporter = (url: string) =>
  new SpanExporter({ url, headers: {}, service: "s", version: "1", clock: systemClock });

t.test("what a collector gets", async (t) => {
  const { url, bodies } = await receiver(t, () => 200);
  const one = exporter(url);
  const sent = span();
  one.record(sent);
  one.record(span(false));
  await one.close(5_000);
  t.same(one.counts, { exported: 1, dropped: 0 }, "the one that is not sampled counts as nothing");
  const [{ resource, scopeSpans }] = (
    JSON.parse(bodies[0]!) as { resourceSpans: [{ resource: unknown; scopeSpans: unknown[] }] }
  ).resourceSpans;
  t.match(resource, { attributes: [{ key: "service.name", value: { stringValue: "s" } }, {}] });
  t.match(scopeSpans[0], {
    spans: [
      {
        traceId: sent.context.traceId,
        spanId: sent.context.spanId,
        kind: 2,
        startTimeUnixNano: "1700000000000250000",
        endTimeUnixNano: "1700000000001500000",
        attributes: [
          { key: "text", value: { stringValue: "a" } },
          { key: "count", value: { intValue: "2" } },
          { key: "part", value: { doubleValue: 0.5 } },
          { key: "yes", value: { boolValue: true } },
        ],
        status: {},
      },
    ],
  });
});

t.test("a receiver that never answers: memory is bounded, nothing waits, all is counted", async (t) => {
  const { url, bodies } = await receiver(t, () => null);
  const one = exporter(url);
  const beganMs = performance.now();
  for (let n = 0; n < 50_000; n++) one.record(span());
  t.ok(performance.now() - beganMs < 5_000, "recording does not wait");
  await one.close(300);
  t.equal(bodies.length <= 1, true, "one request at a time");
  t.ok(one.counts.dropped >= 50_000 - 512, "all but those under way");
});

t.test("busy once, then well: nothing is lost; refused for good: dropped at once", async (t) => {
  const busy = await receiver(t, (bodies) => (bodies.length === 1 ? 503 : 200));
  const patient = exporter(busy.url);
  patient.record(span());
  await patient.close(10_000);
  t.same(patient.counts, { exported: 1, dropped: 0 });
  t.equal(busy.bodies.length, 2);
  const refusing = await receiver(t, () => 400);
  const refused = exporter(refusing.url);
  refused.record(span());
  await refused.close(10_000);
  t.same(refused.counts, { exported: 0, dropped: 1 });
  t.equal(refusing.bodies.length, 1);
});

t.test("the environment", async (t) => {
  t.equal(exporterFromEnvironment({}), null);
  t.equal(exporterFromEnvironment({ OTEL_EXPORTER_OTLP_ENDPOINT: "http://c:4318", OTEL_SDK_DISABLED: "true" }), null);
  t.match(exporterFromEnvironment({ OTEL_EXPORTER_OTLP_ENDPOINT: "http://c:4318/" }), {
    url: "http://c:4318/v1/traces",
  });
  t.match(
    exporterFromEnvironment({
      OTEL_EXPORTER_OTLP_ENDPOINT: "http://c:4318",
      OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: "https://d/own",
      OTEL_EXPORTER_OTLP_HEADERS: "api-key=a%20b, bad name=x,Other=1=2,broken=%zz,line=a%0d%0ab",
      OTEL_SERVICE_NAME: "lab",
    }),
    { url: "https://d/own", headers: { "api-key": "a b", other: "1=2" }, service: "lab" },
  );
  for (const bad of ["c:4318", "ftp://c", "http://user:secret@c"])
    t.throws(() => exporterFromEnvironment({ OTEL_EXPORTER_OTLP_ENDPOINT: bad }), { code: "CONFIG_INVALID" });
});
