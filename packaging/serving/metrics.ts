// What this process counts, in Prometheus' text format 0.0.4: base units (seconds, bytes), no label with an open set of
// values. Written by hand: seven metrics are less than a library.
import { memoryUsage } from "node:process";
import type { Reason } from "./errors.ts";

export type Route = "infer" | "metadata" | "health" | "metrics" | "other";

const SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30];

class Histogram {
  readonly #counts = new Float64Array(SECONDS.length);
  #sum = 0;
  #count = 0;

  observe(seconds: number): void {
    const index = SECONDS.findIndex((bound) => seconds <= bound);
    if (index !== -1) this.#counts[index] = (this.#counts[index] as number) + 1;
    this.#sum += seconds;
    this.#count++;
  }

  *lines(name: string): Generator<string> {
    let below = 0;
    for (const [index, bound] of SECONDS.entries()) {
      below += this.#counts[index] as number;
      yield `${name}_bucket{le="${bound}"} ${below}`;
    }
    yield `${name}_bucket{le="+Inf"} ${this.#count}`;
    yield `${name}_sum ${this.#sum}`;
    yield `${name}_count ${this.#count}`;
  }
}

const quoted = (value: string): string =>
  `"${value.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n")}"`;

export class Metrics {
  readonly #requests = new Map<string, number>();
  readonly #errors = new Map<Reason, number>();
  readonly #whole = new Histogram();
  readonly #run = new Histogram();
  readonly #info: string;
  readonly #startSeconds = Math.round(performance.timeOrigin) / 1000;

  constructor(model: { name: string; version: string; platform: string }) {
    this.#info = `name=${quoted(model.name)},version=${quoted(model.version)},platform=${quoted(model.platform)}`;
  }

  answered(route: Route, status: number): void {
    const key = `route="${route}",code="${status}"`;
    this.#requests.set(key, (this.#requests.get(key) ?? 0) + 1);
  }

  failed(reason: Reason): void {
    this.#errors.set(reason, (this.#errors.get(reason) ?? 0) + 1);
  }

  /** An inference that was answered with 200: from the request's headers to the reply's end. */
  inferred(seconds: number): void {
    this.#whole.observe(seconds);
  }

  ran(seconds: number): void {
    this.#run.observe(seconds);
  }

  text(now: { inFlight: number; ready: boolean }): string {
    const lines: string[] = [];
    const metric = (name: string, type: string, help: string, values: Iterable<string>): void => {
      lines.push(`# HELP ${name} ${help}`, `# TYPE ${name} ${type}`, ...values);
    };
    const counts = (name: string, map: ReadonlyMap<string, number>, label: (key: string) => string) =>
      [...map].map(([key, value]) => `${name}{${label(key)}} ${value}`);
    const p = "sallyport_serving_";
    metric(`${p}model_info`, "gauge", "The model that is served.", [`${p}model_info{${this.#info}} 1`]);
    metric(`${p}ready`, "gauge", "1 when the model is loaded and takes requests.", [`${p}ready ${now.ready ? 1 : 0}`]);
    metric(`${p}requests_total`, "counter", "Requests answered, by route and status code.", [
      ...counts(`${p}requests_total`, this.#requests, (key) => key),
    ]);
    metric(`${p}errors_total`, "counter", "Requests not served, by reason.", [
      ...counts(`${p}errors_total`, this.#errors, (key) => `reason="${key}"`),
    ]);
    metric(`${p}in_flight_requests`, "gauge", "Inferences waiting or being computed.", [
      `${p}in_flight_requests ${now.inFlight}`,
    ]);
    const whole = `${p}request_duration_seconds`;
    metric(whole, "histogram", "Served inferences, from headers to the reply's end.", this.#whole.lines(whole));
    const run = `${p}run_duration_seconds`;
    metric(run, "histogram", "Time in the runtime alone.", this.#run.lines(run));
    metric("process_resident_memory_bytes", "gauge", "Resident memory.", [
      `process_resident_memory_bytes ${memoryUsage.rss()}`,
    ]);
    metric("process_start_time_seconds", "gauge", "Start, in seconds since 1970.", [
      `process_start_time_seconds ${this.#startSeconds}`,
    ]);
    return `${lines.join("\n")}\n`;
  }
}
