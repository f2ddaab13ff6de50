// The six commands over a real folder, under a real policy, as the runner calls them.
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { createHash } from "node:crypto";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { childOf, newCommandId, systemClock, treeDigest } from "@sallyport/protocol";
import { pino } from "pino";
import t from "tap";
import { compilePolicy, defaultPolicy, type RawPolicy } from "../../policy/index.ts";
import { createRedactor } from "../../redaction/index.ts";
import { openSecrets } from "../../secrets/index.ts";
import { manifestOf, openStores, parseArtifactPath } from "../../stores/index.ts";
import { artifactKinds, HeldUploads } from "./index.ts";

const root = mkdtempSync(join(tmpdir(), "sallyport-artifacts-"));
t.teardown(() => rmSync(root, { recursive: true }));
mkdirSync(join(root, "data/private"), { recursive: true });
writeFileSync(join(root, "data/a.csv"), "a,b\n1,2\n3,4\n");
writeFileSync(join(root, "data/private/key"), "no");
writeFileSync(join(root, "other.txt"), "other");

const stores = openStores(
  [{ id: "lake", kind: "fs", root }],
  openSecrets({ vault: null, named: {}, environment: {}, redactor: createRedactor(), clock: systemClock }),
  systemClock,
);
const kinds = artifactKinds({
  stores,
  parsePath: parseArtifactPath,
  makeManifest: manifestOf,
  uploads: new HeldUploads(systemClock),
});
const FULL: RawPolicy = {
  stores: [{ store: "lake", read: ["data/*", "in/**"], write: ["in/**"], delete: ["in/**"] }],
  ceilings: { uploadBytes: 10 },
  release: { metadata: true, previews: { rows: 1 }, raw: true },
};
async function* bytes(...texts: string[]) {
  for (const text of texts) yield Buffer.from(text);
}
const run = async (kind: string, input: Record<string, unknown>, policy: RawPolicy = FULL, upload = bytes()) => {
  const found = kinds.find((k) => k.spec.kind === `artifact.${kind}`)!;
  const guard = compilePolicy(defaultPolicy(policy));
  const parsed = found.spec.input.parse({ store: "lake", ...input });
  found.check?.(parsed, guard);
  const { result, content } = await found.run(parsed, {
    command: newCommandId(),
    kind,
    resource: "x",
    signal: AbortSignal.timeout(5000),
    log: pino({ level: "silent" }),
    clock: systemClock,
    policy: guard,
    upload,
    trace: childOf(null),
    intake: null,
  });
  found.spec.output.parse(result);
  let text = "";
  if (content !== undefined) for await (const chunk of content) text += Buffer.from(chunk).toString();
  return { result: result as Record<string, unknown>, text };
};

t.test("what is allowed is done", async (t) => {
  t.match(
    (await run("list", { path: "" })).result["entries"],
    [{ name: "data" }],
    "other.txt may not be read, so it is not there",
  );
  t.match((await run("stat", { path: "data/a.csv", digest: true })).result, {
    digest: `sha256:${createHash("sha256").update("a,b\n1,2\n3,4\n").digest("hex")}`,
  });
  t.match(
    (await run("preview", { path: "data/a.csv" })).result["preview"],
    { type: "table", rows: [[1, 2]], truncated: true },
    "one row, says the policy",
  );
  t.match(await run("read", { path: "data/a.csv", range: { start: 2, end: 4 } }), {
    text: "b\n1",
    result: { start: 2, lengthBytes: 3, totalBytes: 12 },
  });
  const written = await run("write", { path: "in/x/y.txt", sizeBytes: null }, FULL, bytes("hello", "!"));
  t.match(written.result, { path: "in/x/y.txt", sizeBytes: 6 });
  const file = { path: "x/y.txt", sizeBytes: 6, digest: written.result["digest"] as string };
  t.equal((await run("stat", { path: "in", digest: true })).result["digest"], treeDigest([file]));
  t.match((await run("delete", { path: "in/x/y.txt", ifMatch: written.result["version"] })).result, { deleted: true });
});

t.test("everything else is refused with its own code", async (t) => {
  const without = (change: Partial<RawPolicy>): RawPolicy => ({ ...FULL, ...change });
  await t.rejects(run("list", { store: "pond", path: "" }), { code: "STORE_UNKNOWN", message: /it has lake/ });
  await t.rejects(run("list", { path: "" }, without({ release: {} })), {
    code: "POLICY_DENIED",
    details: { rule: "policy.release.metadata (default)" },
  });
  await t.rejects(run("stat", { path: "other.txt" }), {
    code: "POLICY_DENIED",
    details: { rule: "policy.stores[0].read" },
  });
  await t.rejects(
    run("stat", { path: "data", digest: true }),
    { code: "POLICY_DENIED", message: /data\/private/ },
    "a tree with one file that may not be read",
  );
  await t.rejects(run("preview", { path: "data/a.csv" }, without({ release: { metadata: true } })), {
    code: "POLICY_DENIED",
    details: { rule: "policy.release.previews (default)" },
  });
  await t.rejects(
    run("read", { path: "data/a.csv" }, without({ release: { raw: [{ store: "lake", paths: ["in/**"] }] } })),
    { code: "POLICY_DENIED", details: { rule: "policy.release.raw" } },
  );
  await t.rejects(run("write", { path: "data/new", sizeBytes: 1 }, FULL, bytes("x")), {
    code: "POLICY_DENIED",
    details: { rule: "policy.stores[0].write" },
  });
  await t.rejects(run("delete", { path: "data/a.csv" }), {
    code: "POLICY_DENIED",
    details: { rule: "policy.stores[0].delete" },
  });
  for (const sizeBytes of [11, null])
    await t.rejects(run("write", { path: "in/big", sizeBytes }, FULL, bytes("12345", "678901")), {
      code: "POLICY_DENIED",
      details: { rule: "policy.ceilings.uploadBytes" },
    });
  await t.rejects(run("write", { path: "in/short", sizeBytes: 3 }, FULL, bytes("ab")), { code: "INPUT_INVALID" });
  await t.rejects(run("stat", { path: "in/short" }), { code: "ARTIFACT_NOT_FOUND" });
  await t.rejects(run("preview", { path: "data" }), { code: "POLICY_DENIED" });
  for (const path of ["../x", "data/../other.txt", "%2e%2e/x", "data%2f..%2fother.txt", "/etc/passwd"]) {
    for (const kind of ["list", "stat", "preview", "read", "delete"])
      await t.rejects(run(kind, { path }), { code: "PATH_INVALID" }, `${kind} ${path}`);
    await t.rejects(run("write", { path, sizeBytes: 1 }, FULL, bytes("x")), { code: "PATH_INVALID" }, `write ${path}`);
  }
});

t.test("a link in the store is no way around the policy: the place it leads to is asked about too", async (t) => {
  mkdirSync(join(root, "in/deep"), { recursive: true });
  mkdirSync(join(root, "data/open"), { recursive: true });
  symlinkSync("private/key", join(root, "data/renamed.csv"));
  symlinkSync("../other.txt", join(root, "data/other.csv"));
  symlinkSync("a.csv", join(root, "data/latest.csv"));
  symlinkSync("../data/private", join(root, "in/private"));
  symlinkSync("../data/open", join(root, "in/open"));
  symlinkSync("deep", join(root, "in/same"));
  t.equal(
    (await run("read", { path: "data/latest.csv" })).text,
    "a,b\n1,2\n3,4\n",
    "a link to what may be read is followed",
  );
  for (const path of ["data/renamed.csv", "data/other.csv", "in/private/key"]) {
    for (const [kind, more] of [
      ["read", {}],
      ["preview", {}],
      ["stat", {}],
      ["stat", { digest: true }],
    ] as const) {
      const error = await run(kind, { path, ...more }).then(
        () => null,
        (caught: unknown) => caught as Error & { code: string },
      );
      t.equal(error?.code, "POLICY_DENIED", `${kind} ${path}`);
      t.notMatch(
        error?.message,
        /private\/key|other\.txt/.test(path) ? /^$/ : /private\/key|other\.txt/,
        "where it leads is not said",
      );
    }
  }
  const names = ((await run("list", { path: "data" })).result["entries"] as { name: string }[]).map(
    (entry) => entry.name,
  );
  t.ok(names.includes("latest.csv") && !names.includes("other.csv"), `listed: ${names.join(", ")}`);
  await t.rejects(run("write", { path: "in/open/new/x", sizeBytes: 1 }, FULL, bytes("x")), { code: "POLICY_DENIED" });
  await t.rejects(run("write", { path: "in/open/x", sizeBytes: 1 }, FULL, bytes("x")), { code: "POLICY_DENIED" });
  t.same(readdirSync(join(root, "data/open")), [], "nothing was made there");
  await t.rejects(run("delete", { path: "in/private/key" }), { code: "POLICY_DENIED" });
  t.equal(readFileSync(join(root, "data/private/key"), "utf8"), "no");
  await run("write", { path: "in/same/y", sizeBytes: 1 }, FULL, bytes("y"));
  t.equal(readFileSync(join(root, "in/deep/y"), "utf8"), "y", "a link to what may be written is followed");
});
