import fc from "fast-check";
import t from "tap";
import type { DeploymentSpec, Rollup } from "../api/types.ts";
import { changesText, diffSpecs } from "./diff.ts";
import { isMetadata, sampleRequest } from "./sample-request.ts";
import { checkForm, emptyForm, fieldOf, formOf, readPairs, specOf } from "./spec-form.ts";
import { lastHour, linePath, niceTop } from "./traffic.ts";

const DIGEST = `sha256:${"ab".repeat(32)}`;
const spec = (more: Partial<DeploymentSpec> = {}): DeploymentSpec => ({
  model: { store: "sample", path: "models/digits.onnx", digest: DIGEST },
  runtime: "onnx",
  engine: "process",
  replicas: 1,
  resources: { cpus: 1, memoryBytes: 512 * 1024 ** 2 },
  env: {},
  secrets: {},
  ...more,
});
const pool = {
  id: "pol_1",
  name: "demo",
  agents: { total: 1, connected: 1 },
  stores: [{ id: "sample", kind: "fs", label: "file", grants: ["read" as const] }],
  programs: [],
  engines: ["process"],
  serving: [{ engine: "process", isolated: false }],
  maxRuns: null,
  ceilings: { deployments: 4, replicas: 3, cpus: 2, memoryBytes: 1024 ** 3 },
  stale: false,
};

t.test("a spec goes through the form and comes back the same", (t) => {
  const name = fc.stringMatching(/^[A-Z_][A-Z0-9_]{0,9}$/);
  const pairs = (value: fc.Arbitrary<string>) => fc.dictionary(name, value, { maxKeys: 4 });
  fc.assert(
    fc.property(
      pairs(fc.stringMatching(/^[ -~]{0,20}$/)),
      pairs(fc.stringMatching(/^[a-z][a-z/.-]{0,10}$/)),
      fc.integer({ min: 0, max: 1000 }),
      fc.integer({ min: 32 * 1024 ** 2, max: 1024 ** 4 }),
      (env, secrets, replicas, memoryBytes) => {
        const before = spec({
          env: { ...env },
          secrets: { ...secrets },
          replicas,
          resources: { cpus: 0.5, memoryBytes },
        });
        t.strictSame(specOf(formOf(before), before), before);
      },
    ),
  );
  t.end();
});

t.test("what cannot be is said beside its field", (t) => {
  t.same(checkForm(formOf(spec()), pool), {});
  t.same(Object.keys(checkForm({ ...emptyForm(), engine: "process" }, pool)).sort(), ["digest", "path", "store"]);
  t.match(checkForm(formOf(spec({ replicas: 4 })), pool), { replicas: "The agent's policy allows at most 3." });
  t.match(checkForm(formOf(spec({ resources: { cpus: 3, memoryBytes: 2 * 1024 ** 3 } })), pool), {
    cpus: "The agent's policy allows at most 2 cores a replica.",
    memoryMiB: "The agent's policy allows at most 1024 MiB a replica.",
  });
  t.match(checkForm(formOf(spec({ engine: "docker" })), pool), { engine: /docker/ });
  t.match(checkForm({ ...formOf(spec()), path: "a/../b", digest: "abc" }, pool), { path: /\.\./, digest: /64/ });
  t.match(checkForm({ ...formOf(spec({ env: { A: "1" } })), secrets: "A=db" }, pool), { secrets: /already/ });
  t.match(readPairs("lower=1", "value").problem, /lower/);
  t.match(readPairs("A", "value").problem, /A=value/);
  t.match(readPairs("A=1\nA=2", "value").problem, /twice/);
  for (const [path, field] of [
    ["spec.model.digest", "digest"],
    ["/spec/resources/memoryBytes", "memoryMiB"],
    ["spec.env.A", "env"],
    ["body.name", "name"],
    ["replicas", "replicas"],
    ["nothing.known", ""],
  ])
    t.equal(fieldOf(path!), field);
  t.end();
});

t.test("two specs side by side", (t) => {
  const changes = diffSpecs(
    spec(),
    spec({ replicas: 3, env: { ROUND: "two" }, resources: { cpus: 2, memoryBytes: 512 * 1024 ** 2 } }),
  );
  t.strictSame(changes, [
    { path: "replicas", from: 1, to: 3 },
    { path: "resources.cpus", from: 1, to: 2 },
    { path: "env.ROUND", to: "two" },
  ]);
  t.equal(changesText(changes), "replicas 1 → 3, cores a replica 1 → 2, env.ROUND added: two");
  t.same(diffSpecs(spec(), spec({ replicas: 3 }), false), []);
  t.end();
});

t.test("the sample request has the names, types and sizes that the model asks for", (t) => {
  const metadata = {
    name: "digits",
    inputs: [
      { name: "image", datatype: "FP32", shape: [-1, 64] },
      { name: "flag", datatype: "BOOL", shape: [1] },
      { name: "none", datatype: "INT64", shape: [] },
    ],
    outputs: [],
  };
  t.ok(isMetadata(metadata));
  const sent = JSON.parse(sampleRequest(metadata)!) as { inputs: { shape: number[]; data: unknown[] }[] };
  t.same(
    sent.inputs.map((each) => [each.shape, each.data.length, each.data[0]]),
    [
      [[1, 64], 64, 0],
      [[1], 1, false],
      [[], 1, 0],
    ],
  );
  t.equal(sampleRequest({ ...metadata, inputs: [{ name: "i", datatype: "FP32", shape: [-1, 3, 224, 224] }] }), null);
  t.notOk(isMetadata({ error: "no" }));
  t.end();
});

t.test("the last hour has a place for each minute and a hole for what was not reported", (t) => {
  const now = 1_800_000_000_000 + 30_000;
  const rollup = (at: number): Rollup => ({ at, requests: 60, errors: 0, retries: 0, p50Ms: 1, p95Ms: 2, p99Ms: 3 });
  const hour = lastHour([rollup(now - 30_000), rollup(now - 30_000 - 120_000), rollup(1)], now);
  t.equal(hour.length, 60);
  t.equal(hour.at(-1)!.rollup?.requests, 60);
  t.equal(hour.at(-2)!.rollup, null);
  t.equal(hour.filter((each) => each.rollup !== null).length, 2);
  t.equal(
    linePath(
      [1, 2, null, 3, null, 4, 5],
      (x) => x,
      (y) => y,
    ),
    "M0.0 1.0L1.0 2.0M1.5 3.0h3M5.0 4.0L6.0 5.0",
  );
  t.same([0, 0.3, 1, 7, 20.0000000001, 51].map(niceTop), [1, 0.5, 1, 10, 20, 100]);
  t.end();
});
