// One ONNX model in ONNX Runtime: load, what it takes and gives, run. Everything here blocks its thread (the binding's
// run and load are synchronous under their promises), so only model-worker.ts may import it.
import { readFileSync, statSync } from "node:fs";
import * as ort from "onnxruntime-node";
import { isOutOfMemory, RequestError, runtimeSentence, StartError } from "./errors.ts";
import type { InferRequest, Signature, Tensor, TensorInfo } from "./infer.ts";
import { readOnnxFile } from "./onnx-file.ts";
import { datatypeOf, runtimeType, type TensorData } from "./tensors.ts";

export interface Model {
  readonly signature: Signature;
  /** Outputs that are no tensors (maps and sequences, as scikit-learn's converter writes them): the protocol has no form. */
  readonly notServed: readonly string[];
  run(request: InferRequest): Promise<Map<string, Tensor>>;
  release(): Promise<void>;
}

/** Protobuf ends there; a larger model keeps its values in other files, which is refused. */
const FILE_BYTES_MAX = 2 ** 31 - 1;

const refused = (message: string): StartError => new StartError("MODEL_REFUSED", message);

/**
 * ONNX Runtime's library takes Float16Array for FP16 where Node has one, but its native half does not know that type
 * and fails ("not enough space", seen with 1.30.0). It looks for it once, at the first tensor: with Float16Array out of
 * sight at that moment it uses Uint16Array with the bits.
 */
function settleHalfPrecision(): void {
  const holder = globalThis as { Float16Array?: unknown };
  const { Float16Array } = holder;
  delete holder.Float16Array;
  try {
    new ort.Tensor("bool", new Uint8Array(1), [1]);
  } finally {
    Object.defineProperty(globalThis, "Float16Array", { value: Float16Array, configurable: true, writable: true });
  }
}

function readModelFile(file: string): Buffer {
  let bytes: Buffer;
  try {
    const found = statSync(file);
    if (!found.isFile()) throw refused("The model is not a regular file.");
    if (found.size > FILE_BYTES_MAX)
      throw refused(`The model's file has ${found.size} bytes: expected at most ${FILE_BYTES_MAX}.`);
    bytes = readFileSync(file);
  } catch (error) {
    if (error instanceof StartError) throw error;
    const code = (error as NodeJS.ErrnoException).code ?? "unknown";
    throw refused(`The model's file cannot be read: ${code === "ENOENT" ? "there is none" : code}.`);
  }
  return bytes;
}

function describe(
  kind: "input" | "output",
  metadata: readonly ort.InferenceSession.ValueMetadata[],
  shaped: ReadonlySet<string>,
): { tensors: TensorInfo[]; others: string[] } {
  const tensors: TensorInfo[] = [];
  const others: string[] = [];
  for (const value of metadata) {
    const datatype = value.isTensor ? datatypeOf(value.type) : undefined;
    if (value.isTensor && datatype !== undefined) {
      const sizes = value.shape.map((size) => (typeof size === "number" ? size : -1));
      tensors.push({ name: value.name, datatype, shape: sizes.length > 0 || shaped.has(value.name) ? sizes : null });
    } else if (kind === "output" && !value.isTensor) others.push(value.name);
    else
      throw refused(
        `The model's ${kind} '${value.name}' is ${value.isTensor ? `of type ${value.type}` : "no tensor"}: expected a tensor of a datatype of Open Inference Protocol v2.`,
      );
  }
  return { tensors, others };
}

export async function loadModel(file: string, threads: number): Promise<Model> {
  const bytes = readModelFile(file);
  const { shaped } = readOnnxFile(bytes);
  // The runtime's own log lines may quote tensor values; what fails is thrown, and said by us.
  ort.env.logLevel = "fatal";
  settleHalfPrecision();
  let session: ort.InferenceSession;
  try {
    session = await ort.InferenceSession.create(bytes, {
      executionProviders: ["cpu"],
      intraOpNumThreads: threads,
      interOpNumThreads: 1,
      executionMode: "sequential",
      // The arena keeps the largest request's memory for ever, and a pattern per shape besides.
      enableCpuMemArena: false,
      enableMemPattern: false,
      logSeverityLevel: 4,
    });
  } catch (error) {
    if (isOutOfMemory(error)) throw new StartError("OUT_OF_MEMORY", "The memory does not suffice to load the model.");
    throw refused(`The runtime refuses the model: ${runtimeSentence(error)}`);
  }
  const inputs = describe("input", session.inputMetadata, shaped);
  const outputs = describe("output", session.outputMetadata, shaped);
  if (outputs.tensors.length === 0) throw refused("The model has no output that is a tensor.");
  const signature: Signature = { inputs: inputs.tensors, outputs: outputs.tensors };

  return {
    signature,
    notServed: outputs.others,
    async run(request) {
      const feeds: Record<string, ort.Tensor> = {};
      for (const [name, { datatype, shape, data }] of request.inputs)
        feeds[name] = new ort.Tensor(runtimeType(datatype) as "float32", data as Float32Array, shape);
      let results: ort.InferenceSession.OnnxValueMapType;
      try {
        results = await session.run(
          feeds,
          request.outputs.map(({ name }) => name),
        );
      } catch (error) {
        if (isOutOfMemory(error))
          throw new RequestError(500, "model", "The memory does not suffice to compute the model with these inputs.");
        // Names, types and fixed sizes were checked: what is left is sizes or values that do not go together.
        throw new RequestError(
          400,
          "model",
          `The model cannot be computed with these inputs: ${runtimeSentence(error)}`,
        );
      }
      const outputs = new Map<string, Tensor>();
      for (const { name } of request.outputs) {
        const value = results[name] as ort.Tensor | undefined;
        const datatype = value === undefined ? undefined : datatypeOf(value.type);
        if (value !== undefined && datatype !== undefined)
          outputs.set(name, { datatype, shape: value.dims, data: value.data as TensorData });
      }
      return outputs;
    },
    release: () => session.release(),
  };
}
