// Tensors between the protocol's two forms (JSON numbers, raw bytes) and the runtime's typed arrays. Exact or refused:
// no value is rounded to another type's range, cut or guessed. Knows nothing of HTTP or of models.
// Open Inference Protocol v2, "Tensor Data Types" and "Tensor Data"; raw bytes by its binary tensor data extension.
import { badTensor } from "./errors.ts";

type Numbers =
  | Uint8Array
  | Int8Array
  | Uint16Array
  | Int16Array
  | Uint32Array
  | Int32Array
  | Float32Array
  | Float64Array
  | BigInt64Array
  | BigUint64Array;
/** What the runtime takes and gives: strings for BYTES, the bits in a Uint16Array for FP16, 0 and 1 for BOOL. */
export type TensorData = Numbers | string[];

interface Kind {
  /** The runtime's word. */
  runtime: string;
  /** Of one element; 0: they differ (BYTES). */
  sizeBytes: number;
  /** Whole numbers only, within these. */
  range?: readonly [number, number] | readonly [bigint, bigint];
  make(count: number): TensorData;
  view?(buffer: ArrayBuffer): Numbers;
}

const int = (runtime: string, bits: number, signed: boolean, Type: new (n: never) => Numbers): Kind => {
  const range: Kind["range"] =
    bits === 64
      ? signed
        ? [-(2n ** 63n), 2n ** 63n - 1n]
        : [0n, 2n ** 64n - 1n]
      : signed
        ? [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1]
        : [0, 2 ** bits - 1];
  return { runtime, sizeBytes: bits / 8, range, ...arrays(Type) };
};
const arrays = (Type: new (n: never) => Numbers) => ({
  make: (count: number) => new Type(count as never),
  view: (buffer: ArrayBuffer) => new Type(buffer as never),
});

/** BF16 is missing: neither the protocol's table nor the runtime's binding for Node has it. */
const KINDS = {
  BOOL: { runtime: "bool", sizeBytes: 1, ...arrays(Uint8Array) },
  UINT8: int("uint8", 8, false, Uint8Array),
  UINT16: int("uint16", 16, false, Uint16Array),
  UINT32: int("uint32", 32, false, Uint32Array),
  UINT64: int("uint64", 64, false, BigUint64Array),
  INT8: int("int8", 8, true, Int8Array),
  INT16: int("int16", 16, true, Int16Array),
  INT32: int("int32", 32, true, Int32Array),
  INT64: int("int64", 64, true, BigInt64Array),
  FP16: { runtime: "float16", sizeBytes: 2, ...arrays(Uint16Array) },
  FP32: { runtime: "float32", sizeBytes: 4, ...arrays(Float32Array) },
  FP64: { runtime: "float64", sizeBytes: 8, ...arrays(Float64Array) },
  BYTES: { runtime: "string", sizeBytes: 0, make: (count: number) => new Array<string>(count).fill("") },
} as const satisfies Record<string, Kind>;
export type Datatype = keyof typeof KINDS;
export const DATATYPES = Object.keys(KINDS) as Datatype[];

export const isDatatype = (value: unknown): value is Datatype =>
  typeof value === "string" && Object.hasOwn(KINDS, value);
export const runtimeType = (datatype: Datatype): string => KINDS[datatype].runtime;
export const datatypeOf = (runtime: string): Datatype | undefined =>
  DATATYPES.find((datatype) => KINDS[datatype].runtime === runtime);

// TypeScript's es2024 library has no Float16Array yet; Node 24 has.
interface HalfArray {
  readonly length: number;
  [index: number]: number;
}
const Half = (
  globalThis as unknown as { Float16Array: new (buffer: ArrayBufferLike, at: number, n: number) => HalfArray }
).Float16Array;
const halves = (bits: Uint16Array): HalfArray => new Half(bits.buffer, bits.byteOffset, bits.length);

/** How many elements a shape holds. Infinity when it is beyond counting: no data can fit it then. */
export function elementCount(shape: readonly number[]): number {
  if (shape.includes(0)) return 0;
  let count = 1;
  for (const dimension of shape) {
    count *= dimension;
    if (!Number.isSafeInteger(count)) return Infinity;
  }
  return count;
}

// -- from JSON ---------------------------------------------------------------------------------------------------------

/** JSON has no word for these three; the strings are those of protobuf's JSON form, both ways. */
const SPECIAL: Readonly<Record<string, number>> = { NaN: NaN, Infinity: Infinity, "-Infinity": -Infinity };

const shown = (value: unknown): string => {
  if (Array.isArray(value)) return "a list";
  if (value !== null && typeof value === "object") return "an object";
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 40 ? `${text.slice(0, 39)}…` : text;
};

/** Writes one JSON value into the tensor; false when the value is none of this datatype's. */
type Put = (target: TensorData | HalfArray, at: number, value: unknown) => boolean;

const putFloat =
  (fits: (value: number) => boolean): Put =>
  (target, at, value) => {
    let number: number;
    if (typeof value === "number" && fits(value)) number = value;
    else if (typeof value === "string" && Object.hasOwn(SPECIAL, value)) number = SPECIAL[value] as number;
    else return false;
    (target as HalfArray)[at] = number;
    return true;
  };

const putInteger =
  ([low, high]: readonly [number, number]): Put =>
  (target, at, value) => {
    if (typeof value !== "number" || !Number.isInteger(value) || value < low || value > high) return false;
    (target as Int32Array)[at] = value;
    return true;
  };

const putBig =
  ([low, high]: readonly [bigint, bigint]): Put =>
  (target, at, value) => {
    let big: bigint;
    // A number beyond 2^53 has lost its last digits in JSON's parser already: only a string can carry it.
    if (typeof value === "number" && Number.isSafeInteger(value)) big = BigInt(value);
    else if (typeof value === "string" && /^-?\d{1,20}$/.test(value)) big = BigInt(value);
    else return false;
    if (big < low || big > high) return false;
    (target as BigInt64Array)[at] = big;
    return true;
  };

const ranged = (datatype: Datatype): Put => {
  const { range } = KINDS[datatype] as Kind;
  if (range === undefined) throw new TypeError(`${datatype} has no range`);
  return typeof range[0] === "bigint"
    ? putBig(range as readonly [bigint, bigint])
    : putInteger(range as readonly [number, number]);
};

const PUT: Record<Datatype, Put> = {
  BOOL: (target, at, value) => {
    if (typeof value !== "boolean") return false;
    (target as Uint8Array)[at] = value ? 1 : 0;
    return true;
  },
  UINT8: ranged("UINT8"),
  UINT16: ranged("UINT16"),
  UINT32: ranged("UINT32"),
  UINT64: ranged("UINT64"),
  INT8: ranged("INT8"),
  INT16: ranged("INT16"),
  INT32: ranged("INT32"),
  INT64: ranged("INT64"),
  // From here on the nearest value of the type would be its infinity: half a step above the largest.
  FP16: putFloat((value) => Math.abs(value) < 65520),
  FP32: putFloat((value) => Number.isFinite(Math.fround(value))),
  FP64: putFloat(Number.isFinite),
  // The runtime's binding cuts a string at its first NUL, in silence.
  BYTES: (target, at, value) => {
    if (typeof value !== "string" || value.includes("\0") || !value.isWellFormed()) return false;
    (target as string[])[at] = value;
    return true;
  },
};

function expected(datatype: Datatype): string {
  const kind: Kind = KINDS[datatype];
  if (datatype === "BOOL") return "true or false";
  if (datatype === "BYTES") return "a string of Unicode text without NUL";
  if (kind.range === undefined)
    return `a number within the range of ${datatype}, or one of "NaN", "Infinity", "-Infinity"`;
  const whole = `a whole number from ${kind.range[0]} to ${kind.range[1]}`;
  return kind.sizeBytes === 8 ? `${whole}, as a decimal string beyond ±(2^53 - 1)` : whole;
}

/** A tensor's `data`, row-major: flat, or nested as its shape says. */
export function fromJson(name: string, datatype: Datatype, shape: readonly number[], data: unknown): TensorData {
  if (!Array.isArray(data)) throw badTensor(`Input '${name}': expected a list as 'data', got ${shown(data)}.`);
  const nested = Array.isArray(data[0]) && shape.length > 0;
  if (nested) {
    // The form is checked before anything is allocated: what a shape claims costs nothing until the data bears it out.
    const check = (list: unknown, level: number): void => {
      if (!Array.isArray(list))
        throw badTensor(
          `Input '${name}': expected nested lists ${shape.length} deep, got ${shown(list)} at depth ${level}.`,
        );
      if (list.length !== shape[level])
        throw badTensor(
          `Input '${name}': expected lists of ${shape[level]} at depth ${level + 1} by shape [${shape}], got one of ${list.length}.`,
        );
      if (level + 1 < shape.length) for (const inner of list) check(inner, level + 1);
    };
    check(data, 0);
  } else if (data.length !== elementCount(shape)) {
    throw badTensor(
      `Input '${name}': expected ${elementCount(shape)} elements by shape [${shape}], got ${data.length} in 'data'.`,
    );
  }
  const tensor = KINDS[datatype].make(elementCount(shape));
  const target = datatype === "FP16" ? halves(tensor as Uint16Array) : tensor;
  const put = PUT[datatype];
  let at = 0;
  const fill = (list: readonly unknown[]): void => {
    for (let i = 0; i < list.length; i++, at++)
      if (!put(target, at, list[i]))
        throw badTensor(
          `Input '${name}': expected ${expected(datatype)} at element ${at} (${datatype}), got ${shown(list[i])}.`,
        );
  };
  const descend = (list: readonly unknown[], level: number): void => {
    if (level + 1 >= shape.length) fill(list);
    else for (const inner of list) descend(inner as unknown[], level + 1);
  };
  if (nested) descend(data, 0);
  else fill(data);
  return tensor;
}

// -- to JSON -----------------------------------------------------------------------------------------------------------

const floatText = (value: number): string => {
  if (Number.isFinite(value)) return Object.is(value, -0) ? "-0.0" : String(value);
  return Number.isNaN(value) ? '"NaN"' : value > 0 ? '"Infinity"' : '"-Infinity"';
};
const plain = (values: HalfArray): boolean => {
  for (let i = 0; i < values.length; i++) {
    const value = values[i] as number;
    if (!Number.isFinite(value) || (value === 0 && Object.is(value, -0))) return false;
  }
  return true;
};

/** The text of a tensor's `data`, flat. 64-bit integers keep every digit: JSON sets its numbers no limit. */
export function toJson(datatype: Datatype, data: TensorData): string {
  if (Array.isArray(data)) return JSON.stringify(data);
  if (datatype === "BOOL") {
    const parts = new Array<string>(data.length);
    for (let i = 0; i < data.length; i++) parts[i] = data[i] === 0 ? "false" : "true";
    return `[${parts.join(",")}]`;
  }
  if (datatype === "FP16" || datatype === "FP32" || datatype === "FP64") {
    const values = datatype === "FP16" ? halves(data as Uint16Array) : (data as Float32Array | Float64Array);
    // Twice as fast as text by text (measured), and nearly every tensor is plain.
    if (plain(values)) return `[${Array.prototype.join.call(values, ",")}]`;
    const parts = new Array<string>(values.length);
    for (let i = 0; i < values.length; i++) parts[i] = floatText(values[i] as number);
    return `[${parts.join(",")}]`;
  }
  return `[${data.join(",")}]`;
}

// -- raw bytes ---------------------------------------------------------------------------------------------------------

export function fromBytes(name: string, datatype: Datatype, shape: readonly number[], bytes: Uint8Array): TensorData {
  const count = elementCount(shape);
  const kind: Kind = KINDS[datatype];
  if (kind.view === undefined) return stringsFromBytes(name, count, shape, bytes);
  if (bytes.byteLength !== count * kind.sizeBytes)
    throw badTensor(
      `Input '${name}': expected ${count * kind.sizeBytes} bytes of ${datatype} by shape [${shape}], got ${bytes.byteLength}.`,
    );
  if (datatype === "BOOL") {
    const wrong = bytes.findIndex((byte) => byte > 1);
    if (wrong !== -1) throw badTensor(`Input '${name}': expected a byte of 0 or 1 at element ${wrong} (BOOL).`);
  }
  // A copy of its own: a typed array must lie at a multiple of its element's size.
  return kind.view(bytes.slice().buffer);
}

/** Each string behind its length in four bytes, least significant first. */
function stringsFromBytes(name: string, count: number, shape: readonly number[], bytes: Uint8Array): string[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  const strings: string[] = [];
  let at = 0;
  while (at < bytes.byteLength) {
    const length = at + 4 <= bytes.byteLength ? view.getUint32(at, true) : Infinity;
    if (at + 4 + length > bytes.byteLength)
      throw badTensor(`Input '${name}': the bytes end within element ${strings.length} (BYTES).`);
    let text: string;
    try {
      text = decoder.decode(bytes.subarray(at + 4, at + 4 + length));
    } catch {
      throw badTensor(`Input '${name}': expected UTF-8 text at element ${strings.length} (BYTES).`);
    }
    if (text.includes("\0"))
      throw badTensor(`Input '${name}': expected ${expected("BYTES")} at element ${strings.length} (BYTES).`);
    strings.push(text);
    at += 4 + length;
  }
  if (strings.length !== count)
    throw badTensor(
      `Input '${name}': expected ${count} elements by shape [${shape}], got ${strings.length} in its bytes.`,
    );
  return strings;
}

export function toBytes(data: TensorData): Uint8Array {
  if (!Array.isArray(data)) return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  const encoder = new TextEncoder();
  const texts = data.map((text) => encoder.encode(text));
  const bytes = new Uint8Array(texts.reduce((sum, text) => sum + 4 + text.byteLength, 0));
  const view = new DataView(bytes.buffer);
  let at = 0;
  for (const text of texts) {
    view.setUint32(at, text.byteLength, true);
    bytes.set(text, at + 4);
    at += 4 + text.byteLength;
  }
  return bytes;
}
