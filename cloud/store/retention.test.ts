import { join } from "node:path";
import {
  deploymentSpecSchema,
  jsonBody,
  newCommandId,
  newId,
  pipelineSchema,
  type CommandId,
  type JournalId,
  type ReplicaId,
  type RunId,
} from "@sallyport/protocol";
import t from "tap";
import { ManualClock } from "../../test/support/clock.ts";
import { tempDir, waitFor } from "../../test/support/launcher.ts";
import { onPostgres } from "../../test/support/postgres.ts";
import { storePlace } from "../../test/support/store.ts";
import { ROUND_MS, startRetention } from "../wiring/retention.ts";
import { backupStore, type NewCommand, type Scope } from "./index.ts";

const DAY = 86_400_000;
const START = 1_700_000_000_000;

// Each with about 13 rows; fewer where each of them is a transaction over a wire.
const LONG_ENDED = onPostgres ? 600 : 2_400;

t.test(`${LONG_ENDED} commands past their time go in batches; nothing goes that is still needed`, async (t) => {
  const place = await storePlace(t);
  const store = await place.open();
  t.teardown(() => store.close());
  const user = await store.ensureAdmin("admin", "default");
  const scope: Scope = { workspace: user.workspace, actor: { id: user.id, name: user.name, via: "session" } };
  const pool = (await store.ensurePool(scope, "lab", START)).id;
  const enrol = async (): Promise<ReplicaId> => {
    const id = newId("enrollment");
    const over = { pool, name: null, secretHash: id, createdAt: START, expiresAt: START + DAY };
    await store.addEnrollment(scope, { id, ...over });
    const joined = await store.redeemEnrollment({
      id,
      secretHash: id,
      publicKey: id,
      fingerprint: id,
      nameHint: null,
      remoteAddress: null,
      now: START,
    });
    if ("refused" in joined) throw new Error(joined.refused);
    return joined.replica.id;
  };
  const [replica, leaver] = [await enrol(), await enrol()];
  await store.deleteReplica(scope, leaver, START);
  const journal = newId("journal") as JournalId;
  const spec = pipelineSchema.parse({ name: "p", outputs: { store: "s" }, steps: [{ name: "a", program: "x" }] });
  const wish = (expires: number, more: Partial<NewCommand> = {}): NewCommand => ({
    id: newCommandId(),
    pool,
    kind: "pipeline.run",
    resource: `r:${newCommandId()}`,
    intent: "{}",
    body: jsonBody({}),
    notBefore: START,
    expires,
    createdAt: START,
    ...more,
  });
  const key = (name: string) => ({
    key: name,
    method: "POST",
    route: "/v1/runs",
    requestDigest: "d",
    answer: { status: 201, body: {} },
  });

  // Long ended, each with a run, a key, an offer, events and an attempt.
  let sequence = 0;
  const ended: { command: CommandId; run: RunId }[] = [];
  const one = async (n: number): Promise<void> => {
    const run = newId("run") as RunId;
    const command = wish(START + DAY, {
      resource: `run:${run}`,
      run: { id: run, pool, pipeline: "p", spec, params: {}, createdAt: START },
    });
    await store.createCommand(scope, command, key(`k${n}`));
    await store.nextDispatch(scope.workspace, command.id, replica, 0, START);
    await store.markAccepted(scope.workspace, command.id, replica, START + 1);
    ended.push({ command: command.id, run });
  };
  for (let n = 0; n < LONG_ENDED; n += 300) await Promise.all(Array.from({ length: 300 }, (_, at) => one(n + at)));
  for (let from = 0; from < ended.length; from += 200) {
    const reports = ended.slice(from, from + 200).flatMap(({ command, run }) => {
      const step = { type: "step", run, step: "a", attempt: 1, state: "succeeded", error: null, exitCode: 0 };
      return [
        { ...step, outputs: [], logSeq: 1, adopted: false },
        { type: "command.succeeded", result: {} },
      ].map((body) => ({ journal, sequence: ++sequence, at: START + 2, command, body: jsonBody(body) }));
    });
    await store.commitReports(scope.workspace, replica, journal, reports, START + 3);
  }
  const NOW = START + 40 * DAY;
  // What must stay.
  const stays = new Map<string, CommandId>();
  const keep = async (why: string, command: NewCommand): Promise<CommandId> => {
    await store.createCommand(scope, command);
    stays.set(why, command.id);
    return command.id;
  };
  await keep("queued, long expired, not swept yet", wish(START + DAY));
  const held = await keep("accepted and never heard of again", wish(START + DAY));
  await store.nextDispatch(scope.workspace, held, replica, 0, START);
  await store.markAccepted(scope.workspace, held, replica, START);
  const late = await keep("ended yesterday", wish(START + DAY));
  await store.cancelQueued(scope, late, NOW - DAY);
  const live = await keep("long ended, not expired: its id is still good", wish(NOW + DAY));
  await store.cancelQueued(scope, live, START);
  const deployment = newId("deployment");
  const apply = wish(START + DAY, { kind: "deployment.apply", resource: `deployment:${deployment}` });
  const model = { store: "lake", path: "m.onnx", digest: `sha256:${"ab".repeat(32)}` };
  await store.commitDeployment(scope, {
    deployment: { id: deployment, pool, name: "d", spec: deploymentSpecSchema.parse({ model, replicas: 1 }) },
    expectedGeneration: 0,
    revision: 1,
    command: apply,
  });
  await store.markRefused(scope.workspace, apply.id, replica, { code: "POLICY_DENIED", message: "m" }, START);
  stays.set("what a deployment stands on", apply.id);
  await store.createCommand(scope, wish(NOW + DAY, { id: newCommandId(), createdAt: NOW - 1 }), key("fresh"));
  await store.addWebSession(user, "old", START, START + DAY);
  await store.addWebSession(user, "new", NOW, NOW + DAY);
  await store.addSignIn(user.id, "used", START + DAY);
  await store.redeemSignIn("used", START);
  await store.addSignIn(user.id, "unused", START + DAY);
  const token = { user: user.id, label: "l", hint: "h", createdAt: START };
  await store.addToken(scope, { ...token, id: "tok_old", hash: "old", expiresAt: START + DAY });
  await store.addToken(scope, { ...token, id: "tok_new", hash: "new", expiresAt: NOW + DAY });

  const file = join(tempDir(t, "count"), "b.gz");
  const rowsNow = async (): Promise<number> => (await backupStore(place, file, NOW)).rows;
  const before = await rowsNow();
  t.ok(before >= LONG_ENDED * 12, `${before} rows`);
  t.equal((await store.collect(START + 5 * DAY, { keepMs: 30 * DAY })).commands, 0, "not before their time");

  // The wiring's timer, with a clock that is moved by hand.
  const clock = new ManualClock(NOW);
  let rounds = 0;
  let most = 0;
  const retention = startRetention({
    store: {
      async collect(now, limits) {
        const done = await store.collect(now, limits);
        rounds++;
        most = Math.max(most, done.commands);
        return done;
      },
    },
    clock,
    log: { info: () => {}, warn: (...said: unknown[]) => t.fail(JSON.stringify(said)) },
    limits: { keepMs: 30 * DAY },
  });
  await clock.advance(ROUND_MS - 1);
  t.equal(rounds, 0);
  await waitFor(
    "the round's end",
    async () => {
      await clock.advance(50);
      return rounds > 0 && (clock.nextInMs ?? 0) > ROUND_MS / 2;
    },
    { timeoutMs: 120_000, everyMs: 5 },
  );
  await retention.stop();
  t.ok(rounds >= LONG_ENDED / 200 && most <= 200, `${rounds} batches, ${most} commands at most`);
  const after = await rowsNow();
  t.comment(`${before} rows before, ${after} after ${rounds} batches`);
  // Left: changes that readers may ask for, and what is listed above.
  const changes = (await store.changesAfter(scope.workspace, 0, 100_000)).items.length;
  t.ok(after - changes < 60, `${after} rows, ${changes} of them changes`);
  for (const [why, id] of stays) t.ok(await store.command(scope, id), why);
  t.equal((await store.commands(scope, { limit: 500 })).items.length, stays.size + 1);
  t.equal((await store.runs(scope, { limit: 10 })).items.length, 0);
  t.ok(await store.idempotent(scope, key("fresh"), NOW), "a key of today");
  t.equal(await store.hasSignedIn(user.id), true);
  t.ok(await store.useWebSession("new", NOW, DAY));
  t.same(
    (await store.tokens(scope)).map((row) => row.id),
    ["tok_new"],
  );
  t.equal((await store.deploymentRevisions(scope, deployment, { limit: 9 })).length, 1);
  t.match(
    await store.commitReports(scope.workspace, replica, journal, [], NOW),
    { committedThrough: sequence },
    "what an agent reported is still known to have been reported",
  );
});
