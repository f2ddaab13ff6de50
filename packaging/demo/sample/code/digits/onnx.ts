// Writes the network as an ONNX model, and reads such a model back. ONNX is protobuf: only the fields used are here,
// with their numbers from onnx.proto3 (IR version 8, operator set 13).
import type { Network } from "./network.ts";

const FLOAT = 1;

// -- writing: a message is a list of fields --------------------------------------------------------------------------
function varint(value: number): Buffer {
  const bytes: number[] = [];
  let rest = BigInt(value);
  do {
    const low = Number(rest & 0x7fn);
    rest >>= 7n;
    bytes.push(rest > 0n ? low | 0x80 : low);
  } while (rest > 0n);
  return Buffer.from(bytes);
}
const integer = (field: number, value: number) => Buffer.concat([varint(field * 8), varint(value)]);
const bytes = (field: number, value: Buffer) => Buffer.concat([varint(field * 8 + 2), varint(value.length), value]);
const text = (field: number, value: string) => bytes(field, Buffer.from(value));
const message = (field: number, ...fields: Buffer[]) => bytes(field, Buffer.concat(fields));

const tensor = (name: string, dims: number[], data: Float32Array) =>
  message(
    5,
    ...dims.map((d) => integer(1, d)),
    integer(2, FLOAT),
    text(8, name),
    bytes(9, Buffer.from(data.buffer, data.byteOffset, data.byteLength)),
  );
const node = (operator: string, inputs: string[], output: string) =>
  message(1, ...inputs.map((i) => text(1, i)), text(2, output), text(3, output), text(4, operator));
/** A float tensor [batch, columns]; the batch has a name instead of a number. */
const value = (field: number, name: string, columns: number) =>
  message(
    field,
    text(1, name),
    message(
      2,
      message(1, integer(1, FLOAT), message(2, message(1, text(2, "batch")), message(1, integer(1, columns)))),
    ),
  );

export function writeOnnx(net: Network, producer: string): Buffer {
  const graph = [
    node("Gemm", ["pixels", "w1", "b1"], "hidden_sum"),
    node("Relu", ["hidden_sum"], "hidden"),
    node("Gemm", ["hidden", "w2", "b2"], "scores"),
    node("Softmax", ["scores"], "probabilities"),
    text(2, "digits"),
    tensor("w1", [net.inputs, net.hidden], net.w1),
    tensor("b1", [net.hidden], net.b1),
    tensor("w2", [net.hidden, net.classes], net.w2),
    tensor("b2", [net.classes], net.b2),
    value(11, "pixels", net.inputs),
    value(12, "probabilities", net.classes),
  ];
  return Buffer.concat([integer(1, 8), text(2, producer), message(7, ...graph), message(8, integer(2, 13))]);
}

// -- reading ---------------------------------------------------------------------------------------------------------
interface Field {
  number: number;
  integer: number;
  bytes: Buffer;
}

function* fields(buffer: Buffer): Generator<Field> {
  let at = 0;
  const next = () => {
    let result = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = buffer[at++];
      if (byte === undefined) throw new Error("the model ends in the middle of a number");
      result |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) return Number(result);
    }
  };
  while (at < buffer.length) {
    const key = next();
    if (key % 8 === 0) yield { number: key >> 3, integer: next(), bytes: Buffer.alloc(0) };
    else if (key % 8 === 2) {
      const length = next();
      if (at + length > buffer.length) throw new Error("the model ends in the middle of a field");
      yield { number: key >> 3, integer: 0, bytes: buffer.subarray(at, (at += length)) };
    } else throw new Error(`wire type ${key % 8} is not used in these models`);
  }
}

/** The network inside a model that `writeOnnx` made. Throws for any other graph. */
export function readOnnx(model: Buffer): Network {
  const graph = [...fields(model)].find((f) => f.number === 7)?.bytes;
  if (graph === undefined) throw new Error("no graph in the model");
  const operators = [...fields(graph)]
    .filter((f) => f.number === 1)
    .map((f) => [...fields(f.bytes)].find((g) => g.number === 4)?.bytes.toString());
  if (operators.join() !== "Gemm,Relu,Gemm,Softmax")
    throw new Error(`the graph is ${operators.join()}, not Gemm,Relu,Gemm,Softmax`);
  const tensors = new Map<string, { dims: number[]; data: Float32Array }>();
  for (const { number, bytes: body } of fields(graph)) {
    if (number !== 5) continue;
    const parts = [...fields(body)];
    const raw = Buffer.from(parts.find((f) => f.number === 9)!.bytes); // a copy: its offset is a multiple of 4
    tensors.set(parts.find((f) => f.number === 8)!.bytes.toString(), {
      dims: parts.filter((f) => f.number === 1).map((f) => f.integer),
      data: new Float32Array(raw.buffer.slice(raw.byteOffset, raw.byteOffset + raw.length)),
    });
  }
  const of = (name: string) =>
    tensors.get(name) ??
    (() => {
      throw new Error(`no tensor ${name} in the model`);
    })();
  const [inputs = 0, hidden = 0] = of("w1").dims;
  return {
    inputs,
    hidden,
    classes: of("b2").data.length,
    w1: of("w1").data,
    b1: of("b1").data,
    w2: of("w2").data,
    b2: of("b2").data,
  };
}
