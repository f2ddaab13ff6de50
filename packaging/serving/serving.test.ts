// The program as a process, over real sockets, with the real runtime.
import { createConnection, createServer, type AddressInfo, type Socket } from "node:net";
import { once } from "node:events";
import { chmodSync, mkdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import t from "tap";
import {
  arithmetic,
  externalTensor,
  functionDefault,
  hiddenExternalTensor,
  identities,
  identity,
  model,
  slow,
  type Element,
  type ModelParts,
} from "./fixtures/onnx.ts";
import { start, stopAll, type Ask, type Program, type Reply } from "./fixtures/program.ts";

t.teardown(stopAll);
// Some forty programs are started, some of which compute for a second.
t.setTimeout(300_000);

const INFER = "/v2/models/m/infer";
const TYPES = [
  "BOOL",
  "UINT8",
  "UINT16",
  "UINT32",
  "UINT64",
  "INT8",
  "INT16",
  "INT32",
  "INT64",
  "FP16",
  "FP32",
  "FP64",
  "BYTES",
] as const satisfies Element[];
type Type = (typeof TYPES)[number];

const errorOf = (reply: Reply): string => (reply.json as { error: string }).error;

/** Asks until it is so; the test's own time limit bounds it. */
/** A test that waits for what cannot come any more must say where. */
async function until(condition: () => Promise<boolean>): Promise<void> {
  const begin = performance.now();
  while (!(await condition())) {
    if (performance.now() - begin > 60_000) throw new Error(`in vain for a minute: ${condition.toString()}`);
    await new Promise((resolve) => setImmediate(resolve));
  }
}
const inFlight = async (ask: Ask): Promise<number> =>
  Number(/in_flight_requests (\d+)/.exec((await ask("GET", "/metrics")).bytes.toString())?.[1]);

// -- what the protocol says --------------------------------------------------------------------------------------------

t.test("routes, methods, names and versions", async (t) => {
  const { ask } = await start({ model: arithmetic() });
  const v2 = await ask("GET", "/v2");
  t.match(v2.json, { name: "sallyport-serving", version: /^\d/, extensions: ["binary_tensor_data"] });
  t.match(v2.headers["content-type"], "application/json");
  const described = {
    name: "m",
    versions: ["3"],
    platform: "onnxruntime_onnx",
    inputs: [
      { name: "a", datatype: "FP32", shape: [-1, 2] },
      { name: "b", datatype: "FP32", shape: [-1, 2] },
    ],
    outputs: [
      { name: "sum", datatype: "FP32", shape: [-1, 2] },
      { name: "quotient", datatype: "FP32", shape: [-1, 2] },
    ],
  };
  t.same((await ask("GET", "/v2/models/m")).json, described);
  t.same((await ask("GET", "/v2/models/%6d/versions/3")).json, described);
  t.same((await ask("GET", "/v2/health/live")).json, { live: true });
  t.same((await ask("GET", "/v2/health/ready")).json, { ready: true });
  t.same((await ask("GET", "/v2/models/m/ready")).json, { name: "m", ready: true });
  t.same((await ask("GET", "/v2/models/m/versions/3/ready")).json, { name: "m", ready: true });
  t.equal((await ask("HEAD", "/v2/health/ready")).bytes.length, 0);

  const cases: [string, string, number][] = [
    ["GET", "/", 404],
    ["GET", "/v2/", 404],
    ["GET", "/v2/models", 404],
    ["GET", "/v2/models/other", 404],
    ["GET", "/v2/models/m/versions/4", 404],
    ["GET", "/v2/models/m/config", 404],
    ["GET", "/v2/models/%zz", 400],
    ["GET", "/v2/../metrics", 404],
    ["POST", "/v2/models/other/infer", 404],
    ["POST", "/v2/models/m/versions/4/infer", 404],
    ["POST", "/v2/nothing", 404],
    ["GET", INFER, 405],
    ["PUT", INFER, 405],
    ["POST", "/v2", 405],
    ["DELETE", "/v2/models/m", 405],
    ["POST", "/metrics", 405],
  ];
  for (const [method, path, status] of cases) {
    const reply = await ask(method, path, method === "GET" ? {} : { body: {} });
    t.equal(reply.status, status, `${method} ${path}`);
    t.type(errorOf(reply), "string");
    if (status === 405) t.ok(reply.headers["allow"]);
  }
});

const pair = (name: string, data: unknown, shape: unknown = [1, 2], datatype: unknown = "FP32") => ({
  name,
  shape,
  datatype,
  data,
});

t.test("an inference: id, requested outputs, any batch, binary on request", async (t) => {
  const { ask } = await start({ model: arithmetic() });
  const inputs = [
    pair(
      "b",
      [
        [1, 2],
        [3, 4],
      ],
      [2, 2],
    ),
    pair("a", [1, 0, 6, -8], [2, 2]),
  ];
  const all = await ask("POST", INFER, { body: { id: "7", inputs, parameters: { priority: 3 } } });
  t.same(all.json, {
    model_name: "m",
    model_version: "3",
    id: "7",
    outputs: [
      { name: "sum", shape: [2, 2], datatype: "FP32", data: [2, 2, 9, -4] },
      { name: "quotient", shape: [2, 2], datatype: "FP32", data: [1, 0, 2, -2] },
    ],
  });
  const one = await ask("POST", "/v2/models/m/versions/3/infer", { body: { inputs, outputs: [{ name: "quotient" }] } });
  t.same(
    (one.json as { outputs: { name: string }[] }).outputs.map(({ name }) => name),
    ["quotient"],
  );
  t.notOk("id" in (one.json as object));
  // JSON has no NaN and no infinity: strings, as in protobuf's JSON form, and minus zero keeps its sign.
  const odd = await ask("POST", INFER, {
    body: {
      inputs: [pair("a", [0, 1, -1, -0.0], [2, 2]), pair("b", [0, 0, 0, 5], [2, 2])],
      outputs: [{ name: "quotient" }],
    },
  });
  t.match(odd.bytes.toString(), '"data":["NaN","Infinity","-Infinity",0]');
  const mixed = await ask("POST", INFER, {
    body: { inputs, outputs: [{ name: "sum", parameters: { binary_data: true } }, { name: "quotient" }] },
  });
  const header = Number(mixed.headers["inference-header-content-length"]);
  t.equal(mixed.headers["content-type"], "application/octet-stream");
  t.match(JSON.parse(mixed.bytes.subarray(0, header).toString()), {
    outputs: [
      { name: "sum", parameters: { binary_data_size: 16 } },
      { name: "quotient", data: [1, 0, 2, -2] },
    ],
  });
  t.same(
    [0, 4, 8, 12].map((at) => mixed.bytes.readFloatLE(header + at)),
    [2, 2, 9, -4],
  );
});

t.test("a scalar, a tensor without a shape in the model, an empty one", async (t) => {
  const scalar = await start({ model: identity("INT64", []) });
  t.match((await scalar.ask("GET", "/v2/models/m")).json, { inputs: [{ shape: [] }] });
  t.match((await scalar.ask("POST", INFER, { body: { inputs: [pair("x", [5], [], "INT64")] } })).json, {
    outputs: [{ shape: [], data: [5] }],
  });
  t.match(errorOf(await scalar.ask("POST", INFER, { body: { inputs: [pair("x", [5], [1], "INT64")] } })), /shape \[\]/);
  const unknown = await start({ model: identity("FP16", null) });
  t.match((await unknown.ask("GET", "/v2/models/m")).json, { inputs: [{ shape: [-1] }] });
  for (const shape of [[], [1], [1, 1, 1]])
    t.match((await unknown.ask("POST", INFER, { body: { inputs: [pair("x", [0.5], shape, "FP16")] } })).json, {
      outputs: [{ shape, data: [0.5] }],
    });
  t.match((await unknown.ask("POST", INFER, { body: { inputs: [pair("x", [], [0, 4], "FP16")] } })).json, {
    outputs: [{ shape: [0, 4], data: [] }],
  });
});

// -- round trips -------------------------------------------------------------------------------------------------------

const floats = (type: "FP16" | "FP32" | "FP64"): fc.Arbitrary<unknown> => {
  // Every value of the type itself, so that what comes back has to be equal.
  const Half = (globalThis as unknown as { Float16Array: new (values: number[]) => { 0: number } }).Float16Array;
  const value =
    type === "FP64"
      ? fc.double()
      : type === "FP32"
        ? fc.float()
        : fc.double({ min: -65504, max: 65504 }).map((given) => (Number.isNaN(given) ? given : new Half([given])[0]));
  return value.map((given) => (Number.isFinite(given) ? given : String(given)));
};
const bits = (count: number, signed: boolean): fc.Arbitrary<unknown> => {
  const big = fc.bigInt(
    signed
      ? { min: -(2n ** BigInt(count - 1)), max: 2n ** BigInt(count - 1) - 1n }
      : { min: 0n, max: 2n ** BigInt(count) - 1n },
  );
  return count < 64 ? big.map(Number) : fc.oneof(big.map(String), fc.integer(signed ? {} : { min: 0 }));
};
const ELEMENTS: Record<Type, fc.Arbitrary<unknown>> = {
  BOOL: fc.boolean(),
  UINT8: bits(8, false),
  UINT16: bits(16, false),
  UINT32: bits(32, false),
  UINT64: bits(64, false),
  INT8: bits(8, true),
  INT16: bits(16, true),
  INT32: bits(32, true),
  INT64: bits(64, true),
  FP16: floats("FP16"),
  FP32: floats("FP32"),
  FP64: floats("FP64"),
  BYTES: fc.string({ unit: "binary", maxLength: 20 }).map((text) => text.replaceAll("\0", "·")),
};

const tensors = fc.constantFrom(...TYPES).chain((type) =>
  fc.array(fc.integer({ min: 0, max: 4 }), { minLength: 3, maxLength: 3 }).chain((shape) => {
    const size = shape.reduce((product, dimension) => product * dimension, 1);
    return fc.record({
      type: fc.constant(type),
      shape: fc.constant(shape),
      data: fc.array(ELEMENTS[type], { minLength: size, maxLength: size }),
      nested: fc.boolean(),
    });
  }),
);

const nest = (flat: unknown[], shape: number[]): unknown[] => {
  const [size = 0, ...rest] = shape;
  if (rest.length === 0) return flat;
  const step = flat.length / (size || 1);
  return Array.from({ length: size }, (_, index) => nest(flat.slice(index * step, (index + 1) * step), rest));
};
/** Numbers as written, with every digit and sign. */
const digits = (text: string): string[] => text.match(/"(?:[^"\\]|\\.)*"|[^,[\]\s]+/g) ?? [];

t.test("what goes through an identity comes back equal, in JSON and as bytes", async (t) => {
  const one = await Promise.all(TYPES.map((type) => start({ model: identities([type]) })));
  await fc.assert(
    fc.asyncProperty(tensors, async ({ type, shape, data, nested }) => {
      const { ask } = one[TYPES.indexOf(type)] as Program;
      const input = { name: `x_${type}`, shape, datatype: type };
      const json = JSON.stringify({ inputs: [{ ...input, data: nested ? nest(data, shape) : data }] }).replaceAll(
        "−",
        "-",
      );
      const asJson = await ask("POST", INFER, { body: json });
      t.equal(asJson.status, 200, asJson.bytes.toString());
      const text = asJson.bytes.toString();
      const back = digits(text.slice(text.indexOf('"data":[') + 7, -3));
      const sent = data.map((value) =>
        type === "INT64" || type === "UINT64" ? String(value) : Object.is(value, -0) ? "0" : JSON.stringify(value),
      );
      t.same(back, sent, `${type} ${String(shape)}`);

      // The reply's bytes, sent in: the same bytes again.
      const outputs = [{ name: `y_${type}`, parameters: { binary_data: true } }];
      const binary = await ask("POST", INFER, { body: { inputs: [{ ...input, data }], outputs } });
      const raw = binary.bytes.subarray(Number(binary.headers["inference-header-content-length"]));
      const head = JSON.stringify({
        inputs: [{ ...input, parameters: { binary_data_size: raw.length } }],
        parameters: { binary_data_output: true },
      });
      const again = await ask("POST", INFER, {
        body: Buffer.concat([Buffer.from(head), raw]),
        headers: { "inference-header-content-length": String(Buffer.byteLength(head)) },
      });
      t.equal(again.status, 200, again.bytes.toString());
      t.ok(again.bytes.subarray(Number(again.headers["inference-header-content-length"])).equals(raw), `${type} bytes`);
    }),
    { numRuns: 400 },
  );
  for (const program of one) program.process.kill("SIGKILL");
});

// -- bad input ---------------------------------------------------------------------------------------------------------

t.test("bad input: 400, naming the input and what was expected", async (t) => {
  const { ask, process } = await start({
    model: identities(["FP32", "INT64"]),
  });
  const f = (data: unknown, shape: unknown = [1, 1, 2], more: object = {}) => ({
    inputs: [
      { name: "x_FP32", shape, datatype: "FP32", data, ...more },
      { name: "x_INT64", shape: [1, 1, 1], datatype: "INT64", data: [1] },
    ],
  });
  const n = (data: unknown) => ({
    inputs: [
      { name: "x_FP32", shape: [1, 1, 1], datatype: "FP32", data: [1] },
      { name: "x_INT64", shape: [1, 1, 1], datatype: "INT64", data },
    ],
  });
  const [good] = f([1, 2]).inputs;
  const cases: [string, unknown, RegExp][] = [
    ["no JSON", "{", /not JSON/],
    ["nothing", "", /not JSON/],
    ["bare NaN", '{"inputs":[{"name":"x_FP32","shape":[1],"datatype":"FP32","data":[NaN]}]}', /not JSON/],
    ["not UTF-8", Buffer.from([0x22, 0xff, 0x22]), /not JSON/],
    ["a list", [], /object/],
    ["null", "null", /object/],
    ["deep nesting", `${"[".repeat(100_000)}${"]".repeat(100_000)}`, /not JSON|object/],
    ["no inputs", {}, /'inputs'.*'x_FP32'/],
    ["inputs no list", { inputs: {} }, /'inputs'/],
    ["an input null", { inputs: [null] }, /Input 0/],
    ["id a number", { ...f([1, 2]), id: 7 }, /'id'/],
    ["parameters a list", { ...f([1, 2]), parameters: [] }, /'parameters'/],
    ["count too small", f([1]), /'x_FP32'.*2 elements.*got 1/],
    ["count too large", f([1, 2, 3]), /'x_FP32'.*2 elements.*got 3/],
    ["ragged", f([[[1]], [[1, 2]]], [2, 1, 2]), /'x_FP32'.*lists of 2 at depth 3.*one of 1/],
    ["ragged in depth", f([[[1, 2]], [3]], [2, 1, 2]), /'x_FP32'.*nested lists 3 deep/],
    ["nested too deep", f([[[[1, 2]]]]), /'x_FP32'/],
    ["nested with another form", f([[[1], [2]]]), /'x_FP32'.*lists of 1 at depth 2/],
    ["negative size", f([1, 2], [-1, 1, 2]), /'x_FP32'.*dimension 0/],
    ["half a size", f([1, 2], [0.5, 2, 2]), /'x_FP32'.*dimension 0/],
    ["a size in text", f([1, 2], ["1", 1, 2]), /'x_FP32'.*dimension 0/],
    ["huge sizes", f([1, 2], [2 ** 52, 2 ** 52, 2]), /'x_FP32'.*got 2/],
    ["huge sizes, nested", f([[[1, 2]]], [1, 1, 2 ** 52]), /'x_FP32'.*lists of 4503599627370496/],
    ["many dimensions", f([1], new Array(1000).fill(1)), /'x_FP32'.*at most 32/],
    ["no shape", f([1, 2], [], { shape: undefined }), /'x_FP32'/],
    ["shape null", f([1, 2], null), /'x_FP32'.*'shape'/],
    ["rank", f([1, 2], [1, 2]), /'x_FP32'.*\[-1, -1, -1\].*\[1, 2\]/],
    ["wrong datatype", f([1, 2], [1, 1, 2], { datatype: "FP64" }), /'x_FP32'.*FP32, got FP64/],
    ["unknown datatype", f([1, 2], [1, 1, 2], { datatype: "constructor" }), /'x_FP32'.*FP32/],
    ["no data", f(undefined), /'x_FP32'.*list as 'data'/],
    ["data an object", f({ length: 2 }), /'x_FP32'.*list/],
    ["null inside", f([1, null]), /'x_FP32'.*element 1.*null/],
    ["text inside", f([1, "2"]), /'x_FP32'.*element 1/],
    ["a property's name inside", f([1, "constructor"]), /'x_FP32'.*element 1/],
    ["beyond FP32", f([1, 1e39]), /'x_FP32'.*element 1.*FP32/],
    ["beyond FP64", `{"inputs":[{"name":"x_FP32","shape":[1,1,1],"datatype":"FP32","data":[1e999]}]}`, /'x_FP32'/],
    ["beyond 2^53", n([2 ** 53]), /'x_INT64'.*decimal string/],
    ["beyond INT64", n(["9223372036854775808"]), /'x_INT64'.*9223372036854775807/],
    ["half", n([0.5]), /'x_INT64'/],
    ["not decimal", n(["0x10"]), /'x_INT64'/],
    ["a long number", n(["1".repeat(100_000)]), /'x_INT64'/],
    ["a boolean", n([true]), /'x_INT64'/],
    ["missing", { inputs: [good] }, /'x_INT64' is missing/],
    ["twice", { inputs: [good, good] }, /'x_FP32' is given twice/],
    [
      "unknown",
      { inputs: [{ ...good, name: "z".repeat(5000) }] },
      /not one of the model's: expected 'x_FP32', 'x_INT64'/,
    ],
    ["prototype", { inputs: [{ ...good, name: "__proto__" }] }, /not one of the model's/],
    ["unknown output", { ...f([1, 2]), outputs: [{ name: "w" }] }, /'w'.*'y_FP32'/],
    ["output twice", { ...f([1, 2]), outputs: [{ name: "y_FP32" }, { name: "y_FP32" }] }, /twice/],
    ["outputs no list", { ...f([1, 2]), outputs: "y_FP32" }, /'outputs'/],
    ["classification", { ...f([1, 2]), outputs: [{ name: "y_FP32", parameters: { classification: 2 } }] }, /y_FP32/],
    ["shared memory", f(undefined, [1, 1, 2], { parameters: { shared_memory_region: "r" } }), /shared memory/],
    ["binary without bytes", f(undefined, [1, 1, 2], { parameters: { binary_data_size: 8 } }), /'x_FP32'.*0 to the 0/],
    ["binary and data", f([1, 2], [1, 1, 2], { parameters: { binary_data_size: 8 } }), /both/],
    ["binary_data in words", { ...f([1, 2]), parameters: { binary_data_output: "yes" } }, /binary_data_output/],
  ];
  for (const [what, body, expected] of cases) {
    const reply = await ask("POST", INFER, { body });
    t.equal(reply.status, 400, what);
    t.match(errorOf(reply), expected, what);
    t.ok(errorOf(reply).length < 700, `${what}: short`);
    t.notMatch(errorOf(reply), /\/(work|tmp|home|root)\b|node:|\.ts|\n/, `${what}: no path, no stack`);
  }
  const head = JSON.stringify(f(undefined, [1, 1, 2], { parameters: { binary_data_size: 4 } }));
  for (const [length, tail, expected] of [
    [String(Buffer.byteLength(head)), "1234", /'x_FP32'.*8 bytes of FP32/],
    [String(Buffer.byteLength(head)), "123", /'x_FP32'.*binary_data_size/],
    ["9999999", "", /Inference-Header-Content-Length/],
    ["-1", "", /Inference-Header-Content-Length/],
    ["x", "", /Inference-Header-Content-Length/],
  ] as const) {
    const reply = await ask("POST", INFER, {
      body: head + tail,
      headers: { "inference-header-content-length": length },
    });
    t.equal(reply.status, 400);
    t.match(errorOf(reply), expected);
  }
  const ok = JSON.stringify(f([1, 2]));
  const behind = await ask("POST", INFER, {
    body: `${ok}xyz`,
    headers: { "inference-header-content-length": String(Buffer.byteLength(ok)) },
  });
  t.match(errorOf(behind), /3 bytes behind/);
  t.equal((await ask("POST", INFER, { body: f([1, 2]) })).status, 200, "and it still serves");
  t.equal(process.exitCode, null);
});

t.test(
  "BYTES and BOOL take their own kind only; what the runtime cannot compute is told without its sources",
  async (t) => {
    const { ask } = await start({ model: identities(["BYTES", "BOOL"]) });
    const ask2 = (bytes: unknown, bool: unknown) =>
      ask("POST", INFER, {
        body: { inputs: [pair("x_BYTES", [bytes], [1, 1, 1], "BYTES"), pair("x_BOOL", [bool], [1, 1, 1], "BOOL")] },
      });
    t.equal((await ask2("é", true)).status, 200);
    for (const wrong of ["a\0b", "\ud800", 1, null]) t.match(errorOf(await ask2(wrong, true)), /'x_BYTES'/);
    for (const wrong of [1, "true", null]) t.match(errorOf(await ask2("a", wrong)), /'x_BOOL'/);

    const sum = await start({ model: arithmetic() });
    const reply = await sum.ask("POST", INFER, {
      body: { inputs: [pair("a", [1, 2, 3, 4, 5, 6], [3, 2]), pair("b", [1, 2, 3, 4], [2, 2])] },
    });
    t.equal(reply.status, 400);
    t.match(errorOf(reply), /cannot be computed with these inputs: .*(broadcast|Broadcast|dimension)/i);
    t.notMatch(errorOf(reply), /\.cc|\.h:|onnxruntime_src/);
  },
);

// -- starting ----------------------------------------------------------------------------------------------------------

t.test("a model that cannot be served: one line of JSON, exit code 65", async (t) => {
  const parts: Pick<ModelParts, "inputs" | "outputs"> = {
    inputs: [{ name: "x", type: "FP32", shape: [1] }],
    outputs: [{ name: "y", type: "FP32", shape: [1] }],
  };
  const echo = [{ operator: "Identity", inputs: ["x"], outputs: ["y"] }];
  const cases: [string, Buffer | null, RegExp][] = [
    ["no file", null, /cannot be read: there is none/],
    ["an empty file", Buffer.alloc(0), /empty/],
    ["text", Buffer.from("PK\x03\x04 not a model at all"), /not an ONNX file/],
    ["random bytes", Buffer.alloc(5000, 0xa7), /not an ONNX file/],
    ["half a file", arithmetic().subarray(0, 60), /not an ONNX file/],
    [
      "external data",
      model({ ...parts, nodes: echo, extra: [externalTensor("/etc/passwd")] }),
      /'weights' in another file/,
    ],
    [
      "external data under keys that protobuf reads as others",
      model({ ...parts, nodes: echo, extra: [hiddenExternalTensor("weights.bin")] }),
      /not an ONNX file/,
    ],
    [
      "external data as the default of a function's attribute",
      functionDefault(externalTensor("weights.bin")),
      /'weights' in another file/,
    ],
    ["an opset of the future", model({ ...parts, nodes: echo, opset: 99 }), /runtime refuses.*opset/i],
    [
      "an unknown operator",
      model({ ...parts, nodes: [{ operator: "Nonsense", inputs: ["x"], outputs: ["y"] }] }),
      /Nonsense/,
    ],
    [
      "an operator whose name moves a terminal's cursor",
      model({ ...parts, nodes: [{ operator: "Non\u001b[2J\u009bsense", inputs: ["x"], outputs: ["y"] }] }),
      /^\P{Cc}*Non \[2J sense\P{Cc}*$/u,
    ],
    ["a type without a word", identity("BF16", [1]), /data type/i],
  ];
  await Promise.all(
    cases.map(async ([what, bytes, expected]) => {
      const program = await start({ model: bytes, until: "exit" });
      t.same(await program.exited, { code: 65, signal: null }, what);
      const last = program.lines.at(-1) as { code: string; message: string };
      t.equal(last.code, "MODEL_REFUSED", what);
      t.match(last.message, expected, what);
      t.notMatch(last.message, /\/tmp|serving-|passwd|\.cc/, `${what}: no path`);
    }),
  );
});

t.test(
  "a wrong command line: 64; a taken port or socket: 69; a socket that was left behind is no hindrance",
  async (t) => {
    const bytes = arithmetic();
    for (const [args, expected] of [
      [["--nonsense"], /nonsense/],
      [["--threads", "0"], /--threads/],
      [["--threads", "-1"], /threads/],
      [["--port", "80"], /either --socket or --port/],
      [["--host", "0.0.0.0"], /--host/],
      [["--name", ""], /--name is missing/],
      [["extra"], /extra/],
      [["--socket", `/${"d/".repeat(80)}s`], /bytes, a unix socket's at most 107/],
    ] as const) {
      const program = await start({ model: bytes, args: [...args], until: "exit" });
      t.equal((await program.exited).code, 64, args.join(" "));
      t.match(program.lines.at(-1), { code: "USAGE", message: expected });
    }
    const noToken = await start({ model: bytes, token: "", until: "exit" });
    t.equal((await noToken.exited).code, 64);

    const other = createServer().listen(0, "127.0.0.1");
    await once(other, "listening");
    const { port } = other.address() as AddressInfo;
    const taken = await start({ model: bytes, token: "t", args: ["--port", String(port)], until: "exit" });
    t.equal((await taken.exited).code, 69);
    t.match(taken.lines.at(-1), { code: "PORT_TAKEN", message: /is taken/ });
    other.close();

    const first = await start({ model: bytes });
    const path = join(first.folder, "s.sock");
    t.equal(statSync(path).mode & 0o777, 0o600, "the socket is its owner's alone");
    const second = await start({ model: bytes, args: ["--socket", path], until: "exit" });
    t.equal((await second.exited).code, 69);
    first.process.kill("SIGKILL");
    await first.exited;
    t.ok(statSync(path).isSocket());
    const third = await start({ model: bytes, args: ["--socket", path], until: "loaded" });
    third.process.kill("SIGTERM");
    t.equal((await third.exited).code, 0);
  },
);

t.test("a long folder: the socket relative to it", async (t) => {
  // The folder itself is chosen by the fixture; what is deep is below it, and the path is given whole.
  const program = await start({ model: arithmetic(), until: "loaded" });
  const deep = join(program.folder, "x".repeat(40), "y".repeat(40), "z".repeat(40));
  mkdirSync(deep, { recursive: true });
  writeFileSync(join(deep, "model.onnx"), arithmetic());
  const { spawn } = await import("node:child_process");
  const child = spawn(
    process.execPath,
    [
      join(import.meta.dirname, "main.ts"),
      "--model",
      "model.onnx",
      "--name",
      "m",
      "--model-version",
      "1",
      "--socket",
      join(deep, "s.sock"),
    ],
    { cwd: deep, stdio: ["ignore", "ignore", "pipe"] },
  );
  let text = "";
  child.stderr.setEncoding("utf8").on("data", (part: string) => {
    text += part;
    if (text.includes('"loaded"')) child.kill("SIGTERM");
  });
  const [code] = (await once(child, "close")) as [number];
  t.equal(code, 0, text);
});

t.test("on a port: the token on everything but liveness", async (t) => {
  const { ask, port } = await start({ model: arithmetic(), token: "right" });
  t.type(port, "number");
  const paths = ["/v2", "/v2/health/ready", "/v2/models/m", "/metrics", "/nowhere", INFER];
  for (const authorization of ["", "Bearer wrong", "Bearer right2", "Bearer", "Basic cmlnaHQ=", "right"])
    for (const path of paths) {
      const reply = await ask(path === INFER ? "POST" : "GET", path, { headers: { authorization } });
      t.equal(reply.status, 401, `${authorization} ${path}`);
      t.equal(reply.headers["www-authenticate"], "Bearer");
    }
  t.equal((await ask("GET", "/v2/health/live", { headers: { authorization: "" } })).status, 200);
  t.equal((await ask("GET", "/v2/health/ready")).status, 200);
});

// -- limits and time ---------------------------------------------------------------------------------------------------

/** A raw connection to the program's socket, with what it has received so far. */
async function open(program: Program): Promise<{ socket: Socket; received: () => string; closed: Promise<unknown> }> {
  const socket = createConnection(join(program.folder, "s.sock"));
  let text = "";
  socket.setEncoding("utf8").on("data", (part: string) => void (text += part));
  socket.on("error", () => {});
  // Not `once`, which rejects on an error: cut off is one of the ends that are expected.
  const closed = new Promise((resolve) => socket.once("close", resolve));
  await once(socket, "connect");
  return { socket, received: () => text, closed };
}

t.test("a body too large, packed, endless, late or broken off; garbage instead of HTTP", async (t) => {
  const program = await start({ model: arithmetic(), args: ["--max-body-bytes", "2000", "--receive-ms", "500"] });
  const { ask } = program;
  const large = await ask("POST", INFER, { body: "x".repeat(100_000) });
  t.equal(large.status, 413);
  t.match(errorOf(large), /at most 2000 bytes/);
  const chunked = await ask("POST", INFER, {
    body: "x".repeat(100_000),
    headers: { "transfer-encoding": "chunked" },
  }).catch(() => undefined);
  if (chunked !== undefined) t.ok([400, 413].includes(chunked.status));
  t.equal((await ask("POST", INFER, { body: "x", headers: { "content-encoding": "gzip" } })).status, 415);

  const endless = await open(program);
  endless.socket.write(`POST ${INFER} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n`);
  for (let i = 0; i < 10; i++) endless.socket.write(`400\r\n${"x".repeat(1024)}\r\n`);
  await endless.closed;
  t.match(endless.received(), /^HTTP\/1.1 413 /);

  const late = await open(program);
  late.socket.write(`POST ${INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{`);
  await late.closed;
  t.match(late.received(), /^HTTP\/1.1 408 [\s\S]*did not arrive in time/);

  const expecting = await open(program);
  expecting.socket.write(`POST ${INFER} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 5000\r\n\r\n`);
  await until(async () => expecting.received().length > 0);
  t.match(expecting.received(), /^HTTP\/1.1 413 /, "not asked for what would not be read");
  expecting.socket.destroy();

  const headers = await open(program);
  headers.socket.write(`GET /v2 HTTP/1.1\r\nhost: x\r\nx: ${"y".repeat(20_000)}\r\n\r\n`);
  await headers.closed;
  t.match(headers.received(), /^HTTP\/1.1 431 /);

  const garbage = await open(program);
  garbage.socket.write("\x16\x03\x01 not http\r\n\r\n");
  await garbage.closed;
  t.match(garbage.received(), /^HTTP\/1.1 400 [\s\S]*"error"/);

  for (let i = 0; i < 20; i++) {
    const { socket, closed } = await open(program);
    socket.write(`POST ${INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{`);
    socket.destroy();
    await closed;
  }
  const good = await ask("POST", INFER, { body: { inputs: [pair("a", [1, 2]), pair("b", [1, 2])] } });
  t.equal(good.status, 200);
  t.equal(await inFlight(ask), 0);
});

const rounds = (count: number) => ({ inputs: [{ name: "rounds", shape: [], datatype: "INT64", data: [count] }] });
/** How many rounds keep this machine busy for about so long. */
async function roundsFor(ask: Ask, ms: number): Promise<number> {
  const timed = async (count: number): Promise<number> => {
    const begin = performance.now();
    await ask("POST", INFER, { body: rounds(count) });
    return performance.now() - begin;
  };
  for (let count = 2000; ; count *= 4) {
    let took = await timed(count);
    if (took < 50) continue;
    // The fastest of some: a moment in which others had the machine would make it too few.
    for (let n = 0; n < 4; n++) took = Math.min(took, await timed(count));
    if (took > 20) return Math.ceil((count * ms) / took);
  }
}

t.test("while it computes: health answers, the queue has an end, who has gone is forgotten", async (t) => {
  const program = await start({ model: slow(), args: ["--max-in-flight", "4"] });
  const { ask } = program;
  const count = await roundsFor(ask, 3000);
  const busy = ask("POST", INFER, { body: rounds(count) });
  await until(async () => (await inFlight(ask)) === 1);
  let worst = 0;
  for (let i = 0; i < 50; i++) {
    const begin = performance.now();
    t.equal((await ask("GET", "/v2/health/ready")).status, 200);
    worst = Math.max(worst, performance.now() - begin);
  }
  t.equal(await inFlight(ask), 1, `50 health answers while it computes, the slowest in ${worst.toFixed(1)} ms`);

  const leaving = await Promise.all([open(program), open(program)]);
  const body = JSON.stringify(rounds(1));
  for (const { socket } of leaving)
    socket.write(`POST ${INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: ${body.length}\r\n\r\n${body}`);
  await until(async () => (await inFlight(ask)) === 3);
  const waiting = ask("POST", INFER, { body: rounds(2) });
  await until(async () => (await inFlight(ask)) === 4);
  const refused = await ask("POST", INFER, { body: rounds(1) });
  t.equal(refused.status, 503);
  t.equal(refused.headers["retry-after"], "1");
  t.match(errorOf(refused), /limit/);
  for (const { socket } of leaving) socket.destroy();
  // One of them is with the model's thread already; the other leaves the queue at once.
  await until(async () => (await inFlight(ask)) <= 3);
  t.equal((await busy).status, 200);
  t.match((await waiting).json, { outputs: [{ data: [2] }] });
  await until(async () => (await inFlight(ask)) === 0);
  const metrics = (await ask("GET", "/metrics")).bytes.toString();
  t.match(metrics, 'sallyport_serving_model_info{name="m",version="3",platform="onnxruntime_onnx"} 1');
  t.match(metrics, /sallyport_serving_requests_total\{route="infer",code="200"\} \d/);
  t.match(metrics, 'sallyport_serving_errors_total{reason="overloaded"} 1');
  t.match(metrics, /sallyport_serving_request_duration_seconds_bucket\{le="\+Inf"\} \d/);
  t.match(metrics, /sallyport_serving_run_duration_seconds_sum \d/);
});

t.test("bodies that wait hold no more memory than those that arrive", async (t) => {
  const max = 65_536;
  const { ask } = await start({ model: slow(), args: ["--max-body-bytes", String(max)] });
  const busy = ask("POST", INFER, { body: rounds(await roundsFor(ask, 1500)) });
  await until(async () => (await inFlight(ask)) === 1);
  const large = { ...rounds(1), id: "x".repeat(max - 200) };
  const waiting: Promise<Reply>[] = [];
  for (let n = 1; n <= 4; n++) {
    waiting.push(ask("POST", INFER, { body: large }));
    await until(async () => (await inFlight(ask)) === 1 + n);
  }
  waiting.push(ask("POST", INFER, { body: large }));
  const replies = await Promise.all(waiting);
  t.same(
    replies.map(({ status }) => status).toSorted((a, b) => a - b),
    [200, 200, 200, 200, 503],
  );
  t.match(errorOf(replies.find(({ status }) => status === 503)!), /large requests/);
  t.equal((await busy).status, 200);
  t.equal((await ask("POST", INFER, { body: large })).status, 200, "what was held is free again");
});

t.test("past the deadline: 504, not ready until the model is free, then it serves again", async (t) => {
  const { ask } = await start({ model: slow(), args: ["--deadline-ms", "300"] });
  // Far more than the deadline: calibrated on a busy moment, it may take a fraction of this.
  const count = await roundsFor(ask, 2500);
  const late = await ask("POST", INFER, { body: rounds(count) });
  t.equal(late.status, 504);
  await until(async () => (await ask("GET", "/v2/health/ready")).status === 503);
  await until(async () => (await ask("GET", "/v2/health/ready")).status === 200);
  t.equal((await ask("POST", INFER, { body: rounds(1) })).status, 200);
});

t.test("SIGTERM: no new connections, what is under way is answered, exit 0; none waits for ever", async (t) => {
  const program = await start({ model: slow() });
  const count = await roundsFor(program.ask, 400);
  const silent = await open(program);
  const replies = [1, 2, 3].map(() => program.ask("POST", INFER, { body: rounds(count) }));
  await until(async () => (await inFlight(program.ask)) === 3);
  program.process.kill("SIGTERM");
  await program.event("stopping");
  const refused = createConnection(join(program.folder, "s.sock"));
  refused.on("error", () => {});
  await new Promise((resolve) => refused.once("close", resolve));
  t.equal(refused.bytesRead, 0);
  for (const reply of await Promise.all(replies)) {
    t.equal(reply.status, 200);
    t.equal(reply.headers["connection"], "close");
  }
  t.same(await program.exited, { code: 0, signal: null });
  await silent.closed;
  t.match(program.lines.at(-1), { event: "stopped", cut: 0 });

  // Within the runtime nothing can be cut short but by the end of the process.
  const stubborn = await start({ model: slow(), args: ["--grace-ms", "100"] });
  const cut = stubborn.ask("POST", INFER, { body: rounds(count * 400) }).catch((reason: unknown) => reason);
  await until(async () => (await inFlight(stubborn.ask)) === 1);
  stubborn.process.kill("SIGTERM");
  t.ok((await cut) instanceof Error);
  t.same(await stubborn.exited, { code: null, signal: "SIGKILL" });
});

t.test(
  "large tensors in JSON: the thread that answers health does not wait for them; nothing of them is logged",
  async (t) => {
    const program = await start({ model: identity("FP32", ["n"]) });
    const { ask } = program;
    const data = Array.from({ length: 2_000_000 }, (_, index) => index + 0.5);
    const body = Buffer.from(JSON.stringify({ inputs: [pair("x", data, [data.length])] }));
    t.ok(body.length > 16_000_000);
    let worst = 0;
    let answers = 0;
    let done = false;
    const large = Promise.all([ask("POST", INFER, { body }), ask("POST", INFER, { body })]).finally(
      () => (done = true),
    );
    // Asked for from another process's thread would be fairer: this one parses the replies.
    while (!done) {
      const begin = performance.now();
      await ask("GET", "/v2/health/live");
      if (!done) worst = Math.max(worst, performance.now() - begin);
      if (!done) answers++;
    }
    const [first] = await large;
    t.same((first.json as { outputs: { data: number[] }[] }).outputs[0]?.data.at(-1), 1_999_999.5);
    t.comment(`slowest health answer beside two requests of ${body.length} bytes: ${worst.toFixed(1)} ms`);
    // One thread for all would answer twice: before and between.
    t.ok(answers > 10, `${answers} health answers meanwhile`);
    t.notMatch(JSON.stringify(program.lines), "1999999.5");
    t.equal(program.lines.length, 2, "no line per request");

    const brackets = await ask("POST", INFER, { body: `{"inputs":[${"[],".repeat(5_000_000)}0]}` });
    t.equal(brackets.status, 413);
    t.match(errorOf(brackets), /lists/);
  },
);

t.test("a model that may not be read is named as that", async (t) => {
  const first = await start({ model: arithmetic() });
  const file = join(first.folder, "model.onnx");
  chmodSync(file, 0);
  const program = await start({ model: null, args: ["--model", file], until: "exit", heedsModes: true });
  t.equal((await program.exited).code, 65);
  t.match(program.lines.at(-1), { code: "MODEL_REFUSED", message: /EACCES/ });
});
