// The cache of models over a store whose files can be changed under it.
import { readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ConnectorError, sha256 } from "@sallyport/protocol";
import t, { type Test } from "tap";
import type { PolicyGuard } from "../../policy/action.ts";
import type { ArtifactStore } from "../../stores/store.ts";
import { Models } from "./models.ts";

const digestOf = (text: string): string => `sha256:${sha256(text)}`;

function cache(t: Test, capBytes: number) {
  const stateDir = t.testdir();
  const files = new Map<string, string>();
  const needed = new Set<string>();
  let reads = 0;
  let allowed = true;
  const store = {
    async read(path: string) {
      reads++;
      const bytes = Buffer.from(files.get(path)!);
      return {
        totalBytes: bytes.length,
        bytes: (async function* () {
          yield bytes;
        })(),
      };
    },
  } as unknown as ArtifactStore;
  const policy = {
    require: () => {
      if (!allowed) throw new ConnectorError("POLICY_DENIED", "no");
    },
  } as unknown as PolicyGuard;
  const models = new Models({
    stateDir,
    stores: { ids: ["lake"], get: async () => store },
    policy,
    capBytes: () => capBytes,
    needed: () => needed,
  });
  return {
    folder: join(stateDir, "models"),
    needed,
    files,
    reads: () => reads,
    deny: () => (allowed = false),
    models,
    ensure(text: string, stored = text) {
      files.set(text, stored);
      return models.ensure({ store: "lake", path: text, digest: digestOf(text) }, new AbortController().signal);
    },
  };
}

t.test("fetched once for all who ask, verified, and never without the policy", async (t) => {
  const one = cache(t, 1000);
  const paths = await Promise.all([one.ensure("a"), one.ensure("a"), one.ensure("a")]);
  t.equal(new Set(paths).size, 1);
  t.equal(one.reads(), 1);
  await t.rejects(one.ensure("b", "c"), {
    code: "DIGEST_MISMATCH",
    details: { expected: digestOf("b"), found: digestOf("c") },
  });
  t.same(readdirSync(one.folder), [`sha256-${sha256("a")}`], "nothing of the wrong one is kept");
  await one.ensure("b");
  one.deny();
  await t.rejects(one.ensure("a"), { code: "POLICY_DENIED" }, "also of one that is here");
});

t.test("under its cap: what is unused goes, the oldest first; what is needed stays", async (t) => {
  const one = cache(t, 30);
  const [a, b, c, d] = ["a".repeat(10), "b".repeat(10), "c".repeat(10), "d".repeat(20)] as const;
  one.needed.add(digestOf(a));
  for (const text of [a, b, c]) await one.ensure(text);
  writeFileSync(join(one.folder, `sha256-${sha256("x")}.part`), "left by a killed agent");
  await one.ensure(d);
  t.same(new Set(readdirSync(one.folder)), new Set([a, d].map((text) => `sha256-${sha256(text)}`)));
  one.needed.add(digestOf(d));
  await t.rejects(one.ensure(b), { code: "TOO_LARGE", details: { limit: 30, used: 30, model: 10 } });
});
