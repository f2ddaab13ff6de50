// The thread that holds the model: loads it, then answers one request after the other, from bytes to bytes. JSON is
// parsed and written here too, so that neither it nor the model ever keeps the server's thread from a health check.
// Entry of a worker; nothing imports it but the types.
import { performance } from "node:perf_hooks";
import { parentPort, workerData } from "node:worker_threads";
import { RequestError, StartError, runtimeSentence, type Reason, type StartCode } from "./errors.ts";
import { readRequest, writeReply, type Signature } from "./infer.ts";
import { loadModel, type Model } from "./model.ts";

export interface WorkerData {
  file: string;
  threads: number;
  name: string;
  version: string;
}
export type ToWorker =
  | { kind: "infer"; id: number; body: Uint8Array<ArrayBuffer>; headerLength: number | undefined }
  | { kind: "stop" };
export type FromWorker =
  | { kind: "loaded"; signature: Signature; notServed: readonly string[]; loadMs: number }
  | { kind: "refused"; code: StartCode; message: string }
  | {
      kind: "reply";
      id: number;
      body: Uint8Array<ArrayBuffer>;
      headerLength: number | undefined;
      /** In the runtime alone, without the reading and writing of tensors. */
      runMs: number;
    }
  | { kind: "failed"; id: number; status: number; reason: Reason; message: string };

const port = parentPort;
if (port === null) throw new Error("model-worker is the entry of a worker thread");
const { file, threads, name, version } = workerData as WorkerData;
const send = (message: FromWorker, transfer: ArrayBuffer[] = []): void => port.postMessage(message, transfer);

async function infer(model: Model, { id, body, headerLength }: ToWorker & { kind: "infer" }): Promise<void> {
  try {
    const request = readRequest(body, headerLength, model.signature);
    const begin = performance.now();
    const outputs = await model.run(request);
    const runMs = performance.now() - begin;
    const reply = writeReply({ name, version }, request, outputs);
    send({ kind: "reply", id, body: reply.body, headerLength: reply.headerLength, runMs }, [reply.body.buffer]);
  } catch (error) {
    if (error instanceof RequestError) {
      send({ kind: "failed", id, status: error.status, reason: error.reason, message: error.message });
    } else if (error instanceof RangeError) {
      // A string or buffer beyond what the engine can hold.
      const message = "The reply is too large: expected fewer outputs, or binary_data for them.";
      send({ kind: "failed", id, status: 500, reason: "output", message });
    } else {
      const message = `The request could not be computed: ${runtimeSentence(error)}`;
      send({ kind: "failed", id, status: 500, reason: "internal", message });
    }
  }
}

try {
  const begin = performance.now();
  const model = await loadModel(file, threads);
  port.on("message", (message: ToWorker) => {
    if (message.kind === "infer") void infer(model, message);
    else void model.release().finally(() => port.close());
  });
  const loadMs = performance.now() - begin;
  send({ kind: "loaded", signature: model.signature, notServed: model.notServed, loadMs });
} catch (error) {
  if (error instanceof StartError) send({ kind: "refused", code: error.code, message: error.message });
  else send({ kind: "refused", code: "INTERNAL", message: `The model could not be loaded: ${runtimeSentence(error)}` });
  port.close();
}
