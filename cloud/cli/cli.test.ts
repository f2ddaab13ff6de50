// The command line as its users meet it: a program with arguments, stdin, two outputs and an exit code, off a terminal,
// against the real API over real sockets.
import { createHash, randomBytes } from "node:crypto";
import { existsSync, readFileSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { jsonBody, systemClock, type ReportBody } from "@sallyport/protocol";
import t from "tap";
import { Authenticator, signInUrl } from "../auth/index.ts";
import { agentRoutes } from "../http/routes/agents.ts";
import { sessionRoutes } from "../http/routes/session.ts";
import { tokenRoutes } from "../http/routes/tokens.ts";
import { apiWorld, logLine, serveLake, type ApiWorld, type Held } from "../../test/support/api-world.ts";
import { accept, type FakeAgent } from "../../test/support/fake-agent.ts";
import { entryFile, runProgram, startProgram, tempDir, waitFor } from "../../test/support/launcher.ts";
import { startTcpProxy } from "../../test/support/tcp-proxy.ts";
import type { RunDetail } from "../http/api.ts";

let world: ApiWorld;
let agent: FakeAgent;
let home: string;
const files = new Map<string, Held>();
const main = entryFile("cloud/cli/main");
const env = (more: Record<string, string> = {}) => ({ HOME: home, XDG_CONFIG_HOME: join(home, "config"), ...more });
const cli = (args: string[], more: { input?: string; env?: Record<string, string> } = {}) =>
  runProgram(t, {
    name: "sallyport",
    args: [main, ...args],
    env: env(more.env),
    ...(more.input === undefined ? {} : { input: more.input }),
  });

t.before(async () => {
  home = tempDir(t, "home");
  world = await apiWorld(t, ({ store }) => [
    sessionRoutes({
      store,
      authenticator: new Authenticator(store, systemClock),
      clock: systemClock,
      version: "test",
      secureCookies: false,
    }),
    tokenRoutes({ store, clock: systemClock }),
    agentRoutes({
      store,
      clock: systemClock,
      links: { ofReplica: () => null, revoke: () => {}, changeKey: async () => false },
    }),
  ]);
  agent = await world.replica("prod-1");
  serveLake(agent, files);
  files.set("data/a.txt", { bytes: Buffer.from("hello\u001b[31m"), version: "v1", mediaType: "text/plain" });
});

t.test("signing in: by token on stdin or by sign-in URL, kept where only the owner reads", async (t) => {
  t.match(await cli(["whoami"]), { code: 4, stdout: "", stderr: /sallyport login/ });
  t.match(await cli(["login", world.url], { input: "nonsense\n" }), { code: 2 });
  t.match(await cli(["login", world.url], { input: `spt_${"x".repeat(49)}\n` }), {
    code: 4,
    stderr: /UNAUTHENTICATED, request req_/,
  });
  const secret = await new Authenticator(world.store, systemClock).offerSignIn(
    (await world.store.userByName("admin"))!,
  );
  const link = signInUrl(world.url, secret);
  t.match(await cli(["login", link]), { code: 0, stdout: "" });
  const file = join(home, "config/sallyport/context.json");
  t.equal(statSync(file).mode & 0o777, 0o600);
  t.match(await cli(["whoami", "-o", "name"]), { code: 0, stdout: "admin\n" });
  t.match(await cli(["login", link]), { code: 4 }, "the URL works once");
  t.match(await cli(["whoami"]), { code: 0 }, "a failed login changes nothing");
  t.ok((await world.store.tokens(world.scope)).some((token) => token.label.startsWith("cli ")));
  t.match(await cli(["logout"]), { code: 0 });
  t.match(await cli(["whoami"]), { code: 4 });
  t.match(await cli(["login", world.url], { input: `${world.token}\n` }), { code: 0 });
});

t.test("exit codes say what kind of failure, with sentence, fix, code and request id on stderr", async (t) => {
  t.match(await cli(["artifact", "ls", "vpc/lake"]), {
    code: 7,
    stdout: "",
    stderr: /fix: Start the agent[\s\S]*AGENT_OFFLINE, request req_/,
  });
  await agent.connect();
  for (const [args, code, says] of [
    [["artifact", "get", "vpc/lake/none", join(home, "x")], 3, /ARTIFACT_NOT_FOUND/],
    [["artifact", "ls", "nowhere/lake"], 3, /nowhere/],
    [["artifact", "get", "vpc/lake/a/../b", join(home, "x")], 2, /PATH_INVALID/],
    [["artifact", "put", main, "vpc/lake/forbidden/x"], 5, /POLICY_DENIED/],
    [["artifact", "put", main, "vpc/lake/data/a.txt"], 6, /ARTIFACT_EXISTS/],
    [["artifact", "rm", "vpc/lake/data/a.txt", "--if-match", "old"], 6, /PRECONDITION_FAILED/],
    [["artifact", "put", home, "vpc/lake/data/b"], 2, /is a folder/],
    [["login", "--ca", join(home, "none.pem"), world.url], 2, /none\.pem cannot be read/],
    [["artifact", "nonsense"], 2, /nonsense/],
    [["run", "get", "run_00000000000000000000000000000000"], 3, /NOT_FOUND/],
    [["run", "get", "nope"], 2, /nope/],
    [["artifact", "ls", "vpc/lake", "-o", "yaml"], 2, /yaml/],
    [["api", "GET", "/v1/nope"], 3, /./],
  ] as const) {
    const result = await cli([...args]);
    t.equal(result.code, code, `${args.join(" ")}: ${result.stderr.trim()}`);
    t.match(result.stderr, says);
    t.equal(result.stdout, "");
  }
  t.match(await cli(["whoami"], { env: { SALLYPORT_URL: "http://127.0.0.1:1", SALLYPORT_TOKEN: "spt_x" } }), {
    code: 7,
    stderr: /127\.0\.0\.1:1/,
  });
  t.notOk(existsSync(join(home, "x")), "nothing is left of a failed get");
});

t.test("artifacts: tables, JSON, names; there and back", async (t) => {
  const table = await cli(["artifact", "ls", "vpc/lake"]);
  t.match(table.stdout, /^NAME +SIZE.*\na\.txt +10 B/);
  t.notOk(table.stdout.includes("\u001b"), "no colour off a terminal");
  t.match(await cli(["artifact", "ls", "vpc/lake", "-o", "name"]), { stdout: "data/a.txt\n" });
  t.match(JSON.parse((await cli(["artifact", "ls", "vpc/lake", "-o", "json"])).stdout), [
    { path: "data/a.txt", sizeBytes: 10 },
  ]);
  const bytes = randomBytes(2_000_003);
  const source = join(home, "source.bin");
  writeFileSync(source, bytes);
  t.match(await cli(["artifact", "put", source, "vpc/lake/up/x.bin", "-o", "json"]), {
    code: 0,
    stdout: new RegExp(createHash("sha256").update(bytes).digest("hex")),
  });
  const target = join(home, "target.bin");
  t.match(await cli(["artifact", "get", "vpc/lake/up/x.bin", target]), { code: 0, stdout: "" });
  t.ok(readFileSync(target).equals(bytes));
  t.match(
    await cli(["artifact", "get", "vpc/lake/data/a.txt", "-"]),
    { code: 0, stdout: "hello\u001b[31m" },
    "bytes as they are",
  );
  t.match(await cli(["artifact", "put", "-", "vpc/lake/up/stdin"], { input: "from stdin" }), { code: 0 });
  t.equal(files.get("up/stdin")!.bytes.toString(), "from stdin");
  const version = files.get("up/x.bin")!.version;
  t.match(
    await cli(["artifact", "rm", "vpc/lake/up/x.bin", "--if-match", version]),
    { code: 0 },
    "a version as it is shown, whatever its characters",
  );
});

t.test("a get whose connection to the control plane breaks goes on from there", async (t) => {
  const bytes = randomBytes(24_000_000);
  files.set("big", { bytes, version: "big1", mediaType: "application/octet-stream" });
  const proxy = await startTcpProxy(t, { port: world.port });
  const target = join(home, "big.bin");
  const program = startProgram(t, {
    name: "sallyport",
    args: [main, "artifact", "get", "vpc/lake/big", target],
    env: env({ SALLYPORT_URL: `http://127.0.0.1:${proxy.port}`, SALLYPORT_TOKEN: world.token }),
  });
  let cuts = 0;
  const part = () => readdirSync(home).find((name) => name.startsWith("big.bin.part"));
  await waitFor(
    "some of it has come",
    () => {
      const name = part();
      if (name === undefined || statSync(join(home, name)).size < 1_000_000) return false;
      proxy.cut();
      return ++cuts;
    },
    { everyMs: 1 },
  );
  t.match(await program.exited, { code: 0 });
  t.ok(readFileSync(target).equals(bytes));
  t.equal(part(), undefined);
});

t.test("runs: start, wait, follow, logs, cancel", async (t) => {
  const file = join(home, "p.yaml");
  writeFileSync(
    file,
    "name: p\noutputs: { store: lake }\nparams: { epochs: {} }\nsteps:\n  - { name: a, program: node }\n",
  );
  const finish = async (command: string, run: string, error: { code: string; message: string } | null) => {
    const step = {
      type: "step",
      run: run as never,
      step: "a",
      attempt: 1,
      state: error === null ? "succeeded" : "failed",
      error,
      exitCode: error === null ? 0 : 3,
      outputs: [],
      logSeq: 2,
      adopted: false,
    } satisfies ReportBody;
    await agent.report([
      { command, body: { type: "command.running" } },
      { command, body: step },
      { command, body: error === null ? { type: "command.succeeded", result: {} } : { type: "command.failed", error } },
    ]);
  };
  let fails = false;
  agent.handlers.set("pipeline.run", ({ intent, input, stream }) => {
    accept(stream);
    void finish(
      intent.command,
      (input as { run: string }).run,
      fails ? { code: "STEP_FAILED", message: "Step a ended with 3." } : null,
    );
  });
  agent.handlers.set("run.logs", async ({ input, stream }) => {
    stream.respond({
      type: "result",
      body: jsonBody({ run: (input as { run: string }).run, step: "a", attempt: 1, lastSeq: 2, ended: true }),
    });
    await stream.write(Buffer.concat([logLine(1, "one\u0007"), logLine(2, "two")]));
    await stream.end();
  });
  t.match(await cli(["run", "start", file, "--pool", "vpc"]), { code: 2, stderr: /PIPELINE_INVALID/ });
  const done = await cli(["run", "start", file, "--pool", "vpc", "--param", "epochs=3", "--wait"]);
  t.match(done, { code: 0, stdout: /^run_[0-9a-f]{32}\n$/, stderr: /succeeded/ });
  const id = done.stdout.trim();
  t.match(await cli(["run", "logs", id]), { code: 0, stdout: "one\uFFFD\ntwo\n" });
  const got = JSON.parse((await cli(["run", "get", id, "-o", "json"])).stdout) as RunDetail;
  t.match(got, { state: "succeeded", params: { epochs: 3 } });
  t.match(await cli(["run", "ls", "-o", "name"]), { code: 0, stdout: new RegExp(id) });
  t.match(await cli(["command", "show", got.command]), { code: 0, stdout: /kind +pipeline\.run/ });
  fails = true;
  t.match(await cli(["run", "start", file, "--pool", "vpc", "-p", "epochs=3", "--follow"]), {
    code: 1,
    stdout: /two/,
    stderr: /STEP_FAILED/,
  });
  await agent.cut();
  const waits = await cli(["run", "start", file, "--pool", "vpc", "-p", "epochs=3"]);
  t.match(waits, { code: 0, stderr: /waiting: No agent of pool vpc/ });
  t.match(await cli(["command", "ls", "--state", "queued"]), { stdout: /queued \(AGENT_OFFLINE\)/ });
  t.match(await cli(["run", "cancel", waits.stdout.trim(), "--wait"]), { code: 0 });
  t.same(agent.faults, []);
});

t.test("why a command waits, and declaring it lost; a run again; the limit of a pool", async (t) => {
  const file = join(home, "again.yaml");
  writeFileSync(
    file,
    "name: again\noutputs: {store: lake}\nparams: {epochs: {default: 1}}\nsteps: [{name: a, program: node}]\n",
  );
  const held = await world.replica("explain-1", "explain");
  held.handlers.set("pipeline.run", ({ stream }) => accept(stream));
  await held.connect();
  const start = async (...more: string[]) =>
    (await cli(["run", "start", file, "--pool", "explain", ...more])).stdout.trim();
  const commandOf = async (run: string) => (await world.api.json<RunDetail>(`/v1/runs/${run}`)).command;
  const first = await start("-p", "epochs=2");
  const id = await commandOf(first);
  await waitFor("it is taken", async () => (await world.store.command(world.scope, id as never))?.state === "accepted");
  t.match(await cli(["command", "lost", id, "--reason", "gone"]), {
    code: 6,
    stderr: /explain-1, which has it, is connected/,
  });
  t.match(await cli(["pool", "limit", "explain", "--max-runs", "1"]), { code: 0, stderr: /takes 1 run at a time/ });
  t.match(await cli(["pool", "limit", "explain", "--max-runs", "0"]), { code: 2 });
  t.match(await cli(["pool", "ls"]), { code: 0, stdout: /explain +\S.* +1 / });
  const second = (await cli(["run", "rerun", first, "-p", "epochs=9", "--priority", "5", "-o", "json"])).stdout;
  t.match(JSON.parse(second), { rerunOf: first, params: { epochs: 9 }, priority: 5, waiting: { code: "OFFERED" } });
  const waits = (JSON.parse(second) as RunDetail).command;
  const explained = await cli(["command", "explain", waits]);
  t.match(explained, { code: 0, stdout: /waiting +CONCURRENCY_LIMIT/ });
  t.match(explained.stdout, /why +Pool explain takes 1 run at a time.*number 1 of 1/);
  t.match(
    explained.stdout,
    new RegExp(`number 1 of 1 in the queue; the slots are held by\n  ${first}  again, accepted on explain-1`),
  );
  t.match(explained.stdout, /Z {2}asked for by admin/);
  await held.cut();
  t.match(await cli(["command", "explain", id]), {
    stdout: /what became of it is unknown[\s\S]*settled by +The journal of explain-1 settles it/,
  });
  t.match(await cli(["command", "lost", id]), { code: 2 });
  t.match(await cli(["command", "lost", id, "--reason", "the host is gone"]), { code: 0, stdout: "" });
  t.match(await cli(["command", "explain", id]), { stdout: /state +lost[\s\S]*declared it lost: the host is gone/ });
  t.match(await cli(["command", "explain", "0199"]), { code: 2 });
  for (const wrong of [
    ["--priority", "high"],
    ["--expires-in", "soon"],
    ["--not-before", "tomorrow"],
  ])
    t.match(await cli(["run", "rerun", first, ...wrong]), { code: 2, stderr: new RegExp(wrong[0]!) });
  const later = await start("--not-before", "90m", "--expires-in", "2h");
  const row = await world.api.json<RunDetail>(`/v1/runs/${later}`);
  t.equal(row.expiresAt - row.notBefore, 2 * 3600_000);
  t.match(await cli(["command", "explain", row.command]), { stdout: /NOT_BEFORE/ });
  const picky = await start("--require", "gpu=a100");
  t.same((await world.store.command(world.scope, (await commandOf(picky)) as never))?.requires, { gpu: "a100" });
  t.match(await cli(["run", "start", file, "--pool", "explain", "--require", "gpu"]), {
    code: 2,
    stderr: /label=value/,
  });
});
