// The server's side of the model's thread: starts it, keeps the bounded queue before it, and gives each request its
// deadline. A request that nobody waits for any more is dropped from the queue; one that is being computed cannot be
// stopped (the runtime's binding has no way), so its place is free again only when the computing ends.
import { performance } from "node:perf_hooks";
import { Worker } from "node:worker_threads";
import { isOutOfMemory, RequestError, StartError } from "./errors.ts";
import type { InferReply, Signature } from "./infer.ts";
import type { FromWorker, ToWorker, WorkerData } from "./model-worker.ts";

export interface HostOptions extends WorkerData {
  /** Requests waiting or being computed, together. */
  inFlightMax: number;
  /** From the body's end to the reply. */
  deadlineMs: number;
  onRun(runMs: number): void;
}

export interface Loaded {
  signature: Signature;
  notServed: readonly string[];
  loadMs: number;
}

interface Job {
  id: number;
  body: Uint8Array<ArrayBuffer>;
  headerLength: number | undefined;
  settled: boolean;
  resolve(reply: InferReply): void;
  reject(error: RequestError): void;
}

/** The thread reads its next request while this one's reply is on its way: one more than it can work at. */
const AT_WORKER_MAX = 2;

export class ModelHost {
  /** Resolves when the model can serve; rejects with StartError when it never will. */
  readonly loaded: Promise<Loaded>;
  /** When the thread has ended; rejects when it ended by itself, after the model was loaded. */
  readonly ended: Promise<void>;
  readonly #options: HostOptions;
  readonly #worker: Worker;
  readonly #waiting: Job[] = [];
  readonly #atWorker = new Map<number, Job>();
  #nextId = 1;
  #isLoaded = false;
  #stopping = false;
  /** Since when the thread has owed the next reply; undefined: it is idle. */
  #owedSince: number | undefined;

  constructor(options: HostOptions) {
    this.#options = options;
    const { file, threads, name, version } = options;
    // Its own extension: the file is .ts when the sources run, .js in the compiled tree.
    const entry = new URL(`./model-worker${import.meta.url.endsWith(".ts") ? ".ts" : ".js"}`, import.meta.url);
    this.#worker = new Worker(entry, { workerData: { file, threads, name, version } satisfies WorkerData });
    const loaded = Promise.withResolvers<Loaded>();
    const ended = Promise.withResolvers<void>();
    this.loaded = loaded.promise;
    this.ended = ended.promise;
    // Both have a reader in main.ts; until it reads, a rejection is not unhandled.
    this.loaded.catch(() => {});
    this.ended.catch(() => {});
    let failure: StartError | undefined;
    this.#worker.on("message", (message: FromWorker) => {
      if (message.kind === "loaded") {
        this.#isLoaded = true;
        loaded.resolve(message);
      } else if (message.kind === "refused") loaded.reject(new StartError(message.code, message.message));
      else this.#settle(message);
    });
    this.#worker.on("error", (error: unknown) => {
      failure = isOutOfMemory(error)
        ? new StartError("OUT_OF_MEMORY", "The memory does not suffice for the model's thread.")
        : new StartError("INTERNAL", "The model's thread ended by a fault.");
      loaded.reject(failure);
    });
    this.#worker.on("exit", () => {
      failure ??= this.#stopping ? undefined : new StartError("INTERNAL", "The model's thread ended by itself.");
      this.#isLoaded = false;
      for (const job of [...this.#atWorker.values(), ...this.#waiting.splice(0)])
        this.#fail(job, new RequestError(503, "not_ready", "The model's thread has ended."));
      this.#atWorker.clear();
      loaded.reject(failure ?? new StartError("INTERNAL", "The model's thread ended while it was loading."));
      if (failure === undefined) ended.resolve();
      else ended.reject(failure);
    });
  }

  /** False also while one computation has outlasted the deadline: another replica should have the next request. */
  get ready(): boolean {
    const stuck = this.#owedSince !== undefined && performance.now() - this.#owedSince > this.#options.deadlineMs;
    return this.#isLoaded && !this.#stopping && !stuck;
  }

  get inFlight(): number {
    return this.#waiting.length + this.#atWorker.size;
  }

  /** The body is handed over: its memory moves to the model's thread. `gone`: nobody waits for the reply any more. */
  infer(body: Uint8Array<ArrayBuffer>, headerLength: number | undefined, gone: AbortSignal): Promise<InferReply> {
    if (!this.#isLoaded) throw new RequestError(503, "not_ready", "The model is not loaded yet.");
    if (this.inFlight >= this.#options.inFlightMax)
      throw new RequestError(
        503,
        "overloaded",
        `${this.inFlight} requests are waiting already, which is the limit: try again later.`,
      );
    const { promise, resolve, reject } = Promise.withResolvers<InferReply>();
    const { deadlineMs } = this.#options;
    const end = (error: RequestError) => {
      const index = this.#waiting.indexOf(job);
      if (index !== -1) this.#waiting.splice(index, 1);
      this.#fail(job, error);
    };
    const onGone = () => end(new RequestError(499, "timeout", "The caller has gone."));
    const timer = setTimeout(
      () => end(new RequestError(504, "timeout", `The model gave no answer within ${deadlineMs / 1000} s.`)),
      deadlineMs,
    );
    gone.addEventListener("abort", onGone, { once: true });
    const release = () => {
      clearTimeout(timer);
      gone.removeEventListener("abort", onGone);
    };
    const job: Job = {
      id: this.#nextId++,
      body,
      headerLength,
      settled: false,
      resolve: (reply) => (release(), resolve(reply)),
      reject: (error) => (release(), reject(error)),
    };
    this.#waiting.push(job);
    this.#feed();
    return promise;
  }

  /** Lets the thread finish what it computes and end. */
  stop(): void {
    if (this.#stopping) return;
    this.#stopping = true;
    this.#worker.postMessage({ kind: "stop" } satisfies ToWorker);
  }

  #feed(): void {
    while (this.#atWorker.size < AT_WORKER_MAX) {
      const job = this.#waiting.shift();
      if (job === undefined) return;
      this.#owedSince ??= performance.now();
      this.#atWorker.set(job.id, job);
      const { id, body, headerLength } = job;
      this.#worker.postMessage({ kind: "infer", id, body, headerLength } satisfies ToWorker, [body.buffer]);
    }
  }

  #settle(message: FromWorker & { kind: "reply" | "failed" }): void {
    const job = this.#atWorker.get(message.id);
    this.#atWorker.delete(message.id);
    this.#owedSince = this.#atWorker.size === 0 ? undefined : performance.now();
    this.#feed();
    if (job === undefined) return;
    if (message.kind === "failed") {
      this.#fail(job, new RequestError(message.status, message.reason, message.message));
      return;
    }
    this.#options.onRun(message.runMs);
    if (job.settled) return;
    job.settled = true;
    const { body, headerLength } = message;
    job.resolve(headerLength === undefined ? { body } : { body, headerLength });
  }

  #fail(job: Job, error: RequestError): void {
    if (job.settled) return;
    job.settled = true;
    job.reject(error);
  }
}
