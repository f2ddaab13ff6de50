import { join } from "node:path";
import {
  bodySchema,
  commandAnswerSchema,
  ConnectorError,
  defineCommand,
  jsonBody,
  newCommandId,
  newId,
  readJsonBody,
  readNdjson,
  systemClock,
  wait,
  type CommandOpen,
  type ErrorCode,
  type ReportBody,
} from "@sallyport/protocol";
import fc from "fast-check";
import { pino } from "pino";
import t from "tap";
import { z } from "zod";
import { openAudit, type FileAudit } from "../audit/index.ts";
import { openJournal, type SqliteJournal } from "../journal/sqlite-journal.ts";
import { compilePolicy, defaultPolicy, LivePolicy } from "../policy/index.ts";
import { createRedactor, type Redactor } from "../redaction/index.ts";
import { defineKind } from "./command.ts";
import { Intake } from "./intake.ts";
import { CommandRegistry } from "./registry.ts";
import { CommandRunner } from "./runner.ts";
import { commandOf, offer, testLink, type OfferChanges, type TestLink } from "./test-link.ts";

const SECRET = "correct-horse-battery";
const clock = systemClock;

/** What the test's kinds were asked to do. */
interface Seen {
  echo: number;
  effect: number;
  run: string[];
  aborted: ErrorCode[];
  auditedBefore: number;
}

interface Rig {
  registry: CommandRegistry;
  runner: CommandRunner;
  journal: SqliteJournal;
  audit: FileAudit;
  intake: Intake;
  policy: LivePolicy;
  redactor: Redactor;
  seen: Seen;
  /** Ends the durable command of that input; absent = it ends at once. */
  gates: Map<string, PromiseWithResolvers<void>>;
  folder: string;
}

const policyOf = (commands: string[], concurrentRuns = 2) =>
  compilePolicy(defaultPolicy({ commands, ceilings: { concurrentRuns, streams: 20 } }));
const spec = { idempotent: true, timeoutMs: 10_000, content: "none" } as const;

async function rig(folder: string, options: { seen?: Seen; gates?: Rig["gates"] } = {}): Promise<Rig> {
  const seen = options.seen ?? { echo: 0, effect: 0, run: [], aborted: [], auditedBefore: 0 };
  const gates: Rig["gates"] = options.gates ?? new Map();
  const journal = await openJournal({ file: join(folder, "journal.db"), clock });
  const audit = await openAudit({ folder: join(folder, "audit"), clock });
  const redactor = createRedactor();
  redactor.add(SECRET);
  const registry = new CommandRegistry();
  registry.add(
    defineKind({
      spec: defineCommand({
        ...spec,
        kind: "test.echo",
        class: "interactive",
        input: z.strictObject({ text: z.string().max(20) }),
        output: z.object({ text: z.string() }),
      }),
      run: async ({ text }) => {
        seen.echo++;
        if (text === "fail")
          throw new ConnectorError("STORE_FAILED", `the store said ${SECRET}`, { fix: `ask ${SECRET}` });
        if (text === "crash") throw new Error(`foreign text with ${SECRET}`);
        return { result: { text: text === "secret" ? `a ${SECRET} b` : text } };
      },
    }),
  );
  for (const [kind, timeoutMs] of [
    ["test.slow", 200],
    ["test.stuck", 600_000],
  ] as const)
    registry.add(
      defineKind({
        spec: defineCommand({
          ...spec,
          kind,
          class: "interactive",
          timeoutMs,
          input: z.strictObject({ heed: z.boolean() }),
          output: z.object({}),
        }),
        run: ({ heed }, { signal }) =>
          new Promise((_resolve, reject) => {
            signal.addEventListener("abort", () => {
              seen.aborted.push((signal.reason as ConnectorError).code);
              if (heed) reject(signal.reason as Error);
            });
          }),
      }),
    );
  registry.add(
    defineKind({
      spec: defineCommand({
        ...spec,
        kind: "test.read",
        class: "interactive",
        content: "download",
        input: z.strictObject({ chunks: z.int() }),
        output: z.object({ chunks: z.int() }),
      }),
      run: async ({ chunks }, { signal }) => ({
        result: { chunks },
        content: (async function* () {
          try {
            for (let n = 0; n < chunks; n++) yield Buffer.alloc(64 * 1024, n);
          } finally {
            if (signal.aborted) seen.aborted.push((signal.reason as ConnectorError).code);
          }
        })(),
      }),
    }),
  );
  registry.add(
    defineKind({
      spec: defineCommand({
        ...spec,
        kind: "test.records",
        class: "interactive",
        content: "records",
        input: z.strictObject({}),
        output: z.object({}),
      }),
      run: async () => ({
        result: {},
        records: (async function* () {
          for (let n = 1; n <= 1000; n++) yield { n };
        })(),
      }),
    }),
  );
  registry.add(
    defineKind({
      spec: defineCommand({
        ...spec,
        kind: "test.effect",
        class: "interactive-effect",
        content: "upload",
        input: z.strictObject({}),
        output: z.object({ bytes: z.int() }),
      }),
      run: async (_input, { upload }) => {
        seen.effect++;
        seen.auditedBefore = audit.head.seq;
        let bytes = 0;
        for await (const chunk of upload) bytes += chunk.length;
        return { result: { bytes } };
      },
    }),
  );
  registry.add(
    defineKind({
      spec: defineCommand({
        ...spec,
        kind: "test.run",
        class: "durable",
        input: z.strictObject({ name: z.string() }),
        output: z.object({ name: z.string() }),
      }),
      check: ({ name }) => {
        if (name === "never")
          throw new ConnectorError("POLICY_DENIED", "not this one", { details: { rule: "policy.test" } });
      },
      run: async ({ name }, { signal }) => {
        seen.run.push(name);
        const gate = gates.get(name);
        const aborted = new Promise<never>((_resolve, reject) =>
          signal.addEventListener("abort", () => reject(signal.reason as Error)),
        );
        if (gate !== undefined) await Promise.race([gate.promise, aborted]);
        if (name === "fail") throw new ConnectorError("STEP_FAILED", `exit code 1 ${SECRET}`);
        return { result: { name: `${name} ${SECRET}` } };
      },
    }),
  );
  registry.add(
    defineKind({
      spec: defineCommand({
        ...spec,
        kind: "test.want",
        class: "durable",
        input: z.strictObject({ name: z.string() }),
        output: z.object({}),
      }),
      slot: false,
      run: async ({ name }) => {
        seen.run.push(name);
        await gates.get(name)?.promise;
        return { result: {} };
      },
    }),
  );
  registry.add(
    defineKind({
      spec: defineCommand({
        ...spec,
        kind: "test.cancel",
        class: "durable",
        input: z.strictObject({ name: z.string() }),
        output: z.object({}),
      }),
      overtakes: true,
      run: async ({ name }) => {
        seen.run.push(`cancel ${name}`);
        gates.get(name)?.reject(new ConnectorError("CANCELLED", "cancelled", { details: { stopped: ["step a"] } }));
        return { result: {} };
      },
    }),
  );
  const policy = new LivePolicy(policyOf(["test.*"]));
  const intake = new Intake(clock);
  const runner = new CommandRunner({
    registry,
    journal,
    audit,
    intake,
    policy,
    redactor,
    clock,
    log: pino({ enabled: false }),
    dispatchSequences: journal.dispatchSequences,
  });
  await runner.resume();
  return { registry, runner, journal, audit, intake, policy, redactor, seen, gates, folder };
}

const linkTo = (one: Rig): Promise<TestLink> =>
  testLink({ onAgentStream: (stream, session) => void one.runner.handle(stream, session) });

async function closeRig(one: Rig): Promise<void> {
  await one.runner.drain(200);
  await one.audit.close();
  await one.journal.close();
}

async function ask(link: TestLink, head: CommandOpen): Promise<unknown> {
  const stream = link.cloud.open(head, { lane: "interactive", end: true });
  const answer = commandAnswerSchema.parse(await stream.answer);
  if (answer.type === "taking") throw new Error("no upload was sent");
  return answer.type === "result"
    ? readJsonBody(bodySchema.parse(answer.body))
    : { accepted: true, known: answer.known };
}

const until = async (condition: () => boolean | Promise<boolean>): Promise<void> => {
  const begin = performance.now();
  while (performance.now() - begin < 60_000) {
    if (await condition()) return;
    await wait(clock, 5);
  }
  throw new Error("waited in vain");
};

async function reportsOf(journal: SqliteJournal, command: string): Promise<ReportBody[]> {
  return (await journal.reportsAfter(0, 10_000))
    .filter((report) => report.command === command)
    .map((report) => JSON.parse(report.body.data) as ReportBody);
}

t.test("each kind of answer arrives, redacted", async (t) => {
  const one = await rig(t.testdir());
  const link = await linkTo(one);
  const { session } = link;
  t.same(await ask(link, offer(session, "test.echo", { text: "hello" })), { text: "hello" });
  t.same(await ask(link, offer(session, "test.echo", { text: "secret" })), { text: "a [redacted] b" });
  await t.rejects(ask(link, offer(session, "test.echo", { text: "fail" })), {
    code: "STORE_FAILED",
    message: "the store said [redacted]",
    fix: "ask [redacted]",
  });
  const crash = await ask(link, offer(session, "test.echo", { text: "crash" })).catch(
    (error: unknown) => error as ConnectorError,
  );
  t.match(crash, { code: "INTERNAL" });
  t.notMatch(JSON.stringify((crash as ConnectorError).toBody()), "foreign");

  const read = link.cloud.open(offer(session, "test.read", { chunks: 64 }), { lane: "bulk", end: true });
  let bytes = 0;
  for await (const chunk of read.bytes) bytes += chunk.length;
  t.equal(bytes, 64 * 64 * 1024);
  const records = link.cloud.open(offer(session, "test.records", {}), { lane: "interactive", end: true });
  let n = 0;
  for await (const line of readNdjson(records.bytes)) if ((line as { n: number }).n === n + 1) n++;
  t.equal(n, 1000);

  const upload = link.cloud.open(offer(session, "test.effect", {}), { lane: "bulk" });
  const before = one.audit.head.seq;
  await upload.write(Buffer.alloc(300_000));
  await upload.end();
  t.same(readJsonBody(((await upload.answer) as { body: ReturnType<typeof jsonBody> }).body), { bytes: 300_000 });
  t.ok(one.seen.auditedBefore > before, "an effect is on the audit's disk before it begins");
  await link.close();
  await closeRig(one);
});

t.test("whoever may not, or asks wrongly, is refused with the code that says so, and nothing is done", async (t) => {
  const one = await rig(t.testdir());
  const link = await linkTo(one);
  const { session } = link;
  const good = { text: "x" };
  const refused = async (what: string, code: ErrorCode, head: unknown, match: Record<string, unknown> = {}) => {
    const answer = await ask(link, head as CommandOpen).catch((error: unknown) => error);
    t.match(answer, { code, ...match }, what);
  };
  const changed = (changes: OfferChanges, kind = "test.echo") => offer(session, kind, good, changes);
  const now = Date.now();

  const body = offer(session, "test.echo", good);
  await refused("another body", "DISPATCH_INVALID", { ...body, body: jsonBody({ text: "y" }) }, { message: /body/ });
  await refused(
    "another intent",
    "DISPATCH_INVALID",
    { ...body, intent: offer(session, "test.echo", good).intent },
    { message: /intent/ },
  );
  await refused("a changed dispatch", "SIGNATURE_INVALID", {
    ...body,
    dispatch: { ...body.dispatch, text: body.dispatch.text.replace('"attempt":1', '"attempt":2') },
  });
  await refused("another key", "SIGNATURE_INVALID", {
    ...body,
    dispatch: { ...body.dispatch, signature: { ...body.dispatch.signature, kid: "other" } },
  });
  await refused("an author nobody knows", "SIGNATURE_INVALID", {
    ...body,
    intent: { ...body.intent, signature: body.dispatch.signature },
  });
  await refused("an unknown field of the head", "PROTOCOL_ERROR", { ...body, more: 1 });
  await refused("another replica", "DISPATCH_INVALID", changed({ dispatch: { replica: newId("replica") } }), {
    message: /replica/,
  });
  await refused("another session", "DISPATCH_INVALID", changed({ dispatch: { session: newId("session") } }), {
    message: /session/,
  });
  await refused("another epoch", "DISPATCH_INVALID", changed({ dispatch: { epoch: session.epoch - 1 } }), {
    message: /epoch/,
  });
  await refused("another incarnation", "DISPATCH_INVALID", changed({ dispatch: { incarnation: "inc-0" } }), {
    message: /incarnation/,
  });
  await refused("an expired dispatch", "DISPATCH_INVALID", changed({ dispatch: { expires: now - 1 } }), {
    message: /expiry/,
  });
  await refused("a dispatch for an hour", "DISPATCH_INVALID", changed({ dispatch: { expires: now + 3600_000 } }), {
    message: /longer/,
  });
  await refused("an unknown field of the dispatch", "INPUT_INVALID", changed({ dispatch: { more: 1 } }), {
    message: /more/,
  });
  await refused("another workspace", "DISPATCH_INVALID", changed({ intent: { workspace: newId("workspace") } }), {
    message: /workspace/,
  });
  await refused("another pool", "DISPATCH_INVALID", changed({ intent: { pool: newId("pool") } }), { message: /pool/ });
  await refused("an unknown field of the intent", "INPUT_INVALID", changed({ intent: { more: 1 } }), {
    message: /more/,
  });
  await refused("an expired command", "COMMAND_EXPIRED", changed({ intent: { expires: now - 1 } }));
  await refused(
    "a command of another day",
    "DISPATCH_INVALID",
    changed({ intent: { notBefore: now + 86_400_000, expires: now + 90_000_000 } }),
    { message: /before/ },
  );
  await refused("a command for a year", "INPUT_INVALID", changed({ intent: { expires: now + 365 * 86_400_000 } }), {
    message: /7 days/,
  });
  await refused("an unknown kind", "KIND_UNKNOWN", changed({}, "test.nothing"), { fix: /test\.echo, test\.effect/ });
  await refused("an unknown field", "INPUT_INVALID", offer(session, "test.echo", { text: "x", more: 1 }), {
    message: /more/,
    details: { issues: [{ path: "(root)" }] },
  });
  await refused("a wrong type", "INPUT_INVALID", offer(session, "test.echo", { text: 1 }), {
    message: /text: .*string/,
    details: { issues: [{ path: "text" }] },
  });
  await refused(
    "no JSON",
    "INPUT_INVALID",
    offer(session, "test.echo", null, { body: { encoding: "utf8", enc: "none", kid: null, data: "x" } }),
  );
  await refused("a kind's own check", "POLICY_DENIED", offer(session, "test.run", { name: "never" }), {
    details: { rule: "policy.test" },
  });

  one.policy.replace(policyOf(["other.*"]));
  await refused("the policy", "POLICY_DENIED", changed({}), {
    message: /test\.echo/,
    fix: /commands/,
    details: { rule: "policy.commands (default)" },
  });
  one.policy.replace(policyOf(["test.*"]));
  one.intake.pause({ reason: "moving house", until: Date.now() + 60_000 });
  await refused("paused", "AGENT_PAUSED", changed({}), { message: /moving house/ });
  one.intake.resume();
  t.equal(one.seen.echo, 0);
  t.same(one.seen.run, []);

  const once = changed({});
  t.same(await ask(link, once), good);
  await refused("the same again", "DISPATCH_INVALID", once, { message: /repetition/ });
  one.intake.drain();
  await refused("stopping", "AGENT_DRAINING", changed({}));
  t.equal(one.seen.echo, 1);
  await link.close();
  await closeRig(one);
});

t.test("no mutant of a signed envelope is executed", async (t) => {
  const one = await rig(t.testdir());
  const link = await linkTo(one);
  const original = offer(link.session, "test.run", { name: "mutant" });
  /** Every text in it, by its path. */
  const paths: string[][] = [
    ["intent", "text"],
    ["dispatch", "text"],
    ["dispatch", "signature", "sig"],
    ["dispatch", "signature", "kid"],
    ["body", "data"],
    ["body", "encoding"],
    ["body", "enc"],
    ["type"],
  ];
  const mutate = (
    path: string[],
    at: number,
    char: string,
    how: "replace" | "insert" | "remove",
  ): CommandOpen | null => {
    const copy = structuredClone(original) as unknown as Record<string, unknown>;
    let holder = copy;
    for (const key of path.slice(0, -1)) holder = holder[key] as Record<string, unknown>;
    const key = path.at(-1)!;
    const text = holder[key] as string;
    const index = at % (text.length + (how === "insert" ? 1 : 0));
    const next =
      how === "insert"
        ? text.slice(0, index) + char + text.slice(index)
        : how === "remove"
          ? text.slice(0, index) + text.slice(index + 1)
          : text.slice(0, index) + char + text.slice(index + 1);
    if (next === text) return null;
    holder[key] = next;
    return copy as unknown as CommandOpen;
  };
  let tried = 0;
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom(...paths),
      fc.nat(5000),
      fc.oneof(
        fc.constantFrom("0", "1", "9", "a", "A", "_", "-", " ", '"', "}", "="),
        fc.string({ minLength: 1, maxLength: 1 }),
      ),
      fc.constantFrom("replace", "insert", "remove"),
      async (path, at, char, how) => {
        const mutant = mutate(path, at, char, how);
        if (mutant === null) return;
        tried++;
        const answer = await ask(link, mutant).catch((error: unknown) => error);
        return answer instanceof ConnectorError;
      },
    ),
    { numRuns: 1500 },
  );
  t.same(one.seen.run, [], `${tried} mutants, none executed`);
  t.same(await one.journal.open(), []);
  t.same(await ask(link, original), { accepted: true, known: false }, "the original still counts");
  await until(async () => (await one.journal.open()).length === 0);
  t.same(one.seen.run, ["mutant"]);
  await link.close();
  await closeRig(one);
});

t.test(
  "a durable command is journaled before it is accepted, runs once however often it is offered, and its end is reported",
  async (t) => {
    const one = await rig(t.testdir());
    const link = await linkTo(one);
    const { session } = link;
    const command = newCommandId();
    one.gates.set("a", Promise.withResolvers());
    const first = offer(session, "test.run", { name: "a" }, { intent: { command } });
    t.same(await ask(link, first), { accepted: true, known: false });
    t.match(await one.journal.command(command), { kind: "test.run", intent: first.intent.text, body: first.body });
    const again = offer(session, "test.run", { name: "a" }, { intent: commandOf(first) });
    t.same(await ask(link, again), { accepted: true, known: true });
    const other = await ask(link, offer(session, "test.run", { name: "b" }, { intent: { command } })).catch(
      (error: unknown) => error,
    );
    t.match(other, { code: "CONFLICT" });
    link.cut();
    await session.closed;
    t.same(one.seen.run, ["a"], "a lost link leaves it alone");
    one.gates.get("a")!.resolve();
    await until(async () => (await one.journal.open()).length === 0);
    t.same(await reportsOf(one.journal, command), [
      { type: "command.running" },
      { type: "command.succeeded", result: { name: "a [redacted]" } },
    ]);

    const second = await linkTo(one);
    const failing = offer(second.session, "test.run", { name: "fail" });
    await ask(second, failing);
    await until(async () => (await one.journal.open()).length === 0);
    t.match(await reportsOf(one.journal, commandOf(failing).command), [
      { type: "command.running" },
      { type: "command.failed", error: { code: "STEP_FAILED", message: "exit code 1 [redacted]" } },
    ]);
    await second.close();
    await link.close();
    await closeRig(one);
  },
);

t.test("a kind that is no work takes no slot and needs none, and keeps its turn on its resource", async (t) => {
  const one = await rig(t.testdir());
  const link = await linkTo(one);
  const { gates, seen } = one;
  for (const name of ["a1", "b1", "c1", "w1"]) gates.set(name, Promise.withResolvers());
  const start = (kind: string, name: string) =>
    ask(link, offer(link.session, kind, { name }, { intent: { resource: name.slice(0, 1) } }));
  await start("test.want", "w1");
  for (const name of ["a1", "b1", "c1"]) await start("test.run", name);
  for (const name of ["w2", "x1"]) await start("test.want", name);
  await until(() => seen.run.length === 4);
  t.same(seen.run, ["w1", "a1", "b1", "x1"], "both slots are taken, and not by w1; w2 waits for w1, c1 for a slot");
  gates.get("w1")!.resolve();
  await until(() => seen.run.length === 5);
  t.equal(seen.run[4], "w2");
  one.policy.replace(policyOf(["*"], 0));
  await start("test.want", "x2");
  await until(() => seen.run.length === 6);
  await t.rejects(start("test.run", "d1"), { code: "POLICY_DENIED" });
  one.policy.replace(policyOf(["*"], 2));
  for (const name of ["a1", "b1", "c1"]) gates.get(name)!.resolve();
  await until(async () => (await one.journal.open()).length === 0);
  await link.close();
  await closeRig(one);
});

t.test(
  "at most so many run at once, one at a time on a resource, in order; a cancel overtakes; a restart goes on",
  async (t) => {
    const folder = t.testdir();
    let one = await rig(folder);
    let link = await linkTo(one);
    const { gates, seen } = one;
    for (const name of ["a1", "a2", "b1", "c1", "d1"]) gates.set(name, Promise.withResolvers());
    const start = (name: string) =>
      ask(link, offer(link.session, "test.run", { name }, { intent: { resource: name.slice(0, 1) } }));
    for (const name of ["a1", "a2", "b1", "c1", "d1"]) await start(name);
    await until(() => seen.run.length === 2);
    t.same(seen.run, ["a1", "b1"], "a2 waits for a1, c1 for a place");
    gates.get("b1")!.resolve();
    await until(() => seen.run.length === 3);
    t.same(seen.run.slice(2), ["c1"]);
    t.same(
      one.runner.running().map((command) => [command.resource, command.state]),
      [
        ["a", "running"],
        ["c", "running"],
        ["a", "waiting"],
        ["d", "waiting"],
      ],
    );
    await ask(link, offer(link.session, "test.cancel", { name: "a1" }, { intent: { resource: "a" } }));
    await until(() => seen.run.length === 5);
    t.same(seen.run.slice(3), ["cancel a1", "a2"]);
    const cancelled = (await one.journal.reportsAfter(0, 1000))
      .map((report) => JSON.parse(report.body.data) as ReportBody)
      .filter((body) => body.type === "command.cancelled");
    t.same(cancelled, [{ type: "command.cancelled", stopped: ["step a"] }]);

    const d = one.runner.running().find((command) => command.resource === "d")!;
    t.equal(await one.runner.cancelLocal(d.command, "root"), true);
    t.equal(await one.runner.cancelLocal(newCommandId(), "root"), false);
    t.match(await one.journal.command(d.command), { state: "cancelled" });

    await link.close();
    await closeRig(one);
    t.same(seen.run.length, 5, "stopping ended nothing");
    one = await rig(folder, { seen, gates });
    await until(() => seen.run.length === 7);
    t.same(seen.run.slice(5), ["a2", "c1"], "what ran is taken up again, in its order");
    for (const name of ["a2", "c1"]) gates.get(name)!.resolve();
    await until(async () => (await one.journal.open()).length === 0);
    link = await linkTo(one);
    t.same(await ask(link, offer(link.session, "test.echo", { text: "x" })), { text: "x" });
    await link.close();
    await closeRig(one);
  },
);

t.test(
  "deadline, cancel and a lost link reach an interactive handler, and nobody waits for one that does not heed them",
  async (t) => {
    const one = await rig(t.testdir());
    const link = await linkTo(one);
    await t.rejects(ask(link, offer(link.session, "test.slow", { heed: true })), { code: "TIMED_OUT" });
    await t.rejects(ask(link, offer(link.session, "test.slow", { heed: false })), { code: "TIMED_OUT" });
    const stream = link.cloud.open(offer(link.session, "test.stuck", { heed: true }), {
      lane: "interactive",
      end: true,
    });
    stream.answer.catch(() => undefined);
    await until(() => one.runner.running().length === 1);
    stream.reset(new ConnectorError("CANCELLED", "no longer wanted"));
    await until(() => one.seen.aborted.length === 3);
    t.same(one.seen.aborted, ["TIMED_OUT", "TIMED_OUT", "CANCELLED"]);

    // A reader that stands still holds the handler at its credit; cutting the link frees it.
    const stalled = link.cloud.open(offer(link.session, "test.read", { chunks: 100_000 }), { lane: "bulk", end: true });
    await stalled.answer;
    t.equal(one.runner.running().length, 1);
    link.cut();
    await until(() => one.runner.running().length === 0);
    t.match(one.seen.aborted.at(-1), "LINK_LOST");
    await link.close();
    await closeRig(one);
  },
);
