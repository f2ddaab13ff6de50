// `sallyport deployment` as its users meet it: a program off a terminal, against the real API; the agents are the test's.
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { ConnectorError, replicaName, type DeploymentStatus } from "@sallyport/protocol";
import t from "tap";
import { apiWorld, logLine, type ApiWorld } from "../../test/support/api-world.ts";
import { accept, answer, type FakeAgent } from "../../test/support/fake-agent.ts";
import { connectKnown, observedOf, say } from "../../test/support/fake-deployments.ts";
import { entryFile, runProgram, tempDir } from "../../test/support/launcher.ts";
import type { Deployment, DeploymentDetail } from "../http/api.ts";

let world: ApiWorld;
let agent: FakeAgent;
let folder: string;
const main = entryFile("cloud/cli/main");
const cli = (...args: string[]) =>
  runProgram(t, {
    name: "sallyport",
    args: [main, "deployment", ...args],
    env: { HOME: folder, SALLYPORT_URL: world.url, SALLYPORT_TOKEN: world.token },
  });
const file = (name: string, text: string): string => {
  writeFileSync(join(folder, name), text);
  return join(folder, name);
};
const DOCUMENT = (more: string) => `
pool: vpc
name: digits
spec:
  model: { store: lake, path: models/digits.onnx, digest: "sha256:${"ab".repeat(32)}" }
${more}`;

/** Takes applies and stands as `outcome` says, at once. */
let outcome: (of: Deployment) => Partial<DeploymentStatus> = () => ({});
async function stand(id: string): Promise<void> {
  const of = await world.api.json<DeploymentDetail>(`/v1/deployments/${id}`);
  const replicas = Array.from({ length: of.spec.replicas }, (_, number) => ({
    name: replicaName(of.revision, number),
    revision: of.revision,
    number,
    state: "ready" as const,
    code: null,
    message: null,
    since: Date.now() - 5000,
    startedAt: Date.now() - 65_000,
    starts: 2,
    adopted: number === 0,
    lastExit: null,
  }));
  await say(world.store, agent, [observedOf(of, { replicas, ...outcome(of) })]);
}

t.before(async () => {
  folder = tempDir(t, "home");
  world = await apiWorld(t);
  agent = await world.replica("prod-1");
  agent.handlers.set("deployment.apply", ({ intent, input, stream }) => {
    accept(stream);
    const id = (input as { deployment: string }).deployment;
    void agent
      .report([{ command: intent.command, body: { type: "command.succeeded", result: {} } }])
      .then(() => stand(id));
  });
  agent.handlers.set("deployment.remove", ({ intent, stream }) => {
    accept(stream);
    void agent.report([{ command: intent.command, body: { type: "command.succeeded", result: {} } }]);
  });
});

t.test("bad input: each its own sentence and exit code", async (t) => {
  for (const [args, code, says] of [
    [["apply"], 2, /--file/],
    [["apply", "-f", join(folder, "none.yaml")], 2, /none\.yaml cannot be read: there is no such file/],
    [["apply", "-f", file("list.yaml", "[1]")], 2, /holds no deployment/],
    [["apply", "-f", file("bad.yaml", "a: [")], 2, /neither YAML nor JSON/],
    [["apply", "-f", file("bare.yaml", "model: {}")], 2, /names no pool: add --pool/],
    [["apply", "-f", file("spec.yaml", DOCUMENT("  replicas: many"))], 2, /body\.spec\.replicas[\s\S]*INPUT_INVALID/],
    [["apply", "-f", file("pool.yaml", DOCUMENT("")), "--pool", "nowhere"], 3, /nowhere/],
    [["get", "digits"], 3, /no deployment digits; there are none/],
    [["scale", "digits", "two"], 3, /no deployment/],
    [["rollback", "dep_00000000000000000000000000000000"], 3, /NOT_FOUND/],
    [["request", "digits", "--timeout", "0"], 2, /between 0\.1 and 120/],
  ] as const) {
    const result = await cli(...args);
    t.equal(result.code, code, `${args.join(" ")}: ${result.stderr.trim()}`);
    t.match(result.stderr, says);
    t.equal(result.stdout, "");
  }
});

t.test("apply, look, compare, scale, roll back, remove", async (t) => {
  const one = file("one.yaml", DOCUMENT("  replicas: 1"));
  t.match(await cli("diff", "-f", one), { code: 1, stderr: /an apply would make it/ });
  t.match(await cli("apply", "-f", one), {
    code: 0,
    stdout: /^dep_[0-9a-f]{32}\n$/,
    stderr: /queued: No agent of pool vpc/,
  });
  t.match(await cli("apply", "-f", one, "--wait", "--timeout", "1"), { code: 8, stderr: /No agent of pool vpc/ });
  await connectKnown(world.store, agent);
  const applied = await cli("apply", "-f", one, "--wait");
  t.match(applied, { code: 0, stderr: /nothing changes in the spec[\s\S]*available, 1 of 1 ready/ });
  t.match(await cli("get", "digits"), {
    code: 0,
    stdout:
      /endpoint +http:\/\/10\.0\.0\.1[\s\S]*REPLICA +STATE +SINCE +AGE +RESTARTS[^\n]*\nr1\.0 +ready +\d+ s +1 min +1 +yes/,
  });
  t.match(await cli("get", applied.stdout.trim(), "-o", "name"), { stdout: "digits\n" });
  t.match(await cli("ls"), { stdout: /digits +vpc +available +1\/1 +1 +prod-1/ });

  const two = file("two.yaml", DOCUMENT("  replicas: 9\n  env: { LEVEL: debug }"));
  const diff = await cli("diff", "-f", two);
  t.match(diff, {
    code: 1,
    stdout: "+ env.LEVEL: debug\n~ replicas: 1 -> 9\nrevision 2: replicas are made anew, one after the other\n",
    stderr: /will be refused: replicas: Agent prod-1 allows 3 at most \(policy\.ceilings\.replicas\)/,
  });
  t.match(await cli("diff", "-f", one), { code: 0, stdout: /nothing changes/ });
  t.match(await cli("scale", "digits", "two"), { code: 2, stderr: /two is not a whole number/ });
  t.match(await cli("scale", "digits", "2", "--wait"), { code: 0, stderr: /2 replicas of revision 1 are ready/ });
  t.match(await cli("rollback", "digits"), { code: 6, stderr: /no earlier revision/ });
  t.match(await cli("apply", "-f", file("three.yaml", DOCUMENT("  env: { LEVEL: debug }")), "--wait", "-o", "json"), {
    code: 0,
    stdout: /"state": "available"/,
  });
  t.match(await cli("rollback", "digits", "--wait"), { code: 0, stderr: /revision 3 repeats revision 1/ });
  t.match(await cli("revisions", "digits"), { stdout: /REVISION +REPEATS[^\n]*\n3 \* +1 .*\n2 +- .*\n1 +- / });
  t.match(await cli("rm", "digits"), { code: 2, stderr: /add --yes/ });
  t.match(await cli("rm", "digits", "--yes", "--wait"), { code: 0 });
  t.match(await cli("ls"), { code: 0, stderr: /nothing to list/ });
});

t.test("what does not come up ends the wait with the condition's sentence, code and fix", async (t) => {
  outcome = () => ({
    state: "failed",
    replicasReady: 0,
    conditions: [
      {
        type: "available",
        ok: false,
        code: "CRASH_LOOP",
        message: "Replica r1.0 ended 5 times, the last time with \u001b[2J\u009bexit code 1.",
        fix: "Look at what it wrote.",
        since: 1,
        details: { replica: "r1.0" },
      },
    ],
  });
  const failed = await cli("apply", "-f", file("one.yaml", DOCUMENT("")), "--wait");
  // oxlint-disable-next-line no-control-regex
  t.notMatch(failed.stderr, /[\u001b\u009b]/, "an agent's words do not move the terminal's cursor");
  t.match(failed, {
    code: 1,
    stderr: /Replica r1\.0 ended 5 times[\s\S]*fix: .*sallyport deployment logs digits r1\.0[\s\S]*CRASH_LOOP/,
  });
  outcome = () => ({});
  agent.handlers.set("deployment.logs", async ({ input, stream }) => {
    const { deployment, replica } = input as { deployment: string; replica: string };
    answer(stream, { deployment, replica, start: 1, lastSeq: 1, ended: true }, {});
    await stream.write(logLine(1, `${replica} \u0007said`));
    await stream.end();
  });
  t.match(await cli("logs", "digits", "r1.0", "--tail", "5"), { code: 0, stdout: "r1.0 \uFFFDsaid\n" });
  t.match(await cli("logs", "digits", "one"), { code: 2, stderr: /INPUT_INVALID/ });

  const was = agent.handlers.get("deployment.apply")!;
  agent.handlers.set("deployment.apply", () => {
    throw new ConnectorError("POLICY_DENIED", "The agent's policy allows replicas of at most 3; 9 were asked for.", {
      fix: "policy: { ceilings: { replicas: 9 } }",
    });
  });
  t.match(await cli("scale", "digits", "9", "--wait"), {
    code: 5,
    stderr: /allows replicas of at most 3[\s\S]*fix: policy: .*[\s\S]*POLICY_DENIED/,
  });
  agent.handlers.set("deployment.apply", was);
});

t.test("a request: the answer on stdout, who answered on stderr", async (t) => {
  const asked: { method: string; path: string; body?: string }[] = [];
  agent.handlers.set("deployment.request", async ({ input, stream }) => {
    asked.push(input);
    const bad = asked.at(-1)!.body === "{}";
    answer(stream, { status: bad ? 400 : 200, mediaType: "application/json", replica: "r1.0", tookMs: 2 }, {});
    await stream.write(Buffer.from(bad ? '{"error":"input pixels is missing"}' : '{"outputs":[]}'));
    await stream.end();
  });
  t.match(await cli("request", "digits", "-d", `@${file("request.json", '{"inputs":[]}')}`), {
    code: 0,
    stdout: '{"outputs":[]}',
    stderr: /replica r1\.0 answered 200 in 2\.0 ms/,
  });
  t.match(await cli("request", "digits", "-d", "{}"), { code: 2, stdout: /pixels is missing/, stderr: /answered 400/ });
  t.match(await cli("request", "digits", "--path", "/v2/health/ready"), { code: 0 });
  t.match(asked, [
    { method: "POST", path: "/v2/models/digits/infer", body: '{"inputs":[]}' },
    {},
    { method: "GET", path: "/v2/health/ready" },
  ]);
  t.match(await cli("request", "digits", "-d", `@${join(folder, "none")}`), {
    code: 2,
    stderr: /there is no such file/,
  });
  await agent.cut();
  t.match(await cli("request", "digits", "-d", "{}"), { code: 7, stderr: /AGENT_OFFLINE/ });
});
