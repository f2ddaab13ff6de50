// A command that another agent has taken over: let go of without a stop, said once, and taken up again when it is offered
// anew. And the order in which an agent writes down what comes with an acknowledgement.
import { join } from "node:path";
import {
  commandAnswerSchema,
  type ConnectorError,
  defineCommand,
  ndjsonLine,
  newCommandId,
  readJsonBody,
  readNdjson,
  systemClock,
  wait,
  type CommandId,
  type CommandOpen,
} from "@sallyport/protocol";
import { pino } from "pino";
import t, { type Test } from "tap";
import { z } from "zod";
import { openAudit } from "../audit/index.ts";
import { openJournal } from "../journal/sqlite-journal.ts";
import { compilePolicy, defaultPolicy, LivePolicy } from "../policy/index.ts";
import { createRedactor } from "../redaction/index.ts";
import { defineKind } from "./command.ts";
import { Intake } from "./intake.ts";
import { CommandRegistry } from "./registry.ts";
import { ReportOutbox } from "./reports.ts";
import { CommandRunner } from "./runner.ts";
import { offer, testLink } from "./test-link.ts";

const clock = systemClock;
const log = pino({ enabled: false });

async function rig(t: Test) {
  const folder = t.testdir();
  const journal = await openJournal({ file: join(folder, "journal.db"), clock });
  const audit = await openAudit({ folder: join(folder, "audit"), clock });
  const registry = new CommandRegistry();
  const runs: { aborted: string | null; end: () => void }[] = [];
  const begun = new Set<string>();
  const released: string[] = [];
  registry.add(
    defineKind({
      spec: defineCommand({
        kind: "test.run",
        class: "durable",
        idempotent: true,
        timeoutMs: 10_000,
        content: "none",
        input: z.strictObject({}),
        output: z.object({ n: z.int() }),
      }),
      hasBegun: async (command) => begun.has(command),
      released: async (command) => void released.push(command),
      async run(_input, { signal }) {
        const gate = Promise.withResolvers<void>();
        const run = { aborted: null as string | null, end: gate.resolve };
        runs.push(run);
        signal.addEventListener("abort", () => {
          run.aborted = (signal.reason as ConnectorError).code;
          gate.reject(signal.reason as Error);
        });
        await gate.promise;
        return { result: { n: runs.length } };
      },
    }),
  );
  const policy = new LivePolicy(
    compilePolicy(defaultPolicy({ commands: ["*"], ceilings: { concurrentRuns: 1, streams: 5 } })),
  );
  const intake = new Intake(clock);
  const redactor = createRedactor();
  const runner = new CommandRunner({ registry, journal, audit, intake, policy, redactor, clock, log });
  const link = await testLink({ onAgentStream: (stream, session) => void runner.handle(stream, session) });
  t.teardown(async () => {
    await link.close();
    await runner.drain(2000);
    await journal.close();
    await audit.close();
  });
  const ask = async (head: CommandOpen) =>
    commandAnswerSchema.parse(await link.cloud.open(head, { lane: "interactive", end: true }).answer);
  const reports = async (command: CommandId) =>
    (await journal.reportsAfter(0, 100))
      .filter((one) => one.command === command)
      .map(({ body }) => (readJsonBody(body) as { type: string }).type);
  return { journal, runner, link, runs, begun, released, ask, reports };
}

const until = async (holds: () => boolean | Promise<boolean>): Promise<void> => {
  const begin = performance.now();
  while (performance.now() - begin < 60_000) {
    if (await holds()) return;
    await wait(clock, 10);
  }
  throw new Error("it never came to be");
};

t.test("let go of while it runs, waits or has ended; begun again only when it is offered again", async (t) => {
  const { runner, link, runs, released, ask, reports, journal } = await rig(t);
  const first = offer(link.session, "test.run", {});
  const second = offer(link.session, "test.run", {}, { intent: { resource: "test:2" } });
  const id = (head: CommandOpen) => (JSON.parse(head.intent.text) as { command: CommandId }).command;
  const again = (head: CommandOpen) =>
    offer(link.session, "test.run", {}, { intent: JSON.parse(head.intent.text) as Record<string, unknown> });
  t.match(await ask(first), { type: "accepted", known: false });
  t.match(await ask(second), { type: "accepted", known: false });
  await until(() => runs.length === 1);

  await runner.release(id(second));
  await runner.release(id(first));
  t.same(released, [id(second), id(first)]);
  t.equal(runs[0]!.aborted, "HELD_ELSEWHERE", "left, not cancelled");
  t.same(await reports(id(first)), ["command.running", "command.released"]);
  t.same(await reports(id(second)), ["command.released"]);
  await runner.release(id(first));
  t.same(await reports(id(first)), ["command.running", "command.released"], "said once");
  t.same(await journal.open(), [], "a restart begins neither");
  await until(() => runner.running().length === 0);

  t.match(await ask(again(first)), { type: "accepted", known: false });
  await until(() => runs.length === 2);
  runs[1]!.end();
  await until(async () => (await reports(id(first))).includes("command.succeeded"));
  t.same(await reports(id(first)), ["command.running", "command.released", "command.running", "command.succeeded"]);

  // Ended here, and yet another has it: offered again, it says its end again.
  await runner.release(id(first));
  t.match(await ask(again(first)), { known: false });
  await until(() => runs.length === 3);
  runs[2]!.end();
  await until(async () => (await reports(id(first))).filter((type) => type === "command.succeeded").length === 2);

  const unknown = newCommandId();
  await runner.release(unknown);
  t.same(await reports(unknown), ["command.released"], "of what it never had it has let go");
});

t.test("past its expiry: taken over only if its work has begun, and never as an ordinary offer", async (t) => {
  const { link, begun, ask, runs } = await rig(t);
  const expired = { notBefore: Date.now() - 7200_000, expires: Date.now() - 3600_000 };
  const head = (command: CommandId, takenOver: boolean) =>
    offer(
      link.session,
      "test.run",
      {},
      {
        intent: { ...expired, command },
        dispatch: takenOver ? { takenOver: true } : {},
      },
    );
  const command = newCommandId();
  await t.rejects(ask(head(command, true)), { code: "COMMAND_EXPIRED" });
  begun.add(command);
  await t.rejects(ask(head(command, false)), { code: "COMMAND_EXPIRED" });
  t.match(await ask(head(command, true)), { type: "accepted", known: false });
  await until(() => runs.length === 1);
});

t.test("what comes with an acknowledgement is written down before the acknowledgement counts", async (t) => {
  const journal = await openJournal({ file: join(t.testdir(), "journal.db"), clock });
  const command = newCommandId();
  const order: string[] = [];
  const gate = Promise.withResolvers<void>();
  const outbox = new ReportOutbox({
    journal,
    redactor: createRedactor(),
    clock,
    log,
    async handed({ released, fenced, settled }) {
      order.push(`released ${released.length}, fenced ${fenced.length}, settled ${settled.length}`);
      await gate.promise;
      order.push("written");
    },
    acknowledged: () => void order.push("acknowledged"),
  });
  const link = await testLink({
    onCloudStream: (stream) =>
      void (async () => {
        stream.respond({ type: "reports" });
        // Before any report, and of no number.
        await stream.write(ndjsonLine({ committedThrough: 0, settled: [newCommandId()] }));
        for await (const _ of readNdjson(stream.bytes))
          await stream.write(ndjsonLine({ committedThrough: 1, released: [command], fenced: [command] }));
      })().catch(() => undefined),
  });
  const serving = outbox.serve(link.session);
  await until(() => order.length === 1);
  t.same(order, ["released 0, fenced 0, settled 1"]);
  await journal.report(command, [{ type: "command.running" }]);
  gate.resolve();
  await until(() => order.includes("acknowledged"));
  t.same(order, [
    "released 0, fenced 0, settled 1",
    "written",
    "released 1, fenced 1, settled 0",
    "written",
    "acknowledged",
  ]);
  t.equal(await journal.unacknowledged(command), false);
  await link.close();
  await serving;
  await journal.close();
});
