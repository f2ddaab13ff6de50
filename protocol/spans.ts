// How either end tells a collector of its spans: OTLP over HTTP, as JSON. One implementation, so that a trace reads the same
// from both. Nothing of it crosses the link: each end exports by its own configuration, or not at all.
//
// It never holds up the work that it tells of: a full queue drops, a collector that does not answer is waited for aside.
import type { Clock, Timer } from "./clock.ts";
import { ConnectorError } from "./errors.ts";
import type { TraceContext } from "./trace.ts";

export interface Span {
  readonly name: string;
  readonly kind: "internal" | "server" | "client" | "consumer";
  readonly context: TraceContext;
  /** Null: the trace begins here. */
  readonly parentSpanId: string | null;
  /** ms since the epoch. */
  readonly startMs: number;
  readonly endMs: number;
  readonly attributes: Readonly<Record<string, string | number | boolean>>;
  /** Code of the failure; null = it went well. */
  readonly error: string | null;
}

export interface Spans {
  record(span: Span): void;
}
/** Nothing is exported. */
export const noSpans: Spans = { record() {} };

export interface SpanCounts {
  exported: number;
  /** The queue was full, or the collector refused or was away for too long. */
  dropped: number;
}

export interface ExporterOptions {
  /** The collector's address for traces, e.g. `http://127.0.0.1:4318/v1/traces`. */
  readonly url: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly service: string;
  readonly version: string;
  readonly clock: Clock;
  /** Told once when exporting begins to fail and once when it works again. */
  readonly onTrouble?: (error: ConnectorError | null) => void;
}

const QUEUE = 4096;
const BATCH = 512;
const EVERY_MS = 1_000;
const ANSWER_MS = 10_000;
const RETRIES = 3;
const RETRY_MS = 2_000;
const ANSWER_BYTES = 64 * 1024;
const KINDS = { internal: 1, server: 2, client: 3, consumer: 5 } as const;

const nanos = (ms: number): string => (BigInt(Math.round(ms * 1000)) * 1000n).toString();
const valueOf = (value: string | number | boolean) =>
  typeof value === "string"
    ? { stringValue: value }
    : typeof value === "boolean"
      ? { boolValue: value }
      : Number.isInteger(value)
        ? { intValue: String(value) }
        : { doubleValue: value };
const attributesOf = (record: Readonly<Record<string, string | number | boolean>>) =>
  Object.entries(record).map(([key, value]) => ({ key, value: valueOf(value) }));

export class SpanExporter implements Spans {
  readonly counts: SpanCounts = { exported: 0, dropped: 0 };
  readonly #options: ExporterOptions;
  #queue: Span[] = [];
  #timer: Timer | null = null;
  #sending: Promise<void> | null = null;
  #troubled = false;

  constructor(options: ExporterOptions) {
    this.#options = options;
  }

  record(span: Span): void {
    if (!span.context.sampled) return;
    if (this.#queue.length >= QUEUE) {
      this.counts.dropped++;
      return;
    }
    this.#queue.push(span);
    if (this.#queue.length >= BATCH) this.#send();
    else this.#timer ??= this.#options.clock.after(EVERY_MS, () => this.#send());
  }

  /** Sends what waits, within `withinMs`; what is left then is dropped. */
  async close(withinMs: number): Promise<void> {
    let late = false;
    let expire!: () => void;
    const over = new Promise<void>((resolve) => {
      expire = resolve;
    });
    const deadline = this.#options.clock.after(
      withinMs,
      () => {
        late = true;
        expire();
      },
      { keepAlive: true },
    );
    while (!late && (this.#queue.length > 0 || this.#sending !== null)) {
      this.#send();
      await Promise.race([this.#sending, over]);
    }
    deadline.cancel();
    this.#timer?.cancel();
    this.counts.dropped += this.#queue.length;
    this.#queue = [];
  }

  /** One request at a time. */
  #send(): void {
    this.#timer?.cancel();
    this.#timer = null;
    if (this.#sending !== null || this.#queue.length === 0) return;
    const batch = this.#queue.splice(0, BATCH);
    this.#sending = this.#deliver(batch).finally(() => {
      this.#sending = null;
      if (this.#queue.length >= BATCH) this.#send();
      else if (this.#queue.length > 0) this.#timer ??= this.#options.clock.after(EVERY_MS, () => this.#send());
    });
  }

  async #deliver(batch: readonly Span[]): Promise<void> {
    const body = JSON.stringify(this.#requestOf(batch));
    for (let attempt = 1; ; attempt++) {
      const outcome = await this.#post(body).catch((cause: unknown) => ({
        retry: true,
        why: "does not answer",
        cause,
      }));
      if (outcome === null) {
        this.counts.exported += batch.length;
        this.#trouble(null);
        return;
      }
      this.#trouble(
        new ConnectorError("INTERNAL", `The collector of traces at ${this.#options.url} ${outcome.why}.`, {
          fix: "Check OTEL_EXPORTER_OTLP_ENDPOINT; spans are dropped meanwhile and work goes on.",
          ...("cause" in outcome ? { cause: outcome.cause } : {}),
        }),
      );
      if (!outcome.retry || attempt > RETRIES) {
        this.counts.dropped += batch.length;
        return;
      }
      await new Promise<void>((resolve) => this.#options.clock.after(RETRY_MS * attempt, resolve));
    }
  }

  #trouble(error: ConnectorError | null): void {
    if ((error !== null) === this.#troubled) return;
    this.#troubled = error !== null;
    this.#options.onTrouble?.(error);
  }

  /** Null: taken. */
  async #post(body: string): Promise<{ retry: boolean; why: string } | null> {
    const { url, headers, clock } = this.#options;
    const { request } = await (url.startsWith("https:") ? import("node:https") : import("node:http"));
    return new Promise((resolve, reject) => {
      const sent = request(url, {
        method: "POST",
        headers: { ...headers, "content-type": "application/json", "content-length": Buffer.byteLength(body) },
      });
      const late = clock.after(ANSWER_MS, () => sent.destroy(new Error("no answer")));
      const failed = (error: Error) => {
        late.cancel();
        reject(error);
      };
      sent.on("error", failed);
      sent.on("response", (answer) => {
        let bytes = 0;
        answer.on("data", (chunk: Buffer) => {
          bytes += chunk.length;
          if (bytes > ANSWER_BYTES) answer.destroy();
        });
        answer.on("error", failed);
        answer.on("close", () => {
          late.cancel();
          const status = answer.statusCode ?? 0;
          if (status >= 200 && status < 300) return resolve(null);
          resolve({ retry: status === 429 || status >= 500, why: `answered ${status}` });
        });
      });
      sent.end(body);
    });
  }

  #requestOf(batch: readonly Span[]): unknown {
    const { service, version } = this.#options;
    return {
      resourceSpans: [
        {
          resource: { attributes: attributesOf({ "service.name": service, "service.version": version }) },
          scopeSpans: [
            {
              scope: { name: "sallyport", version },
              spans: batch.map((span) => ({
                traceId: span.context.traceId,
                spanId: span.context.spanId,
                ...(span.parentSpanId === null ? {} : { parentSpanId: span.parentSpanId }),
                name: span.name,
                kind: KINDS[span.kind],
                startTimeUnixNano: nanos(span.startMs),
                endTimeUnixNano: nanos(Math.max(span.startMs, span.endMs)),
                attributes: attributesOf(
                  span.error === null ? span.attributes : { ...span.attributes, "error.type": span.error },
                ),
                status: span.error === null ? {} : { code: 2, message: span.error },
              })),
            },
          ],
        },
      ],
    };
  }
}

/** What the environment says of exporting, by OpenTelemetry's own variables; null = nothing is exported. Throws CONFIG_INVALID. */
export function exporterFromEnvironment(
  environment: Readonly<Record<string, string | undefined>>,
): (Pick<ExporterOptions, "url" | "headers"> & { service: string | null }) | null {
  const set = (name: string): string | null => environment[name]?.trim() || null;
  const exact = set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
  const base = set("OTEL_EXPORTER_OTLP_ENDPOINT");
  const text = exact ?? (base === null ? null : `${base.replace(/\/+$/, "")}/v1/traces`);
  if (text === null || set("OTEL_SDK_DISABLED")?.toLowerCase() === "true") return null;
  const url = URL.parse(text);
  if (url === null || !["http:", "https:"].includes(url.protocol) || url.username !== "" || url.password !== "")
    throw new ConnectorError(
      "CONFIG_INVALID",
      "OTEL_EXPORTER_OTLP_ENDPOINT is not an http or https address without user and password.",
      {
        fix: "Give the collector's address, such as http://127.0.0.1:4318; a key goes into OTEL_EXPORTER_OTLP_HEADERS.",
      },
    );
  const headers: Record<string, string> = {};
  for (const pair of (set("OTEL_EXPORTER_OTLP_TRACES_HEADERS") ?? set("OTEL_EXPORTER_OTLP_HEADERS") ?? "").split(",")) {
    const at = pair.indexOf("=");
    const name = pair.slice(0, at).trim();
    if (at < 1 || !/^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/.test(name)) continue;
    const value = decode(pair.slice(at + 1).trim());
    if (value !== null && /^[\t\x20-\x7e]*$/.test(value)) headers[name.toLowerCase()] = value;
  }
  return { url: url.href, headers, service: set("OTEL_SERVICE_NAME") };
}

function decode(text: string): string | null {
  try {
    return decodeURIComponent(text);
  } catch {
    return null;
  }
}
