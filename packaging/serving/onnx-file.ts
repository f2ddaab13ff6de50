// Looks through a model's bytes before the runtime sees them: is it ONNX at all, does it name other files, and which of
// its inputs and outputs have a shape (the runtime says "no shape" and "scalar" with the same word). Reads protobuf by
// hand: field numbers are those of onnx.proto3. Judges form only; what the operators mean is the runtime's business.
import { StartError } from "./errors.ts";

export interface OnnxFile {
  /** Inputs and outputs of the graph whose shape is written down, be it with dimensions left open. */
  shaped: ReadonlySet<string>;
}

/** Deeper than any real graph within a graph (loops and conditions); a hostile file ends here, not at the stack's end. */
const DEPTH_MAX = 64;

const refused = (message: string): StartError => new StartError("MODEL_REFUSED", message);
const damaged = (): StartError =>
  refused("The model is not an ONNX file, or it is damaged: expected a protobuf message with a graph.");

/** Calls back with each field of one message: the number, and its bytes, or its value where it is a varint. */
function eachField(bytes: Buffer, visit: (field: number, value: Buffer, varint: number) => void): void {
  let at = 0;
  const varint = (): number => {
    let value = 0;
    for (let shift = 0; shift < 70; shift += 7) {
      const byte = bytes[at++];
      if (byte === undefined) throw damaged();
      // Lengths and the two enumerations read here are far below 2^53; what is larger only has to be passed over.
      value += (byte & 0x7f) * 2 ** shift;
      if (byte < 0x80) return value;
    }
    throw damaged();
  };
  const none = Buffer.alloc(0);
  while (at < bytes.length) {
    const key = varint();
    // Protobuf's own reader drops the bits above the 32nd: it would see another field here than we do.
    if (key > 0xffff_ffff) throw damaged();
    const field = Math.floor(key / 8);
    let end = at;
    if (key % 8 === 0) {
      visit(field, none, varint());
      continue;
    }
    if (key % 8 === 1) end = at + 8;
    else if (key % 8 === 5) end = at + 4;
    else if (key % 8 === 2) {
      const length = varint();
      end = at + length;
    } else throw damaged();
    if (field === 0 || end > bytes.length) throw damaged();
    visit(field, bytes.subarray(at, end), 0);
    at = end;
  }
}

function tensor(bytes: Buffer): void {
  let name = "";
  let external = false;
  eachField(bytes, (field, value, varint) => {
    if (field === 8) name = value.toString("utf8").slice(0, 100);
    if (field === 13 || (field === 14 && varint === 1)) external = true;
  });
  if (external)
    throw refused(
      `The model keeps the values of '${name}' in another file (external data): expected a single file that holds everything.`,
    );
}

function sparse(bytes: Buffer): void {
  eachField(bytes, (field, value) => {
    if (field === 1 || field === 2) tensor(value);
  });
}

function attribute(bytes: Buffer, depth: number): void {
  eachField(bytes, (field, value) => {
    if (field === 5 || field === 10) tensor(value);
    else if (field === 22 || field === 23) sparse(value);
    else if (field === 6 || field === 11) graph(value, depth + 1);
  });
}

function node(bytes: Buffer, depth: number): void {
  eachField(bytes, (field, value) => {
    if (field === 5) attribute(value, depth);
  });
}

function graph(bytes: Buffer, depth: number, shaped?: Set<string>): void {
  if (depth > DEPTH_MAX) throw refused(`The model nests graphs more than ${DEPTH_MAX} deep.`);
  eachField(bytes, (field, value) => {
    if (field === 1) node(value, depth);
    else if (field === 5) tensor(value);
    else if (field === 15) sparse(value);
    else if (shaped !== undefined && (field === 11 || field === 12)) valueInfo(value, shaped);
  });
}

function valueInfo(bytes: Buffer, shaped: Set<string>): void {
  let name = "";
  let hasShape = false;
  eachField(bytes, (field, value) => {
    if (field === 1) name = value.toString("utf8");
    if (field === 2)
      eachField(value, (kind, type) => {
        if (kind === 1) eachField(type, (inner) => void (hasShape ||= inner === 2));
      });
  });
  if (hasShape) shaped.add(name);
}

export function readOnnxFile(bytes: Buffer): OnnxFile {
  if (bytes.length === 0) throw refused("The model's file is empty.");
  const shaped = new Set<string>();
  let graphs = 0;
  eachField(bytes, (field, value) => {
    if (field === 7) {
      graphs++;
      graph(value, 0, shaped);
    } else if (field === 25) {
      eachField(value, (inner, body) => {
        if (inner === 7) node(body, 0);
        else if (inner === 11) attribute(body, 0);
      });
    }
  });
  if (graphs === 0) throw damaged();
  return { shaped };
}
