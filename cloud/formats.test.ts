// What earlier control planes left on disk is understood by the one of today, and the API is what it was said to be: the
// recordings of fixtures/v1.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { gunzipSync } from "node:zlib";
import { jsonBody, verifySignature, DOMAIN, type Report } from "@sallyport/protocol";
import t from "tap";
import { tempDir } from "../test/support/launcher.ts";
import { signInUrl } from "./auth/index.ts";
import { loadContext, saveContext } from "./cli/context.ts";
import { describedApi } from "./fixtures/api.ts";
import { AT, ids } from "./fixtures/names.ts";
import { loadKeyRing } from "./keys/index.ts";
import { DATABASE_FILE, openSqliteStore, restoreStore, type Scope } from "./store/index.ts";

const folder = fileURLToPath(new URL("./fixtures/v1/", import.meta.url));
const text = (name: string): string => readFileSync(join(folder, name), "utf8");

t.test("key ring: the newest signs, all verify, nothing is written", async (t) => {
  const path = join(tempDir(t, "ring"), "command.json");
  writeFileSync(path, text("key-ring.json"), { mode: 0o600 });
  const { signer, ring, publicRows } = loadKeyRing(path, "command", 0);
  t.equal(signer.kid, "command-2");
  t.same([...ring.keys()], ["command-1", "command-2"]);
  t.match(publicRows, [{ createdAt: AT }, { createdAt: AT + 1 }]);
  const bytes = Buffer.from("text");
  t.ok(verifySignature(ring, DOMAIN.dispatch, bytes, signer.sign(DOMAIN.dispatch, bytes)));
  t.equal(readFileSync(path, "utf8"), text("key-ring.json"));
  t.throws(() => loadKeyRing(path, "identity", 0), { code: "CONFIG_INVALID" });
});

t.test("sign-in link and the command line's context", async (t) => {
  t.equal(`${signInUrl("https://cloud.example:8443", "A".repeat(43))}\n`, text("sign-in-url"));
  const home = tempDir(t, "home");
  const before = { ...process.env };
  for (const name of ["SALLYPORT_URL", "SALLYPORT_TOKEN", "SALLYPORT_TOKEN_FILE"]) delete process.env[name];
  process.env["XDG_CONFIG_HOME"] = home;
  t.teardown(() => Object.assign(process.env, before));
  mkdirSync(join(home, "sallyport"));
  writeFileSync(join(home, "sallyport/context.json"), text("context.json"));
  const context = loadContext();
  t.same(context, { url: "https://cloud.example:8443", token: `spt_${"A".repeat(43)}`, ca: null });
  saveContext(context);
  t.equal(readFileSync(join(home, "sallyport/context.json"), "utf8"), text("context.json"));
});

t.test("backup: restored, brought to the schema of today", async (t) => {
  const dir = tempDir(t, "store");
  const restored = await restoreStore({ dir, database: null }, join(folder, "backup.gz"), AT + 1, { replace: false });
  t.equal(restored.madeAt, AT);
  const store = await openSqliteStore({ dir });
  t.teardown(() => store.close());
  const user = (await store.userByName("admin"))!;
  const scope: Scope = { workspace: user.workspace, actor: { id: user.id, name: user.name, via: "session" } };
  t.match(await store.useToken("token-hash", AT + 1), { credential: { id: "tok_1", label: "ci" } });
  t.match(await store.run(scope, ids.run), { run: { pipeline: "digits" }, attempts: [{ step: "train", logSeq: 7 }] });
});

t.test("database: opened, brought to the schema of today, and worked with", async (t) => {
  const dir = tempDir(t, "store");
  writeFileSync(join(dir, DATABASE_FILE), gunzipSync(readFileSync(join(folder, "sallyport.db.gz"))), { mode: 0o600 });
  const store = await openSqliteStore({ dir });
  t.teardown(() => store.close());
  const incarnation = await store.incarnation();
  t.equal(await store.incarnation(), incarnation);

  // sign-in
  const user = (await store.userByName("admin"))!;
  t.match(user, { name: "admin", workspaceName: "default", passwordHash: "password-hash" });
  const scope: Scope = { workspace: user.workspace, actor: { id: user.id, name: user.name, via: "session" } };
  t.equal(await store.hasSignedIn(user.id), true);
  t.equal(await store.redeemSignIn("sign-in-hash", AT), null, "once");
  t.match(await store.useWebSession("session-hash", AT + 1, 1000), { user: { id: user.id } });
  t.match(await store.useToken("token-hash", AT + 1), { credential: { id: "tok_1", label: "ci" } });
  t.match(await store.tokens(scope), [{ id: "tok_1", hint: "AAAA", revokedAt: null }]);

  // pools, enrolments, replicas
  const [pool] = await store.pools(scope);
  t.match(pool, { name: "lab", createdAt: AT });
  t.match(await store.enrollment(scope, ids.enrollment), {
    name: "north",
    usedAt: AT,
    refusals: [{ code: "ENROLMENT_UNKNOWN", remoteAddress: "192.0.2.1" }],
  });
  const [replica] = await store.replicas(scope);
  t.match(replica, {
    name: "north",
    publicKey: "key-1",
    epoch: 1,
    session: ids.session,
    journal: ids.journal,
    alarms: [{ code: "IDENTITY_CLONED" }],
  });
  const again = {
    id: ids.openEnrollment,
    secretHash: "secret-hash-2",
    publicKey: "key-2",
    fingerprint: "f",
    nameHint: "south",
    remoteAddress: null,
    now: AT + 1,
  };
  t.match(await store.redeemEnrollment(again), { replica: { name: "south" } });
  t.match(
    await store.openSession(replica!.id, {
      id: ids.session,
      process: "process-2",
      instance: "i-2",
      journal: ids.journal,
      remoteAddress: null,
      now: AT + 2,
    }),
    { epoch: 2, journalChanged: false },
  );

  // commands, runs, reports
  t.match(await store.command(scope, ids.commands[0]), {
    state: "running",
    kind: "pipeline.run",
    replica: replica!.id,
    run: ids.run,
    offers: 1,
    intent: '{"kind":"pipeline.run"}',
    body: jsonBody({ run: ids.run }),
  });
  t.match((await store.run(scope, ids.run))!, {
    run: { pipeline: "digits", params: { epochs: 2 }, spec: { steps: [{ name: "train" }] } },
    attempts: [
      { step: "train", state: "succeeded", exitCode: 0, outputs: [{ name: "model", sizeBytes: 3 }], logSeq: 7 },
    ],
  });
  t.same(
    (await store.offerable(user.workspace, pool!.id, AT + 1, 10)).map((row) => row.id),
    [ids.commands[1]],
  );
  const dispatch = await store.nextDispatch(user.workspace, ids.commands[1], replica!.id, 0, 55);
  t.ok(dispatch!.sequence > 42, "numbers of dispatches go on behind those that were given");
  t.same(
    await store.idempotent(
      scope,
      { key: "key-1", method: "POST", route: "/v1/runs", requestDigest: "d".repeat(64) },
      AT + 1,
    ),
    { status: 202, body: { id: ids.run } },
  );
  const report = (sequence: number, body: unknown): Report => ({
    journal: ids.journal,
    sequence,
    at: AT,
    command: ids.commands[0],
    body: jsonBody(body),
  });
  t.same(
    await store.commitReports(
      user.workspace,
      replica!.id,
      ids.journal,
      [
        report(3, { type: "command.running" }),
        report(4, { type: "command.succeeded", result: { run: ids.run, steps: 1 } }),
      ],
      AT + 3,
    ),
    { committedThrough: 4 },
  );
  t.match(await store.command(scope, ids.commands[0]), { state: "succeeded", result: { steps: 1 } });
  const { newest, items } = await store.changesAfter(user.workspace, 0, 1000);
  t.equal(items.at(-1)?.n, newest);
});

t.test("the API is as it is recorded", async (t) => {
  const today = await describedApi();
  const recorded = text("openapi.json");
  if (today === recorded) return t.pass("as recorded");
  const was = new Set(recorded.split("\n"));
  const is = new Set(today.split("\n"));
  const lines = [
    ...difference(was, is).map((line) => `- ${line.trim()}`),
    ...difference(is, was).map((line) => `+ ${line.trim()}`),
  ];
  t.fail(
    "The description of the API has changed. If that is meant, and older clients can still use it: rm cloud/fixtures/v1/openapi.json && node cloud/fixtures/record.ts",
    {
      diff: `${lines.slice(0, 60).join("\n")}\n${lines.length > 60 ? `… and ${lines.length - 60} more lines` : "(lines that only moved are not shown)"}`,
    },
  );
});

const difference = (a: ReadonlySet<string>, b: ReadonlySet<string>): string[] => [...a].filter((line) => !b.has(line));
