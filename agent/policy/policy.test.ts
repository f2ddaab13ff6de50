import fc from "fast-check";
import t from "tap";
import { parse } from "yaml";
import {
  compilePolicy,
  defaultPolicy,
  policySchema,
  type Ceiling,
  type PolicyAction,
  type RawPolicy,
} from "./index.ts";
import { compileGlob, globLeadsTo, globMatches, pathSegments, segmentMatches } from "./globs.ts";

const compile = (raw: RawPolicy) => compilePolicy(defaultPolicy(policySchema.parse(raw)));

// Small alphabets, so that patterns and paths meet.
const nameArb = fc.constantFrom("a", "b", "ab", "lake", "node");
const segmentArb = fc.constantFrom("a", "b", "ab", "abc", "a.csv", "ü");
const pathArb = fc.array(segmentArb, { maxLength: 4 }).map((s) => s.join("/"));
const globArb = fc
  .array(fc.oneof(segmentArb, fc.constantFrom("*", "**", "?", "a*", "*.csv", "?b*")), { minLength: 1, maxLength: 4 })
  .map((s) => s.join("/"));
const ceilingArb = fc.constantFrom<Ceiling>(
  "concurrentRuns",
  "concurrentSteps",
  "stepTimeoutMs",
  "stepsPerRun",
  "uploadBytes",
  "streams",
  "deployments",
  "replicas",
  "cpus",
  "memoryBytes",
);
const DIGESTS = ["a", "b"].map((digit) => `sha256:${digit.repeat(64)}`);
const imageArb = fc.constantFrom(
  ...[
    "",
    "python@",
    "reg.example/ml/train@",
    "reg.example/ml/sub/x@",
    "reg.example:5000/ml/train@",
    "other.example/x@",
  ].flatMap((name) => DIGESTS.map((digest) => `${name}${digest}`)),
);
const globs = fc.array(globArb, { maxLength: 3 });
const partial = <T>(model: { [K in keyof T]: fc.Arbitrary<T[K]> }) => fc.record(model, { requiredKeys: [] });
const count = fc.nat({ max: 5 });
const policyArb = partial({
  commands: fc.array(fc.constantFrom("*", "artifact.*", "artifact.read", "pipeline.run", "run.*"), { maxLength: 3 }),
  stores: fc.array(
    fc.record({ store: nameArb, read: globs, write: globs, delete: globs }, { requiredKeys: ["store"] }),
    { maxLength: 3 },
  ),
  programs: fc.array(fc.oneof(nameArb, fc.constant("*")), { maxLength: 2 }),
  secrets: fc.array(nameArb, { maxLength: 2 }),
  engines: fc.array(fc.constantFrom("process", "docker"), { maxLength: 2 }),
  images: fc.array(
    fc.oneof(imageArb, fc.constantFrom("*", "reg.example/ml/*", "reg.example/*", "reg.example:5000/ml/t*")),
    {
      maxLength: 2,
    },
  ),
  networks: fc.array(fc.oneof(nameArb, fc.constant("*")), { maxLength: 2 }),
  ceilings: partial({
    concurrentRuns: count,
    concurrentSteps: count,
    stepTimeoutMs: count,
    stepsPerRun: count,
    uploadBytes: count,
    streams: count,
    deployments: count,
    replicas: count,
    cpus: fc.constantFrom(0, 0.5, 1, 4),
    memoryBytes: count,
  }),
  release: partial({
    metadata: fc.boolean(),
    previews: fc.oneof(fc.constant<false>(false), fc.record({ rows: fc.integer({ min: 1, max: 9 }) })),
    logs: fc.boolean(),
    predict: fc.oneof(fc.boolean(), fc.array(fc.oneof(nameArb, fc.constantFrom("1", "true")), { maxLength: 2 })),
    raw: fc.oneof(fc.boolean(), fc.array(fc.record({ store: nameArb, paths: globs }), { maxLength: 2 })),
  }),
}) as fc.Arbitrary<RawPolicy>;
const actionArb: fc.Arbitrary<PolicyAction> = fc.oneof(
  fc.record({
    kind: fc.constant("command" as const),
    command: fc.constantFrom("artifact.read", "artifact.list", "artifactx.read", "pipeline.run", "run.logs"),
  }),
  fc.record({
    kind: fc.constant("store" as const),
    access: fc.constantFrom("list" as const, "read" as const, "write" as const, "delete" as const),
    store: nameArb,
    path: pathArb,
  }),
  fc.record({
    kind: fc.constant("release" as const),
    what: fc.constantFrom("metadata" as const, "preview" as const, "logs" as const),
  }),
  fc.record({
    kind: fc.constant("release" as const),
    what: fc.constant("raw" as const),
    store: nameArb,
    path: pathArb,
  }),
  fc.record({ kind: fc.constant("program" as const), program: nameArb }),
  fc.record({ kind: fc.constant("engine" as const), engine: fc.constantFrom("process", "docker", "swarm") }),
  fc.record({ kind: fc.constant("secret" as const), secret: nameArb }),
  fc.record({ kind: fc.constant("image" as const), image: imageArb }),
  fc.record({ kind: fc.constant("network" as const), network: nameArb }),
  fc.record({
    kind: fc.constant("predict" as const),
    deployment: fc.oneof(nameArb, fc.constantFrom("1", "true")),
  }),
  fc.record({ kind: fc.constant("ceiling" as const), ceiling: ceilingArb, value: fc.integer({ min: 1, max: 6 }) }),
  fc.record({
    kind: fc.constant("ceiling" as const),
    ceiling: fc.constant("cpus" as const),
    value: fc.constantFrom(0.1, 0.5, 1.5),
  }),
);

/** Lays a proposed piece of policy over what is there, as a person would. */
function merge(into: unknown, piece: unknown): unknown {
  if (Array.isArray(into) && Array.isArray(piece)) return [...into, ...piece];
  if (
    typeof into === "object" &&
    into !== null &&
    typeof piece === "object" &&
    piece !== null &&
    !Array.isArray(piece)
  ) {
    const out: Record<string, unknown> = { ...into };
    for (const [k, v] of Object.entries(piece)) out[k] = k in out ? merge(out[k], v) : v;
    return out;
  }
  return piece;
}

/** Every policy that has one thing less: an entry of a list, or a field. */
function* smaller(value: unknown): Generator<unknown> {
  if (Array.isArray(value)) {
    for (const i of value.keys()) {
      yield value.toSpliced(i, 1);
      for (const less of smaller(value[i])) yield value.toSpliced(i, 1, less);
    }
  } else if (typeof value === "object" && value !== null) {
    for (const [k, v] of Object.entries(value)) {
      if (k !== "store" && k !== "rows" && k !== "paths")
        yield Object.fromEntries(Object.entries(value).filter(([key]) => key !== k));
      for (const less of smaller(v)) yield { ...value, [k]: less };
    }
  }
}

t.test("an empty policy refuses everything", (t) => {
  fc.assert(fc.property(actionArb, (action) => !compile({}).decide(action).allowed));
  t.end();
});

t.test("a refusal names its rule, and the line it proposes is what it takes; nothing else is allowed by it", (t) => {
  fc.assert(
    fc.property(policyArb, actionArb, (raw, action) => {
      const before = compile(raw);
      const verdict = before.decide(action);
      if (verdict.allowed) return;
      if (!verdict.rule.startsWith("policy.") || verdict.reason === "") throw new Error(JSON.stringify(verdict));
      const line = /`(.*)`/s.exec(verdict.fix)?.[1] ?? "";
      const after = compile(merge(raw, (parse(line) as { policy: RawPolicy }).policy) as RawPolicy);
      if (!after.decide(action).allowed) throw new Error(`${line} does not allow it`);
      if (before.digest === after.digest) throw new Error("same digest");
    }),
    { numRuns: 2000 },
  );
  t.end();
});

t.test("taking anything away never widens", (t) => {
  fc.assert(
    fc.property(policyArb, fc.array(actionArb, { minLength: 1, maxLength: 8 }), (raw, actions) => {
      const before = compile(raw);
      for (const less of smaller(raw)) {
        const after = compile(less as RawPolicy);
        for (const action of actions) {
          if (after.decide(action).allowed && !before.decide(action).allowed)
            throw new Error(`${JSON.stringify(action)} by ${JSON.stringify(less)}`);
        }
        if (after.previewRows > before.previewRows) throw new Error("rows");
      }
    }),
    { numRuns: 500 },
  );
  t.end();
});

t.test("what may be read may be listed down to; what leads nowhere may not", (t) => {
  fc.assert(
    fc.property(globs, pathArb, pathArb, (read, path, below) => {
      const policy = compile({ stores: [{ store: "lake", read }] });
      const allowed = (access: "list" | "read", p: string) =>
        policy.decide({ kind: "store", access, store: "lake", path: p }).allowed;
      const full = [path, below].filter((s) => s !== "").join("/");
      if (allowed("read", full) && !allowed("list", path)) throw new Error("a way to something readable is closed");
    }),
  );
  const policy = compile({ stores: [{ store: "lake", read: ["data/2026/*.csv"] }] });
  const list = (path: string) => policy.decide({ kind: "store", access: "list", store: "lake", path }).allowed;
  t.strictSame(["", "data", "data/2026", "data/2026/x.csv", "data/2025", "dat", "data/2026/sub"].map(list), [
    true,
    true,
    true,
    true,
    false,
    false,
    false,
  ]);
  t.end();
});

t.test("segments, by a second opinion", (t) => {
  const regex = (pattern: string) =>
    new RegExp(
      `^${[...pattern].map((c) => (c === "*" ? "[^]*" : c === "?" ? "[^]" : c.replace(/[\\^$.|+()[\]{}]/g, "\\$&"))).join("")}$`,
      "u",
    );
  fc.assert(
    fc.property(
      fc.string({ unit: fc.constantFrom("a", "b", "*", "?", "."), maxLength: 8 }),
      fc.string({ unit: fc.constantFrom("a", "b", ".", "*"), maxLength: 8 }),
      (pattern, name) => {
        if (segmentMatches(pattern, name) !== regex(pattern).test(name)) throw new Error(`${pattern} ${name}`);
      },
    ),
    { numRuns: 5000 },
  );
  const began = performance.now();
  t.notOk(segmentMatches(`${"a*".repeat(100)}b`, "a".repeat(255)));
  t.notOk(globMatches(compileGlob(`${"**/".repeat(60)}x`), pathSegments("a/".repeat(400) + "y")));
  t.ok(performance.now() - began < 200, "no pattern takes long");
  t.ok(globLeadsTo(compileGlob("a/**/z"), ["a", "q"]));
  t.end();
});

t.test("an image is allowed by its digest or by whose it is; a prefix cannot mean another registry", (t) => {
  const [one, two] = DIGESTS as [string, string];
  const allows = (images: string[], image: string) => compile({ images }).decide({ kind: "image", image }).allowed;
  const rows: [pattern: string, image: string, allowed: boolean][] = [
    ["reg.example/ml/*", `reg.example/ml/train@${one}`, true],
    ["reg.example/ml/*", `reg.example/ml/deep/train@${one}`, true],
    ["reg.example/ml/*", `reg.example/mlx/train@${one}`, false],
    ["reg.example/ml/*", `reg.example/ml/../root/train@${one}`, false],
    ["reg.example/ml/*", `reg.example/ml//train@${one}`, false],
    ["reg.example/ml/*", one, false],
    [`reg.example/ml/train@${one}`, `reg.example/ml/train@${one}`, true],
    [`reg.example/ml/train@${one}`, `reg.example/ml/train@${two}`, false],
    // The same bytes under another name are another promise.
    [`reg.example/ml/train@${one}`, one, false],
    [one, one, true],
    ["*", one, true],
    ["*", `any.example/x@${two}`, true],
  ];
  for (const [pattern, image, allowed] of rows) t.equal(allows([pattern], image), allowed, `${pattern} ${image}`);
  for (const pattern of [
    "reg.example*",
    "sha256:*",
    "reg.example/ml/train:1",
    "python",
    "*/x",
    "",
    `reg.example/x@${one}*x`,
  ])
    t.notOk(policySchema.safeParse({ images: [pattern] }).success, pattern);
  const cpus = (value: number) =>
    compile({ ceilings: { cpus: 1.5 } }).decide({ kind: "ceiling", ceiling: "cpus", value });
  t.ok(cpus(1.5).allowed);
  t.match(cpus(2), { allowed: false, rule: "policy.ceilings.cpus", reason: /at most 1.5; 2 were/ });
  t.end();
});

t.test("a path that was never parsed is refused, whatever the policy", (t) => {
  const policy = compile({ stores: [{ store: "lake", read: ["**"], write: ["**"], delete: ["**"] }] });
  for (const path of ["..", "a/../b", "a//b", "/a", "a/", "./a"]) {
    for (const access of ["list", "read", "write", "delete"] as const)
      t.notOk(policy.decide({ kind: "store", access, store: "lake", path }).allowed, `${access} ${path}`);
  }
  t.throws(() => policy.require({ kind: "secret", secret: "x" }), {
    code: "POLICY_DENIED",
    details: { rule: "policy.secrets (default)" },
  });
  t.strictSame(policy.grants("lake"), ["read", "write", "delete"]);
  t.strictSame(policy.grants("other"), []);
  t.end();
});
