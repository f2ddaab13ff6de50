// An enrolment secret is for one key. The agent whose answer was lost comes again with the same key and is the same replica.
import { newId } from "@sallyport/protocol";
import t from "tap";
import { openSqliteStore, type Scope } from "../../cloud/store/index.ts";
import { tempDir } from "../support/launcher.ts";

const HOUR_MS = 3_600_000;

t.test("the same secret again", async (t) => {
  const store = await openSqliteStore({ dir: tempDir(t, "store") });
  t.teardown(() => store.close());
  const user = await store.ensureAdmin("admin", "default");
  const scope: Scope = { workspace: user.workspace, actor: { id: user.id, name: user.name, via: "session" } };
  const pool = await store.ensurePool(scope, "lab", 1);
  const id = newId("enrollment");
  await store.addEnrollment(scope, {
    id,
    pool: pool.id,
    name: null,
    secretHash: "hash",
    createdAt: 1,
    expiresAt: HOUR_MS,
  });
  const come = (publicKey: string, now: number, secretHash = "hash") =>
    store.redeemEnrollment({
      id,
      secretHash,
      publicKey,
      fingerprint: publicKey,
      nameHint: "north",
      remoteAddress: null,
      now,
    });

  // Two of the same key and one of another at the same moment: one join.
  const [first, again, other] = await Promise.all([come("key-1", 2), come("key-1", 2), come("key-2", 2)]);
  if ("refused" in first) throw new Error(first.refused);
  t.match(again, { replica: { id: first.replica.id, publicKey: "key-1", name: first.replica.name } });
  t.same(other, { refused: "ENROLMENT_USED" });
  t.equal((await store.replicas(scope)).length, 1);

  t.match(
    await come("key-1", HOUR_MS * 5),
    { replica: { id: first.replica.id } },
    "also when its hour is over: it joined in time",
  );
  t.same(await come("key-2", HOUR_MS * 5), { refused: "ENROLMENT_USED" });
  t.same(await come("key-1", 3, "other"), { refused: "ENROLMENT_UNKNOWN" }, "the key alone is not enough");
  t.match(
    (await store.enrollment(scope, id))?.refusals.map((refusal) => refusal.code),
    ["ENROLMENT_UNKNOWN", "ENROLMENT_USED", "ENROLMENT_USED"],
  );

  await store.revokeReplica(scope, first.replica.id, 4);
  t.same(
    await come("key-1", 5),
    { refused: "ENROLMENT_USED" },
    "a revoked replica does not come back by its old secret",
  );
});
