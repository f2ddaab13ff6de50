// A request to begin with, made from what the model says of itself: right names, types and shapes, zeros inside. Pure.

interface Tensor {
  name: string;
  datatype: string;
  shape: number[];
}
/** Of `GET /v2/models/NAME`, Open Inference Protocol v2. */
export interface ModelMetadata {
  name: string;
  versions?: string[];
  platform?: string;
  inputs: Tensor[];
  outputs: Tensor[];
}

/** More zeros than this help nobody, and a request through the link has a limit. */
const MAX_ELEMENTS = 8192;
const LINE = 8;

export function isMetadata(value: unknown): value is ModelMetadata {
  if (typeof value !== "object" || value === null) return false;
  const { inputs } = value as { inputs?: unknown };
  return (
    Array.isArray(inputs) &&
    inputs.every(
      (each: unknown) =>
        typeof each === "object" &&
        each !== null &&
        Array.isArray((each as Tensor).shape) &&
        typeof (each as Tensor).name === "string",
    )
  );
}

/** A free dimension (-1) becomes 1. */
const concrete = (shape: number[]): number[] => shape.map((size) => (size < 1 ? 1 : size));
const zeroOf = (datatype: string): unknown => (datatype === "BOOL" ? false : datatype === "BYTES" ? "" : 0);

/** JSON text, or null when an input is too large to be typed. Data stands in rows, not one number a line. */
export function sampleRequest(metadata: ModelMetadata): string | null {
  const inputs: string[] = [];
  for (const { name, datatype, shape } of metadata.inputs) {
    const sizes = concrete(shape);
    const count = sizes.reduce((product, size) => product * size, 1);
    if (count > MAX_ELEMENTS) return null;
    const zero = JSON.stringify(zeroOf(datatype));
    const width = Math.min(LINE, sizes.at(-1) ?? 1);
    const rows: string[] = [];
    for (let at = 0; at < count; at += width)
      rows.push(
        Array(Math.min(width, count - at))
          .fill(zero)
          .join(", "),
      );
    const data = rows.length === 1 ? `[${rows[0]}]` : `[\n        ${rows.join(",\n        ")}\n      ]`;
    inputs.push(
      `    {\n      "name": ${JSON.stringify(name)},\n      "datatype": ${JSON.stringify(datatype)},\n      "shape": ${JSON.stringify(sizes).replaceAll(",", ", ")},\n      "data": ${data}\n    }`,
    );
  }
  return `{\n  "inputs": [\n${inputs.join(",\n")}\n  ]\n}`;
}

/** One line for people: `input FP32 [-1, 64]`, a free dimension as n. */
export const tensorText = ({ datatype, shape }: Tensor): string =>
  `${datatype} [${shape.map((size) => (size < 0 ? "n" : size)).join(", ")}]`;
