// Both ends of the link over a real WebSocket on loopback: enrolment, streams, and what ends them.
import { createHash, randomBytes } from "node:crypto";
import { statSync } from "node:fs";
import { join } from "node:path";
import { ConnectorError, type LinkStream } from "@sallyport/protocol";
import t from "tap";
import { startAgentEnd } from "./agent-end.ts";
import { startCloudEnd } from "./cloud-end.ts";

const collect = async (stream: LinkStream): Promise<Buffer> => {
  const chunks: Buffer[] = [];
  for await (const chunk of stream.bytes) chunks.push(Buffer.from(chunk));
  return Buffer.concat(chunks);
};

t.test("an agent enrols, answers a unary command, and streams both ways", async (t) => {
  const cloud = await startCloudEnd();
  t.teardown(() => cloud.stop());
  const agent = startAgentEnd({ url: cloud.url, enrolment: cloud.enrolment() });
  t.teardown(() => agent.stop());
  const session = await agent.online();
  const there = cloud.gateway.sessions.ofReplica(cloud.directory.workspace, session.replica)!;
  t.equal(there.id, session.id);
  t.equal(session.epoch, 1);
  t.equal(session.incarnation, cloud.incarnation);
  t.ok(session.commandKeys.has("command-1"));
  t.ok(Math.abs(session.cloudNow() - Date.now()) < 1000);
  t.equal(statSync(join(agent.stateDirectory, "identity.key")).mode & 0o777, 0o600);

  agent.onStream = (stream) => {
    const head = stream.head as { type: string };
    if (head.type === "unary") stream.respond({ echo: stream.head }, { end: true });
    else {
      stream.respond({ ok: true });
      void (async () => {
        for await (const chunk of stream.bytes) await stream.write(Buffer.from(chunk));
        await stream.end();
      })();
    }
  };
  const unary = there.open({ type: "unary", text: "grüße" }, { lane: "interactive", end: true });
  t.same(await unary.answer, { echo: { type: "unary", text: "grüße" } });
  t.equal((await collect(unary)).length, 0);

  for (const lane of ["interactive", "bulk"] as const) {
    const stream = there.open({ type: "echo" }, { lane });
    const sent = randomBytes(5_000_001);
    const back = collect(stream);
    for (let at = 0; at < sent.length; at += 70_000) await stream.write(sent.subarray(at, at + 70_000));
    await stream.end();
    const received = await back;
    t.equal(createHash("sha256").update(received).digest("hex"), createHash("sha256").update(sent).digest("hex"), lane);
  }
});

t.test("a reset reaches the other side with its code, from either side", async (t) => {
  const cloud = await startCloudEnd();
  t.teardown(() => cloud.stop());
  const agent = startAgentEnd({ url: cloud.url, enrolment: cloud.enrolment() });
  t.teardown(() => agent.stop());
  const session = await agent.online();
  const there = cloud.gateway.sessions.all()[0]!;
  agent.onStream = (stream) =>
    stream.reset(new ConnectorError("POLICY_DENIED", "No.", { fix: "Ask.", details: { rule: "r1" } }));
  await t.rejects(there.open({}, { lane: "interactive", end: true }).answer, {
    code: "POLICY_DENIED",
    fix: "Ask.",
    details: { rule: "r1" },
  });

  const accepted = new Promise<LinkStream>((resolve) => {
    agent.onStream = resolve;
  });
  const controller = new AbortController();
  const stream = there.open({}, { lane: "bulk", signal: controller.signal });
  const far = await accepted;
  far.respond({});
  await stream.answer;
  controller.abort(new ConnectorError("CANCELLED", "Enough."));
  await new Promise((resolve) => far.signal.addEventListener("abort", resolve, { once: true }));
  t.equal((far.signal.reason as ConnectorError).code, "CANCELLED");
  await t.rejects(far.write(Buffer.from("x")), { code: "CANCELLED" });
  await t.rejects(collect(stream), { code: "CANCELLED" });
  t.equal(session.rttMs, null);
});
