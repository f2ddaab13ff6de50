// One inference request from its bytes to checked tensors, and the tensors that came out to the bytes of the reply.
// Open Inference Protocol v2 ("Inference Request/Response JSON Object") and its binary tensor data extension, where the
// JSON is the first Inference-Header-Content-Length bytes of the body and raw tensors follow in the order of the inputs.
import { badRequest, badTensor, RequestError } from "./errors.ts";
import {
  DATATYPES,
  fromBytes,
  fromJson,
  isDatatype,
  toBytes,
  toJson,
  type Datatype,
  type TensorData,
} from "./tensors.ts";

export interface TensorInfo {
  name: string;
  datatype: Datatype;
  /** -1: any size. Null: the model does not say, not even how many dimensions there are. */
  shape: number[] | null;
}

export interface Signature {
  inputs: TensorInfo[];
  outputs: TensorInfo[];
}

export interface Tensor {
  datatype: Datatype;
  shape: readonly number[];
  data: TensorData;
}

export interface InferRequest {
  /** Absent: the caller gave none, the reply has none. */
  id?: string;
  inputs: Map<string, Tensor>;
  /** In the caller's order; every output of the model when the caller named none. */
  outputs: { name: string; binary: boolean }[];
}

/** A body of brackets alone costs twenty to fifty times its size in the parser; no honest one has this many lists. */
const LISTS_MAX = 1_000_000;
const DIMENSIONS_MAX = 32;

type Json = Record<string, unknown>;
const isObject = (value: unknown): value is Json =>
  value !== null && typeof value === "object" && !Array.isArray(value);

function parse(bytes: Uint8Array): Json {
  let lists = 0;
  // `[` and `{` differ in one bit; inside a string they count as well, which the limit has room for.
  for (let i = 0; i < bytes.length; i++) {
    const byte = bytes[i] as number;
    if ((byte === 0x5b || byte === 0x7b) && ++lists > LISTS_MAX)
      throw new RequestError(
        413,
        "too_large",
        `The request holds more than ${LISTS_MAX} lists: expected the tensor's data flat, or as raw bytes.`,
      );
  }
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    // The parser's own words quote what it met; tensor content stays out of messages.
    throw badRequest("The request is not JSON: expected an object with 'inputs', in UTF-8.");
  }
  if (!isObject(value)) throw badRequest("The request is not a JSON object: expected one with 'inputs'.");
  return value;
}

const optionalObject = (where: string, value: unknown): Json => {
  if (value === undefined) return {};
  if (!isObject(value)) throw badRequest(`${where}: expected an object as 'parameters'.`);
  return value;
};

const optionalBoolean = (where: string, name: string, value: unknown): boolean | undefined => {
  if (value !== undefined && typeof value !== "boolean")
    throw badRequest(`${where}: expected true or false as '${name}'.`);
  return value;
};

const shapeText = (shape: readonly number[]): string => `[${shape.join(", ")}]`;
const names = (list: readonly { name: string }[]): string => list.map(({ name }) => `'${name}'`).join(", ");
const short = (name: string): string => (name.length > 100 ? `${name.slice(0, 99)}…` : name);

function readShape(name: string, value: unknown): number[] {
  if (!Array.isArray(value) || value.length > DIMENSIONS_MAX)
    throw badTensor(`Input '${name}': expected a list of at most ${DIMENSIONS_MAX} sizes as 'shape'.`);
  for (const [index, size] of value.entries())
    if (!Number.isSafeInteger(size) || (size as number) < 0)
      throw badTensor(
        `Input '${name}': expected a whole number of 0 or more as size of dimension ${index} in 'shape'.`,
      );
  return value as number[];
}

function checkFits(info: TensorInfo, datatype: Datatype, shape: readonly number[]): void {
  const { name } = info;
  if (datatype !== info.datatype)
    throw badTensor(`Input '${name}': expected datatype ${info.datatype}, got ${datatype}.`);
  if (info.shape === null) return;
  const fits =
    shape.length === info.shape.length && info.shape.every((size, index) => size === -1 || size === shape[index]);
  if (!fits)
    throw badTensor(
      `Input '${name}': expected shape ${shapeText(info.shape)}${info.shape.includes(-1) ? " (-1: any size)" : ""}, got ${shapeText(shape)}.`,
    );
}

/** `headerLength`: of the JSON at the body's start; undefined: the body is JSON alone. */
export function readRequest(body: Uint8Array, headerLength: number | undefined, model: Signature): InferRequest {
  if (headerLength !== undefined && headerLength > body.byteLength)
    throw badRequest(
      `Inference-Header-Content-Length says ${headerLength} bytes of JSON, but the body has ${body.byteLength}.`,
    );
  const request = parse(headerLength === undefined ? body : body.subarray(0, headerLength));
  const raw = { bytes: body, at: headerLength ?? body.byteLength };
  if (request["id"] !== undefined && typeof request["id"] !== "string")
    throw badRequest("The request's 'id' is not a string.");
  const parameters = optionalObject("The request", request["parameters"]);
  const allBinary = optionalBoolean("The request", "binary_data_output", parameters["binary_data_output"]) ?? false;

  const result: InferRequest = {
    ...(request["id"] === undefined ? {} : { id: request["id"] }),
    inputs: readInputs(request["inputs"], raw, model),
    outputs: readOutputs(request["outputs"], allBinary, model),
  };
  if (raw.at !== body.byteLength)
    throw badRequest(`The body has ${body.byteLength - raw.at} bytes behind the last input's: expected none.`);
  return result;
}

function readInputs(given: unknown, raw: { bytes: Uint8Array; at: number }, model: Signature): Map<string, Tensor> {
  const inputs = new Map<string, Tensor>();
  if (!Array.isArray(given)) throw badRequest(`Expected a list as 'inputs' with ${names(model.inputs)}.`);
  for (const [index, input] of given.entries()) {
    if (!isObject(input) || typeof input["name"] !== "string")
      throw badTensor(`Input ${index}: expected an object with 'name', 'shape', 'datatype' and 'data'.`);
    const name = input["name"];
    const info = model.inputs.find((known) => known.name === name);
    if (info === undefined)
      throw badTensor(`Input '${short(name)}' is not one of the model's: expected ${names(model.inputs) || "none"}.`);
    if (inputs.has(name)) throw badTensor(`Input '${name}' is given twice: expected it once.`);
    const { datatype } = input;
    if (!isDatatype(datatype))
      throw badTensor(`Input '${name}': expected ${info.datatype} as 'datatype'; known are ${DATATYPES.join(", ")}.`);
    const shape = readShape(name, input["shape"]);
    checkFits(info, datatype, shape);
    const parameters = optionalObject(`Input '${name}'`, input["parameters"]);
    if (Object.keys(parameters).some((key) => key.startsWith("shared_memory")))
      throw badTensor(`Input '${name}': expected its data in the request; shared memory is not served.`);
    const size = parameters["binary_data_size"];
    let data: TensorData;
    if (size === undefined) {
      data = fromJson(name, datatype, shape, input["data"]);
    } else {
      const left = raw.bytes.byteLength - raw.at;
      if (input["data"] !== undefined)
        throw badTensor(`Input '${name}': expected either 'data' or 'binary_data_size', got both.`);
      if (!Number.isSafeInteger(size) || (size as number) < 0 || (size as number) > left)
        throw badTensor(
          `Input '${name}': expected as 'binary_data_size' a number of bytes from 0 to the ${left} that the body has left behind its JSON.`,
        );
      data = fromBytes(name, datatype, shape, raw.bytes.subarray(raw.at, raw.at + (size as number)));
      raw.at += size as number;
    }
    inputs.set(name, { datatype, shape, data });
  }
  const missing = model.inputs.filter(({ name }) => !inputs.has(name));
  if (missing.length > 0) throw badTensor(`Input ${names(missing)} is missing: expected ${names(model.inputs)}.`);
  return inputs;
}

function readOutputs(given: unknown, allBinary: boolean, model: Signature): InferRequest["outputs"] {
  if (given === undefined || (Array.isArray(given) && given.length === 0))
    return model.outputs.map(({ name }) => ({ name, binary: allBinary }));
  if (!Array.isArray(given)) throw badRequest("Expected a list as 'outputs'.");
  const outputs: InferRequest["outputs"] = [];
  for (const [index, output] of given.entries()) {
    if (!isObject(output) || typeof output["name"] !== "string")
      throw badRequest(`Output ${index}: expected an object with 'name'.`);
    const name = output["name"];
    if (!model.outputs.some((known) => known.name === name))
      throw badRequest(`Output '${short(name)}' is not one of the model's: expected ${names(model.outputs)}.`);
    if (outputs.some((earlier) => earlier.name === name)) throw badRequest(`Output '${name}' is requested twice.`);
    const parameters = optionalObject(`Output '${name}'`, output["parameters"]);
    // Left aside in silence, either would give an answer of another form than the caller asked for.
    if ("classification" in parameters || Object.keys(parameters).some((key) => key.startsWith("shared_memory")))
      throw badRequest(`Output '${name}': neither classification nor shared memory is served.`);
    const binary = optionalBoolean(`Output '${name}'`, "binary_data", parameters["binary_data"]) ?? allBinary;
    outputs.push({ name, binary });
  }
  return outputs;
}

export interface InferReply {
  body: Uint8Array<ArrayBuffer>;
  /** Absent: the body is JSON alone. */
  headerLength?: number;
}

export function writeReply(
  model: { name: string; version: string },
  request: InferRequest,
  outputs: ReadonlyMap<string, Tensor>,
): InferReply {
  const raw: Uint8Array[] = [];
  const texts: string[] = [];
  for (const { name, binary } of request.outputs) {
    const tensor = outputs.get(name);
    if (tensor === undefined) throw new RequestError(500, "output", `The model gave no output '${name}'.`);
    const head = `{"name":${JSON.stringify(name)},"shape":[${tensor.shape.join(",")}],"datatype":"${tensor.datatype}"`;
    if (binary) {
      const bytes = toBytes(tensor.data);
      raw.push(bytes);
      texts.push(`${head},"parameters":{"binary_data_size":${bytes.byteLength}}}`);
    } else texts.push(`${head},"data":${toJson(tensor.datatype, tensor.data)}}`);
  }
  const id = request.id === undefined ? "" : `,"id":${JSON.stringify(request.id)}`;
  const json = new TextEncoder().encode(
    `{"model_name":${JSON.stringify(model.name)},"model_version":${JSON.stringify(model.version)}${id},"outputs":[${texts.join(",")}]}`,
  );
  if (raw.length === 0) return { body: json };
  const body = new Uint8Array(raw.reduce((sum, bytes) => sum + bytes.byteLength, json.byteLength));
  body.set(json);
  let at = json.byteLength;
  for (const bytes of raw) {
    body.set(bytes, at);
    at += bytes.byteLength;
  }
  return { body, headerLength: json.byteLength };
}
